"""`report`: everything about an artifact on one page, also where half of it is gone, and in a browser."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app

FILE, CLASS = "<b>one & two.png", "<img src=x onerror=alert(1)>"


def call(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.stdout.strip(), " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos, one with markup in its name, segmented, and scored by labels with markup in a class name."""
    place = tmp_path_factory.mktemp("report")
    for folder in ("photos", "labels"):
        (place / folder).mkdir()
    for number, name in enumerate((FILE, "b.png", "c.png")):
        rng = np.random.default_rng(number)
        pixels = np.full((48, 64, 3), (70, 110, 200), np.uint8)
        pixels[24:] = rng.integers(0, 120, (24, 64, 3))
        Image.fromarray(pixels).save(place / "photos" / name)
        Image.fromarray(np.repeat([[0], [1]], 24, 0).repeat(64, 1).astype(np.uint8)).save(
            place / "labels" / name
        )
    (place / "classes.json").write_text(json.dumps([{"id": 0, "name": CLASS}, {"id": 1, "name": "ground"}]))
    call(
        *("segment", place / "photos", "--classes", 3, "--out", place / "out"),
        *("-w", place / "w", "--workers", 0),
    )
    data = (
        "--dataset",
        place / "photos",
        "--labels",
        place / "labels",
        "--class-file",
        place / "classes.json",
    )
    call("eval", "--predictions", last(place, "predictions"), *data, "-w", place / "w", "--workers", 0)
    return place


@pytest.fixture
def place(made, tmp_path):
    """A copy that a test may damage: its photos lie where they were."""
    shutil.copytree(made / "w", tmp_path / "w")
    return tmp_path


def last(place, kind):
    return Workspace(place / "w").current(kind).id


def page_of(place, *references):
    printed, said = call("report", *references, "-w", place / "w", "--out", place / "r.html")
    assert printed == str(place / "r.html")
    return (place / "r.html").read_text(encoding="utf-8"), said


def shown(page):
    """Return the text of a page."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", text).split()))


def test_the_last_evaluation_is_reported_with_all_that_led_to_it(place):
    page, said = page_of(place)
    text, evaluation = shown(page), Workspace(place / "w").current("evaluation")
    assert f"report of {evaluation.id}" in said
    assert "missing on it" not in said
    assert f"{100 * evaluation.manifest.summary['miou']:.2f}" in text
    order = [page.index(f'<article class="step" id="{last(place, kind)}"') for kind in (
        "features", "pseudolabels", "model", "predictions", "evaluation"
    )]  # fmt: skip
    assert order == sorted(order)
    assert "Hungarian" not in text
    assert "matching hungarian" in text
    assert re.search(r"size 240 \d+", text)  # a setting, and the default that it differs from
    for view in ("image", "proposal", "prediction", "errors", "truth"):
        assert f">{view}</label>" in page
    assert "Course of the training" in text
    assert "good if" in text


def test_markup_in_names_stays_text(place):
    page, _ = page_of(place)
    assert "<b>" not in page
    assert "<img src=x" not in page
    assert FILE in shown(page)
    assert CLASS in shown(page)


def test_truth_is_shown_with_evaluations_only_and_without_opening_labels(place, made):
    (made / "labels").rename(made / "hidden")
    try:
        assert ">truth</label>" in page_of(place)[0]
    finally:
        (made / "hidden").rename(made / "labels")
    page, _ = page_of(place, last(place, "predictions"))
    assert ">prediction</label>" in page
    assert ">proposal</label>" in page
    assert ">truth</label>" not in page
    assert page.count("data:image") >= 3 * 3 + 1  # three images in three views, and the class sheet


def test_evaluations_stand_side_by_side_and_say_where_they_must_not_be_compared(place, made):
    labels = ("--labels", made / "labels", "--class-file", made / "classes.json")
    other, _ = call("eval", "--model", last(place, "model"), "--dataset", made / "photos", *labels,
        "--matching", "majority", "-w", place / "w", "--workers", 0)  # fmt: skip
    first = Workspace(place / "w").get(last(place, "predictions"))
    (scored,) = [
        child.id for child in Workspace(place / "w").children(first) if child.manifest.kind == "evaluation"
    ]
    text = shown(page_of(place, scored, other)[0])
    assert "not to be compared" in text
    assert "hungarian majority" in text
    assert "IoU of 1, % IoU of 2, %" in text


def test_what_is_gone_is_said_and_the_rest_is_shown(place, made):
    model, labels = Workspace(place / "w").current("model"), Workspace(place / "w").current("pseudolabels")
    shutil.rmtree(labels.path)
    shutil.rmtree(Workspace(place / "w").current("evaluation").path / "samples")
    page, said = page_of(place)
    assert "missing" in said
    assert f"The pseudolabels '{labels.id}' is gone" in shown(page)
    assert f'id="{model.id}"' in page
    (made / "photos").rename(made / "elsewhere")
    try:
        text = shown(page_of(place, last(place, "predictions"))[0])
    finally:
        (made / "elsewhere").rename(made / "photos")
    assert "What this page lacks" in text
    assert "does not exist" in text


def test_a_damaged_evaluation_is_no_error(place):
    path = Workspace(place / "w").current("evaluation").path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["summary"] = {"class_names": [CLASS], "images": None}
    manifest["inputs"].append(
        manifest["inputs"][0] | {"kind": "evaluation", "key": manifest["key"]}
    )  # itself
    path.write_text(json.dumps(manifest))
    page, said = page_of(place)
    assert "missing" in said
    assert "gone or damaged (KeyError" in shown(page)
    assert f'id="{manifest["id"]}"' in page


def test_scores_of_masks_are_average_precisions_by_class(place):
    evaluation = Workspace(place / "w").current("evaluation")
    summary = {
        "images": 3,
        "objects": 7,
        "ap50": 0.25,
        "ap": 0.125,
        "class_names": [CLASS, "ground"],
        "by_class": {"ap50": 0.5, "ap50_of_class": [0.5, None]},
    }
    changed = json.loads((evaluation.path / "manifest.json").read_text())
    changed |= {"kind": "mask-evaluation", "summary": summary}
    folder = place / "w" / "mask-evaluation" / evaluation.id
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(changed))
    text = shown(page_of(place, folder)[0])
    assert "objects 7 AP50 % 25.00 AP % 12.50" in text
    assert f"{CLASS} 50.00 ground absent mean 50.00" in text
    assert "Proposals" in text


def test_used_labels_are_marked(place):
    path = Workspace(place / "w").current("evaluation").path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"used_labels": True}))
    text = shown(page_of(place)[0])
    assert "Used labels:" in text
    assert "used to make what is scored" in text


def test_a_file_that_is_no_report_stays(place):
    (place / "mine.html").write_text("<p>mine</p>")
    _, said = call("report", "-w", place / "w", "--out", place / "mine.html", code=2)
    assert "is no report" in said
    assert (place / "mine.html").read_text() == "<p>mine</p>"
    _, said = call("report", "-w", place / "w", "--out", place, code=2)
    assert "is a folder" in said


def test_segment_leaves_its_report_and_writes_over_it(made):
    assert "Where each class of" in shown((made / "out" / "report.html").read_text())
    call(
        *("segment", made / "photos", "--classes", 3, "--out", made / "out"),
        *("-w", made / "w", "--workers", 0),
    )


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"),
    *("--virtual-time-budget=3000", "--dump-dom"),
]
LOOK = """<body><iframe style="border:0;width:380px;height:900px" srcdoc="{page}"></iframe><p id="said"></p><script>
addEventListener("load", () => {{
  const view = document.querySelector("iframe").contentDocument, images = [...view.images];
  const visible = () => images.filter(one => one.closest(".frames")?.querySelector("img") && one.offsetWidth).length;
  const before = visible();
  const radio = view.querySelector(".slides input:not(:checked)");
  const hidden = images.filter(one => !one.offsetWidth && one.closest(".frames"));
  radio.click();
  document.getElementById("said").textContent = JSON.stringify({{
    width: view.documentElement.scrollWidth, broken: images.filter(one => one.complete && !one.naturalWidth).length,
    images: images.length, slides: view.querySelectorAll(".slides").length, before, after: visible(),
    changed: hidden.some(one => one.offsetWidth),
  }});
}});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_shows_it_on_a_phone_without_errors(place, tmp_path):
    page, _ = page_of(place)
    wrapper = tmp_path / "look.html"
    wrapper.write_text(LOOK.format(page=html.escape(page)), encoding="utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    alone = subprocess.run(
        [*command, (place / "r.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in alone.stderr
    assert "<h1>" in alone.stdout
    done = subprocess.run([*command, wrapper.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<p id="said">(\{.*?\})</p>', done.stdout)
    assert found, done.stderr
    said = json.loads(html.unescape(found[1]))
    assert said["width"] <= 380
    assert said["broken"] == 0
    assert said["images"] > said["slides"] >= 3
    assert said["before"] == said["after"] == said["slides"]  # one view of each image
    assert said["changed"]  # the button brings up another one
