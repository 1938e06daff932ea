import copy

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.training.launch import launch
from unsupseg_cli.training.loop import Schedule, Task, batch_views, fit
from unsupseg_cli.training.tokens import DeviceSource, MemorySource, flat_batches, sample_tokens


class Line(Task):
    """Fits y = w x by noisy steps: a task whose result depends on every batch and random number."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Linear(1, 1)

    def optimizer(self):
        return torch.optim.Adam(self.module.parameters(), lr=0.05)

    def losses(self, views, step):
        x = torch.tensor(views, dtype=torch.float32)[:, None] / 10
        noise = 0.01 * torch.randn(len(views), 1)
        return {"loss": (self.module(x) - 2 * x + noise).square().mean()}


class Memory:
    def __init__(self):
        self.state = None

    def load(self):
        return self.state

    def save(self, state):
        self.state = copy.deepcopy(state)


def run(task, steps, checkpoint=None, **kwargs):
    schedule = Schedule(steps=steps, batch=4, views=10, seed=1, save_every=20)
    fit(task, schedule, Fabric(accelerator="cpu", devices=1), checkpoint=checkpoint, **kwargs)
    return task.module.weight.item(), task.module.bias.item()


def test_training_learns():
    weight, bias = run(Line(), 300)
    assert weight == pytest.approx(2, abs=0.05)
    assert bias == pytest.approx(0, abs=0.05)


def test_a_resumed_run_ends_as_an_uninterrupted_one():
    whole = run(Line(), 50)
    checkpoint = Memory()

    def stop(steps, done):
        for step in steps:
            if done == 0 and step == 33:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        run(Line(), 50, checkpoint, track=stop)
    assert checkpoint.state["step"] == 20
    assert run(Line(), 50, checkpoint, track=stop) == whole


def test_a_loss_that_is_no_number_stops_the_run():
    task = Line()
    task.losses = lambda views, step: {"loss": task.module.weight.sum() * float("nan")}
    with pytest.raises(UnsupsegError, match="step 0"):
        run(task, 3)


def test_an_epoch_shows_every_view_once():
    schedule = Schedule(steps=10, batch=5, views=10, seed=3)
    first = batch_views(schedule, 0) + batch_views(schedule, 1)
    second = batch_views(schedule, 2) + batch_views(schedule, 3)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_batch_larger_than_the_collection_is_the_collection():
    assert sorted(batch_views(Schedule(steps=1, batch=99, views=3, seed=0), 5)) == [0, 1, 2]


def test_tokens_are_sampled_evenly_and_all_are_taken_when_they_fit():
    source = MemorySource([torch.full((2, 3, 4), float(i)) for i in range(4)])
    assert len(torch.cat(list(flat_batches(source)))) == 24
    assert len(sample_tokens(source, 1000, 0)) == 24
    some = sample_tokens(source, 12, 0)
    assert some.shape == (12, 4)
    assert torch.equal(some, sample_tokens(source, 12, 0))


def test_a_device_source_gives_the_same_tokens_elsewhere():
    source = MemorySource([torch.ones(2, 3, 4), torch.zeros(1, 2, 4)])
    moved = DeviceSource(source, torch.device("meta"))
    assert (moved.dim, moved.grids.tolist()) == (4, [[2, 3], [1, 2]])
    assert [(one.device.type, tuple(one.shape)) for one in moved.tokens([1, 0])] == [
        ("meta", (1, 2, 4)),
        ("meta", (2, 3, 4)),
    ]


def test_devices_that_are_not_there_are_named():
    too_many = max(2, torch.cuda.device_count() + 1)
    with pytest.raises(UsageError, match=rf"--devices {too_many} is not possible on 'cuda'"):
        launch(print, accelerator="cuda", devices=too_many)
