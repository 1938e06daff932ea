import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from scipy.optimize import linear_sum_assignment

from unsupseg_cli.clustering.neighbours import nearest_neighbours
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.methods.interface import Inputs
from unsupseg_cli.methods.registry import get_method, import_heads
from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.train import StegoTrainer
from unsupseg_cli.models.heads import build_head
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.loop import Schedule, fit
from unsupseg_cli.training.tokens import MemorySource

CLASSES = 4
SMALL = {"batch": 8, "codes": 8, "feature_samples": 6, "restarts": 4, "sample": 2000}


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors are tiny here: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def world(seed, nuisance=1.5, images=24):
    """Views of 3 of 4 classes; each image adds one direction of its own, longer than the classes', to all tokens."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(24, 8, generator=draw)).Q.T
    views, truth = [], []
    for _ in range(images):
        present = torch.randperm(CLASSES, generator=draw)[:3]
        classes = (
            present[torch.randint(3, (2, 2), generator=draw)].repeat_interleave(4, 0).repeat_interleave(4, 1)
        )
        light = nuisance * F.normalize(torch.randn(4, generator=draw), dim=0) @ directions[4:]
        views.append(directions[classes] + light + 0.35 * torch.randn(8, 8, 24, generator=draw))
        truth.append(classes)
    return MemorySource(views), torch.stack(truth)


def graph(source, k=7):
    views = source.tokens(list(range(len(source.grids))))
    return nearest_neighbours(torch.stack([view.mean((0, 1)) for view in views]), k).indices


def make(source, neighbours=None, classes=CLASSES, seed=0, **options):
    near = graph(source) if neighbours is None else neighbours
    inputs = Inputs(source, classes=classes, seed=seed, graph=near, network=None)
    return StegoTrainer(TrainOptions(**{**SMALL, "steps": 300, **options}), inputs)


def run(trainer, **kwargs):
    views = len(trainer.inputs.features.grids)
    schedule = Schedule(trainer.steps, trainer.batch, views, 0, save_every=20)
    fit(trainer, schedule, Fabric(accelerator="cpu", devices=1), **kwargs)
    return trainer.finish()


def segment(head, source):
    """Segment with the written head alone, as a reader of the model does."""
    import_heads([one["type"] for one in head.feature_heads])
    feature_head = build_head(head.feature_heads[0]).eval()
    names = {name: name.removeprefix("feature_heads.0.") for name in head.tensors}
    feature_head.load_state_dict(
        {names[name]: value for name, value in head.tensors.items() if names[name] != name}
    )
    with torch.no_grad():
        codes = feature_head(torch.stack(source.tokens(list(range(len(source.grids))))))
    return (codes @ F.normalize(head.tensors["class_head.weight"], dim=1).T).argmax(-1)


def accuracy(found, truth):
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, (found.numpy().ravel(), truth.numpy().ravel()), 1)
    return counts[linear_sum_assignment(-counts)].sum() / counts.sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_stego_finds_classes_that_kmeans_on_the_same_features_does_not(seed):
    source, truth = world(seed)
    tokens = torch.cat([view.flatten(0, 1) for view in source.tokens(list(range(24)))])
    plain = accuracy(spherical_kmeans(tokens, CLASSES, restarts=5).labels, truth)
    head = run(make(source, seed=seed))
    assert plain < 0.6
    assert accuracy(segment(head, source), truth) > 0.8
    assert head.warnings == []
    losses = head.figures["probe_losses"]
    assert len(losses) == 4
    assert head.figures["probe_spread"] == pytest.approx(max(losses) - min(losses))
    assert sum(head.figures["class_shares"]) == pytest.approx(1)


def test_one_probe_trained_beside_the_head_is_kept_as_published():
    """Neither several starts nor a new fit: the probe that the loop trained, of the length that it has there."""
    source, truth = world(0)
    trainer = make(source, restarts=1, refit=False)
    head = run(trainer)
    weight = head.tensors["class_head.weight"]
    torch.testing.assert_close(weight, trainer.probe.weight[0].detach())
    assert float(weight.norm(dim=1).mean()) == pytest.approx(
        8**0.5, rel=0.4
    )  # as it was drawn, of 8 channels
    assert head.figures["probe_losses"] == []
    assert len(head.figures["probe_losses_trained"]) == 1
    assert accuracy(segment(head, source), truth) > 0.5


def test_the_log_tells_the_terms_and_the_live_similarities():
    source, _ = world(0)
    records = []
    trainer = make(source, steps=30, restarts=1)
    run(trainer, log=records.append)
    terms = {"self", "knn", "rand", "similarity_self", "similarity_knn", "similarity_rand", "probe", "loss"}
    assert set(records[-1]) == {"step", *terms}
    weighted = sum(trainer.weights[kind] * records[-1][kind] for kind in ("self", "knn", "rand"))
    assert records[-1]["loss"] == pytest.approx(weighted + records[-1]["probe"], abs=1e-5)
    assert all(-1 <= records[-1][f"similarity_{kind}"] <= 1 for kind in trainer.weights)


def test_the_probe_does_not_move_the_head():
    source, _ = world(0)
    trainer = make(source, weights=(0.0, 0.0, 1.0), shifts=(0.0, 0.0, 0.0))
    batch = Batch.alone(0, range(8))
    trainer.module.eval()
    trainer.losses(batch, trainer.read(batch))["loss"].backward()
    with_probe = [one.grad.clone() for one in trainer.head.parameters()]
    other = make(source, weights=(0.0, 0.0, 1.0), shifts=(0.0, 0.0, 0.0))
    other.module.eval()
    other.losses(batch, other.read(batch))["rand"].backward()
    for one, parameter in zip(with_probe, other.head.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
    rates = {group["lr"] for group in trainer.optimizer().param_groups}
    assert rates == {5e-4, 5e-3}


class Memory:
    state = None

    def load(self):
        return self.state

    def save(self, state):
        self.state = copy.deepcopy(state)


def test_a_resumed_run_ends_as_an_uninterrupted_one():
    source, _ = world(0)
    whole = run(make(source, steps=50))
    checkpoint = Memory()

    def stop(steps, done):
        for step in steps:
            if done == 0 and step == 33:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        run(make(source, steps=50), checkpoint=checkpoint, track=stop)
    assert checkpoint.state["step"] == 20
    resumed = run(make(source, steps=50), checkpoint=checkpoint, track=stop)
    assert resumed.figures == whole.figures
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_another_seed_gives_another_head():
    source, _ = world(0)
    first, second = (run(make(source, steps=5, seed=seed)) for seed in (0, 1))
    name = "feature_heads.0.linear.weight"
    assert not torch.equal(first.tensors[name], second.tensors[name])


def test_views_of_different_grids_train_together():
    draw = torch.Generator().manual_seed(0)
    source = MemorySource([torch.randn(4 + i % 3, 5, 12, generator=draw) for i in range(9)])
    neighbours = np.stack([np.delete(np.arange(9), i) for i in range(9)]).astype(np.int32)
    head = run(make(source, neighbours, classes=3, steps=4))
    assert head.class_head == {"type": "cosine", "classes": 3, "dim": 8, "alpha": 2.0}
    assert head.feature_heads == [{"type": "stego", "dim": 12, "codes": 8}]
    torch.testing.assert_close(head.tensors["class_head.weight"].norm(dim=1), torch.ones(3))


def test_a_collapsed_head_is_detected_and_the_cure_named():
    source, _ = world(0)
    head = run(make(source, shifts=(-1.0, -1.0, -1.0)))
    assert head.figures["code_similarity"] > 0.95
    assert len(head.warnings) == 1
    assert "collapsed" in head.warnings[0]
    assert "shifts=auto" in head.warnings[0]
    assert head.figures["attracted"] == pytest.approx({"self": 1, "knn": 1, "rand": 1}, abs=0.01)


def test_shifts_do_not_depend_on_the_call():
    source, _ = world(0)
    first, second = make(source), make(source)
    assert first.shifts == second.shifts
    assert first.attracted == pytest.approx({"self": 0.5, "knn": 0.5, "rand": 0.25}, abs=0.01)
    assert make(source, shifts="0.1,0.2,0.3").shifts == {"self": 0.1, "knn": 0.2, "rand": 0.3}


def test_tokens_that_tell_images_apart_are_warned_of_before_training():
    class Heard(Silent):
        def warn(self, message):
            said.append(message)

    for nuisance, expected in ((0.0, 0), (6.0, 1)):
        said = []
        source, _ = world(0, nuisance)
        inputs = Inputs(source, classes=CLASSES, seed=0, graph=graph(source), network=None, reporter=Heard())
        trainer = StegoTrainer(TrainOptions(**SMALL, steps=1), inputs)
        assert len(said) == expected
        assert all("below k-means" in message for message in said)
        assert (trainer.same_image > 0.4) == bool(expected)


def test_wrong_inputs_are_refused():
    source, _ = world(0, images=6)
    with pytest.raises(UsageError, match="unsupseg graph"):
        StegoTrainer(TrainOptions(), Inputs(source, classes=4, seed=0, graph=None, network=None))
    with pytest.raises(UsageError, match="6 views"):
        make(source, np.zeros((5, 3), np.int32))
    with pytest.raises(UnsupsegError, match="there are 6"):
        make(source, np.full((6, 3), 6, np.int32))
    with pytest.raises(UsageError, match="one class"):
        make(source, classes=1)
    with pytest.raises(UsageError, match="compares images"):
        make(MemorySource(source.tokens([0])), np.zeros((1, 1), np.int32))
    with pytest.raises(UsageError, match="384 patches"):
        make(source, classes=385)
    with pytest.raises(UsageError, match="makes no pseudo-labels"):
        get_method("stego").labeller()


def test_small_collections_work_and_say_so():
    source, _ = world(0, images=3)
    head = run(make(source, graph(source, k=30), steps=3))
    assert any("all 3 views" in warning for warning in head.warnings)
    assert any("2 neighbours" in warning for warning in head.warnings)
