"""The filter by a detector: what it is taught, and what it finds again."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.methods.maskdistill import detector
from unsupseg_cli.methods.maskdistill.config import FilterOptions
from unsupseg_cli.methods.maskdistill.filter import FilterLabeller
from unsupseg_cli.training import detector as training
from unsupseg_cli.training.tokens import MemorySource

BOXES = [(8, 8, 28, 24), (36, 28, 60, 44)]  # left, top, right, bottom


def scene():
    """An image of two coloured boxes, and their masks on a grid of cells of four pixels."""
    image = np.full((48, 64, 3), 30, np.uint8)
    masks = np.zeros((2, 12, 16), bool)
    for number, (left, top, right, bottom) in enumerate(BOXES):
        image[top:bottom, left:right] = (220, 60, 40) if number else (40, 90, 220)
        masks[number, top // 4 : bottom // 4, left // 4 : right // 4] = True
    return image, masks


class Recorder(Silent):
    def __init__(self):
        self.said = []

    def warn(self, message):
        self.said.append(message)

    def info(self, message):
        self.said.append(message)


def labeller_of(groups, checkpoint=None, **options):
    image, masks = scene()
    inputs = Inputs(
        MemorySource([torch.zeros(12, 16, 2)] * len(groups)),
        seed=0,
        reporter=Recorder(),
        checkpoint=checkpoint,
        images=lambda views: [image for _ in views],
        masks=MaskSet(
            [np.zeros((12, 16), np.int16)] * len(groups),
            [np.array(group, np.int64) for group in groups],
            {},
            lambda view: masks[: len(groups[view])],
        ),
    )
    given = {"source": "detector", "resnet": "random", "detector_epochs": 1, "detector_batch": 1, **options}
    return FilterLabeller(FilterOptions(**given), inputs)


class Pupil(nn.Module):
    """A detector that remembers what it was taught, and finds that of its first lesson, less sure of each next mask."""

    def __init__(self):
        super().__init__()
        self.weight, self.lessons = nn.Parameter(torch.zeros(1)), []

    def forward(self, images, targets=None):
        if targets is not None:
            self.lessons += targets
            return {"loss": self.weight.sum() + 1}
        first = self.lessons[0]
        scores = torch.linspace(0.9, 0.6, len(first["labels"]))
        return [{"masks": first["masks"][:, None] * 0.8, "scores": scores, "labels": first["labels"]}]


@pytest.fixture
def pupil(monkeypatch):
    built = Pupil()
    monkeypatch.setattr(detector, "build_detector", lambda classes, resnet, side: built)
    return built


def test_a_loss_that_is_no_number_ends_the_training_of_the_detector(pupil):
    pupil.weight.data += torch.nan
    with pytest.raises(UnsupsegError, match=r"loss became nan at step 0; lower detector_lr"):
        labeller_of([[2, 1]]).fit()


@pytest.mark.parametrize(
    ("groups", "background", "numbers"),
    [([2, 1], True, [2, 1]), ([2, 0], False, [3, 1]), ([-1, -1], True, [1, 1])],
)
def test_a_detector_is_taught_masks_with_numbers_from_1_and_gives_them_back_as_classes(
    pupil, groups, background, numbers
):
    labeller = labeller_of([groups], background=background, score=0.5)
    assert labeller.fit() == {"detector_views": 1, "detector_loss": 1.0}
    (lesson,) = pupil.lessons
    assert lesson["labels"].tolist() == numbers
    assert lesson["boxes"].tolist() == [list(map(float, box)) for box in BOXES]
    assert lesson["masks"].shape == (2, 48, 64)
    (found,) = labeller.label([0])
    assert found.group.tolist() == groups
    assert found.area.tolist() == [20 * 16, 24 * 16]
    np.testing.assert_allclose(found.score, [0.9, 0.6])
    assert labeller.figures()["kept"] == 2


def test_unsure_objects_go_but_the_best_of_an_image(pupil):
    labeller = labeller_of([[2, 1]], score=0.95)
    labeller.fit()
    assert labeller.label([0])[0].group.tolist() == [2]


class Kept:
    """A checkpoint in memory; the process is killed after a state that is saved before the last."""

    def __init__(self, last):
        self.last, self.state = last, None

    def load(self):
        return copy.deepcopy(self.state)

    def save(self, state):
        self.state = copy.deepcopy(state)
        if state["step"] == 2 < self.last:
            self.last = 0
            raise KeyboardInterrupt


def test_a_detector_whose_training_was_killed_goes_on_where_it_was(monkeypatch):
    monkeypatch.setattr(training, "_SAVE_SECONDS", 0.0)
    built = []

    class Counting(Pupil):
        def forward(self, images, targets=None):
            losses = super().forward(images, targets)
            return {"loss": losses["loss"] * (1 + torch.rand(()))}

    def build(classes, resnet, side):
        built.append(Counting())
        return built[-1]

    monkeypatch.setattr(detector, "build_detector", build)
    options = {"detector_epochs": 4, "detector_lr": 0.1}
    whole = labeller_of([[2, 1]], **options)
    undisturbed = whole.fit()
    checkpoint = Kept(4)
    with pytest.raises(KeyboardInterrupt):
        labeller_of([[2, 1]], checkpoint, **options).fit()
    again = labeller_of([[2, 1]], checkpoint, **options)
    assert again.fit() == undisturbed
    assert again.inputs.reporter.said == ["going on after step 2 of the detector"]
    assert [len(one.lessons) for one in built] == [4, 2, 2]
    torch.testing.assert_close(again.learned(), whole.learned(), rtol=0, atol=0)
    late = labeller_of([[2, 1]], checkpoint, **options)  # killed after the last step
    assert late.fit() == undisturbed
    assert not built[-1].lessons


def test_what_cannot_be_learnt_is_left_out_and_said(pupil):
    labeller = labeller_of([[2, -1], [], [0, 0]], detector_epochs=3)
    labeller.fit()
    assert [lesson["labels"].tolist() for lesson in pupil.lessons] == [
        [2]
    ] * 3  # views without an object teach nothing
    background, without = labeller.inputs.reporter.said
    assert background.startswith("2 masks of class 0, which is the background here, are left out")
    assert without == "the detector does not learn 1 mask without a class"
    with pytest.raises(UsageError, match="no mask that a detector could learn"):
        labeller_of([[], [0]]).fit()


def test_a_step_is_the_same_for_the_same_seed_and_missing_weights_name_both_ways():
    losses = [labeller_of([[2, 1]]).fit()["detector_loss"] for _ in range(2)]
    assert np.isfinite(losses[0])
    assert losses[0] == losses[1]
    with pytest.raises(UnsupsegError, match=r"resnet=FILE.*resnet=hub"):
        labeller_of([[2, 1]], resnet="/nowhere.pth").fit()


def test_options_of_the_detector_have_no_effect_without_it():
    assert FilterOptions(source="detector", crf=True).ineffective().keys() == {"crf"}
    assert FilterOptions(detector_epochs=3, resnet="random").ineffective().keys() == {
        "detector_epochs",
        "resnet",
    }
