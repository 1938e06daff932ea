"""`segment`: one call from photos to a folder of results, whatever the folder is like."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli.cli.main import app


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.stdout, " ".join(result.stderr.split())


def photo(path, seed, size=(48, 64)):
    """Write a picture of two halves, the one smooth and the other rough."""
    rng = np.random.default_rng(seed)
    pixels = np.full((*size, 3), (70, 110, 200), np.uint8)
    pixels[size[0] // 2 :] = rng.integers(0, 120, (size[0] - size[0] // 2, size[1], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    """Photos in nested folders, segmented without a number of classes into a folder inside of them."""
    place = tmp_path_factory.mktemp("segment")
    for index, name in enumerate(("a.png", "trip/b.png", "trip/c d.png")):
        photo(place / "photos" / name, index)
    out = place / "photos" / "out"
    said = call(
        "segment",
        place / "photos",
        "--out",
        out,
        "-w",
        place / "w",
        "--workers",
        0,
        "--log",
        place / "log.txt",
    )
    return place, out, *said


def test_photos_become_maps_overlays_and_sheets(segmented):
    _place, out, printed, _ = segmented
    artifact = Path(printed.strip())
    classes = len(json.loads((out / "classes.json").read_text()))
    assert classes >= 2
    for name in ("a.png", "trip/b.png", "trip/c d.png"):
        with Image.open(out / "ids" / f"{name}.png") as ids:
            assert ids.size == (64, 48)
            assert np.asarray(ids).max() < classes
        assert (out / "overlay" / f"{name}.jpg").exists()
    for name in ("classes.png", "sheet.png", "legend.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 10
    assert json.loads((artifact / "manifest.json").read_text())["summary"]["images"] == 3
    assert not list(out.parent.glob(".*partial"))


def test_what_it_suggests_names_classes_that_are_there(tmp_path):
    photo(tmp_path / "photos" / "a.png", 0)
    photo(tmp_path / "photos" / "b.png", 1)
    words = ("segment", tmp_path / "photos", "-w", tmp_path / "w", "--out", tmp_path / "out", "--workers", 0)
    assert "`unsupseg classes name 0=sky 1=road`" in (said := call(*words, "--classes", 2)[1])
    assert "classes merge" not in said  # all would be one
    said = call(*words, "--classes", 1)[1]
    assert "every pixel is of the one class: ask for more, --classes N" in said
    assert "classes name" not in said


def test_it_says_the_backbone_the_pictures_and_what_to_do_next(segmented):
    _place, out, _, said = segmented
    assert "backbone: tiny" in said
    assert "--backbone dinov2_vits14" in said
    assert f"look at '{out / 'classes.png'}'" in said
    assert "unsupseg classes name 0=sky" in said
    first = said.index("/pseudolabels/")  # the first picture is announced before the training
    assert first < said.index("stage 4 of 5: train")
    assert "look at" in said[:first]
    assert "times as much of the images' border" in said


def test_the_number_of_classes_is_that_of_the_scan(segmented):
    place, out, _, _ = segmented
    (scan,) = (place / "w" / "scan").iterdir()
    summary = json.loads((scan / "manifest.json").read_text())["summary"]
    assert summary["classes"] == len(json.loads((out / "classes.json").read_text()))
    (labels,) = (place / "w" / "pseudolabels").glob("*-spectral*")
    assert json.loads((labels / "manifest.json").read_text())["config"]["classes"] == summary["classes"]


def test_the_log_has_what_was_said_as_plain_lines(segmented):
    place, _, _, said = segmented
    lines = (place / "log.txt").read_text().splitlines()
    assert " ".join(line.split(" ", 2)[2] for line in lines) == said
    assert not any("\x1b" in line for line in lines)


def test_a_second_call_reuses_all_and_takes_no_picture_of_the_first_for_a_photo(segmented):
    place, out, printed, _ = segmented
    again, said = call("segment", place / "photos", "--out", out, "-w", place / "w", "--workers", 0)
    assert again == printed
    assert "written" not in said.replace("(written by `predict --out`)", "")


def test_the_workspace_goes_on_with_what_was_made(segmented):
    place, _, _, _ = segmented
    _model, _ = call("classes", "name", "0=sky", "-w", place / "w")
    predictions, _ = call("predict", place / "photos" / "a.png", "-w", place / "w", "--workers", 0)
    entries = json.loads((Path(predictions.strip()) / "classes.json").read_text())
    assert entries[0]["name"] == "sky"
    assert "spectral" in call("list", "-w", place / "w")[0]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder of results whose classes were named, and predictions of another photo of one of its names after that."""
    place = tmp_path_factory.mktemp("named")
    for index, name in enumerate(("photos/a.png", "photos/b.png", "more/a.png")):
        photo(place / name, index)
    options = ("-w", place / "w", "--workers", 0)
    call("segment", place / "photos", "--out", place / "out", *options, "--classes", 2)
    model, _ = call("classes", "name", "0=sky", "-w", place / "w")
    others, _ = call("predict", place / "more", *options)
    return place, Path(model.strip()).name, Path(others.strip()).name


def test_classes_go_to_the_predictions_that_a_folder_was_made_from(named):
    place, _model, others = named
    before = (place / "out" / "ids" / "a.png.png").read_bytes()
    _, said = call("classes", "apply", "--out", place / "out", "-w", place / "w")
    assert f"'{place / 'out'}' was made from 'photos-" in said
    assert others not in said
    assert (place / "out" / "ids" / "a.png.png").read_bytes() == before
    assert json.loads((place / "out" / "classes.json").read_text())[0]["name"] == "sky"
    said = call("classes", "apply", others, "--out", place / "out", "-w", place / "w", code=2)[1]
    assert "holds label maps of other images than" in said
    assert "(the first: 'b.png.png')" in said
    assert (place / "out" / "ids" / "a.png.png").read_bytes() == before


def test_names_that_a_second_call_takes_out_of_the_folder_are_told_and_can_be_had_again(named):
    place, model, _ = named
    out = place / "out"
    call("classes", "apply", "--model", model, "--out", out, "-w", place / "w")
    _, said = call(
        "segment", place / "photos", "--out", out, "-w", place / "w", "--workers", 0, "--classes", 2
    )
    assert f"told the classes of '{model}' (sky, class 1) and now tells those of" in said
    advice = said.partition("`unsupseg ")[2].partition("`")[0].replace("'", "").split()
    call(*advice, "-w", place / "w")
    assert json.loads((out / "classes.json").read_text())[0]["name"] == "sky"


def test_classes_that_were_changed_since_are_told_where_labels_are_exported(named, tmp_path):
    place, model, _ = named
    maps = (place / "w" / "predictions").glob("photos-all-spectral-*")
    (made,) = (path.name for path in maps if "-classes" not in path.name)
    options = ("--format", "coco-panoptic", "--out", tmp_path / "coco", "-w", place / "w")
    assert f"`unsupseg classes apply {made} --model {model}`" in call("export-labels", made, *options)[1]
    named_maps = Path(call("classes", "apply", made, "--model", model, "-w", place / "w")[0].strip()).name
    options = ("--format", "coco-panoptic", "--out", tmp_path / "named", "-w", place / "w")
    assert "has others" not in call("export-labels", named_maps, *options)[1]


def test_the_list_tells_the_classes_of_predictions(named):
    place, *_ = named
    rows = call("list", "predictions", "-w", place / "w")[0].splitlines()
    column = rows[0].split().index("K")
    assert {row.split()[column] for row in rows[1:] if row.startswith("predictions")} == {"2"}


def test_the_report_tells_what_was_made_in_its_order(named):
    place, model, _ = named
    call("classes", "apply", "--model", model, "--out", place / "out", "-w", place / "w")
    page = (place / "out" / "report.html").read_text()
    steps = re.findall(r"<h3>(\d+)\. ([^<]+)", page)
    made = [
        json.loads((next(place.glob(f"w/*/{id}")) / "manifest.json").read_text())["started"]
        for _, id in steps
    ]
    assert len(steps) >= 6
    assert made == sorted(made)
    assert "classes changed of" in page


def test_a_step_without_a_video_is_refused(named):
    place, *_ = named
    said = call("segment", place / "photos", "--out", place / "new", "--step", 3, "-w", place / "w", code=2)[
        1
    ]
    assert "--step has no effect: it is read where a video is named, and none is" in said
    assert not (place / "new").exists()


def test_photos_of_several_places_are_one_collection(tmp_path):
    for index, name in enumerate(("one/a.png", "two/a.png", "b.png")):
        photo(tmp_path / name, index)
    named = [tmp_path / "one", tmp_path / "two", tmp_path / "b.png"]
    _printed, _said = call(
        "segment", *named, "-o", tmp_path / "out", "-w", tmp_path / "w", "--workers", 0, "--classes", 2
    )
    assert {path.name for path in (tmp_path / "out" / "ids").rglob("*.png")} == {"a.png.png", "b.png.png"}
    assert (tmp_path / "out" / "ids" / "two" / "a.png.png").exists()
    assert (next((tmp_path / "w" / "pseudolabels").iterdir()) / "sheet.png").exists()


@pytest.mark.parametrize("colour", [None, (90, 90, 90)])
def test_one_image_will_do_even_of_one_colour(tmp_path, monkeypatch, colour):
    photo(tmp_path / "only.png", 0)
    if colour:
        Image.new("RGB", (40, 40), colour).save(tmp_path / "only.png")
    monkeypatch.chdir(tmp_path)
    call("segment", "only.png", "-w", "w", "--workers", 0)
    assert (tmp_path / "only-segmented" / "ids" / "only.png.png").exists()


def test_a_folder_of_somebody_else_is_refused_before_any_work(tmp_path):
    photo(tmp_path / "photos" / "a.png", 0)
    photo(tmp_path / "holiday" / "ids" / "mine.png", 1)
    (tmp_path / "holiday" / "letter.txt").write_text("dear")
    common = ("segment", tmp_path / "photos", "-w", tmp_path / "w")
    _, said = call(*common, "--out", tmp_path / "holiday", code=2)
    assert "holds other files" in said
    assert "letter.txt" in said
    _, said = call(*common, "--out", tmp_path / "photos", code=2)
    assert "holds other files" in said
    _, said = call(*common, "--out", tmp_path / "photos" / "a.png", code=2)
    assert "is a file" in said
    assert not (tmp_path / "w").exists()


def test_maps_of_other_photos_in_the_folder_are_told(tmp_path):
    for index, name in enumerate(("one/a.png", "two/b.png")):
        photo(tmp_path / name, index)
    common = ("-o", tmp_path / "out", "-w", tmp_path / "w", "--workers", 0, "--classes", 2)
    call("segment", tmp_path / "one", *common)
    _, said = call("segment", tmp_path / "two", *common)
    assert "also holds 1 label map of other images" in said


def test_nothing_to_segment_is_told_in_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    _, said = call("segment", tmp_path / "empty", "-o", tmp_path / "o", "-w", tmp_path / "w", code=2)
    assert "No image in" in said
    _, said = call("segment", tmp_path / "none", "-o", tmp_path / "o", "-w", tmp_path / "w", code=2)
    assert "does not exist" in said
    _, said = call("segment", code=2)
    assert "give photos" in said
    assert not (tmp_path / "o").exists()


def test_the_maps_are_scored_by_labels_of_the_same_names(segmented, tmp_path):
    place, _, printed, _ = segmented
    for photo_path in (place / "photos").rglob("*.png"):
        if "out" in photo_path.parts:
            continue
        label = tmp_path / "labels" / photo_path.relative_to(place / "photos")
        label.parent.mkdir(parents=True, exist_ok=True)
        halves = np.zeros((48, 64), np.uint8)
        halves[24:] = 1
        Image.fromarray(halves).save(label)
    (tmp_path / "classes.txt").write_text("smooth\nrough\n")
    labels = ("--labels", tmp_path / "labels", "--class-file", tmp_path / "classes.txt")
    predictions = Path(printed.strip()).name
    path, said = call("eval", "--predictions", predictions, *labels, "-w", place / "w")
    assert json.loads((Path(path.strip()) / "manifest.json").read_text())["summary"]["images"] == 3
    assert "rough" in said
