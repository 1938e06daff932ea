import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.kmeans.pseudolabel import KMeansLabeller
from unsupseg_cli.methods.kmeans.train import KMeansTrainer
from unsupseg_cli.training.loop import Schedule, fit
from unsupseg_cli.training.tokens import MemorySource


@pytest.fixture(scope="module")
def world():
    """Six images of different size whose tokens scatter around four directions."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(4, 16, generator=generator), dim=-1)
    truth, views = [], []
    for index in range(6):
        classes = torch.randint(4, (5 + index, 7), generator=generator)
        noise = 0.15 * torch.randn(*classes.shape, 16, generator=generator)
        length = 1 + torch.rand(*classes.shape, 1, generator=generator)
        truth.append(classes.numpy())
        views.append(length * (directions[classes] + noise))
    return truth, MemorySource(views)


def agreement(predictions, truth):
    """Tell whether clusters and classes are one-to-one."""
    pairs = {
        (int(p), int(t))
        for a, b in zip(predictions, truth, strict=True)
        for p, t in zip(a.flat, b.flat, strict=False)
    }
    return len(pairs) == 4 and len({p for p, _ in pairs}) == 4


def test_pseudolabels_find_separated_directions(world):
    truth, source = world
    labeller = KMeansLabeller(PseudolabelOptions(), Inputs(source, classes=4, seed=0))
    figures = labeller.fit()
    assert figures["inertia"] == min(figures["inertias"])
    masks = labeller.label(list(range(6)))
    classes = [mask.group[mask.labels] for mask in masks]
    assert agreement(classes, truth)
    for mask in masks:
        assert mask.area.sum() == mask.labels.size
        assert mask.area.tolist() == np.bincount(mask.labels.ravel()).tolist()
        assert ((mask.score > 0.8) & (mask.score <= 1)).all()


@pytest.mark.parametrize("with_labels", [True, False])
def test_training_finds_separated_directions(world, with_labels):
    truth, source = world
    labels = None
    if with_labels:
        labeller = KMeansLabeller(PseudolabelOptions(), Inputs(source, classes=4, seed=0))
        labeller.fit()
        labels = MaskSet([], [], labeller.state())
    options = TrainOptions(steps=40, batch=3, restarts=4)
    trainer = KMeansTrainer(options, Inputs(source, classes=4, seed=0, masks=labels))
    assert (trainer.steps, trainer.batch) == (40, 3)
    fit(trainer, Schedule(trainer.steps, trainer.batch, 6, 0), Fabric(accelerator="cpu", devices=1))
    head = trainer.finish()
    weight = head.tensors["class_head.weight"]
    torch.testing.assert_close(weight.norm(dim=-1), torch.ones(4))
    assert head.figures["losses"][head.figures["best_restart"]] == min(head.figures["losses"])
    classes = [(view @ weight.T).argmax(-1).numpy() for view in source.tokens(list(range(6)))]
    assert agreement(classes, truth)


def test_more_classes_than_tokens_are_refused():
    inputs = Inputs(MemorySource([torch.randn(2, 2, 8)]), classes=5, seed=0)
    with pytest.raises(UnsupsegError, match="5"):
        KMeansLabeller(PseudolabelOptions(), inputs).fit()


def test_features_with_nan_are_refused():
    inputs = Inputs(MemorySource([torch.full((2, 2, 8), float("nan"))]), classes=2, seed=0)
    with pytest.raises(UnsupsegError, match="NaN"):
        KMeansLabeller(PseudolabelOptions(), inputs).fit()
