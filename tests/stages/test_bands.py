"""Bands and range of images that are no photographs: chosen once, the same for all that follows."""

import json

import numpy as np
import pytest
import tifffile

from unsupseg_cli.core.options import PixelConfig
from unsupseg_cli.core.stretch import parse_stretch
from unsupseg_cli.data.images import read_image, read_values
from unsupseg_cli.data.reading import Reading, settle_reading

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
    assert "band 5" in call(*common, "--bands", 5, code=1)[1]


def test_a_range_is_that_of_the_collection_and_never_of_an_image(tmp_path):
    dark = tmp_path / "dark.tif"
    bright = tmp_path / "bright.tif"
    for path, top in ((dark, 100), (bright, 400)):
        tifffile.imwrite(path, np.linspace(0, top, 101).round().astype(np.uint16)[None].repeat(9, 0))
    reading = settle_reading([dark, bright], (), "0,100", read_values)
    assert (reading.low, reading.high) == (0, 400)
    assert read_image(dark, reading).max() == 64  # a quarter of the range, as in the file
    assert read_image(bright, reading).max() == 255
    fixed = Reading(low=100, high=300)
    assert read_image(bright, fixed)[0, [0, 25, 40, 75, 100], 0].tolist() == [0, 0, 76, 255, 255]


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
    assert "2 pages of 1 files are an image each" in said
    assert "others are dropped" not in said
    assert one != both
    call("pseudolabel", "--method", "kmeans", "--classes", 2, "--features", both)
    call("train", "--method", "kmeans", "--classes", 2)
    call("predict", "stacks", "--pages", "--out", "out", "--workers", 0)
    first, second = (read_image(here / f"out/ids/s.tif/000{page}.tif.png")[..., 0] for page in (1, 2))
    assert (first == second[:, ::-1]).mean() > 0.9
    assert (first == second).mean() < 0.1
