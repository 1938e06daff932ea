import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.network import StegoHead
from unsupseg_cli.methods.stego.objective import (
    centre,
    correspondence,
    correspondence_loss,
    derangement,
)
from unsupseg_cli.methods.stego.pairs import KINDS, Pairs
from unsupseg_cli.methods.stego.shifts import attracted, automatic_shifts, same_class_shares
from unsupseg_cli.models.heads import CosineHead
from unsupseg_cli.training.grids import by_grid, sample, uniform_points


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_correspondences_are_cosines():
    first = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]])
    second = torch.tensor([[[0.0, 2.0], [5.0, 0.0], [-1.0, 0.0]]])
    half = math.sqrt(0.5)
    torch.testing.assert_close(
        correspondence(first, second), torch.tensor([[[0.0, 1.0, -1.0], [half, half, -half]]])
    )


def test_centring_by_hand():
    # Row means 0.4 and 0.1 and, in the second image, 0.5 and 0.2; the overall mean is 0.3.
    cosines = torch.tensor([[[0.6, 0.2], [0.4, -0.2]], [[1.0, 0.0], [0.1, 0.3]]])
    expected = torch.tensor([[[0.5, 0.1], [0.6, 0.0]], [[0.8, -0.2], [0.2, 0.4]]])
    torch.testing.assert_close(centre(cosines), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1, 1))
def test_centring_keeps_the_mean_and_forgets_what_a_row_adds(seed, offset):
    cosines = torch.rand(3, 4, 5, generator=generator(seed), dtype=torch.float64) * 2 - 1
    centred = centre(cosines)
    torch.testing.assert_close(centred.mean(), cosines.mean())
    torch.testing.assert_close(centred.mean(2), cosines.mean().expand(3, 4))
    cosines[:, 1] += offset
    moved = centre(cosines)
    torch.testing.assert_close(moved - moved.mean(), centred - centred.mean())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # S - clamped as said - times F - 0.1 is, entry by entry, for S = 0.9, -0.5, 0.2, 0 and F = 0.6, 0.3, -0.1, 1
        ({}, -(0.9 * 0.5 + 0 + 0.2 * -0.2 + 0) / 4),
        ({"stabilize": True}, -(0.8 * 0.5 + 0 + 0.2 * -0.2 + 0) / 4),
        ({"zero_clamp": False}, -(0.9 * 0.5 - 0.5 * 0.2 + 0.2 * -0.2 + 0) / 4),
        ({"zero_clamp": False, "stabilize": True}, -(0.8 * 0.5 - 0.5 * 0.2 + 0.2 * -0.2 + 0) / 4),
    ],
)
def test_loss_by_hand(options, expected):
    codes = torch.tensor([[[0.9, -0.5], [0.2, 0.0]]])
    features = torch.tensor([[[0.6, 0.3], [-0.1, 1.0]]])
    assert correspondence_loss(features, codes, 0.1, **options).item() == pytest.approx(expected)


def test_gradients_match_finite_differences_and_none_reaches_the_features():
    draw = generator(3)
    points = uniform_points(2, 4, draw)
    features = torch.rand(2, 4, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    codes = torch.randn(2, 3, 3, 5, generator=draw, dtype=torch.float64, requires_grad=True)

    def loss(codes):
        at = sample(codes, points)
        return correspondence_loss(centre(features), correspondence(at, at.flip(0)), 0.05)

    assert torch.autograd.gradcheck(loss, (codes,))
    loss(codes).backward()
    assert features.grad is None
    assert codes.grad.abs().sum() > 0


def test_a_pair_above_the_shift_is_drawn_together_and_one_below_pushed_apart():
    codes = torch.full((1, 1, 2), 0.5, requires_grad=True)
    correspondence_loss(torch.tensor([[[0.4, 0.2]]]), codes, 0.3).backward()
    attracts, repels = (-codes.grad).flatten().tolist()
    assert attracts > 0 > repels


def test_points_are_interpolated_between_cell_centres_with_the_outer_ones_in_the_corners():
    maps = torch.tensor([[[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]])[..., None]
    points = torch.tensor([[[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -1.0], [-1.0, 0.5]]])
    assert sample(maps, points)[0, :, 0].tolist() == pytest.approx([0, 12, 6, 1.5, 7.5])


def test_random_points_fill_the_square():
    points = uniform_points(50, 100, generator())
    assert points.shape == (50, 100, 2)
    assert points.abs().max() <= 1
    assert points.mean((0, 1)).abs().max() < 0.05
    assert points.std((0, 1)).tolist() == pytest.approx([3**-0.5] * 2, abs=0.02)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(0, 10_000))
def test_a_derangement_is_a_permutation_without_fixed_points(count, seed):
    order = derangement(count, generator(seed)).tolist()
    assert sorted(order) == list(range(count))
    assert all(place != item for place, item in enumerate(order))


def test_every_derangement_is_equally_likely():
    draw, counts = generator(), {}
    for _ in range(9000):
        order = tuple(derangement(4, draw).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 9  # of 4 items there are 9
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_pairs_compare_the_right_images():
    """Image i is filled with direction i, its neighbour with direction i + 3: cosines tell who met whom."""
    axes = torch.eye(6)
    maps = [axes[i].expand(2, 2 + i, 6) for i in range(3)]  # grids differ
    near = [axes[i + 3].expand(4, 4, 6) for i in range(3)]
    near[1] = axes[1].expand(4, 4, 6)
    config = TrainOptions(feature_samples=2, neg_samples=4)
    found = list(Pairs.draw(3, config, generator()).correspondences(maps, near))
    assert [kind for kind, _ in found] == ["self", "knn", *["rand"] * 4]
    for kind, cosines in found:
        assert cosines.shape == (3, 4, 4)
        wanted = {"self": [1, 1, 1], "knn": [0, 1, 0], "rand": [0, 0, 0]}[kind]
        torch.testing.assert_close(cosines, torch.tensor(wanted).float()[:, None, None].expand(3, 4, 4))


def test_maps_of_different_grids_keep_their_order():
    maps = [torch.full((2, 2 + i % 2, 1), float(i)) for i in range(5)]
    rows = by_grid(maps, lambda stacked, members: stacked.mean((1, 2, 3)) + 10 * torch.tensor(members))
    assert [row.item() for row in rows] == [0, 11, 22, 33, 44]


def test_the_head_is_two_branches_of_one_by_one_convolutions():
    torch.manual_seed(0)
    head = StegoHead(dim=6, codes=3, dropout=0.5).eval()
    tokens = torch.randn(2, 4, 5, 6)
    maps = tokens.movedim(-1, 1)

    def conv(layer, values):
        return torch.nn.functional.conv2d(values, layer.weight[:, :, None, None], layer.bias)

    hidden = conv(head.nonlinear[0], maps).relu()
    expected = conv(head.linear, maps) + conv(head.nonlinear[2], hidden)
    torch.testing.assert_close(head(tokens), expected.movedim(1, -1))


def test_dropout_takes_whole_channels_of_an_image():
    torch.manual_seed(0)
    head = StegoHead(dim=400, codes=3, dropout=0.25).train()
    dropped = head.drop(torch.ones(3, 2, 2, 400))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[:, :1, :1]).all()
    assert (dropped[0] != dropped[1]).any()
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_automatic_shifts_leave_the_expected_share_of_pairs_above():
    values = {kind: torch.randn(4, 50, 50, generator=generator(i)) for i, kind in enumerate(KINDS)}
    shifts = automatic_shifts(values, classes=4)
    assert same_class_shares(4) == {"self": 0.5, "knn": 0.5, "rand": 0.25}
    above = attracted(values, shifts)
    assert above == pytest.approx({"self": 0.5, "knn": 0.5, "rand": 0.25}, abs=1e-3)
    assert automatic_shifts(values, classes=16)["rand"] > shifts["rand"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("shifts", (0.1, 0.2, 1.5), r"\[-1, 1\]"),
        ("shifts", "0.1,0.2", "three numbers"),
        ("shifts", "automatic", "three numbers"),
        ("weights", (1, -1, 1), "negative"),
        ("weights", (0, 0, 0), "positive"),
    ],
)
def test_shifts_and_weights_out_of_range_are_refused(field, value, says):
    with pytest.raises(ValueError, match=says):
        TrainOptions(**{field: value})


def test_shifts_may_be_written_as_text():
    assert TrainOptions(shifts="0.08, 0.02,0.66").shifts == (0.08, 0.02, 0.66)
    assert TrainOptions().shifts == "auto"


def test_interpolated_scores_have_the_class_of_interpolated_codes_and_are_no_sharper():
    """Published: codes are interpolated, then compared; here scores and lengths are, and divided afterwards."""
    codes = torch.randn(1, 6, 7, 12, generator=generator(0))
    head = CosineHead(5, 12)
    with torch.no_grad():
        head.weight.copy_(torch.randn(5, 12, generator=generator(1)))

        def enlarged(maps):
            return F.interpolate(maps.movedim(-1, 1), (40, 50), mode="bilinear", align_corners=False).movedim(
                1, -1
            )

        large = enlarged(codes)
        published = head.log_probs(head.scores(large), large.norm(dim=-1))
        ours = head.log_probs(enlarged(head.scores(codes)), enlarged(codes.norm(dim=-1)[..., None])[..., 0])
    assert torch.equal(ours.argmax(-1), published.argmax(-1))
    spread = [values.exp().max(-1).values for values in (ours, published)]
    assert bool((spread[0] <= spread[1] + 1e-6).all())
