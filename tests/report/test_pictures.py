import io

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.report.overlay import RIGHT_COLOR, WRONG_COLOR, blend, colorize, error_map, legend
from unsupseg_cli.report.palette import PALETTE_VOID, UNMATCHED_COLOR, WIDE_VOID, class_colors, paletted
from unsupseg_cli.report.sheet import Sample, grid, sheet

LABELS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, VOID, VOID], [2, 2, VOID, VOID]])
IMAGE = np.full((4, 4, 3), 100, np.uint8)


def through_png(image):
    buffer = io.BytesIO()
    image.save(buffer, "png")
    buffer.seek(0)
    return Image.open(buffer)


def test_colors_are_distinct_stable_and_not_gray():
    colors = class_colors(256)
    assert len(np.unique(colors, axis=0)) == 256
    assert np.array_equal(class_colors(21), colors[:21])
    assert (np.ptp(colors.astype(int), axis=1) > 15).all()
    first = colors[:27].astype(int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 999 * np.eye(27, dtype=int)
    assert apart.min() > 60
    assert class_colors(0).shape == (0, 3)


def test_colors_beyond_256_differ_from_the_first():
    colors = class_colors(700).astype(int)
    assert colors.shape == (700, 3)
    assert (colors[256:512].sum(1) < colors[:256].sum(1)).all()  # darker
    assert (colors[512:].sum(1) > colors[:188].sum(1)).all()  # lighter
    assert len(np.unique(colors, axis=0)) > 690


def test_paletted_label_map_survives_png():
    image = through_png(paletted(LABELS, class_colors(3)))
    assert image.mode == "P"
    ids = np.asarray(image)
    assert np.array_equal(ids, np.where(LABELS == VOID, PALETTE_VOID, LABELS))
    assert np.array_equal(np.asarray(image.convert("RGB")), colorize(LABELS, class_colors(3)))


def test_many_classes_give_a_16_bit_label_map():
    image = through_png(paletted(np.array([[0, 299], [VOID, 255]]), class_colors(300)))
    assert image.mode == "I;16"
    assert np.asarray(image).tolist() == [[0, 299], [WIDE_VOID, 255]]
    assert paletted(np.array([[254]]), class_colors(255)).mode == "P"


@pytest.mark.parametrize("labels", [np.array([[3]]), np.array([[-2]]), np.array([[0.5]]), np.array([0])])
def test_labels_that_do_not_fit_are_refused(labels):
    for draw in (paletted, colorize):
        with pytest.raises(UsageError, match="label map"):
            draw(labels, class_colors(3))


def test_blend_tints_classes_and_leaves_void():
    colors = class_colors(3)
    mixed = blend(IMAGE, LABELS, colors, opacity=0.5, boundaries=False)
    assert np.abs(mixed[0, 0] - (100 + colors[0].astype(float)) / 2).max() <= 0.5
    assert (mixed[3, 3] == 100).all()
    assert np.array_equal(blend(IMAGE, LABELS, colors, opacity=0, boundaries=False), IMAGE)
    lined = blend(IMAGE, LABELS, colors)
    assert (lined[0, 2] == 255).all()
    assert not (lined[0, 1] == 255).all()
    with pytest.raises(UsageError, match="image"):
        blend(IMAGE[:2], LABELS, colors)


def test_error_map_marks_unmatched_as_wrong_and_ignores_void():
    picture = error_map(np.array([[0, 1, -1, 0]]), np.array([[0, 0, 0, VOID]]))
    assert picture[0].tolist() == [list(RIGHT_COLOR), list(WRONG_COLOR), list(WRONG_COLOR), [0, 0, 0]]
    assert error_map(LABELS, LABELS, IMAGE).shape == (4, 4, 3)
    with pytest.raises(UsageError, match="differ in size"):
        error_map(LABELS, LABELS[:2])


def contains(picture, color):
    return bool((np.asarray(picture) == color).all(-1).any())


def test_legend_shows_present_classes_only_and_wraps():
    colors = class_colors(30)
    names = [f"a rather long class name {index}" for index in range(30)]
    few, all_ = legend(names, colors, [0, 7], width=600), legend(names, colors, width=600)
    assert few.width == all_.width == 600
    assert all_.height > 5 * few.height
    assert contains(few, colors[7])
    assert not contains(few, colors[3])
    assert legend(["x" * 500], colors, width=200).width == 200


def test_grid_brings_pictures_to_one_width():
    red = np.full((10, 20, 3), (255, 0, 0), np.uint8)
    tall = Image.new("RGB", (50, 500), (0, 0, 255))
    page = grid([[red, tall, None], [tall]], ["one", "two", "three"], ["first"], title="t", cell=96)
    assert page.width == 3 * 96 + 4 * 4
    assert contains(page, (255, 0, 0))
    assert contains(page, (0, 0, 255))
    assert (np.asarray(page)[:, -4:] == 255).all()
    with pytest.raises(UsageError, match="at least one picture"):
        grid([], ["one"])


def test_sheet_with_and_without_labels():
    colors = class_colors(3)
    plain = sheet([Sample(IMAGE, LABELS, name="a.jpg")], colors, ["a", "b", "c"], cell=64)
    full = sheet([Sample(IMAGE, LABELS, LABELS), Sample(IMAGE, LABELS)], colors, cell=64)
    assert (plain.width, full.width) == (3 * 68 + 4, 5 * 68 + 4)
    assert contains(plain, UNMATCHED_COLOR)
    assert not contains(plain, (0, 0, 0))
    assert contains(full, (0, 0, 0))
    assert np.array_equal(np.asarray(full), np.asarray(sheet(
        [Sample(IMAGE, LABELS, LABELS), Sample(IMAGE, LABELS)], colors, cell=64)))  # fmt: skip
