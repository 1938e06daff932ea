import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.methods.transfgu.config import TrainOptions
from unsupseg_cli.methods.transfgu.maps import pack_maps
from unsupseg_cli.methods.transfgu.objective import (
    category_loss,
    separation_loss,
    targets,
    uncertainty_loss,
)
from unsupseg_cli.methods.transfgu.train import TransfguTrainer
from unsupseg_cli.models.decoders import MaskTransformer
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.crops import Place, crop_grid, crop_image
from unsupseg_cli.training.loop import Schedule, fit
from unsupseg_cli.training.tokens import MemorySource

OPTIONS = TrainOptions(cycles=2, cycle_steps=3, batch=4, lr=1e-3)


def make_inputs(background=False, classes=None, views=6, **given):
    """Views of two halves, each of a token and a concept of its own, on grids of two shapes."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, 16, generator=generator)
    tokens, arrays = [], []
    for view in range(views):
        height = 6 if view % 2 else 8
        half = torch.zeros(height, 8, dtype=torch.long)
        half[:, 2 + view % 4 :] = 1
        tokens.append(kinds[half] + 0.1 * torch.randn(height, 8, 16, generator=generator))
        evidence = torch.stack([half == 0, half == 1]).float()
        arrays.append(pack_maps(torch.full((height, 8), 0.2), evidence > 0, evidence, 2))
    state = {"centroids": kinds, "background": torch.tensor(int(background))}
    labels = [np.zeros(view.shape[:2], np.int16) for view in tokens]
    masks = MaskSet(labels, [np.zeros(1, np.int64)] * views, state, arrays=lambda view: arrays[view])
    given = {"masks": masks, "network": None, "seed": 0, "classes": classes or 2 + background, **given}
    return Inputs(MemorySource(tokens), **given)


def train(trainer, steps, checkpoint=None):
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(trainer, Schedule(steps, trainer.batch, 6, 0), fabric, checkpoint=checkpoint)
    return trainer


class Memory:
    def __init__(self):
        self.kept = None

    def load(self):
        return copy.deepcopy(self.kept)

    def save(self, state):
        self.kept = copy.deepcopy(state)


def test_decoder_compares_unit_tokens_and_begins_with_one_unit_vector():
    network = MaskTransformer(27, 384).eval()
    norms = network.tokens.detach().norm(dim=-1)
    assert float(network.tokens.detach().norm()) == pytest.approx(1)
    torch.testing.assert_close(norms, torch.full_like(norms, 27**-0.5), rtol=0.2, atol=0)
    scores, tokens = network.decode(torch.randn(2, 3, 5, 384))
    assert scores.shape == (2, 27, 3, 5)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 27))
    torch.testing.assert_close(
        scores.mean(1), torch.zeros(2, 3, 5), atol=1e-5, rtol=0
    )  # LayerNorm over classes


def test_dropout_of_a_share_is_that_of_the_whole_batch():
    network, patch = MaskTransformer(3, 16, dropout=0.5).train(), torch.randn(4, 2, 2, 16)
    torch.manual_seed(0)
    whole = network.decode(patch)[0]
    torch.manual_seed(0)
    share = network.decode(patch[1::2], ([1, 3], 4))[0]
    torch.testing.assert_close(share, whole[1::2])
    assert not torch.allclose(network.decode(patch)[0], whole)


def test_targets_by_hand():
    # One image of three patches; the least value is 0 and the highest 2, so shares are half of the maps.
    maps = torch.tensor([[2.0, 0.12, 0.0], [1.0, 0.0, 0.0]]).view(1, 2, 1, 3)
    classes, decided = targets(maps, False, 0.1)
    assert classes.tolist() == [[[0, 0, -1]]]
    assert decided.all()
    classes, decided = targets(maps, True, 0.1)
    assert classes.tolist() == [[[1, 1, 0]]]  # at the second patch background has .1 - .06, its concept .06
    assert decided.tolist() == [[[True, False, False]]]
    sure = torch.tensor([[-9.0, -9, -9], [9.0, 9, 9]]).view(1, 2, 1, 3)
    # Half of the teacher outweighs half of the lead of the first patch, 1 - .5.
    assert targets(maps, False, 0.1, sure)[0].tolist() == [[[1, 1, -1]]]


def test_losses_by_hand():
    scores = torch.tensor([[0.7, 0.2], [0.2, 0.5], [0.1, 0.3]]).log().view(1, 3, 1, 2)
    classes = torch.tensor([[[0, -1]]])
    log = torch.tensor([0.7, 0.2, 0.1]).log()
    permutation = torch.tensor([2, 0, 1])
    torch.testing.assert_close(category_loss(scores, classes, permutation, 0.0), -log[:1] / 2)
    expected = (-log[0] + 0.05 * log[2]) / 2
    torch.testing.assert_close(category_loss(scores, classes, permutation, 0.05), expected[None])
    both = torch.ones(1, 1, 2, dtype=torch.bool)
    torch.testing.assert_close(uncertainty_loss(scores, both, False), torch.tensor([(0.5 + 0.8) / 2]))
    first = torch.tensor([[[True, False]]])
    torch.testing.assert_close(uncertainty_loss(scores, first, True), torch.tensor([(1 - 1 / 3) / 2]))
    tokens = torch.tensor([[[1.0, 0], [0, 1], [-1, 0]]])
    torch.testing.assert_close(separation_loss(tokens), torch.tensor([2 / 3]))


def test_crops_show_tokens_and_maps_of_the_same_place():
    tokens = torch.arange(12.0).view(3, 4, 1)
    shown, maps = crop_grid(tokens, tokens[None, ..., 0], (2, 2), Place(1.0, 1.0, True))
    assert shown[..., 0].tolist() == maps[0].tolist() == [[7, 6], [11, 10]]
    column = torch.arange(8.0).expand(8, 8)
    pixels = column.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, -1, -1)
    shown, maps = crop_image(pixels, column[None], 0.5, 4, Place(0.0, 1.0, False))
    assert shown.shape == (3, 16, 16)
    torch.testing.assert_close(maps[0, 1], torch.tensor([4.0, 5, 6, 7]))
    torch.testing.assert_close(shown[0, ::4, ::4][1], torch.tensor([4.0, 5, 6, 7]))


@pytest.mark.parametrize("background", [False, True])
def test_result_is_the_student_of_the_last_complete_cycle(background):
    trainer = TransfguTrainer(OPTIONS, make_inputs(background))
    first = copy.deepcopy(trainer.student.state_dict())
    train(trainer, 4)  # a cycle of three steps, and one step of the next
    assert trainer.finished == 1
    one = train(TransfguTrainer(OPTIONS.model_copy(update={"cycles": 1}), make_inputs(background)), 3)
    result, expected = trainer.finish().tensors, one.teacher.state_dict()
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert all(torch.equal(value, first[name]) for name, value in one.student.state_dict().items())
    assert any(not torch.equal(value, first[name]) for name, value in result.items())


def test_it_learns_the_maps():
    options = OPTIONS.model_copy(update={"cycle_steps": 60, "negative": 0.0, "negative_step": 0.0})
    inputs = make_inputs()
    trained = train(TransfguTrainer(options, inputs), 120).finish()
    network = MaskTransformer(2, 16).eval()
    network.load_state_dict(trained.tensors)
    for view in range(6):
        expected = (torch.arange(8) >= 2 + view % 4).long()
        found = network({"patch": inputs.features.tokens([view])[0][None]}).argmax(1)[0]
        assert (found == expected).float().mean() > 0.95
    assert trained.figures == {
        "cycles": 2,
        "skipped_steps": 0,
        "empty_classes": 0,
        "target_classes": [2, 2],
    }
    assert not trained.warnings


def test_classes_that_a_teacher_loses_are_told_with_what_the_targets_had():
    trainer = TransfguTrainer(OPTIONS, make_inputs())
    train(trainer, 3)
    with torch.no_grad():  # a teacher that is sure of one class
        trainer.teacher.mask_norm.bias.copy_(torch.tensor([100.0, -100.0]))
    trainer.aims[1] = torch.tensor([1.0, 0.0])
    trained = trainer.finish()
    assert trained.figures["target_classes"] == [2, 1]
    assert trained.warnings == [
        "1 of 2 classes are given to no patch (the targets of the cycles had 2, 1): try fewer cycles, for a teacher "
        "outvotes the maps of rare classes, more cycle_steps, or fewer --classes"
    ]


def test_a_sure_teacher_outvotes_the_maps():
    trainer = TransfguTrainer(OPTIONS, make_inputs())
    train(trainer, 3)
    with torch.no_grad():
        trainer.teacher.mask_norm.bias.copy_(torch.tensor([100.0, -100.0]))
    batch = Batch.alone(3, [0, 1])
    trainer.losses(batch, trainer.read(batch))
    assert trainer.aims[0].min() > 0
    torch.testing.assert_close(trainer.aims[1], torch.tensor([1.0, 0.0]))


def test_resumed_equals_undisturbed():
    undisturbed, memory = train(TransfguTrainer(OPTIONS, make_inputs()), 6), Memory()
    train(TransfguTrainer(OPTIONS, make_inputs()), 4, memory)
    resumed = train(TransfguTrainer(OPTIONS, make_inputs()), 6, memory)
    expected, result = undisturbed.finish().tensors, resumed.finish().tensors
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert resumed.finished == 2
    assert torch.equal(resumed.aims, undisturbed.aims)


def test_steps_whose_loss_is_not_positive_are_skipped_and_counted():
    options = OPTIONS.model_copy(update={"separation": 0.0, "negative": 30.0, "negative_most": 30.0})
    trainer = train(TransfguTrainer(options, make_inputs()), 6)
    assert trainer.skipped > 0
    trained = trainer.finish()
    assert trained.figures["skipped_steps"] == trainer.skipped
    assert any("were skipped" in warning for warning in trained.warnings)


def test_negative_classes_weigh_more_with_each_epoch_of_a_cycle():
    trainer = TransfguTrainer(OPTIONS.model_copy(update={"cycle_steps": 20, "batch": 3}), make_inputs())
    assert trainer._negative(5) == 0
    trainer.finished = 1
    weights = [trainer._negative(step) for step in (20, 21, 22, 24, 39)]
    assert weights == pytest.approx([0.03, 0.03, 0.04, 0.05, 0.1])


def test_losses_of_shares_make_that_of_the_batch():
    def losses(places):
        trainer = TransfguTrainer(OPTIONS, make_inputs())
        torch.manual_seed(0)
        whole = [0, 1, 2, 3]
        batch = replace(Batch.alone(0, whole), places=places)
        return float(trainer.losses(batch, trainer.read(batch))["loss"].detach())

    # All patches have targets, so that the means over shares need no message between processes.
    assert (losses([0, 2]) + losses([1, 3])) / 2 == pytest.approx(losses([0, 1, 2, 3]), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrays": None}, "name those of `pseudolabel --method transfgu`"),
        ({"state": {}}, "name those of `pseudolabel --method transfgu`"),
        ({"state": {"centroids": torch.ones(1, 16), "background": torch.tensor(0)}}, "found 1"),
    ],
)
def test_pseudolabels_that_do_not_serve(change, message):
    masks = replace(make_inputs().masks, **change)
    with pytest.raises(UsageError, match=message):
        TransfguTrainer(OPTIONS, make_inputs(masks=masks))


def test_another_number_of_classes_is_refused():
    with pytest.raises(UsageError, match=r"--classes 4 does not fit.*2 concepts and a background.*say 3"):
        TransfguTrainer(OPTIONS, make_inputs(background=True, classes=4))
