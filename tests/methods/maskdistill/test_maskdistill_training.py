"""MaskDistill: the loss of the hardest pixels, what the filter keeps, and the networks."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet50

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.option_files import decided_by
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.methods.maskdistill.config import FilterOptions, TrainOptions
from unsupseg_cli.methods.maskdistill.filter import (
    Candidates,
    FilterLabeller,
    agreed,
    chosen,
    predicted,
)
from unsupseg_cli.methods.maskdistill.objective import hard_pixel_loss
from unsupseg_cli.methods.maskdistill.train import MaskDistillTrainer
from unsupseg_cli.models.deeplab import DeepLab, load_resnet
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.detector import build_detector
from unsupseg_cli.training.tokens import MemorySource


def two_class_scores(losses):
    """Scores (2, 1, n) whose cross-entropy for class 0 is given."""
    probability = torch.tensor(losses).neg().exp()
    return torch.stack([probability.log(), (1 - probability).log()])[:, None]


def test_only_the_hardest_share_of_pixels_with_a_class_counts():
    scores = two_class_scores([1.0, 4.0, 2.0, 3.0, 9.0])
    classes = torch.tensor([[0, 0, 0, 0, -1]])
    assert hard_pixel_loss(scores, classes, 0.5).item() == pytest.approx(3.5)  # 2 of 4: 4 and 3
    assert hard_pixel_loss(scores, classes, 0.6, of_all=True).item() == pytest.approx(3.0)  # 3 of all 5
    assert hard_pixel_loss(scores, classes, 1.0, of_all=True).item() == pytest.approx(
        2.5
    )  # at most the valid 4
    assert hard_pixel_loss(scores, classes, 0.01).item() == pytest.approx(4.0)  # at least one
    assert hard_pixel_loss(scores, torch.full((1, 5), -1), 0.2).item() == 0


def rectangles(*spans):
    masks = np.zeros((len(spans), 4, 12), bool)
    for mask, (rows, columns) in zip(masks, spans, strict=True):
        mask[slice(*rows), slice(*columns)] = True
    return masks


def test_masks_are_pasted_by_score_and_one_that_overlaps_anywhere_is_left_out():
    masks = rectangles(((0, 1), (0, 12)), ((3, 4), (0, 6)), ((3, 4), (5, 8)), ((2, 4), (8, 12)))
    candidates = Candidates(masks, np.array([0.92, 0.95, 0.99, 0.8]), np.arange(4))
    kept, overlapping = chosen(candidates, 0.9)
    assert kept.tolist() == [2, 0]  # 1 shares a pixel with 2; paint in row 0 blocks nothing elsewhere
    assert overlapping == 1


def test_the_best_mask_stays_however_unsure_it_is():
    kept, overlapping = chosen(
        Candidates(rectangles(((0, 2), (0, 3)), ((0, 2), (6, 9))), np.array([0.2, 0.3]), np.zeros(2)), 0.9
    )
    assert (kept.tolist(), overlapping) == ([1], 0)


def test_no_candidate_gives_no_mask():
    kept, overlapping = chosen(Candidates(np.zeros((0, 4, 4), bool), np.zeros(0), np.zeros(0)), 0.9)
    assert (len(kept), overlapping) == (0, 0)


def test_a_mask_without_a_class_gets_the_best_one_but_the_background():
    probs = np.full((3, 4, 12), 0.1, np.float32)
    probs[0], probs[2, :2] = 0.25, 0.3
    found = agreed(rectangles(((0, 2), (0, 4)), ((0, 4), (0, 4))), np.array([-1, 2]), probs, 1)
    assert found.group.tolist() == [2, 2]
    np.testing.assert_allclose(found.score, [1, 0.5], rtol=1e-6)  # the lower half looks like background


def test_predicted_regions_are_connected_and_scored_by_their_mean_probability():
    probs = np.zeros((2, 4, 12), np.float32)
    probs[0] = 0.9
    for columns, value in ((slice(0, 3), 0.95), (slice(6, 8), 0.6)):
        probs[0, 1:3, columns], probs[1, 1:3, columns] = 1 - value, value
    found = predicted(probs, 1)
    assert found.masks.sum((1, 2)).tolist() == [6, 4]
    np.testing.assert_allclose(found.score, [0.95, 0.6], rtol=1e-6)


def test_the_filter_reports_its_yield_at_the_size_of_the_image():
    probs = np.full((3, 8, 24), 0.05, np.float32)
    probs[1, :, :12], probs[0, 2:, 12:] = 0.95, 0.95
    probs[2, :2, 12:] = 0.95
    probs[1, 3, 4:8] = 0
    cells = rectangles(((0, 4), (0, 6)), ((0, 2), (2, 4)), ((0, 4), (6, 12)))
    masks = MaskSet([np.zeros((4, 12), np.int16)], [np.array([1, 1, 2])], {}, lambda view: cells)
    inputs = Inputs(
        MemorySource([torch.zeros(4, 12, 2)]),
        images=lambda views: [np.zeros((8, 24, 3), np.uint8)],
        masks=masks,
        segment=lambda views, images: [torch.from_numpy(probs).log()],
    )
    labeller = FilterLabeller(FilterOptions(), inputs)
    (found,) = labeller.label([0])
    assert found.labels.shape == (8, 24)
    assert (found.area.tolist(), found.group.tolist()) == ([96], [1])
    assert labeller.figures() == {
        "candidates": 3,
        "kept": 1,
        "below_score": 1,
        "overlap_skipped": 1,
        "kept_below_score": 0,
    }
    assert labeller.figures()["candidates"] == 0


def trainer_of(labels, groups, classes=3, **options):
    tokens = [torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(view)) for view in range(2)]
    inputs = Inputs(
        MemorySource(tokens),
        classes=classes,
        seed=0,
        masks=MaskSet(labels, groups, {}),
        images=lambda views: [
            np.random.default_rng(view).integers(0, 256, (28, 42, 3), np.uint8) for view in views
        ],
    )
    return MaskDistillTrainer(TrainOptions(batch=2, **options), inputs)


LABELS = [np.repeat([[0] * 3 + [-1] * 3], 4, 0).astype(np.int16)] * 2


def test_cells_of_no_mask_are_background_unless_told_otherwise():
    for background, expected in ((True, [2, 2, 2, 0, 0, 0]), (False, [2, 2, 2, -1, -1, -1])):
        trainer = trainer_of(LABELS, [np.array([2])] * 2, background=background)
        assert trainer.read(Batch.alone(0, [0]))[0][1][0].tolist() == expected


def test_masks_whose_classes_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="at least --classes 6"):
        trainer_of(LABELS, [np.array([5])] * 2)
    with pytest.raises(UsageError, match="have no classes"):
        trainer_of(LABELS, [np.array([-1])] * 2)


class Recorder(Silent):
    def __init__(self):
        self.said = []

    def warn(self, message):
        self.said.append(message)


@pytest.mark.parametrize(
    ("groups", "options", "said"),
    [
        ([0, 2, 0], {}, "2 masks of class 0, which is the background here"),
        ([1, 2, -1], {}, None),
        ([0, 2, 0], {"background": False}, None),
    ],
)
def test_masks_that_become_background_are_told(groups, options, said):
    """Imported masks have classes from 0 on, and a background is not among them."""
    recorder, masks = Recorder(), MaskSet(LABELS[:1], [np.array(groups)], {})
    inputs = Inputs(MemorySource([torch.zeros(4, 6, 8)]), classes=3, seed=0, masks=masks, reporter=recorder)
    MaskDistillTrainer(TrainOptions(**options), inputs)
    inputs = Inputs(MemorySource([torch.zeros(4, 6, 8)]), masks=masks, reporter=recorder)
    FilterLabeller(FilterOptions(**options), inputs).fit()
    assert len(recorder.said) == (2 if said else 0)
    for message in recorder.said:
        assert message.startswith(said)
        assert message.endswith("--set background=false")


def steps(trainer, count):
    optimizer, losses = trainer.optimizer(), []
    for step in range(count):
        trainer.module.train()
        trainer.before_step(step, optimizer)
        batch = Batch.alone(step, [0, 1])
        optimizer.zero_grad()
        loss = trainer.losses(batch, trainer.read(batch))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_decoder_learns_the_masks():
    losses = steps(trainer_of(LABELS, [np.array([1])] * 2, lr=0.02), 60)
    assert losses[-1] < losses[0] / 5


def test_deeplab_learns_on_pixels_and_keeps_its_first_layers():
    trainer = trainer_of(LABELS, [np.array([1])] * 2, arch="deeplabv3_resnet50", resnet="random")
    before = {name: value.clone() for name, value in trainer.module.state_dict().items()}
    losses = steps(trainer, 3)
    assert losses[-1] < losses[0]
    after = trainer.module.state_dict()
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"layer3", "layer4"} <= moved
    assert not moved & {"conv1", "bn1", "layer1", "layer2"}


def test_missing_or_foreign_resnet_weights_name_both_ways(tmp_path):
    resnet = DeepLab(3).backbone
    with pytest.raises(UnsupsegError, match=r"resnet=FILE.*resnet=hub"):
        load_resnet(resnet, str(tmp_path / "none.pth"))
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UnsupsegError, match=r"not of a ResNet-50.*resnet=FILE.*resnet=hub"):
        load_resnet(resnet, str(tmp_path / "other.safetensors"))


def without_counts(state):
    return {name: value for name, value in state.items() if "num_batches" not in name}


def of_moco(state):
    nought = {f"module.encoder_k.{name}": torch.zeros(()).expand_as(value) for name, value in state.items()}
    return {"state_dict": nought | {f"module.encoder_q.{name}": value for name, value in state.items()}}


def deeplab_on(path):
    resnet = DeepLab(3).backbone
    load_resnet(resnet, path)
    return resnet


def detector_on(path):
    return build_detector(2, path, 64).backbone.body


@pytest.mark.parametrize(
    ("form", "on"),
    [
        (dict, deeplab_on),
        (dict, detector_on),
        (without_counts, deeplab_on),  # torchvision's older files
        (lambda state: {name: value.half() for name, value in without_counts(state).items()}, deeplab_on),
        (of_moco, deeplab_on),
    ],
)
def test_a_file_of_a_resnet_is_loaded_in_any_form_that_it_is_saved_in(tmp_path, form, on):
    torch.manual_seed(0)
    given, path = resnet50().state_dict(), tmp_path / "resnet.pth"
    torch.save(form(given), path)
    found = without_counts(on(str(path)).state_dict())
    assert len(found) == 265
    for name, value in found.items():
        torch.testing.assert_close(value, given[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda state: {name: value.to(torch.int8) for name, value in state.items()},
            "in floating point: 265 of",
        ),
        (
            lambda state: state | {"conv1.weight": state["conv1.weight"] * float("nan")},
            "hold NaN .*conv1.weight",
        ),
        (lambda state: {"a": state, "b": state}, "holds several networks"),
        (lambda state: [1, 2], "holds no tensors; expected a state_dict of a ResNet-50"),
    ],
)
def test_a_file_of_a_resnet_that_cannot_be_used_says_why_and_both_ways(tmp_path, change, said):
    torch.save(change(resnet50().state_dict()), tmp_path / "resnet.pth")
    with pytest.raises(UnsupsegError, match=rf"{said}.*resnet=FILE.*resnet=hub"):
        load_resnet(DeepLab(3).backbone, str(tmp_path / "resnet.pth"))


def test_the_content_of_a_file_of_weights_decides_the_key_and_not_its_name(tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    one, copy, other = (tmp_path / name for name in ("resnet.safetensors", "copy.safetensors", "other.pth"))

    def entered(path, **options):
        given = {"arch": "deeplabv3_resnet50", **options, "resnet": str(path)}
        return decided_by(TrainOptions(**given), context)["resnet"]

    assert entered(one) == str(one)  # that it is missing is the trainer's to say
    save_file({"conv1.weight": torch.zeros(2)}, one)
    copy.write_bytes(one.read_bytes())
    before = entered(one)
    assert entered(copy) == before != str(one)
    save_file({"conv1.weight": torch.ones(2)}, one)
    assert entered(one) != before
    assert entered("random") == "random"
    assert entered(other, arch="decoder") == str(other)  # is not read


def test_predicted_regions_take_the_edges_of_the_image_with_crf():
    """The model's border is two pixels beside the image's, and it is wrong in a spot."""
    image = np.full((24, 36, 3), 20, np.uint8)
    image[:, 18:] = 220
    scores = torch.full((2, 24, 36), 0.3)
    scores[1, :, 20:], scores[1, 4:6, 4:6] = 0.7, 0.7
    scores[0] = 1 - scores[1]
    inputs = Inputs(
        MemorySource([torch.zeros(4, 6, 2)]),
        images=lambda views: [image],
        segment=lambda views, images: [scores.log()],
    )
    areas = {}
    for crf in (False, True):
        options = FilterOptions(source="predictions", score=0, crf=crf)
        (found,) = FilterLabeller(options, inputs).label([0])
        areas[crf] = found.area.tolist()
    assert sorted(areas[False]) == [4, 24 * 16]
    assert areas[True] == [24 * 18]
