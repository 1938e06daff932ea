"""Tokens stored as int8: how far they are from what was given, and that whatever reads features reads them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from unsupseg_cli import (
    Context,
    ExtractConfig,
    GraphConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    extract,
    graph,
    pseudolabel,
    train,
)
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.int8_tokens import decode, encode
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.pipeline.stage import settle
from unsupseg_cli.stages.extract import STAGE

IMAGES = 70  # two blocks of 64 views
HERE = {"workers": 0, "device": "cpu"}


def photos(root, sides):
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        height, width = sides[number % len(sides)]
        pixels = rng.integers(0, 255, (2, 3, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(root / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module", params=[[(32, 48)], [(32, 48), (48, 32)]], ids=["one size", "two sizes"])
def made(request, tmp_path_factory):
    """The same images with tokens of either type."""
    root = photos(tmp_path_factory.mktemp("photos"), request.param)
    context = Context(Workspace(tmp_path_factory.mktemp("int8")))
    return SimpleNamespace(
        root=root,
        context=context,
        float16=extract(config(root), context),
        int8=extract(config(root, store_dtype="int8"), context),
    )


def config(root, **fields):
    whole = {"dataset": f"{root}/", "size": 32, "backbone": "tiny", "keep": ("patch", "cls", "pooled", "key")}
    return ExtractConfig(**HERE | whole | fields)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
        elements=st.floats(-(2.0**126), 2.0**126, width=32),  # the sum of half and half does not overflow
    )
)
def test_a_value_is_off_by_half_a_scale_at_most(values):
    codes, scale, zero = (part.numpy() for part in encode(torch.from_numpy(values)))
    exact = values.astype(np.float64)
    span = exact.max((1, 2)) - exact.min((1, 2))
    rounding = 4 * np.finfo(np.float32).eps * np.abs(exact).max((1, 2)) + 200 * np.finfo(np.float32).tiny
    np.testing.assert_array_less(np.abs(scale - span / 254), rounding)
    for view, value in enumerate(exact):
        error = np.abs(decode(codes[view], scale[view], zero[view]) - value).max((0, 1))
        assert (error <= span[view] / 508 + rounding[view]).all()


def test_a_channel_of_equal_values_is_exact():
    values = torch.tensor([0.1, -7.25, 0.0]).expand(1, 3, 2, 3)
    codes, scale, zero = encode(values)
    assert not scale.any()
    np.testing.assert_array_equal(decode(codes[0].numpy(), scale[0].numpy(), zero[0].numpy()), values[0])


def test_a_view_is_the_same_whatever_lies_beside_it():
    values = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    for together, alone in zip(encode(values), encode(values[3:4]), strict=True):
        assert torch.equal(together[3:4], alone)


def test_tokens_are_those_of_float16_within_the_bound(made):
    exact, coded = FeatureSet(made.float16), FeatureSet(made.int8)
    assert (made.int8.manifest.config["store_dtype"], coded.store_dtype) == ("int8", "int8")
    assert "store_dtype" not in made.float16.manifest.config
    assert made.int8.manifest.key != made.float16.manifest.key
    np.testing.assert_array_equal(exact.grids, coded.grids)
    for name in ("patch", "key"):
        for one, other in zip(
            exact.array(name, range(IMAGES)), coded.array(name, range(IMAGES)), strict=True
        ):
            bound = (one.amax((0, 1)) - one.amin((0, 1))) / 508 + 2**-10 * one.abs().max()
            assert other.dtype == torch.float32
            assert ((one - other).abs() <= bound).all()
    np.testing.assert_array_equal(exact.rows("cls"), coded.rows("cls"))


def test_what_is_foreseen_is_what_is_stored(made):
    for artifact, store_dtype in ((made.float16, "float16"), (made.int8, "int8")):
        call = settle(STAGE, config(made.root, store_dtype=store_dtype), made.context)
        arrays = [
            output.bytes
            for name, output in artifact.manifest.outputs.items()
            if "/c/" in name and not name.split("/")[0].endswith(("_grid", "_offset"))
        ]
        assert sum(arrays) == pytest.approx(
            STAGE.foresee(call).bytes, rel=0.1
        )  # beside the indices of shards


def test_the_other_store_and_shards_give_the_same_artifact(made, tmp_path):
    packed = extract(config(made.root, store_dtype="int8", store="hdf5"), Context(Workspace(tmp_path / "h")))
    shards = Context(Workspace(tmp_path / "s"))
    assert extract(config(made.root, store_dtype="int8", shard="2/2"), shards) is None
    parts = extract(config(made.root, store_dtype="int8", shard="1/2"), shards)
    for artifact in (packed, parts):
        assert (artifact.manifest.key, artifact.manifest.digest) == (
            made.int8.manifest.key,
            made.int8.manifest.digest,
        )
        for one, other in zip(
            FeatureSet(made.int8).tokens([0, 69]), FeatureSet(artifact).tokens([0, 69]), strict=True
        ):
            assert torch.equal(one, other)


def test_an_image_that_breaks_off_takes_its_scale_with_it(made, tmp_path):
    broken = photos(tmp_path, [(32, 48)])
    (broken / "003.png").write_bytes((broken / "003.png").read_bytes()[:60])  # its header is whole
    features = extract(config(broken, store_dtype="int8"), Context(Workspace(tmp_path / "w")))
    whole = photos(tmp_path, [(32, 48)])
    (whole / "003.png").unlink()
    other = extract(config(whole, store_dtype="int8"), Context(Workspace(tmp_path / "w")))
    assert len(FeatureSet(features)) == IMAGES - 1
    for one, two in zip(
        FeatureSet(features).tokens(range(IMAGES - 1)),
        FeatureSet(other).tokens(range(IMAGES - 1)),
        strict=True,
    ):
        assert torch.equal(one, two)


def test_later_stages_read_them(made):
    context = made.context
    graph(GraphConfig(features=made.int8.id, neighbors=3), context)
    labels = pseudolabel(PseudolabelConfig(**HERE, features=made.int8.id, classes=3, sheet=0), context)
    model = train(
        TrainConfig(pseudolabels=labels.id, device="cpu"), context, options=TrainOptions(steps=2, restarts=1)
    )
    assert model.input("features").key == made.int8.manifest.key
    codes = extract(
        config(made.root, model=model.id, backbone="auto", keep=None, store_dtype="int8"), context
    )
    assert FeatureSet(codes).store_dtype == "int8"


def test_a_missing_scale_is_named(made, tmp_path):
    features = extract(config(made.root, store_dtype="int8"), Context(Workspace(tmp_path)))
    (features.path / "patch_scale" / "zarr.json").unlink()
    with pytest.raises(UnsupsegError, match="patch_scale"):
        FeatureSet(features).tokens([0])


@pytest.mark.parametrize(
    "fields", [{"keep": ("cls", "attention")}, {"regions": "pyramid", "keep": None}], ids=str
)
def test_it_is_refused_where_no_tokens_are_stored(made, fields):
    with pytest.raises(UsageError, match="patch, query, key, of which none is stored"):
        extract(config(made.root, store_dtype="int8", **fields), made.context)
