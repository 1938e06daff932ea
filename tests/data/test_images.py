import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli.data.images import UnreadableImage, image_size, read_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GRAY = RGB[..., 0]
ALPHA = np.where(np.arange(35).reshape(5, 7) % 2, 255, 0).astype(np.uint8)
WHERE_OPAQUE = ALPHA[..., None] == 255


def three(gray):
    return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, axis=2)


def save(path: Path, array, mode=None, **options) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def read(path: Path):
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image_size(path) == image.shape[:2]
    return image


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp", "webp"])
def test_lossless_formats_give_the_stored_pixels(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(read(save(tmp_path / f"a.{suffix}", RGB, **options)), RGB)


@pytest.mark.parametrize(
    ("suffix", "mode"), [("jpg", "RGB"), ("jpeg", "L"), ("jpg", "CMYK"), ("webp", "RGB")]
)
def test_lossy_formats_come_close(tmp_path, suffix, mode):
    path = save(tmp_path / f"a.{suffix}", np.full((16, 16, 3), (90, 130, 90), np.uint8), mode, quality=95)
    expected = (
        [118] * 3 if mode == "L" else [90, 130, 90]
    )  # the usual luma weights 0.299, 0.587, 0.114 give 113.5
    assert np.abs(read(path).astype(int) - expected).max() <= 6


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_gray_palette_and_bilevel(tmp_path, suffix):
    np.testing.assert_array_equal(read(save(tmp_path / f"gray.{suffix}", GRAY)), three(GRAY))
    index = Image.fromarray((GRAY % 3).astype(np.uint8), mode="P")
    index.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    index.save(tmp_path / f"palette.{suffix}")
    np.testing.assert_array_equal(
        read(tmp_path / f"palette.{suffix}"), (np.eye(3, dtype=np.uint8) * 255)[GRAY % 3]
    )
    path = save(tmp_path / f"bits.{suffix}", ALPHA, "1")
    np.testing.assert_array_equal(read(path), three(ALPHA))


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_transparent_pixels_become_white(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.dstack([RGB, ALPHA])).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read(path), np.where(WHERE_OPAQUE, RGB, 255))


def test_gray_alpha_palette_and_colour_key_transparency(tmp_path):
    save(tmp_path / "la.png", np.dstack([three(GRAY), ALPHA]), "LA")
    np.testing.assert_array_equal(read(tmp_path / "la.png"), np.where(WHERE_OPAQUE, three(GRAY), 255))
    index = Image.fromarray((GRAY % 2).astype(np.uint8), mode="P")
    index.putpalette([9, 8, 7, 1, 2, 3])
    index.save(tmp_path / "one.png", transparency=1)
    index.save(tmp_path / "each.png", transparency=bytes([0, 255]))
    odd = (GRAY % 2 == 1)[..., None]
    np.testing.assert_array_equal(read(tmp_path / "one.png"), np.where(odd, 255, [[[9, 8, 7]]]))
    np.testing.assert_array_equal(read(tmp_path / "each.png"), np.where(odd, [[[1, 2, 3]]], 255))
    Image.fromarray(RGB).save(tmp_path / "key.png", transparency=tuple(int(v) for v in RGB[0, 0]))
    assert read(tmp_path / "key.png")[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_full_range(tmp_path, suffix):
    values = np.array([[0, 257, 514], [32896, 65278, 65535]], np.uint16)
    path = save(tmp_path / f"a.{suffix}", values)
    np.testing.assert_array_equal(read(path), three([[0, 1, 2], [128, 254, 255]]))
    dark = save(tmp_path / f"dark.{suffix}", np.full((2, 2), 200, np.uint16))
    assert read(dark).max() == 1  # not taken for 8 bits because it is dark


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [[0, 128, 255]]),
        (np.array([[0, 2, 255]], np.float32), [[0, 2, 255]]),
        (np.array([[0, 257, 65535]], np.float32), [[0, 1, 255]]),
        (np.array([[-1, 0, 3]], np.float32), [[0, 64, 255]]),
        (np.full((2, 2), 0.25, np.float32), np.full((2, 2), 64)),
        (np.full((2, 2), -7, np.float32), np.zeros((2, 2))),
        (np.array([[np.nan, 1.0, 3.0, np.inf, -np.inf]], np.float32), [[0, 1, 3, 255, 0]]),
        (np.full((1, 2), np.nan, np.float32), [[0, 0]]),
        (np.array([[-3e38, 0, 3e38]], np.float32), [[0, 128, 255]]),
        (np.array([[0, 1, 255]], np.int32), [[0, 1, 255]]),
        (np.array([[0, 257, 65535]], np.int32), [[0, 1, 255]]),
        (np.array([[0, 500_000, 1_000_000]], np.int32), [[0, 128, 255]]),
    ],
)
def test_32_bit_and_float_tiff(tmp_path, values, expected):
    np.testing.assert_array_equal(read(save(tmp_path / "a.tif", values)), three(expected))


# What turns the stored pixels upright, by the EXIF standard
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    blocks = np.kron(RGB // 2, np.ones((16, 16, 1), np.uint8))  # coarse enough for JPEG
    path = save(tmp_path / f"a.{suffix}", blocks, exif=exif, **options)
    difference = read(path).astype(int) - TURNS[orientation](blocks)
    assert np.abs(difference).max() <= (8 if suffix == "jpg" else 0)


def encoded(kind: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    buffer = io.BytesIO()
    big = np.kron(RGB, np.ones((8, 8, 1), np.uint8))
    Image.fromarray(big).save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("keep", [0, 1, 10, 0.5, 0.9])
def test_truncated_files_are_named(tmp_path, kind, keep):
    content = encoded(kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UnreadableImage, match=f"cut.{kind.lower()}"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_damaged_bytes_raise_nothing_else_and_sizes_agree(tmp_path, kind):
    content, chance, path = encoded(kind), random.Random(0), tmp_path / f"a.{kind.lower()}"
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            size = image_size(path)
        except UnreadableImage:
            size = None
        try:
            shape = read_image(path, max_pixels=10**6).shape[:2]
        except UnreadableImage:
            continue
        assert size == shape


def test_reasons_of_unreadable_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture\n")
    (tmp_path / "folder.png").mkdir()
    reasons = {"empty.jpg": "empty", "text.jpg": "format", "folder.png": "directory", "gone.png": "not exist"}
    for name, reason in reasons.items():
        for function in (image_size, read_image):
            with pytest.raises(UnreadableImage, match=rf"{name}.*{reason}"):
                function(tmp_path / name)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [14_000, 60_000])  # Pillow lets the first one pass and refuses the second
def test_decompression_bombs_are_refused_by_their_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    for function in (image_size, read_image):
        with pytest.raises(UnreadableImage, match=r"bomb\.png.*announces.*178,956,970"):
            function(path)
    assert Image.MAX_IMAGE_PIXELS is not None  # other users of Pillow in this process keep their guard


def test_a_large_but_accepted_image_gives_no_warning(tmp_path, recwarn):
    path = tmp_path / "large.png"
    path.write_bytes(png_header(12_000, 12_000))
    assert image_size(path) == (12_000, 12_000)
    assert not recwarn.list


def test_the_size_of_a_png_needs_only_its_header(tmp_path):
    path = tmp_path / "cut.png"
    path.write_bytes(encoded("PNG")[:400])
    assert image_size(path) == (56, 40)


def test_unicode_and_spaces_in_nested_names(tmp_path):
    folder = tmp_path / "Fotos – 写真" / "a b"
    folder.mkdir(parents=True)
    np.testing.assert_array_equal(read(save(folder / "Größe 100%.png", RGB)), RGB)
