"""Losses and collapse measures against hand-computed values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.pretraining.collapse import (
    Health,
    effective_rank,
    neighbour_agreement,
    spread,
    warnings,
)
from unsupseg_cli.pretraining.config import PretrainConfig
from unsupseg_cli.pretraining.objectives import (
    ContrastiveLoss,
    DinoLoss,
    Projected,
    cluster_loss,
    info_nce,
    sinkhorn,
)


def test_info_nce_of_orthogonal_pairs():
    eye = torch.eye(4)
    expected = -1 / 0.5 + math.log(math.exp(1 / 0.5) + 3)
    assert info_nce(eye, eye, 0.5).item() == pytest.approx(expected, abs=1e-5)
    assert info_nce(torch.ones(4, 3), torch.ones(4, 3), 0.5).item() == pytest.approx(math.log(4), abs=1e-5)


def test_rows_of_one_group_are_no_negatives():
    same = torch.ones(4, 3)
    group = torch.tensor([0, 0, 1, 1])
    # each row sees its partner and the two rows of the other group
    assert info_nce(same, same, 0.5, group).item() == pytest.approx(math.log(3), abs=1e-5)


def test_contrastive_loss_weights_and_local_crops():
    config = PretrainConfig(global_weight=2.0, dense_weight=0.5, local_crops=2)
    torch.manual_seed(0)
    whole = [torch.randn(4, 8) for _ in range(4)]
    dense = (torch.randn(4, 3, 8), torch.randn(4, 3, 8))
    out = ContrastiveLoss(config)(Projected(whole, dense))
    assert out["loss"].item() == pytest.approx(2 * out["whole"].item() + 0.5 * out["dense"].item(), abs=1e-5)
    without = ContrastiveLoss(config)(Projected(whole[:2], dense))
    assert out["whole"].item() != pytest.approx(without["whole"].item())
    nowhere = ContrastiveLoss(config)(Projected(whole, (dense[0][:0], dense[1][:0])))
    assert nowhere["dense"].item() == 0  # no two crops overlapped


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_sinkhorn_rows_sum_to_one_and_columns_are_even(seed):
    cosine = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)).tanh()
    q = sinkhorn(cosine, 0.5, rounds=50)
    assert torch.allclose(q.sum(1), torch.ones(64), atol=1e-5)
    assert torch.allclose(q.sum(0), torch.full((8,), 8.0), atol=0.05)


def test_sinkhorn_undoes_a_prototype_that_everyone_prefers():
    cosine = torch.rand(32, 4) * 0.1
    cosine[:, 2] += 0.8
    assert sinkhorn(cosine, 0.04).mean(0).max() < 0.5
    assert torch.softmax(cosine / 0.04, -1).mean(0).max() > 0.9


def test_cluster_loss_wants_both_views_at_one_prototype():
    at_home = torch.eye(4).repeat(3, 1)  # twelve places, three at each of four prototypes
    away = at_home.roll(1, 1)
    assert cluster_loss(at_home, at_home, 0.1, 0.05) < 0.01
    assert cluster_loss(at_home, away, 0.1, 0.05) > 5
    everyone_at_one = torch.eye(4)[:1].repeat(12, 1)  # even use is asked for, so this costs log 4 or more
    assert cluster_loss(everyone_at_one, everyone_at_one, 0.1, 0.05) > math.log(4)
    assert cluster_loss(at_home[:0], at_home[:0], 0.1, 0.05) == 0


@pytest.mark.parametrize("centering", ["sinkhorn", "mean"])
def test_dino_loss_falls_when_the_student_says_what_the_teacher_says(centering):
    config = PretrainConfig(objective="dino", prototypes=8, centering=centering)
    cosine = torch.eye(8)
    agree = Projected([cosine, cosine], (cosine[:, None], cosine[:, None]))
    wrong = Projected([cosine.roll(1, 0)] * 2, (cosine.roll(1, 0)[:, None],) * 2)
    good, bad = DinoLoss(config)(agree, agree), DinoLoss(config)(wrong, agree)
    assert good["loss"] < 0.1
    assert bad["loss"] > 5
    assert good["entropy"].item() == pytest.approx(1.0, abs=1e-3)  # all eight prototypes in use


def test_dino_never_compares_a_crop_with_itself():
    config = PretrainConfig(objective="dino", prototypes=4, dense_weight=0.0)
    left, right = torch.eye(4), torch.eye(4).roll(1, 0)
    none = (torch.zeros(0, 2, 4), torch.zeros(0, 2, 4))
    both = Projected([left, right], none)
    assert DinoLoss(config)(both, both)["whole"] > 5  # crop 1 answers crop 2's target, which differs
    assert DinoLoss(config)(both, Projected([right, left], none))["whole"] < 0.1


def test_mean_center_follows_the_teacher():
    loss = DinoLoss(PretrainConfig(objective="dino", prototypes=4, centering="mean", center_momentum=0.5))
    same = torch.tensor([[1.0, 0, 0, 0]]).repeat(6, 1)
    both = Projected([same, same], (same[:, None], same[:, None]))
    loss(both, both)
    assert loss.whole_center.tolist() == pytest.approx([0.5, 0, 0, 0])


def test_effective_rank_counts_directions():
    corners = torch.cat([torch.eye(5), -torch.eye(5)])
    assert effective_rank(corners) == pytest.approx(5.0)
    assert effective_rank(torch.randn(50, 1) * torch.randn(1, 8)) == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(torch.ones(10, 8)) == 0.0


def test_spread_and_agreement():
    torch.manual_seed(0)
    x = torch.randn(200, 16)
    assert spread(x) == pytest.approx(1.0, abs=0.05)
    assert spread(torch.ones(10, 16)) == pytest.approx(0.0, abs=1e-6)
    assert neighbour_agreement(x, 3 * x + 0.01) > 0.99
    assert neighbour_agreement(x, x.flip(0)) < 0.05
    assert neighbour_agreement(torch.ones(10, 4), torch.ones(10, 4)) == 0  # equal rows do not agree


def test_warnings_name_the_collapse():
    good = Health(rank=40, spread=0.8, patch_rank=60, agreement=0.7, patch_agreement=0.6)
    assert warnings(good) == []
    flat = Health(rank=0, spread=0.0, patch_rank=0, agreement=0, patch_agreement=0)
    assert len(warnings(flat)) == 1
    assert "identical" in warnings(flat)[0]
    narrow = Health(rank=1.5, spread=0.3, patch_rank=2.0, agreement=0.1, patch_agreement=0.1)
    assert len(warnings(narrow)) == 2
