"""Bands and range of images that are no photographs: chosen once, the same for all that follows."""

import json

import numpy as np
import pytest
import tifffile

from unsupseg_cli.core.options import PixelConfig
from unsupseg_cli.core.stretch import parse_stretch
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.ranges import settle_reading
from unsupseg_cli.data.reading import Reading

LEFT_RIGHT = np.repeat([[0, 1]], 64, 0).repeat(32, 1)


def scene(path, top=3000):
    """Write four bands of 16 bit of which only the fourth, near infrared, tells left from right."""
    path.parent.mkdir(exist_ok=True)
    values = np.full((64, 64, 4), 500, np.uint16)
    noise = np.random.default_rng(len(path.name)).integers(0, 60, (64, 64))
    values[..., 3] = np.where(LEFT_RIGHT, top, 200) + noise
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unspecified"]}
    tifffile.imwrite(path, np.moveaxis(values, -1, 0), **options)
    return path


def test_bands_and_range_are_in_the_key_and_predict_does_the_same(call, tmp_path):
    here = tmp_path / "here"
    for number in range(3):
        scene(here / "tiles" / f"{number}.tif", 2000 + 500 * number)
    scene(here / "new" / "fresh-tile.tif")
    common = ("extract", "--dataset", "tiles/", "--size", 64, "--workers", 0)
    plain, said = call(*common)
    assert "4 bands: the first three are taken" in said
    near, said = call(*common, "--bands", "4,4,4", "--stretch", "2,98")
    assert "becomes black" in said
    other, _ = call(*common, "--bands", 4, "--stretch", "0,3000")
    assert len({plain, near, other}) == 3
    assert call(*common, "--bands", "4,4,4", "--stretch", "2,98")[0] == near
    call("pseudolabel", "--method", "kmeans", "--classes", 2, "--features", near)
    model, _ = call("train", "--method", "kmeans", "--classes", 2)
    call("export", "--out", "m.safetensors")
    found = {}
    for name in (model, "m.safetensors"):
        path, _ = call("predict", "new", "--model", name, "--out", f"out-{len(found)}", "--workers", 0)
        found[name] = np.asarray(tifffile.imread(here / "new" / "fresh-tile.tif")).shape
        ids = read_image(here / f"out-{len(found) - 1}" / "ids" / "fresh-tile.tif.png")[..., 0]
        assert max((ids == LEFT_RIGHT).mean(), (ids != LEFT_RIGHT).mean()) > 0.9
        manifest = json.loads((here / path / "manifest.json").read_text())
        assert manifest["data"]["reading"]["bands"] == [4, 4, 4]
    assert "no effect" in call("extract", "--model", model, "--bands", 1, code=2)[1]
    _, said = call(*common, "--bands", 5, code=2)
    assert "--bands 5 does not fit the image 'tiles/0.tif': it has no band 5: there are 4" in said


def items(folder):
    return [Item(path.name, path) for path in sorted(folder.iterdir())]


def ramp(path, top, dtype=np.uint16, low=0):
    tifffile.imwrite(path, np.linspace(low, top, 101).astype(dtype)[None].repeat(9, 0))
    return path


def test_a_range_is_that_of_the_collection_and_never_of_an_image(tmp_path):
    dark, bright = ramp(tmp_path / "dark.tif", 100), ramp(tmp_path / "bright.tif", 400)
    reading, said = settle_reading(items(tmp_path), stretch="0,100")
    assert (reading.low, reading.high) == (0, 400)
    assert said == ["stretch: 0 becomes black, 400 white"]
    assert read_image(dark, reading).max() == 64  # a quarter of the range, as in the file
    assert read_image(bright, reading).max() == 255
    fixed, said = settle_reading(items(tmp_path), stretch="100,300")
    assert read_image(bright, fixed)[0, [0, 25, 40, 75, 100], 0].tolist() == [0, 0, 76, 255, 255]
    assert said[1] == "74 % of the values lie outside 100 to 300, and become black or white"


@pytest.mark.parametrize(
    ("dtype", "low", "tops", "meant"),
    [
        (np.uint16, 0, (300, 3000), (1.5, 2880)),
        (np.uint16, 0, (300, 65535), (0, 65535)),
        (np.int16, -300, (300, 3000), (-295.5, 2868)),
        (np.uint32, 0, (300, 70000), (1.5, 67200)),
        (np.float32, 0, (0.04, 0.2), (0.0002, 0.192)),
        (np.float64, 0, (0.4, 1), (0, 1)),
        (np.float32, 0, (0.4, 1.3), (0.002, 1.248)),  # and not 0 to 255, where two shades were left
        (np.float16, 200, (250, 300), (200.5, 296)),
    ],
)
def test_without_being_asked_the_range_is_that_of_the_collection_too(tmp_path, dtype, low, tops, meant):
    paths = [ramp(tmp_path / f"{top}.tif", top, dtype, low) for top in tops]
    reading, said = settle_reading(items(tmp_path))
    ((name, black, white),) = reading.ranges
    assert name == np.dtype(dtype).name
    assert (black, white) == pytest.approx(meant, rel=0.02, abs=0.02 * (meant[1] - meant[0]))
    assert f"{name} values: {black:g} becomes black and {white:g} white in all images" in said[0]
    assert Reading.from_json(json.loads(json.dumps(reading.to_json()))) == reading
    dark, bright = (read_image(path, reading) for path in paths)
    share = (tops[0] - black) / (white - black)
    assert dark.max() == pytest.approx(255 * share, abs=2)
    assert len(np.unique(bright)) > 60
    asked, _ = settle_reading(items(tmp_path), stretch="image")
    assert read_image(paths[0], asked).max() == read_image(paths[0]).max()
    none, _ = settle_reading(items(tmp_path), stretch="none")
    largest = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    assert read_image(paths[0], none).max() == round(min(1, tops[0] / largest) * 255)


def test_a_collection_of_several_types_keeps_8_bits_and_has_a_range_for_each_other(tmp_path):
    photo = np.random.default_rng(0).integers(0, 40, (8, 8, 3), np.uint8)
    tifffile.imwrite(tmp_path / "photo.tif", photo, photometric="rgb")
    ramp(tmp_path / "wide.tif", 3000)
    ramp(tmp_path / "float.tif", 0.1, np.float32)
    reading, said = settle_reading(items(tmp_path))
    assert [name for name, _, _ in reading.ranges] == ["float32", "uint16"]
    assert len(said) == 2
    np.testing.assert_array_equal(read_image(tmp_path / "photo.tif", reading), photo)
    assert len(np.unique(read_image(tmp_path / "wide.tif", reading))) > 95
    assert len(np.unique(read_image(tmp_path / "float.tif", reading))) > 95


def test_pixels_of_which_nothing_is_known_set_no_range(tmp_path):
    values = np.linspace(0, 900, 100).reshape(10, 10).astype(np.int16)
    values[:5] = -9999
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(42113, "s", 0, "-9999", True)])
    ((_, low, high),) = settle_reading(items(tmp_path))[0].ranges
    assert 450 < low < high <= 900


def test_images_that_do_not_fit_the_range_of_the_model_are_told(call, tmp_path):
    here = tmp_path / "here"
    for name, top in (("old/a", 200), ("old/b", 3000), ("new/c", 1500), ("far/d", 60000), ("float/e", 0.1)):
        path = here / f"{name}.tif"
        path.parent.mkdir(exist_ok=True)
        values = np.where(LEFT_RIGHT, top, top / 2).astype(np.float32 if top < 1 else np.uint16)
        tifffile.imwrite(path, values)
    _, said = call("extract", "--dataset", "old/", "--size", 64, "--workers", 0)
    assert "uint16 values: 100 becomes black and 3000 white in all images" in said
    call("pseudolabel", "--method", "kmeans", "--classes", 2)
    call("train", "--method", "kmeans", "--classes", 2)
    path, said = call("predict", "new/", "--workers", 0)
    assert "values" not in said
    manifest = json.loads((here / path / "manifest.json").read_text())
    assert manifest["data"]["reading"]["ranges"] == [["uint16", 100, 3000]]
    _, said = call("predict", "far/", "--workers", 0)
    assert "100 % of the values lie outside 100 to 3000, and become black or white" in said
    path, said = call("predict", "float/", "--workers", 0)
    assert "float32 values: 0.05 becomes black and 0.1 white in all images" in said


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2,98", (2, 98, True)),
        ("0%,1%", (0, 1, True)),
        ("0,3000", (0, 3000, False)),
        ("0,0.4", (0, 0.4, False)),
        ("-30,5", (-30, 5, False)),
    ],
)
def test_percentiles_and_values(text, meant):
    assert parse_stretch(text) == meant
    assert PixelConfig(stretch=text).stretch == text


@pytest.mark.parametrize("options", [{"stretch": "9"}, {"stretch": "98,2"}, {"stretch": "a,b"}, {"bands": "1,2"},
                                     {"bands": "0"}, {"stretch": "2%,200%"}])  # fmt: skip
def test_faulty_options_are_refused(options):
    with pytest.raises(ValueError, match=r"expected|below|between"):
        PixelConfig(**options)


def test_pages_are_images_by_option(call, tmp_path):
    here = tmp_path / "here"
    (here / "stacks").mkdir()
    left = np.where(LEFT_RIGHT[..., None], [200, 30, 30], [30, 30, 200]).astype(np.uint8)
    tifffile.imwrite(here / "stacks" / "s.tif", np.stack([left, left[:, ::-1]]), photometric="rgb")
    common = ("extract", "--dataset", "stacks/", "--size", 64, "--workers", 0)
    one, said = call(*common)
    assert "2 pages: the first is taken, the others are dropped" in said
    both, said = call(*common, "--pages")
    assert "2 pages of 1 file, each an image" in said
    assert "others are dropped" not in said
    assert one != both
    call("pseudolabel", "--method", "kmeans", "--classes", 2, "--features", both)
    call("train", "--method", "kmeans", "--classes", 2)
    call("predict", "stacks", "--pages", "--out", "out", "--workers", 0)
    first, second = (read_image(here / f"out/ids/s.tif/000{page}.tif.png")[..., 0] for page in (1, 2))
    assert (first == second[:, ::-1]).mean() > 0.9
    assert (first == second).mean() < 0.1


def test_a_stretch_says_which_types_it_loses_and_what_is_no_number(tmp_path):
    ramp = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    tifffile.imwrite(tmp_path / "wide.tif", (ramp * 9000).astype(np.uint16))
    ramp[:8, :8] = np.nan
    tifffile.imwrite(tmp_path / "narrow.tif", ramp)
    _, said = settle_reading(items(tmp_path), stretch="0,100")
    assert "1.6 % of the float32 values are NaN or infinite" in said[1]
    assert "the float32 values (0.0" in said[2]
    assert "become 1 of 256 shades by --stretch" in said[2]
    assert len(said) == 3
