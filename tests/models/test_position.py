"""Tokens that carry their place in the image: `extract --position`."""

import numpy as np
import pytest
import torch
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.contents.skipped import Skipped
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.inference.segment import segment_items
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.models.linear_model import LinearModel

WEIGHT = 0.5


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("tiny", position=WEIGHT)


def place_of(tokens: torch.Tensor) -> torch.Tensor:
    """Return x and y of tokens (..., C + 2), from -1 to 1."""
    return tokens[..., -2:] / tokens[..., :-2].norm(dim=-1, keepdim=True) / WEIGHT


def expected_place(rows: int, columns: int) -> torch.Tensor:
    x = (2 * torch.arange(columns) + 1) / columns - 1
    y = (2 * torch.arange(rows) + 1) / rows - 1
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1)


def segmenter(backbone, directions) -> LinearModel:
    """Return a model whose classes are directions in the image."""
    weight = torch.zeros(len(directions), backbone.dim)
    weight[:, -2:] = torch.tensor(directions)
    head = {"type": "cosine", "classes": len(directions), "dim": backbone.dim}
    return LinearModel(backbone, [], head, {"class_head.weight": weight})


def test_a_token_carries_its_place_beside_what_it_was(backbone, image):
    batch = backbone.normalise(torch.tensor(image[None]))
    tokens = backbone(batch, keep=("patch", "cls", "pooled"))
    plain = load_backbone("tiny")(batch, keep=("patch", "cls", "pooled"))
    assert backbone.dim == plain["patch"].shape[-1] + 2
    torch.testing.assert_close(tokens["patch"][..., :-2], plain["patch"])
    torch.testing.assert_close(place_of(tokens["patch"])[0], expected_place(5, 8))
    torch.testing.assert_close(tokens["pooled"], plain["pooled"])
    torch.testing.assert_close(tokens["cls"], plain["cls"])


def test_a_part_of_an_image_knows_where_it_lies(backbone, image):
    batch = backbone.normalise(torch.tensor(image[None]))
    right = backbone(batch[..., 32:], keep=("patch",), box=(0.5, 0.0, 1.0, 1.0))["patch"]
    torch.testing.assert_close(place_of(right)[0], expected_place(5, 8)[:, 4:])


def test_the_mirror_image_leaves_the_place_alone(backbone, image):
    model = segmenter(backbone, [[1.0, 0.0]])
    batch = backbone.normalise(torch.tensor(image[None]))
    lengths = [
        load_backbone("tiny")(one, keep=("patch",))["patch"].norm(dim=-1) for one in (batch, batch.flip(-1))
    ]
    mean = (lengths[0] + lengths[1].flip(-1)) / 2
    codes = model.score(image[None], flip=True)[0].codes
    torch.testing.assert_close(codes[..., -2:] / mean[..., None] / WEIGHT, expected_place(5, 8)[None])


def test_a_protocol_that_crops_leaves_the_place_where_it_is(backbone, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "image.png")
    items = open_dataset(f"{tmp_path}/").items
    model = segmenter(backbone, [[-1.0, 0.0], [1.0, 0.0]])
    geometry = Geometry(kind="stego", size=40)  # the middle 40 of 64 columns
    skipped = Skipped(Context())
    (whole,) = segment_items(model, items, geometry, Silent(), flip=False, workers=0, skipped=skipped)
    (tiled,) = segment_items(model, items, geometry, Silent(), flip=True, workers=0, tile=24, skipped=skipped)
    x = (12 + 8 * (torch.arange(5) + 0.5)) / 64 * 2 - 1
    for found in (whole, tiled):
        share = found.scores.scores[1] / found.scores.norm  # of the place along x in the token's length
        torch.testing.assert_close(share.sign(), x.round(decimals=4).sign().expand(5, 5))
    assert whole.scores.codes is not None
    torch.testing.assert_close(place_of(whole.scores.codes)[0, ..., 0], x.expand(5, 5))


def test_tiles_find_what_the_whole_image_finds(backbone, image):
    model = segmenter(backbone, [[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    whole = model.score(image[None])[0].scores.argmax(0)
    tiled = model.score_tiled(image, tile=24).scores.argmax(0)
    assert len(whole.unique()) == 4
    # cells on a diagonal, where two directions are equally good, may go either way
    x, y = expected_place(5, 8).unbind(-1)
    clear = (x.abs() - y.abs()).abs() > 0.05
    assert torch.equal(whole[clear], tiled[clear])


@pytest.mark.filterwarnings("error")
def test_a_picture_that_is_read_only_is_scored_without_a_word(backbone, image):
    """As decoded in this process, and in one tile, which is the picture itself; torch warns once in a process."""
    model = segmenter(backbone, [[-1.0, 0.0], [1.0, 0.0]])
    picture = image.copy()
    picture.setflags(write=False)
    torch.set_warn_always(True)
    try:
        model.score_tiled(picture, tile=64)
    finally:
        torch.set_warn_always(False)
