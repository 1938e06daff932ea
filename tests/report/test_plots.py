import warnings

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.plots import confusion_figure, iou_figure, progress_figure, save

NAMES = ["road", "sky", "tree"]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_confusion_is_in_percent_of_the_true_class():
    figure = confusion_figure([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]], NAMES)
    assert texts(figure) == ["75", "25", "50", "50"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [*NAMES, "unmatched"]
    without = confusion_figure([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]], NAMES)
    assert len(without.axes[0].get_xticklabels()) == 3
    with pytest.raises(UsageError, match="does not fit"):
        confusion_figure(np.eye(2), NAMES)


def test_iou_bars_name_absent_classes():
    figure = iou_figure([0.5, np.nan, 0.123], NAMES, mean=0.31, colors=class_colors(3))
    assert texts(figure) == ["50.0", "absent", "12.3", "mIoU 31.0"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == pytest.approx([50, 0, 12.3])
    with pytest.raises(UsageError):
        iou_figure([0.5], NAMES)


def test_progress_draws_one_panel_per_number_and_skips_what_is_no_number():
    records = [{"step": step, "loss": 1 / (step + 1), "note": "x"} for step in range(100)]
    records[50] |= {"lr": 0.1, "loss": float("nan")}
    figure = progress_figure(records, explained={"loss": "good if it falls"})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "lr"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["good if it falls", ""]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "each step logged",
        "running median",
    ]
    assert len(figure.axes[0].lines[0].get_xdata()) == 99
    assert len(figure.axes[0].lines) == 2
    with pytest.raises(UsageError, match="at least one record"):
        progress_figure([{"step": 1}])


def test_saved_files_are_pictures_and_repeatable(tmp_path):
    for name in ("a.png", "b.png"):
        save(iou_figure([0.5, 0.2, 0.1], NAMES), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert Image.open(tmp_path / "a.png").width > 500
    save(iou_figure([0.5, 0.2, 0.1], NAMES), tmp_path / "a.pdf")
    save(Image.new("RGB", (3, 2)), tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").size == (3, 2)


def test_names_are_no_formulas_and_other_scripts_warn_of_nothing(tmp_path):
    names, counts = [r"$\no$", "日本"], np.array([[5, 1], [2, 7]])
    with warnings.catch_warnings(action="error"):
        save(confusion_figure(counts, names), tmp_path / "confusion.png")
        save(iou_figure([0.5, 0.6], names, mean=0.55), tmp_path / "iou.png")
    assert (tmp_path / "iou.png").stat().st_size > 0
