import copy
import os
import threading

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.training.checkpoint import DiskCheckpoint
from unsupseg_cli.training.launch import launch
from unsupseg_cli.training.loop import Schedule, Task, batch_views, fit
from unsupseg_cli.training.tokens import (
    DeviceSource,
    MemorySource,
    draw_tokens,
    flat_batches,
    sample_tokens,
)


class Line(Task):
    """Fits y = w x by noisy steps: a task whose result depends on every batch and random number."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Linear(1, 1)

    def optimizer(self):
        return torch.optim.Adam(self.module.parameters(), lr=0.05)

    def losses(self, batch, read):
        x = torch.tensor(batch.views, dtype=torch.float32)[:, None] / 10
        noise = 0.01 * torch.randn(len(x), 1)
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
    task.losses = lambda batch, read: {"loss": task.module.weight.sum() * float("nan")}
    with pytest.raises(UnsupsegError, match="loss became nan at step 0; look for NaN"):
        run(task, 3)


def test_a_gradient_that_is_no_number_stops_the_run():
    task = Line()
    task.clip_norm = 1.0
    task.losses = lambda batch, read: {
        "loss": (task.module.weight - task.module.weight.detach()).sqrt().sum()
    }
    with pytest.raises(UnsupsegError, match=r"gradient became .* at step 0"):
        run(task, 3)


class Steep(Task):
    """Plain gradient descent on 3 a + 0.5 b: every step shows the gradient."""

    def __init__(self, **attributes):
        self.module = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.__dict__.update(attributes)

    def optimizer(self):
        return torch.optim.SGD(self.module.parameters(), lr=1.0)

    def losses(self, batch, read):
        return {"loss": self.module(torch.tensor([[3.0, 0.5]])).sum()}

    def moved(self, steps=1, **given):
        fit(self, Schedule(steps, 4, 8, 0), Fabric(accelerator="cpu", devices=1), **given)
        return (-self.module.weight[0]).tolist()


def test_gradients_are_clipped_by_value_or_by_norm():
    assert Steep().moved() == [3.0, 0.5]
    assert Steep(clip_value=1.0).moved() == [1.0, 0.5]
    records = []
    moved = Steep(clip_norm=1.0).moved(log=records.append)
    assert np.hypot(*moved) == pytest.approx(1, abs=1e-5)
    assert moved[0] == pytest.approx(6 * moved[1])
    assert records[0]["gradient"] == pytest.approx(np.hypot(3, 0.5))


def test_the_learning_rate_follows_the_progress():
    records = []
    task = Steep()
    task.rate = lambda progress: 1.0 if progress < 0.5 else 0.1
    assert task.moved(4, log=records.append)[0] == pytest.approx(3 * 2.2)
    assert [one["learning_rate"] for one in records] == [1.0, pytest.approx(0.1)]


def test_parts_of_a_step_add_up_to_the_step():
    class Mean(Line):
        def losses(self, batch, read):
            x = torch.tensor(batch.views, dtype=torch.float32)[:, None] / 10
            return {"loss": (self.module(x) - 2 * x).square().mean()}

    whole, parts = Mean(), Mean()
    parts.accumulate = 2
    assert run(parts, 10) == pytest.approx(run(whole, 10), rel=1e-5)


class Restarted(Line):
    """Starts its module anew every 7 steps and keeps how often, and a moving average."""

    def __init__(self):
        super().__init__()
        self.first = copy.deepcopy(self.module.state_dict())
        self.average, self.restarts, self.calls = torch.zeros(1), 0, []

    def begin(self, optimizer):
        self.calls.append("begin")

    def before_step(self, step, optimizer):
        if step == 0:
            self.calls.append(("before", len(optimizer.state)))

    def after_step(self, step, optimizer):
        self.average.lerp_(self.module.weight.detach()[0], 0.1)
        if step % 7 == 6:
            self.module.load_state_dict(self.first)
            self.restarts += 1
            self.calls.append(("after", len(optimizer.state)))  # its moments survive

    def state(self):
        return {"average": self.average, "restarts": self.restarts}

    def restore(self, state):
        self.average, self.restarts = state["average"], state["restarts"]


def test_hooks_see_the_optimizer_and_their_state_is_resumed():
    whole = Restarted()
    end = run(whole, 50)
    assert whole.calls == ["begin", ("before", 0), *[("after", 2)] * 7]
    checkpoint, resumed = Memory(), Restarted()

    def stop(steps, done):
        for step in steps:
            if step == 33:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        run(Restarted(), 50, checkpoint, track=stop)
    assert run(resumed, 50, checkpoint) == end
    assert (resumed.restarts, resumed.average) == (whole.restarts, whole.average)


def test_the_next_step_is_read_while_a_step_is_computed():
    class Reading(Line):
        def __init__(self):
            super().__init__()
            self.asked = [threading.Event() for _ in range(6)]

        def read(self, batch):
            self.asked[batch.step].set()
            return list(batch.views)

        def losses(self, batch, read):
            assert read == batch.views
            if batch.step + 1 < len(self.asked):
                assert self.asked[batch.step + 1].wait(10)
            return super().losses(batch, read)

    run(Reading(), 6)


def test_what_fails_while_reading_ahead_fails_the_run():
    task = Line()

    def read(batch):
        if batch.step == 2:
            raise UnsupsegError("the shard is damaged")

    task.read = read
    with pytest.raises(UnsupsegError, match="shard is damaged"):
        run(task, 5)


def test_a_checkpoint_of_an_earlier_version_is_named(tmp_path):
    checkpoint = DiskCheckpoint(tmp_path)
    checkpoint.save({"trainer": {}, "seconds": 1.0})
    with pytest.raises(UnsupsegError, match=r"state.pt' was written by an earlier version.*remove"):
        checkpoint.load()


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


@pytest.mark.parametrize("limit", [5, 60, 10_000])
def test_tokens_are_drawn_of_those_that_may_be_and_with_their_views(limit):
    """A token holds its number, so that what is drawn tells where it lay."""
    grids = [(1 + view % 3, 2) for view in range(70)]  # three batches
    cells = torch.tensor(grids).prod(1)
    numbers = torch.arange(int(cells.sum()), dtype=torch.float32)
    parts = zip(numbers.split(cells.tolist()), grids, strict=True)
    source = MemorySource([part.view(*grid, 1) for part, grid in parts])
    within = numbers % 3 == 0
    within[: int(cells[:32].sum())] = False  # none of the first batch
    drawn, views = draw_tokens(source, limit, 0, within=within)
    places = drawn[:, 0].long()
    assert within[places].all()
    assert len(set(places.tolist())) == len(places) == min(limit, int(within.sum()))
    assert torch.equal(views, torch.arange(70).repeat_interleave(cells)[places])


class _Watched(MemorySource):
    """Remembers which views were read."""

    def __init__(self, tokens):
        super().__init__(tokens)
        self.read = []

    def tokens(self, views):
        self.read += views
        return super().tokens(views)


@pytest.mark.parametrize("views", [640, 700, 6400])
def test_a_sample_is_no_larger_than_asked_for_and_reads_no_more_views_than_it_has_tokens(views):
    source = _Watched([torch.full((2, 2, 1), float(view)) for view in range(views)])
    drawn, owners = draw_tokens(source, 20, 0)
    assert len(drawn) == 20
    assert drawn[:, 0].tolist() == owners.tolist() == source.read
    assert np.diff(owners.tolist()).max() < 2 * views / 20 + 64, "over all views"


def test_a_device_source_gives_the_same_tokens_elsewhere():
    source = MemorySource([torch.ones(2, 3, 4), torch.zeros(1, 2, 4)])
    moved = DeviceSource(source, torch.device("meta"))
    assert (moved.dim, moved.grids.tolist()) == (4, [[2, 3], [1, 2]])
    assert [(one.device.type, tuple(one.shape)) for one in moved.tokens([1, 0])] == [
        ("meta", (1, 2, 4)),
        ("meta", (2, 3, 4)),
    ]


class _NeedsCredentials:
    """Can only be read where the variable is set, as a workspace in a bucket can."""

    def __reduce__(self):
        return os.getenv, ("UNSUPSEG_TEST_CREDENTIALS",)


def _write_down(fabric, credentials, path):
    if fabric.global_rank == 0:
        path.write_text(f"{credentials}")


def test_processes_read_their_arguments_in_the_environment_of_the_call(tmp_path, monkeypatch):
    seen = tmp_path / "seen.txt"
    for value in ("first", "second"):  # the server of the first call starts the processes of both
        monkeypatch.setenv("UNSUPSEG_TEST_CREDENTIALS", value)
        launch(_write_down, _NeedsCredentials(), seen, accelerator="cpu", devices=2)
        assert seen.read_text() == value


def test_devices_that_are_not_there_are_named():
    too_many = max(2, torch.cuda.device_count() + 1)
    with pytest.raises(UsageError, match=rf"--devices {too_many} is not possible on 'cuda'"):
        launch(print, accelerator="cuda", devices=too_many)
