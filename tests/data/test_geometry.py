import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

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
@given(KINDS, SIDES, SIDES, st.sampled_from(["nearest", "bilinear", "bicubic"]))
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


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
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
