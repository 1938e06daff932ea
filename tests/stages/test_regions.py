"""`extract --regions`: features of boxes of images, a variable number for each."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import (
    Context,
    ExtractConfig,
    ImportMasksConfig,
    PseudolabelConfig,
    Workspace,
    extract,
    import_masks,
    pseudolabel,
    train,
)
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.method_inputs import open_inputs
from unsupseg_cli.contents.regions import read_regions
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.ports import FEATURES, REGIONS
from unsupseg_cli.methods.declaration import Needs
from unsupseg_cli.pipeline.inputs import require_method, take_inputs
from unsupseg_cli.pipeline.plan import plan
from unsupseg_cli.pipeline.recipe import resolve
from unsupseg_cli.pipeline.recipe_file import load_recipe
from unsupseg_cli.pipeline.run import run
from unsupseg_cli.pipeline.stage import settle
from unsupseg_cli.stages.train import TrainConfig

BASE = {"backbone": "untrained", "workers": 0, "device": "cpu", "size": 32}
KINDS = ("anchors", "pyramid", "masks")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures of two sizes, a bright square on noise each."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        rng = np.random.default_rng(number)
        height, width = (48, 64) if number % 2 else (64, 48)
        pixels = rng.integers(0, 90, (height, width, 3))
        pixels[8:40, 4 + number : 30 + number] += 150
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{number:02d}.png")
    return root


@pytest.fixture(scope="module")
def context(photos, tmp_path_factory):
    """A workspace with features, their masks, and the three kinds of regions."""
    context = Context(Workspace(tmp_path_factory.mktemp("w")))
    extract(ExtractConfig(dataset=f"{photos}/", keep=("patch", "cls", "attention"), **BASE), context)
    pseudolabel(PseudolabelConfig(classes=4, sheet=0, device="cpu"), context)
    return context


def regions(context, kind, **fields):
    return extract(ExtractConfig(regions=kind, **BASE | fields), context)


@pytest.fixture(scope="module")
def made(context):
    return {kind: regions(context, kind) if kind != "pyramid" else pyramid_of(context) for kind in KINDS}


def pyramid_of(context, **fields):
    dataset = context.workspace.current("features").manifest.data.root
    return regions(context, "pyramid", dataset=f"{dataset}/", **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_is_embedded_like_an_image_of_its_box(made, photos, tmp_path, kind):
    features = FeatureSet(made[kind])
    cls, views = features.rows("cls"), features.views
    assert not features.has("patch")
    chosen = [0, len(cls) // 2, len(cls) - 1]
    (tmp_path / "crops").mkdir()
    for row in chosen:
        left, top, right, bottom = map(int, views["box"][row])
        pixels = np.asarray(Image.open(photos / views["key"][row]))[top:bottom, left:right]
        Image.fromarray(pixels).save(tmp_path / "crops" / f"{row:05d}.png")
    alone = extract(
        ExtractConfig(dataset=f"{tmp_path / 'crops'}/", geometry="squash", **BASE),
        Context(Workspace(tmp_path / "w")),
    )
    np.testing.assert_allclose(FeatureSet(alone).rows("cls"), cls[chosen], atol=1e-4)


def test_the_tokens_of_a_region_and_their_mean_are_those_of_an_image_of_its_box(
    context, made, photos, tmp_path
):
    """Of the boxes of masks, whose order is that of the masks."""
    artifact = regions(context, "masks", keep=("cls", "pooled", "patch"))
    features = FeatureSet(artifact)
    (tmp_path / "crops").mkdir()
    for row, (key, box) in enumerate(zip(features.views["key"], features.views["box"], strict=True)):
        left, top, right, bottom = (round(value) for value in box)
        pixels = np.asarray(Image.open(photos / key))[top:bottom, left:right]
        Image.fromarray(pixels).save(tmp_path / "crops" / f"{row:05d}.png")
    alone = FeatureSet(
        extract(
            ExtractConfig(
                dataset=f"{tmp_path / 'crops'}/", geometry="squash", keep=("cls", "pooled", "patch"), **BASE
            ),
            Context(Workspace(tmp_path / "w")),
        )
    )
    for name in ("cls", "pooled"):
        np.testing.assert_allclose(alone.rows(name), features.rows(name), atol=1e-4)
    every = range(len(features.grids))
    for one, other in zip(alone.tokens(every), features.tokens(every), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-3)  # stored in half precision


@pytest.mark.parametrize(("embed", "forwards"), [("crop", "168 forwards"), ("masked", "12 forwards")])
def test_a_dry_run_tells_the_forwards_of_regions(call, photos, tmp_path, embed, forwards):
    (tmp_path / "here" / "boxes.toml").write_text(
        f"""
name = "boxes"
description = "boxes of whole images"

[data]
dataset = "{photos}/"

[[stage]]
command = "extract"
regions = "pyramid"
levels = 2
embed = "{embed}"
backbone = "untrained"
size = 32
"""
    )
    assert f"168 regions of 12 images, {forwards} " in call("run", "boxes.toml", "--dry-run")[1]


@pytest.mark.parametrize("kind", KINDS)
def test_masked_regions_are_the_boxes_of_the_crops(context, made, kind):
    data = {"dataset": f"{made[kind].manifest.data.root}/"} if kind == "pyramid" else {}
    crops, masked = FeatureSet(made[kind]), FeatureSet(regions(context, kind, embed="masked", **data))
    for column in ("key", "box", "tag", "parent"):
        assert masked.views[column] == crops.views[column]
    assert not masked.has("pooled")


def test_a_masked_region_that_is_the_whole_image_has_its_cls_token(photos, tmp_path):
    context, fields = (
        Context(Workspace(tmp_path / "w")),
        BASE | {"dataset": f"{photos}/", "precision": "fp32"},
    )
    whole = FeatureSet(extract(ExtractConfig(keep=("cls",), **fields), context))
    masked = FeatureSet(
        extract(ExtractConfig(regions="pyramid", embed="masked", levels=1, **fields), context)
    )
    cls = dict(zip(whole.views["key"], whole.rows("cls"), strict=True))
    differs = [
        np.abs(token - cls[key]).max()
        for key, token in zip(masked.views["key"], masked.rows("cls"), strict=True)
    ]
    assert [difference < 1e-4 for difference in differs] == [True, False, False, False, False] * 12


def test_masked_regions_do_not_depend_on_batches_shards_and_workers(context, photos, tmp_path):
    fields = BASE | {"dataset": f"{photos}/", "regions": "pyramid", "embed": "masked", "geometry": "squash"}
    one = extract(ExtractConfig(**fields), Context(Workspace(tmp_path / "a")))
    other = extract(
        ExtractConfig(**fields | {"workers": 2}, batch_size=5), Context(Workspace(tmp_path / "b"))
    )
    np.testing.assert_allclose(FeatureSet(other).rows("cls"), FeatureSet(one).rows("cls"), atol=1e-4)


def test_images_without_a_region_are_passed_over_by_masked_ones(photos, tmp_path):
    context = Context(Workspace(tmp_path / "w"))
    (tmp_path / "maps").mkdir()
    for number in range(12):
        shape = np.asarray(Image.open(photos / f"{number:02d}.png")).shape[:2]
        ids = np.zeros(shape, np.uint8)
        if number % 3:
            ids[4:20, 6:17] = 1
        Image.fromarray(ids).save(tmp_path / "maps" / f"{number:02d}.png")
    masks = import_masks(
        ImportMasksConfig(masks_from=tmp_path / "maps", dataset=f"{photos}/", sheet=0), context
    )
    some = regions(context, "masks", masks=masks.id, embed="masked")
    assert FeatureSet(some).views["key"] == [f"{number:02d}.png" for number in range(12) if number % 3]
    assert len(some.manifest.summary["empty"]) == 4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"geometry": "five-crop"}, "--embed masked needs --geometry native or squash"),
        ({"model": "x"}, "not codes of a --model"),
    ],
)
def test_what_masked_regions_cannot_be_of_is_refused(fields, reason):
    with pytest.raises(ValueError, match=reason):
        ExtractConfig(regions="pyramid", embed="masked", **BASE | fields)


def test_anchors_lie_on_what_the_attention_marks(context, made):
    features, anchors = FeatureSet(context.workspace.current("features")), FeatureSet(made["anchors"])
    assert set(anchors.views["tag"]) == {0, 1}
    assert len({anchors.views["key"].count(key) for key in set(anchors.views["key"])}) > 1  # any number
    for row in range(0, len(anchors), 41):
        parent = anchors.views["parent"][row]
        assert features.views["key"][parent] == anchors.views["key"][row]
        attention = features.array("attention", [parent])[0].mean(-1)
        mask = np.kron((attention > attention.mean()).numpy(), np.ones((16, 16)))  # in pixels of the view
        view = features.view(parent)
        (left, top), (right, bottom) = view.to_view(np.reshape(anchors.views["box"][row], (2, 2)))
        share = mask[int(top + 0.5) : int(bottom + 0.5), int(left + 0.5) : int(right + 0.5)].mean()
        assert share > 0.4 if anchors.views["tag"][row] else share < 0.3


def test_the_boxes_of_masks_are_theirs(context, made):
    from unsupseg_cli.contents.masks import LabelMaps

    masks, labels = FeatureSet(made["masks"]), LabelMaps(context.workspace.current("pseudolabels"))
    features = FeatureSet(context.workspace.current("features"))
    for row in range(0, len(masks), 5):
        view = features.view(masks.views["parent"][row])
        rows, columns = np.nonzero(labels[masks.views["parent"][row]] == masks.views["tag"][row])
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]) * 16
        np.testing.assert_allclose(masks.views["box"][row], view.to_original(corners).ravel(), atol=0.51)


def test_the_boxes_of_imported_masks_are_embedded_without_features(photos, tmp_path):
    context = Context(Workspace(tmp_path / "w"))
    (tmp_path / "maps").mkdir()
    for number in range(12):
        shape = np.asarray(Image.open(photos / f"{number:02d}.png")).shape[:2]
        ids = np.zeros(shape, np.uint8)
        ids[4:20, 6:17], ids[30:41, 2:40] = 1, 2
        Image.fromarray(ids).save(tmp_path / "maps" / f"{number:02d}.png")
    masks = import_masks(
        ImportMasksConfig(masks_from=tmp_path / "maps", dataset=f"{photos}/", sheet=0), context
    )
    views = FeatureSet(regions(context, "masks", masks=masks.id)).views
    assert views["box"] == [[6, 4, 17, 20], [2, 30, 40, 41]] * 12
    assert views["tag"] == [0, 1] * 12
    assert regions(context, "masks").input("masks").key == masks.manifest.key  # there are no pseudo-labels


def test_other_stores_shards_and_batches_give_the_same(context, made, tmp_path):
    fields = BASE | {"dataset": f"{made['pyramid'].manifest.data.root}/", "regions": "pyramid"}
    packed = extract(ExtractConfig(**fields, store="hdf5"), Context(Workspace(tmp_path / "h")))
    assert packed.manifest.digest == made["pyramid"].manifest.digest
    shards = Context(Workspace(tmp_path / "s"))
    assert extract(ExtractConfig(**fields, shard="2/2"), shards) is None
    whole = extract(ExtractConfig(**fields | {"workers": 2}, shard="1/2"), shards)
    assert whole.manifest.digest == made["pyramid"].manifest.digest
    single = extract(ExtractConfig(**fields, batch_size=1), Context(Workspace(tmp_path / "b")))
    np.testing.assert_allclose(
        FeatureSet(single).rows("cls"), FeatureSet(made["pyramid"]).rows("cls"), atol=1e-4
    )


def test_the_key_holds_what_is_read(context, made):
    assert regions(context, "anchors").id == made["anchors"].id
    for fields in (
        {"scales": (0.5,)},
        {"foreground_share": 0.6},
        {"background_share": 0.9},
        {"keep": ("cls",)},
    ):
        call = settle(extract, ExtractConfig(regions="anchors", **BASE | fields), context)
        assert extract.identify(call).key != made["anchors"].manifest.key
    for name in ("levels", "ratios", "geometry", "strict"):
        assert name not in made["anchors"].manifest.config
    assert "scales" not in made["pyramid"].manifest.config
    assert "regions" not in context.workspace.current("features").manifest.config


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"regions": "pyramid", "scales": (0.5,)},
            "--scales has no effect: it is read with --regions anchors",
        ),
        ({"regions": "anchors", "levels": 3}, "--levels has no effect"),
        (
            {"regions": "masks", "geometry": "squash"},
            "--geometry has no effect: regions are squares of --size",
        ),
        ({"regions": "pyramid", "features": "x"}, "--features has no effect"),
        ({"features": "x"}, "--features has no effect"),
        ({"overlap": 0.5}, "--overlap has no effect"),
        ({"embed": "masked"}, "--embed has no effect: it is read with --regions"),
        (
            {"regions": "pyramid", "embed": "masked", "keep": ("pooled",)},
            "--keep has no effect: of masked regions the CLS token is stored",
        ),
        (
            {"regions": "anchors", "foreground_share": 0, "background_share": 0.5},
            "every anchor is foreground",
        ),
    ],
)
def test_an_option_that_is_not_read_is_refused(context, fields, reason):
    with pytest.raises(UsageError, match=reason):
        extract(ExtractConfig(**BASE | fields), context)


def test_without_a_test_of_coverage_no_features_are_read(photos, tmp_path):
    context = Context(Workspace(tmp_path / "w"))
    everything = regions(context, "anchors", dataset=f"{photos}/", foreground_share=0, scales=(0.5,))
    assert everything.manifest.inputs == []
    assert set(FeatureSet(everything).views["tag"]) == {1}


def test_images_whose_foreground_fills_no_anchor_are_told(context, photos, tmp_path):
    found = regions(context, "anchors", foreground_share=0.7, background_share=1, scales=(0.9,))
    with_regions = set(FeatureSet(found).views["key"])
    assert 0 < len(with_regions) < 12
    assert (
        set(found.manifest.summary["empty"]) == {f"{number:02d}.png" for number in range(12)} - with_regions
    )
    assert any("no region was kept in" in warning for warning in found.manifest.warnings)


def test_what_anchors_need_is_asked_for(photos, tmp_path):
    context = Context(Workspace(tmp_path / "w"))
    with pytest.raises(UsageError, match="No features in the workspace"):
        regions(context, "anchors", dataset=f"{photos}/")
    extract(ExtractConfig(dataset=f"{photos}/", keep=("cls",), **BASE), context)
    with pytest.raises(UsageError, match="--keep cls,attention"):
        regions(context, "anchors")
    extract(ExtractConfig(dataset=f"{photos}/", geometry="five-crop", keep=("attention",), **BASE), context)
    with pytest.raises(UsageError, match="--geometry native or squash"):
        regions(context, "anchors")
    extract(ExtractConfig(dataset=f"{photos}/", geometry="stego", keep=("attention",), **BASE), context)
    with pytest.raises(UsageError, match=r"the view of .00\.png. in .* is a part of it"):
        regions(context, "anchors")


def test_regions_of_another_data_set_are_refused(context, made, blocks, tmp_path):
    with pytest.raises(UsageError, match="was made from other images"):
        regions(context, "anchors", dataset=f"{blocks}/")
    other = Context(Workspace(context.workspace.root))
    features = context.workspace.current("features")
    extract(ExtractConfig(dataset=f"{blocks}/", **BASE), other)
    foreign = regions(other, "pyramid", dataset=f"{blocks}/")
    config = TrainConfig(method="kmeans", features=features.id, regions=foreign.id)
    with pytest.raises(UsageError, match=f"The regions '{foreign.id}' are of other images"):
        take_inputs((FEATURES, REGIONS), config, other)
    taken = take_inputs((FEATURES, REGIONS), config.model_copy(update={"regions": None}), other)
    assert taken["regions"].manifest.data.fingerprint == features.manifest.data.fingerprint
    other.workspace.take([features])


def test_a_method_reads_regions_beside_the_features(context, made):
    import torch

    features = context.workspace.current("features")
    needs = Needs(reads=(FEATURES, REGIONS), arrays=("cls",), identity=())
    artifacts = {"features": features, "regions": made["anchors"]}
    inputs = open_inputs(artifacts, needs, context, torch.device("cpu"))
    read = inputs.regions
    assert read.rows("cls").shape == (len(read), 192)
    keys = FeatureSet(features).views["key"]
    assert [keys[view] for view in read.view] == FeatureSet(made["anchors"]).views["key"]
    assert (read.view == read.parent).all()


def test_unreadable_images_are_told_and_left_out(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        (folder / name).write_bytes((photos / name).read_bytes())
    context = Context(Workspace(tmp_path / "w"))
    cut = (folder / "01.png").read_bytes()
    (folder / "01.png").write_bytes(cut[: len(cut) // 2])  # its header is whole
    some = regions(context, "pyramid", dataset=f"{folder}/", levels=1)
    assert list(some.manifest.summary["skipped"]) == ["01.png"]
    assert FeatureSet(some).views["key"] == ["00.png"] * 5 + ["02.png"] * 5
    assert len(FeatureSet(some).rows("cls")) == 10
    with pytest.raises(UnsupsegError, match="--strict"):
        regions(context, "pyramid", dataset=f"{folder}/", levels=2, strict=True)


def test_a_dry_run_tells_how_many_regions_there_may_be(context, photos, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        f"""
name = "regions"
description = "features, and regions of them"

[data]
dataset = "{photos}/"

[[stage]]
command = "extract"
backbone = "untrained"
size = 32
keep = ["cls", "attention"]
workers = 0

[[stage]]
id = "anchors"
command = "extract"
regions = "anchors"
size = 32
workers = 0
"""
    )
    steps = resolve(load_recipe(str(path)))
    assert [step.makes for step in steps] == ["features", "regions"]
    lines = []

    class Listening:
        def info(self, message):
            lines.append(message)

        warn = info

        def track(self, items, description, **more):
            lines.append(f"work: {description}")
            return iter(items)

    fresh = Context(Workspace(tmp_path / "w"), reporter=Listening())
    _, promised = plan(steps, fresh)
    assert promised.bytes > 0
    assert any("at most" in line and "regions of 12 images" in line for line in lines)
    lines.clear()
    run(steps, fresh)
    told = next(
        place for place, line in enumerate(lines) if "forwards of 'untrained' at 32x32, about 0:00:" in line
    )
    works = [place for place, line in enumerate(lines) if line.startswith("work: extract")]
    assert len(works) == 2
    assert works[0] < told < works[1]  # the regions' time before their work
    assert all(planned.reused for planned in plan(steps, fresh))


def test_a_method_takes_the_last_regions_of_the_layout_that_it_reads(context, made):
    pyramid = pyramid_of(context, overlap=0.3)  # made now
    regions(context, "anchors")  # the last ones
    port = replace(REGIONS, layout="pyramid")
    taken = take_inputs((FEATURES, port), SimpleNamespace(features=None, regions=None), context)
    assert taken["regions"].id == pyramid.id
    with pytest.raises(UsageError, match=r"--regions anchors, and pyramid is read here"):
        require_method(port, made["anchors"])


def test_where_regions_are_in_their_views(context, made):
    features = FeatureSet(context.workspace.current("features"))
    pyramid = read_regions(made["pyramid"], features)
    shown = pyramid.shown(np.flatnonzero(pyramid.view == 0))
    np.testing.assert_allclose(shown[0], [0, 0, 1, 1])
    assert shown.min() >= 0
    assert shown.max() <= 1
    np.testing.assert_allclose((shown[1:5, 2] - shown[1:5, 0]), 1 / 1.75, atol=0.03)  # of two with overlap


def test_codes_of_regions_are_stored_and_do_not_mix_with_tokens(photos, tmp_path):
    context = Context(Workspace(tmp_path / "w"))
    data = {"dataset": f"{photos}/", "workers": 0, "device": "cpu"}
    extract(ExtractConfig(**BASE | data), context)
    pseudolabel(PseudolabelConfig(classes=3, sheet=0, device="cpu"), context)
    model = train(TrainConfig(method="primaps", device="cpu", classes=3), context)
    found = extract(ExtractConfig(regions="pyramid", levels=1, size=32, model=model.id, **data), context)
    assert FeatureSet(found).has("pooled")
    assert not FeatureSet(found).has("patch")
    tokens = context.workspace.current("features")
    assert not read_regions(found, FeatureSet(tokens)).same_network
