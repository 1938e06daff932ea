import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torchvision import transforms as v1

from unsupseg_cli.data.geometry import Geometry, View, place, seen

KINDS = st.sampled_from(["stego", "squash", "five-crop", "native"])
SIDES = st.integers(4, 90)


@settings(max_examples=60, deadline=None)
@given(KINDS, SIDES, SIDES, st.sampled_from([8, 14, 16]), st.booleans())
def test_maps_invert_and_agree_with_the_seen_pixels(kind, height, width, patch, flip):
    for view in Geometry(kind=kind, size=32).views(height, width, patch):
        view = View(view.crop, view.box, view.height, view.width, flip)
        assert view.height % patch == 0
        assert view.width % patch == 0
        y, x = np.mgrid[:height, :width] + 0.5
        points = np.stack([x, y], axis=-1)
        there = view.to_view(points)
        np.testing.assert_allclose(view.to_original(there), points, atol=1e-6)
        inside = ((there >= -1e-6) & (there <= [view.width + 1e-6, view.height + 1e-6])).all(-1)
        mask = seen(view, height, width)
        assert (mask <= inside).all()
        placed = place(np.ones((view.height, view.width), np.int16), view, height, width, fill=-1)
        np.testing.assert_array_equal(placed == 1, mask)


@settings(max_examples=30, deadline=None)
@given(KINDS, SIDES, SIDES, st.sampled_from(["nearest", "bilinear", "bicubic", "tensor"]))
def test_a_constant_image_stays_constant(kind, height, width, name):
    geometry = Geometry(kind=kind, size=32, filter=name)
    for view in geometry.views(height, width, 8):
        shown = geometry.render(np.full((height, width, 3), 77, np.uint8), view)
        assert shown.shape == (view.height, view.width, 3)
        assert (shown == 77).all()


@pytest.mark.parametrize(("patch", "side"), [(8, 320), (16, 320), (14, 322)])
def test_sizes_snap_to_the_patch(patch, side):
    (view,) = Geometry(kind="stego", size=320).views(480, 640, patch)
    assert (view.height, view.width) == (side, side)


def test_stego_equals_resize_then_centre_crop():
    image = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    geometry = Geometry(kind="stego", size=32)
    (view,) = geometry.views(50, 90, 8)
    resized = np.asarray(Image.fromarray(image).resize((57, 32), Image.Resampling.BILINEAR))
    offset = round((57 - 32) / 2)
    difference = geometry.render(image, view).astype(int) - resized[:, offset : offset + 32]
    assert np.abs(difference).max() <= 1


# Height and width: Cityscapes, common photographs and frames, Potsdam's tiles, odd ones, and some smaller than 320.
SIZES = [
    (1024, 2048), (480, 640), (375, 500), (500, 375), (427, 640), (640, 427), (333, 500), (360, 480), (720, 960),
    (1080, 1920), (1200, 1600), (720, 1280), (512, 1024), (612, 612), (481, 321), (600, 800), (200, 200), (321, 999),
    (777, 325), (224, 1000), (319, 320),
]  # fmt: skip


@pytest.mark.parametrize("side", [320, 322, 224])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_nearest_is_pillows_resize_then_torchvisions_centre_crop(height, width, side):
    """Pixel by pixel, ties too: each pixel of the picture holds its own number."""
    numbers = np.arange(height * width, dtype=np.int64).reshape(height, width)
    image = np.stack([numbers % 251, numbers // 251 % 251, numbers // 251**2], axis=-1).astype(np.uint8)
    label = (numbers % 30011).astype(np.int16)
    geometry = Geometry(kind="stego", size=side, filter="nearest")
    (view,) = geometry.views(height, width, 1)
    steps = (v1.Resize(side, v1.InterpolationMode.NEAREST), v1.CenterCrop(side))
    expected, expected_label = Image.fromarray(image), Image.fromarray(label.astype(np.int32))
    for step in steps:
        expected, expected_label = step(expected), step(expected_label)
    np.testing.assert_array_equal(geometry.render(image, view), np.asarray(expected))
    np.testing.assert_array_equal(geometry.render_label(label, view), np.asarray(expected_label))


@pytest.mark.parametrize(("height", "width"), SIZES[:4] + SIZES[13:16])
def test_nearest_crops_are_pillows_resize_of_each_crop(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    geometry = Geometry(kind="five-crop", size=224, filter="nearest")
    crops = v1.functional.five_crop(Image.fromarray(image), (int(height * 0.5), int(width * 0.5)))
    resize = v1.Compose([v1.Resize(224, v1.InterpolationMode.NEAREST), v1.CenterCrop(224)])
    for view, crop in zip(geometry.views(height, width, 8), crops, strict=True):
        np.testing.assert_array_equal(geometry.render(image, view), np.asarray(resize(crop)))


@pytest.mark.parametrize("side", [320, 322])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tensor_is_torchvisions_resize_of_tensors_without_antialiasing(height, width, side):
    """As PriMaPs-EM's published code scores: labels equal, images to the rounding to whole values."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    label = generator.integers(-1, 27, (height, width)).astype(np.int16)
    geometry = Geometry(kind="stego", size=side, filter="tensor")
    (view,) = geometry.views(height, width, 1)
    crop = v1.CenterCrop(side)
    plain = v1.Resize(side, v1.InterpolationMode.BILINEAR, antialias=False)
    expected = 255 * crop(plain(v1.functional.to_tensor(image)))
    shown = torch.from_numpy(geometry.render(image, view)).movedim(-1, 0)
    assert float((shown - expected).abs().max()) <= 0.5 + 1e-3
    nearest = v1.Resize(side, v1.InterpolationMode.NEAREST)
    expected_label = crop(nearest(torch.from_numpy(label)[None]))[0].numpy()
    np.testing.assert_array_equal(geometry.render_label(label, view), expected_label)


def test_native_labels_round_trip_and_flip_mirrors():
    label = np.arange(64, dtype=np.int16).reshape(8, 8)
    geometry = Geometry(kind="native", size=16)
    (view,) = geometry.views(8, 8, 8)
    np.testing.assert_array_equal(place(geometry.render_label(label, view), view, 8, 8, -1), label)
    mirrored = View(0, view.box, 16, 16, flip=True)
    np.testing.assert_array_equal(
        geometry.render_label(label, mirrored), geometry.render_label(label, view)[:, ::-1]
    )


def test_only_native_may_keep_the_size():
    with pytest.raises(ValidationError, match="needs a size"):
        Geometry(kind="stego", size=None)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "tensor"])
@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (41, 41)])
def test_five_crop_shows_nothing_from_outside_its_crop(height, width, name):
    geometry = Geometry(kind="five-crop", size=16, filter=name)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    h, w = height // 2, width // 2
    corners = [(0, 0), (0, width - w), (height - h, 0), (height - h, width - w)]
    for view, (y, x) in zip(geometry.views(height, width, 8), corners, strict=False):
        elsewhere = np.full_like(image, 255)
        elsewhere[y : y + h, x : x + w] = image[y : y + h, x : x + w]
        shown = geometry.render(image, view)
        np.testing.assert_array_equal(geometry.render(elsewhere, view), shown)
        alone = Geometry(kind="stego", size=16, filter=name)
        crop = np.ascontiguousarray(image[y : y + h, x : x + w])
        np.testing.assert_array_equal(alone.render(crop, alone.views(h, w, 8)[0]), shown)
    assert len(geometry.views(height, width, 8)) == 5


def test_ten_crops_are_five_and_their_mirror_images():
    image = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    five, ten = Geometry(kind="five-crop", size=8), Geometry(kind="ten-crop", size=8)
    plain, doubled = five.views(20, 30, 4), ten.views(20, 30, 4)
    assert doubled[:5] == plain
    assert [view.crop for view in doubled] == list(range(10))
    for one, two in zip(doubled[:5], doubled[5:], strict=True):
        assert (ten.render(image, one)[:, ::-1] == ten.render(image, two)).all()


def test_several_ratios_give_crops_of_several_scales():
    geometry = Geometry(kind="ten-crop", size=8, ratios=(0.5, 0.8))  # CAUSE's 'double' crops
    views = geometry.views(40, 40, 4)
    assert len(views) == 20
    sides = [round(view.box[2] - view.box[0]) for view in views]
    assert sides == [20] * 5 + [32] * 5 + [20] * 5 + [32] * 5
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    x0, y0, x1, y1 = map(int, views[9].box)
    alone = Geometry(kind="stego", size=8).render(
        image[y0:y1, x0:x1], Geometry(kind="stego", size=8).views(32, 32, 4)[0]
    )
    assert (geometry.render(image, views[9]) == alone).all()
    with pytest.raises(ValueError, match="ratios"):
        Geometry(kind="ten-crop", size=8, ratios=(1.5,))
