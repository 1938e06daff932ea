"""GeoTIFFs in and out: windows, pixels without data, place on the ground, polygons."""

import json
import re
import shlex
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyogrio
import pytest
import rasterio
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_origin
from typer.testing import CliRunner

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    RefineConfig,
    TrainConfig,
    classes,
    extract,
    predict,
    pseudolabel,
    refine,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.model import read_model
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data import rasters
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.rasters import Windows, inner_parts
from unsupseg_cli.data.reading import Reading
from unsupseg_cli.exchange.ground import signed_area
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.pipeline.export_labels import export_labels
from unsupseg_cli.pipeline.options import ExportLabelsConfig
from unsupseg_cli.stages.classes import ClassesConfig

ROOT = Path(__file__).parents[2]
SIDE, HEIGHT, WIDTH = 96, 200, 300
UTM = {"crs": "EPSG:32633", "transform": from_origin(392000, 5820000, 0.5, 0.5)}


def ground_of(seed=0):
    """Values (H, W, 3) of fields of plain colours."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(30, 226, (-(-HEIGHT // 50), -(-WIDTH // 50), 3)).repeat(50, 0).repeat(50, 1)
    return colors[:HEIGHT, :WIDTH].astype(np.uint8)


def write_tiff(path, values, finish=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.moveaxis(np.atleast_3d(values), -1, 0)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, **options) as raster:
        raster.write(bands)
        if finish is not None:
            finish(raster)
    return path


def corner(values):
    """Values with a slanted corner that is 0."""
    y, x = np.indices(values.shape[:2])
    return np.where((x + y < 120)[..., None], 0, values).astype(values.dtype)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace with a model of the windows of a mosaic with a corner without data, and the mosaic."""
    root = tmp_path_factory.mktemp("world")
    mosaic = write_tiff(root / "in" / "area" / "ortho.tif", corner(ground_of()), nodata=0, **UTM)
    said = []
    context = Context(
        Workspace(root / "work"), SimpleNamespace(info=said.append, warn=said.append, track=track)
    )
    config = ExtractConfig(
        dataset=f"{root / 'in'}/", windows=SIDE, size=48, backbone="untrained", workers=0, device="cpu"
    )
    features = extract(config, context)
    labels = pseudolabel(PseudolabelConfig(classes=4, sheet=0, workers=0), context)
    model = train(TrainConfig(pseudolabels=labels.id, device="cpu"), context, options=TrainOptions(steps=5))
    return SimpleNamespace(
        root=root, mosaic=mosaic, said=said, context=context, features=features, model=model
    )


def track(items, description, total=None, done=0):
    yield from items


def predicted(world, *images, **options):
    config = PredictConfig(images=images, model=world.model.id, workers=0, device="cpu", **options)
    return predict(config, world.context)


def test_training_takes_the_windows_whose_pixels_all_hold_data(world):
    assert world.features.manifest.data.count == 8
    assert "windows of 96 pixels: 8, 4 with pixels that hold no data are left out" in world.said


def test_a_mosaic_becomes_one_geotiff_without_seams_of_void(world, tmp_path):
    found = predicted(world, world.mosaic.parent, out=tmp_path / "out")
    keys = found.manifest.summary["keys"]
    assert len(keys) == 12  # every window holds some data; those of the model's side are taken unasked
    with (
        rasterio.open(tmp_path / "out" / "geo" / "ortho.tif") as raster,
        rasterio.open(world.mosaic) as image,
    ):
        assert (raster.crs, raster.transform, raster.shape) == (image.crs, image.transform, image.shape)
        values = raster.read(1)
        np.testing.assert_array_equal(raster.dataset_mask() > 0, image.dataset_mask() > 0)
        assert raster.nodata == 255
        table = raster.colormap(1)
        assert raster.overviews(1) == [2]
        assert raster.tags(1)["class_3"] == "class 3"
    colors = [entry.color for entry in read_model(world.model)[0].classes]
    assert [table[index][:3] for index in range(4)] == [tuple(color) for color in colors]
    windows = {key: tuple(int(part) for part in key.split("/")[1][:13].split("_")) for key in keys}
    for key, (top, left) in windows.items():
        labels = read_ids(found.path, key)
        middle = labels[40:56, 40:56]
        part = values[top + 40 : top + 56, left + 40 : left + 56]
        np.testing.assert_array_equal(np.where(part == 255, -1, part.astype(int)), middle)
        numbers = [float(line) for line in (found.path / "color" / f"{key}.pgw").read_text().split()]
        assert numbers == [0.5, 0, 0, -0.5, 392000 + (left + 0.5) / 2, 5820000 - (top + 0.5) / 2]


@pytest.mark.slow
def test_the_session_of_the_page_prints_what_it_says(call):
    Path("samples").symlink_to(ROOT / "samples")
    page = (
        (ROOT / "docs" / "aerial.md").read_text(encoding="utf-8").split("## A session")[1].split("\n## ")[0]
    )
    said = ""
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(block, {})
        elif language == "sh":
            said = " ".join(call(*shlex.split(line)[1:])[1] for line in block.splitlines())
        else:
            for line in block.splitlines():
                for part in line.split("..."):
                    assert part.strip() in said
    with Image.open("ortho-segmented/overlay/town.tif.jpg") as picture:
        assert picture.size == (1440, 864)
    assert pyogrio.read_info("classes.gpkg")["features"] > 10


@pytest.mark.parametrize("longest", [2048, 150])
def test_a_picture_shows_the_whole_mosaic_under_its_classes(world, tmp_path, monkeypatch, longest):
    monkeypatch.setattr("unsupseg_cli.contents.rasters._LARGEST_OVERLAY", longest)
    context = Context(world.context.workspace, world.context.reporter, force=True)
    config = PredictConfig(images=(world.mosaic,), model=world.model.id, workers=0, out=tmp_path / "out")
    world.said.clear()
    found = predict(config, context)
    out = tmp_path / "out"
    assert f"copied to '{out}': look at '{out}/overlay'; '{out}/geo' is for map programs" in world.said
    with rasterio.open(found.path / "geo" / "ortho.tif") as raster:
        values = raster.read(1)
    colors = np.array([entry.color for entry in read_model(world.model)[0].classes])
    image = read_image(world.mosaic, Reading())
    expected = np.where(values[..., None] == 255, image, 0.45 * image + 0.55 * colors[np.minimum(values, 3)])
    with Image.open(out / "overlay" / "ortho.tif.jpg") as picture:
        assert picture.size == (min(longest, WIDTH), min(longest, WIDTH) * HEIGHT // WIDTH)
        shown = np.asarray(picture.resize((WIDTH, HEIGHT)), float)
    assert np.median(np.abs(shown - expected)) < 5  # all but the lines between classes


def test_names_and_refinement_keep_the_place(world):
    found = predicted(world, world.mosaic, keep="scores")
    refined = refine(RefineConfig(predictions=found.id, workers=1, iterations=1), world.context)
    named = classes(ClassesConfig(model=world.model.id, names={"0": "roof"}), world.context)
    applied = classes(ClassesConfig(model=named.id, predictions=refined.id), world.context)
    with (
        rasterio.open(refined.path / "geo/ortho.tif") as before,
        rasterio.open(applied.path / "geo/ortho.tif") as after,
    ):
        np.testing.assert_array_equal(before.read(1), after.read(1))
        assert (before.read(1) == 255)[:20, :20].all()  # a CRF fills no pixel that holds no data
        assert after.tags(1)["class_0"] == "roof"
    for artifact in (refined, applied):
        with Image.open(artifact.path / "overlay" / "ortho.tif.jpg") as picture:
            assert picture.size == (WIDTH, HEIGHT)
        assert after.crs == "EPSG:32633"


def test_maps_of_merged_classes_keep_their_ids(world, tmp_path):
    before = predicted(world, world.mosaic)
    merged = classes(ClassesConfig(model=world.model.id, merge=(("2", "0"),)), world.context)
    after = classes(ClassesConfig(model=merged.id, predictions=before.id), world.context)
    with (
        rasterio.open(before.path / "geo/ortho.tif") as first,
        rasterio.open(after.path / "geo/ortho.tif") as second,
    ):
        values = second.read(1)
        np.testing.assert_array_equal(values, np.where(first.read(1) == 0, 2, first.read(1)))
        assert [first.colormap(1)[number] for number in (1, 2, 3)] == [
            second.colormap(1)[number] for number in (1, 2, 3)
        ]
        tags = {name: text for name, text in second.tags(1).items() if name.startswith("class_")}
        assert tags == {f"class_{number}": f"class {number}" for number in (1, 2, 3)}
        transform = second.transform
    config = ExportLabelsConfig(format="gpkg", out=tmp_path / "a.gpkg", things=("2",))
    about, _, shapes, columns = pyogrio.raw.read(export_labels(config, after.id, world.context))
    fields = dict(zip(about["fields"], columns, strict=True))
    painted = painted_from(shapes, fields["class"], transform, values.shape)
    np.testing.assert_array_equal(painted, np.where(values == 2, 2, 255))


@pytest.mark.parametrize(("format", "folder"), [("coco-panoptic", "images"), ("yolo-seg", "images/train")])
def test_windows_are_brought_along_as_images_of_their_own(world, tmp_path, format, folder):
    found = predicted(world, world.mosaic.parent)
    out = export_labels(ExportLabelsConfig(format=format, out=tmp_path / "out"), found.id, world.context)
    whole = read_image(world.mosaic)
    for key in found.manifest.summary["keys"]:
        top, left = map(int, key.split("/")[-1][:13].split("_"))
        window = whole[top : top + SIDE, left : left + SIDE]
        np.testing.assert_array_equal(np.asarray(Image.open(out / folder / key)), window)
    assert any("12 images are parts of files" in line and "not linked" in line for line in world.said)


def test_polygons_rasterised_again_are_the_label_map(world, tmp_path):
    found = predicted(world, world.mosaic)
    with rasterio.open(found.path / "geo/ortho.tif") as raster:
        values, transform = raster.read(1), raster.transform
    for name in ("gpkg", "geojson"):
        out = export_labels(
            ExportLabelsConfig(format=name, out=tmp_path / f"a.{name}"), found.id, world.context
        )
        assert world.said[-1] == f"'{found.id}': polygons of 1 GeoTIFF as {name}"
        about, _, shapes, columns = pyogrio.raw.read(out)
        fields = dict(zip(about["fields"], columns, strict=True))
        assert set(fields["name"]) == {f"class {index}" for index in np.unique(values[values < 255])}
        if name == "gpkg":
            assert about["crs"] == "EPSG:32633"
            assert set(fields["image"]) == {"ortho.tif"}
            painted = painted_from(shapes, fields["class"], transform, values.shape)
            np.testing.assert_array_equal(painted, values)
            assert np.sum(fields["area"]) == pytest.approx((values < 255).sum() / 4)
    features = json.loads(out.read_text())["features"]
    for rings in (one["geometry"]["coordinates"] for one in features):
        turns = [signed_area(ring) > 0 for ring in rings]  # RFC 7946: counter-clockwise, holes clockwise
        assert turns == [True] + [False] * (len(rings) - 1)
    points = np.concatenate([np.concatenate(one["geometry"]["coordinates"]) for one in features])
    np.testing.assert_allclose(points.mean(0), (13.409, 52.5188), atol=2e-3)


def painted_from(shapes, groups, transform, size):
    """Rasterise polygons of well-known binary by rasterio."""
    from rasterio.features import rasterize

    pairs = [
        ({"type": "Polygon", "coordinates": rings_of(raw)}, group)
        for raw, group in zip(shapes, groups, strict=True)
    ]
    return rasterize(pairs, out_shape=size, transform=transform, fill=255, dtype="uint8")


def rings_of(raw):
    rings, place = [], 9
    for _ in range(int.from_bytes(raw[5:9], "little")):
        count = int.from_bytes(raw[place : place + 4], "little")
        points = np.frombuffer(raw, "<f8", 2 * count, place + 4).reshape(-1, 2)
        rings.append(points.tolist())
        place += 4 + 16 * count
    return rings


def test_small_regions_and_other_classes_are_left_out_of_maps(world, tmp_path):
    found = predicted(world, world.mosaic)
    world.said.clear()
    options = {"things": ["class 0"], "min_area": 40}
    out = export_labels(
        ExportLabelsConfig(format="gpkg", out=tmp_path / "a.gpkg", **options), found.id, world.context
    )
    about, _, _, columns = pyogrio.raw.read(out)
    fields = dict(zip(about["fields"], columns, strict=True))
    assert set(fields["class"]) <= {0}
    assert (fields["area"] >= 40 / 4).all()


def test_without_a_coordinate_system_there_is_no_longitude(world, tmp_path):
    flat = write_tiff(tmp_path / "flat.tif", ground_of(1), transform=from_origin(0, 100, 0.5, 0.5))
    world.said.clear()
    found = predicted(world, flat)
    assert any(
        "1 raster without a coordinate system (such as 'flat.tif'), and so are the label maps" in line
        for line in world.said
    )
    with rasterio.open(found.path / "geo/flat.tif") as raster:
        assert raster.crs is None
        assert raster.transform == from_origin(0, 100, 0.5, 0.5)
    with pytest.raises(UsageError, match=r"'flat\.tif' has no coordinate system.*gpkg"):
        export_labels(
            ExportLabelsConfig(format="geojson", out=tmp_path / "a.geojson"), found.id, world.context
        )
    assert not (tmp_path / "a.geojson").exists()
    polygons = ExportLabelsConfig(format="gpkg", out=tmp_path / "a.gpkg")
    with warnings.catch_warnings(action="error"):  # what pyogrio warns of is said in a line of our own
        out = export_labels(polygons, found.id, world.context)
    assert pyogrio.read_info(out)["features"] > 0
    plain = tmp_path / "plain.png"
    Image.fromarray(ground_of(1)).save(plain)
    found = predicted(world, plain)
    assert not (found.path / "geo").exists()
    with pytest.raises(UsageError, match="None of the images tells its place"):
        export_labels(ExportLabelsConfig(format="gpkg", out=tmp_path / "b.gpkg"), found.id, world.context)


def control_points(raster):
    corners = [(row, column) for row in (0, HEIGHT) for column in (0, WIDTH)]
    points = [GroundControlPoint(row, column, 13 + column * 1e-5, 52 - row * 1e-5) for row, column in corners]
    raster.gcps = points, rasterio.crs.CRS.from_epsg(4326)


def sensor_model(raster):
    one, none = [1, *[0] * 19], [0] * 17
    raster.rpcs = RPC(
        height_off=0, height_scale=100, lat_off=52, lat_scale=0.1, long_off=13, long_scale=0.1,
        line_off=80, line_scale=80, samp_off=80, samp_scale=80, line_num_coeff=[0, 0, -1, *none],
        line_den_coeff=one, samp_num_coeff=[0, 1, 0, *none], samp_den_coeff=one,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("finish", "means"),
    [(control_points, "ground control points"), (sensor_model, r"a sensor model \(RPC\)")],
)
def test_a_place_that_is_told_by_other_means_is_not_read_and_said(world, tmp_path, finish, means):
    path = write_tiff(tmp_path / "scene.tif", ground_of(1), finish)
    world.said.clear()
    found = predicted(world, path)
    said = f"1 raster whose place is told by {means} .such as 'scene\\.tif'.*not read.*gdalwarp"
    assert any(re.search(said, line) for line in world.said)
    assert not list(found.path.rglob("*.pgw"))
    with pytest.raises(UsageError, match=rf"'scene\.tif' tells its place by {means}.*gdalwarp.*gpkg"):
        export_labels(
            ExportLabelsConfig(format="geojson", out=tmp_path / "a.geojson"), found.id, world.context
        )
    out = export_labels(ExportLabelsConfig(format="gpkg", out=tmp_path / "a.gpkg"), found.id, world.context)
    assert pyogrio.read_info(out)["features"] > 0


@pytest.mark.parametrize(
    "place",
    [
        {"crs": 'LOCAL_CS["x",UNIT["metre",1]]', "transform": from_origin(0, 100, 1, 1)},
        {"crs": "EPSG:32633", "transform": from_origin(1e9, 1e9, 1, 1)},
    ],
    ids=["local", "far"],
)
def test_a_system_without_longitude_is_refused_by_name(world, tmp_path, place):
    found = predicted(world, write_tiff(tmp_path / "plan.tif", ground_of(1), **place))
    out = tmp_path / "a.geojson"
    with pytest.raises(UsageError, match=r"system of 'plan\.tif' cannot be brought to longitude.*gpkg"):
        export_labels(ExportLabelsConfig(format="geojson", out=out), found.id, world.context)
    assert not out.exists()


@pytest.mark.parametrize(
    "place",
    [
        {"crs": "EPSG:32701", "transform": from_origin(180600, 8100000, 50, 50)},
        {"crs": "EPSG:4326", "transform": from_origin(179.9992, 10, 1e-5, 1e-5)},
    ],
    ids=["utm", "degrees"],
)
def test_polygons_are_cut_at_the_antimeridian(world, tmp_path, place):
    found = predicted(world, write_tiff(tmp_path / "fiji.tif", ground_of(1), **place))
    out = export_labels(
        ExportLabelsConfig(format="geojson", out=tmp_path / "a.geojson"), found.id, world.context
    )
    shapes = [feature["geometry"] for feature in json.loads(out.read_text())["features"]]
    parts = [
        part
        for shape in shapes
        for part in (shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]])
    ]
    assert len(parts) > len(shapes)
    for part in parts:
        longitudes = [longitude for longitude, _ in part[0]]
        assert -180 <= min(longitudes) <= max(longitudes) <= 180
        assert max(longitudes) - min(longitudes) < 1
        assert [signed_area(ring) > 0 for ring in part] == [True] + [False] * (len(part) - 1)


def test_a_tiff_that_tells_no_place_gets_no_world_file(world, tmp_path):
    """One that tells pixels without data only: a map program would lay it upside down at the origin."""
    path = write_tiff(tmp_path / "scan.tif", corner(ground_of(2)), nodata=0)
    found = predicted(world, path)
    assert not list(found.path.rglob("*.pgw"))
    with rasterio.open(found.path / "geo/scan.tif") as raster:
        assert (raster.read(1)[:60, :60] == raster.nodata).all()


def test_a_rotated_transform_is_kept(world, tmp_path):
    turned = Affine(0.4, 0.3, 392000, 0.3, -0.4, 5820000)
    path = write_tiff(tmp_path / "turned.tif", ground_of(2), crs="EPSG:32633", transform=turned)
    found = predicted(world, path)
    with rasterio.open(found.path / "geo/turned.tif") as raster:
        assert raster.transform == turned
        values = raster.read(1)
    out = export_labels(ExportLabelsConfig(format="gpkg", out=tmp_path / "a.gpkg"), found.id, world.context)
    about, _, shapes, columns = pyogrio.raw.read(out)
    fields = dict(zip(about["fields"], columns, strict=True))
    np.testing.assert_array_equal(painted_from(shapes, fields["class"], turned, values.shape), values)
    assert np.sum(fields["area"]) == pytest.approx(values.size / 4)
    world_file = next((found.path / "color").rglob("*000000_000000*.pgw")).read_text().split()
    assert [float(number) for number in world_file[:4]] == [0.4, 0.3, 0.3, -0.4]


def test_images_without_any_data_are_left_out_and_told(world, tmp_path):
    folder = tmp_path / "photos"
    write_tiff(folder / "empty.tif", np.zeros((64, 64, 3), np.uint8), nodata=0, **UTM)
    context = Context(Workspace(tmp_path / "work"), world.context.reporter)
    config = ExtractConfig(dataset=f"{folder}/", size=32, backbone="untrained", workers=0, device="cpu")
    with pytest.raises(UsageError, match=r"No image .* is left: .*1 image whose pixels all hold no data"):
        extract(config, context)
    write_tiff(folder / "full.tif", ground_of(3), nodata=0, **UTM)
    world.said.clear()
    assert extract(config, context).manifest.data.count == 1
    assert any(
        "left out: 1 image whose pixels all hold no data, such as 'empty.tif'" in line for line in world.said
    )
    with pytest.raises(UsageError, match="is left"):
        predicted(world, folder / "empty.tif")


def test_floats_are_stretched_by_values_that_are_data(world, tmp_path):
    values = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    values[:60, :60] = -9999
    path = write_tiff(tmp_path / "dem" / "height.tif", values, nodata=-9999, **UTM)
    context = Context(Workspace(tmp_path / "work"))
    config = ExtractConfig(
        dataset=f"{path.parent}/", windows=SIDE, stretch="0%,100%", size=48, backbone="untrained", workers=0
    )
    reading = extract(config, context).manifest.data.reading
    assert reading["low"] >= 0
    assert reading["high"] <= 1
    image = read_image(path, Reading(low=0.0, high=1.0, window=(0, 0, 96, 96)))
    assert image.shape == (96, 96, 3)
    assert (image[:60, :60] == 0).all()
    assert image[90, 90, 0] == round(255 * float(values[90, 90]))
    plain = read_image(path, Reading(window=(0, 0, 96, 96)))  # the range of the window, without its nodata
    assert plain.max() < 255


def test_a_band_without_data_between_windows_stays_void(world, tmp_path):
    values = np.concatenate([ground_of(5), np.zeros((260, WIDTH, 3), np.uint8), ground_of(6)])
    path = write_tiff(tmp_path / "two.tif", values, nodata=0, **UTM)
    found = predicted(world, path)
    with rasterio.open(found.path / "geo/two.tif") as raster:
        np.testing.assert_array_equal(raster.read(1) != 255, (values > 0).any(-1))
    assert "windows of 96 pixels: 24, 12 that hold no data are left out" in world.said


def test_inner_parts_cover_each_pixel_once():
    for height, width, side, overlap in [(200, 300, 96, 0.25), (97, 500, 96, 0.9), (40, 300, 96, 0.0)]:
        windows = Windows(side, overlap).of(height, width)
        assert {window[2:] for window in windows} == {(min(side, height), min(side, width))}
        seen = np.zeros((height, width), int)
        for (top, left, h, w), (row, column, rows, columns) in inner_parts(windows).items():
            assert top <= row < row + rows <= top + h
            assert left <= column < column + columns <= left + w
            seen[row : row + rows, column : column + columns] += 1
        assert (seen == 1).all()


def test_without_rasterio_the_extra_is_named(world, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "find_spec", lambda name: None)
    rasters.has_rasterio.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"unsupseg\[geo\]"):
            predicted(world, world.mosaic, windows=64)
        small = write_tiff(tmp_path / "small.tif", ground_of(4)[:90, :90], **UTM)
        world.said.clear()
        predicted(world, small)
        assert any("known of 1 image" in line and "[geo]" in line for line in world.said)
    finally:
        rasters.has_rasterio.cache_clear()


def test_segment_cuts_a_mosaic_into_windows_and_says_where_these_are_missing(tmp_path):
    write_tiff(tmp_path / "ortho" / "city.tif", ground_of(7).repeat(5, 0).repeat(5, 1), **UTM)

    def call(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "-w", str(tmp_path / "work")])
        assert done.exit_code == 0, done.output
        return " ".join(done.stderr.split())

    settings = ("--backbone", "untrained", "--workers", 0, "--classes", 3)
    said = call("segment", tmp_path / "ortho", *settings, "--out", tmp_path / "whole")
    assert "1 GeoTIFF shown whole at a small share of the resolution ('city.tif': 24 %)" in said
    assert "--windows 512" in said
    out = tmp_path / "cut"
    said = call("segment", tmp_path / "ortho", *settings, "--windows", 512, "--out", out)
    assert "share of the resolution" not in said
    assert "windows of 512 pixels: 6" in said
    assert f"for map programs: '{out}/geo'; polygons, `unsupseg export-labels --format gpkg" in said
    assert (out / "geo" / "city.tif").exists()
    call("classes", "name", "0=roof")
    said = call("classes", "apply", "--out", out)
    assert f"all of '{out}' tells these classes now" in said
    assert "roof" in (out / "report.html").read_text()


def test_windows_go_with_folders_of_images_alone(world, tmp_path):
    def refused(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "-w", str(tmp_path / "work")])
        assert done.exit_code == 2, done.output
        return " ".join(done.stderr.split())

    assert "--windows are of folders" in refused("extract", "--dataset", "scenes", "--windows", 64)
    labels = tmp_path / "labels" / "area"
    write_tiff(labels / "ortho.png.tif", np.zeros((HEIGHT, WIDTH), np.uint8))
    (labels / "ortho.png.tif").rename(labels / "ortho.tif")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    call = ["extract", "--dataset", f"{world.root / 'in'}/", "--labels", tmp_path / "labels", "--windows", 64]
    assert "one label; leave --windows or --labels out" in refused(
        *call, "--class-file", tmp_path / "classes.txt"
    )
    assert "do not go together" in refused(
        "extract", "--dataset", f"{world.root / 'in'}/", "--windows", 64, "--pages"
    )


def test_the_commands_of_the_page_on_aerial_images_run(call):
    page = (ROOT / "docs" / "aerial.md").read_text(encoding="utf-8")
    block = page.split("```sh\n")[1].split("```")[0].replace("--windows 512", f"--windows {SIDE}")
    write_tiff(Path("ortho/east.tif"), corner(ground_of()), nodata=0, **UTM)
    write_tiff(Path("ortho/west.tif"), ground_of(1), **UTM)
    small = {
        "extract": ["--backbone", "untrained", "--size", "48", "--workers", "0"],
        "predict": ["--workers", "0"],
    }
    for line in block.splitlines():
        words = shlex.split(line, comments=True)[1:]
        call(*words, *small.get(words[0], []))
    for place in ("result", "named"):
        assert {path.name for path in Path(place, "geo").iterdir()} == {"east.tif", "west.tif"}
    names = pyogrio.raw.read("classes.gpkg")[3][1]
    assert not {"class 0", "class 3"} & set(names)  # they are called roof and road by now
    assert pyogrio.read_info("classes.geojson")["features"] == len(names)
