"""TIFF of every form: the values are those that were stored, and what is dropped or scaled is told."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from unsupseg_cli.data.images import (
    UnreadableImage,
    image_size,
    read_image,
    read_values,
    remarks_on_images,
    type_of_values,
)
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.ranges import settle_reading
from unsupseg_cli.data.reading import Reading

RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def write(path, values, **options):
    tifffile.imwrite(path, values, **options)
    assert image_size(path) == read_image(path).shape[:2]
    return path


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_planes_and_wide_colours_are_what_was_stored(tmp_path, dtype, planar, compression):
    values = RGB.astype(dtype) * (257 if dtype == np.uint16 else 1)
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    path = write(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar, compression=compression)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert remarks_on_images([path]) == []
    assert type_of_values(path) == np.dtype(dtype).name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bands", [1, 3])
def test_floats_of_any_width(tmp_path, dtype, bands):
    values = (RGB[..., :bands] / 255).astype(dtype)
    path = write(tmp_path / "a.tif", values.squeeze(), photometric="rgb" if bands == 3 else "minisblack")
    assert np.abs(read_image(path).astype(int) - RGB[..., :bands]).max() <= (1 if dtype == np.float16 else 0)


@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
@pytest.mark.parametrize("bands", [4, 5, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_further_bands_are_no_transparency_and_their_loss_is_told(tmp_path, bands, planar, photometric):
    values = np.concatenate([RGB, np.zeros((6, 10, bands - 3), np.uint8)], -1)  # zero would be transparent
    options = {"extrasamples": ["unspecified"] * (bands - 3)} if photometric == "rgb" else {}
    if photometric == "minisblack":
        options = {"extrasamples": ["unspecified"] * (bands - 1)}
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    path = write(tmp_path / "a.tif", stored, photometric=photometric, planarconfig=planar, **options)
    np.testing.assert_array_equal(read_image(path), RGB)
    assert (
        f"{bands} bands: the first three are taken as red, green and blue, the others are dropped"
        in " ".join(remarks_on_images([path]))
    )


def test_transparency_that_is_declared_is_laid_over_white(tmp_path):
    values = np.concatenate([RGB, np.zeros((6, 10, 1), np.uint8)], -1)
    path = write(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert (read_image(path) == 255).all()
    path = write(
        tmp_path / "b.tif", values.astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"]
    )
    assert (read_image(path) == 255).all()
    assert "dropped" not in " ".join(remarks_on_images([path]))


def test_pages_and_turns(tmp_path):
    path = write(tmp_path / "a.tif", np.stack([RGB, RGB // 2]), photometric="rgb")
    np.testing.assert_array_equal(read_image(path), RGB)
    assert "2 pages: the first is taken, the others are dropped" in remarks_on_images([path])[0]
    wide = RGB.astype(np.uint16) * 257
    path = write(tmp_path / "b.tif", wide, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_image(path), np.rot90(RGB, -1))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "jp2", "j2k"])
def test_sixteen_bits_of_colours_are_all_read(tmp_path, suffix, bands):
    """Pillow keeps the high bytes of them; the last of two or four bands is transparency, here none."""
    values = np.concatenate([RGB, RGB[..., :1]], -1)[..., :bands].astype(np.uint16) * 11
    if bands in (2, 4):
        values[..., -1] = 65535
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(imagecodecs.png_encode(values.squeeze()))
    else:
        path.write_bytes(imagecodecs.jpeg2k_encode(values.squeeze(), reversible=True, codecformat=suffix))
    assert type_of_values(path) == "uint16"
    assert (read_values(path) == values).all()
    reading = Reading(ranges=(("uint16", 0, 255 * 11),))
    np.testing.assert_array_equal(
        read_image(path, reading), np.broadcast_to(RGB if bands > 2 else RGB[..., :1], RGB.shape)
    )


def test_a_file_is_a_tiff_by_what_it_holds(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif", RGB.astype(np.uint16) * 257, photometric="rgb", planarconfig="contig"
    )
    path = (tmp_path / "a.tif").rename(tmp_path / "a.png")
    assert type_of_values(path) == "uint16"
    np.testing.assert_array_equal(read_image(path), RGB)


def test_cut_files_and_bombs_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", RGB.astype(np.uint16), photometric="rgb")
    with pytest.raises(UnreadableImage, match=r"a\.tif' announces 10x6 of 3 bands pixels"):
        read_image(path, max_pixels=20)
    content = path.read_bytes()
    for keep in (8, 60, len(content) - 40):
        path.write_bytes(content[:keep])
        with pytest.raises(UnreadableImage, match=r"a\.tif"):
            read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_that_is_stored_as_zero_is_white(tmp_path, dtype):
    gray = RGB[..., 0].astype(dtype) * (257 if dtype == np.uint16 else 1)
    path = write(tmp_path / "a.tif", np.iinfo(dtype).max - gray, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path)[..., 0], RGB[..., 0])


@pytest.mark.parametrize("bits", range(1, 8))
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_few_bits_go_from_black_to_white(tmp_path, bits, photometric):
    stored = np.arange(2**bits, dtype=np.uint8)[None]
    if bits == 1:
        tifffile.imwrite(tmp_path / "a.tif", stored.astype(bool), photometric=photometric)
    else:
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric=photometric, bitspersample=bits)
    expected = np.round(stored / stored.max() * 255)
    found = read_image(tmp_path / "a.tif")[..., 0]
    np.testing.assert_array_equal(found, expected if photometric == "minisblack" else 255 - expected)


def test_colours_weighted_by_their_transparency_are_laid_over_white(tmp_path):
    values = np.full((4, 4, 4), (100, 50, 0, 128), np.uint8)
    path = write(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    assert read_image(path)[0, 0].tolist() == [227, 177, 127]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_frames_that_are_dropped_are_told(tmp_path, suffix):
    frames = [Image.fromarray(np.roll(RGB, step, 1)) for step in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
    (remark,) = remarks_on_images([tmp_path / f"a.{suffix}"])
    assert remark.startswith("3 frames: the first is taken, the others are dropped")


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_pictures_of_a_camera_that_are_dropped_are_told(tmp_path, suffix):
    """A JPEG of several (MPO): a burst, two eyes; no thumbnails and gain maps beside a photo."""
    frames = [Image.fromarray(np.roll(RGB, step, 1)) for step in range(3)]
    burst, photo, plain = (tmp_path / f"{name}.{suffix}" for name in ("burst", "photo", "plain"))
    frames[0].save(burst, format="MPO", save_all=True, append_images=frames[1:])
    frames[0].save(photo, format="MPO", save_all=True, append_images=[frames[0].resize((5, 3))])
    frames[0].save(plain)
    (remark,) = remarks_on_images([burst, photo, plain])
    assert remark.startswith("3 frames: the first is taken, the others are dropped (1 of 3 images")


def test_values_that_are_no_numbers_are_told(tmp_path):
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    values[:2], values[2, :5] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "a.tif", values)
    _, said = settle_reading([Item("a.tif", tmp_path / "a.tif")])
    assert said[1] == "25 % of the float32 values are NaN or infinite: NaN and -inf become black, inf white"
