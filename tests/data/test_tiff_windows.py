"""A window of a TIFF, of whatever kind, is that part of what the whole is read as."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from unsupseg_cli.data.images import UnreadableImage, read_image, read_known_values, type_of_values
from unsupseg_cli.data.reading import Reading

HEIGHT, WIDTH = 90, 110
WHOLE, PART = (0, 0, HEIGHT, WIDTH), (33, 21, 50, 64)
UTM = {"crs": "EPSG:32633", "transform": from_origin(392000, 5820000, 0.5, 0.5)}
COLORS = {index: (index, 255 - index, index * 7 % 256, 255) for index in range(256)}
ALPHA = np.repeat(np.linspace(0, 255, HEIGHT).round(), WIDTH).reshape(HEIGHT, WIDTH)


def smooth(bands, dtype, top):
    rows, columns = np.indices((HEIGHT, WIDTH))
    noise = np.random.default_rng(0).integers(0, 20, (bands, HEIGHT, WIDTH))
    values = np.stack([rows * (band + 2) / 3 + columns for band in range(bands)]) + noise
    return (values / values.max() * top).astype(dtype)


def write(path, bands=1, dtype="uint8", top=None, colors=None, alpha=None, mask=False, **options):
    if top is None:
        top = 1 if dtype == "float32" else np.iinfo(dtype).max
    values = smooth(bands, dtype, top)
    if alpha is not None:
        values[-1] = ALPHA / 255 * top
    if options.get("nodata") == -9999:
        values[:, :30] = -9999
    shape = {"count": bands, "height": HEIGHT, "width": WIDTH, "dtype": dtype, **UTM}
    extra = {"ALPHA": alpha} if alpha else {}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", driver="GTiff", **shape, **extra, **options) as raster,
    ):
        raster.write(values)
        if colors is not None:
            raster.write_colormap(1, {index: COLORS[index] for index in range(colors)})
        if mask:
            raster.write_mask(ALPHA > 100)
    return path


TYPES = [
    {"dtype": dtype, "top": top, "bands": bands}
    for dtype, top in [
        ("uint8", 255), ("int8", 127), ("uint16", 4000), ("int16", 3000), ("uint32", 99999), ("int32", 99999),
        ("float32", 1)
    ]
    for bands in (1, 2, 3, 4, 5)
]  # fmt: skip
BITS = [
    {"nbits": bits, "top": 2**bits - 1, "photometric": photometric}
    for bits in range(1, 9)
    for photometric in ("MINISBLACK", "MINISWHITE")
]
WIDE_BITS = [
    {"nbits": 12, "top": 4095, "dtype": "uint16"},
    {"nbits": 12, "top": 4095, "dtype": "uint16", "bands": 3},
    {"nbits": 12, "top": 4095, "dtype": "uint16", "photometric": "MINISWHITE"},
    {"nbits": 16, "dtype": "float32"},
    {"nbits": 24, "dtype": "float32"},
]
PALETTES = [
    {"photometric": "palette", "nbits": bits, "top": 2**bits - 1, "colors": 2**bits} for bits in (1, 2, 4, 8)
]
STORED = [
    {"bands": 3, "dtype": dtype, "top": 255, **how}
    for dtype in ("uint8", "uint16")
    for how in [
        {"tiled": True, "blockxsize": 64, "blockysize": 32},
        {"interleave": "band"},
        {"compress": "lzw", "predictor": 2},
        {"compress": "deflate"},
        {"compress": "zstd"},
        {"ENDIANNESS": "BIG"},
        {"BIGTIFF": "YES"},
    ]
]
COLORED = [
    {"bands": 3, "compress": "jpeg"},
    {"bands": 4, "photometric": "CMYK"},
    {"bands": 4, "photometric": "CMYK", "interleave": "band"},
    {"bands": 3, "photometric": "CIELAB"},
    {"bands": 3, "photometric": "MINISBLACK"},
]
LAYERED = [
    {"bands": bands, "dtype": dtype, "alpha": alpha}
    for bands in (2, 4)
    for dtype in ("uint8", "uint16")
    for alpha in ("YES", "PREMULTIPLIED")
]
WITHOUT_DATA = [
    {"nodata": 255},
    {"nodata": 0, "bands": 3},
    {"nodata": -9999, "dtype": "float32"},
    {"nodata": 3, "photometric": "palette", "colors": 256},
    {"nodata": 0, "photometric": "MINISWHITE"},
    {"mask": True, "bands": 3},
    {"mask": True, "dtype": "float32"},
]


@pytest.mark.parametrize(
    "kind",
    [*TYPES, *BITS, *WIDE_BITS, *PALETTES, *STORED, *COLORED, *LAYERED, *WITHOUT_DATA],
    ids=lambda kind: "-".join(f"{name}={value}" for name, value in kind.items()),
)
def test_a_window_is_that_part_of_the_whole(tmp_path, kind):
    path = write(tmp_path / "a.tif", **kind)
    np.testing.assert_array_equal(read_image(path, Reading(window=WHOLE)), read_image(path))
    ranges = ((type_of_values(path), 0.0, float(kind.get("top", 1)) / 2),)  # one for all windows
    whole, part = (read_image(path, Reading(window=window, ranges=ranges)) for window in (None, PART))
    np.testing.assert_array_equal(part, whole[33:83, 21:85])
    values, known = read_known_values(path)
    values_there, known_there = read_known_values(path, window=PART)
    np.testing.assert_array_equal(known_there, known[33:83, 21:85])
    np.testing.assert_array_equal(values_there, values[33:83, 21:85])
    assert values_there.dtype == values.dtype


def test_white_and_palettes_have_their_colours_by_windows(tmp_path):
    white = write(tmp_path / "white.tif", photometric="MINISWHITE")
    np.testing.assert_array_equal(
        read_image(white, Reading(window=WHOLE))[..., 0], 255 - smooth(1, "uint8", 255)[0]
    )
    palette = write(tmp_path / "palette.tif", photometric="palette", colors=256)
    colors = np.array([COLORS[index][:3] for index in range(256)])
    np.testing.assert_array_equal(
        read_image(palette, Reading(window=WHOLE)), colors[smooth(1, "uint8", 255)[0]]
    )


@pytest.mark.parametrize("tiled", [True, False])
def test_jpeg_in_its_own_colours_differs_by_what_decoders_do(tmp_path, tiled):
    path = write(tmp_path / "a.tif", bands=3, compress="jpeg", photometric="YCBCR", tiled=tiled)
    whole, window = read_image(path), read_image(path, Reading(window=WHOLE))
    assert np.abs(whole.astype(int) - window).max() <= 8
    np.testing.assert_array_equal(read_image(path, Reading(window=PART)), window[33:83, 21:85])


def test_pixels_without_data_are_black_in_the_whole_too_and_stretch_nothing(tmp_path):
    path = write(tmp_path / "a.tif", dtype="float32", nodata=-9999)
    image = read_image(path)
    assert (image[:30] == 0).all()
    np.testing.assert_array_equal(image[30:, :, 0], np.round(255 * smooth(1, "float32", 1)[0, 30:]))


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_numbers_are_refused_whole_and_by_windows(tmp_path, dtype):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=HEIGHT, width=WIDTH, dtype=dtype, **UTM
    ) as raster:
        raster.write(smooth(1, "complex64", 9))
    for reading in (None, Reading(window=PART), Reading(low=0, high=1, window=PART), Reading(bands=(1,))):
        with pytest.raises(UnreadableImage, match=r"a\.tif' holds complex numbers, which are no colours"):
            read_image(path, reading)


def test_colours_that_are_not_read_by_windows_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", bands=4, dtype="uint16", photometric="CMYK")
    with pytest.raises(UnreadableImage, match=r"No window of the image .*a\.tif.*bring it to RGB first"):
        read_image(path, Reading(window=PART))
