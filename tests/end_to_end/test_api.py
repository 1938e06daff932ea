"""The Python API: the example of docs/api.md runs, and artifacts show themselves."""

import io
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import unsupseg_cli
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.datasets import scenes_root
from unsupseg_cli.pipeline.report import write_report
from unsupseg_cli.pipeline.stage import Stage

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The names that the example of the page leaves, run beside a folder of a few scenes."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    place = tmp_path_factory.mktemp("api")
    for folder in ("images", "labels"):
        (place / "photos" / folder).mkdir(parents=True)
        for path in sorted((scenes_root() / folder / "val").iterdir())[::6]:
            shutil.copy(path, place / "photos" / folder)
    shutil.copy(scenes_root() / "classes.json", place / "photos")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(code, names)
    names["place"] = place
    for name in ("features", "labels", "model", "predictions", "evaluation"):
        path = place / names[name].path
        names[name] = unsupseg_cli.Workspace(place / "artifacts").get(str(path))
    return names


def test_the_example_leaves_what_it_says(example):
    assert "<h1>" in (example["place"] / "report.html").read_text()
    with Image.open(example["place"] / "proposals.png") as picture:
        assert picture.width > 200


def test_scores_are_plain_and_ones_own(example):
    evaluation = example["evaluation"]
    scores = evaluation.scores
    assert type(scores) is dict
    assert 0 < scores["miou"] < 1
    scores["iou"].clear()
    assert len(evaluation.scores["iou"]) == 10
    with pytest.raises(UsageError, match="is of kind 'model', which has no scores"):
        _ = example["model"].scores


def test_a_notebook_gets_a_line_and_a_picture(example, context):
    evaluation = example["evaluation"]
    config = unsupseg_cli.ExtractConfig(
        dataset=f"{example['place']}/photos/", backbone="untrained", keep=("cls",), size=64
    )
    features = unsupseg_cli.extract(config, context)  # no tokens, no picture of them
    miou = f"mIoU {100 * evaluation.scores['miou']:.2f} %"
    assert repr(evaluation) == f"<evaluation {evaluation.id}, photos/all, {miou}>"
    assert f"&lt;evaluation {evaluation.id}" in evaluation._repr_html_()
    with Image.open(io.BytesIO(evaluation._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert picture.width <= 1200
    assert features._repr_png_() is None
    assert "<img" not in features._repr_html_()
    with pytest.raises(UsageError, match="has no picture"):
        features.show()
    assert example["features"].show().width > 240


def test_predictions_show_several_images_at_once(example):
    predictions = example["predictions"]
    with Image.open(next(predictions.path.glob("overlay/*.jpg"))) as one:
        assert predictions.show().width > one.width * min(1, 320 / max(one.size))


def test_what_is_no_input_of_a_stage_is_said(example, context):
    config = unsupseg_cli.EvalConfig(dataset=f"{example['place']}/photos/", workers=0)
    model, features = example["model"], example["features"]
    for inputs, message in (
        ({"model": features}, "is of kind features, and `eval` reads model as 'model'"),
        ({"modle": model}, "reads no input 'modle'; did you mean 'model'?"),
        ({"model": model.id}, "The input 'model' is a str; give the artifact itself"),
        ([model], "takes its inputs as artifacts by role, not as a list"),
    ):
        with pytest.raises(UsageError, match=message):
            unsupseg_cli.evaluate(config, context, inputs=inputs)
    with pytest.raises(UsageError, match="`train` takes a TrainConfig, and was given a EvalConfig"):
        unsupseg_cli.train(config, context)
    with pytest.raises(UsageError, match=r"Context\(Workspace\(...\)\), and was given 'here'"):
        unsupseg_cli.Context("here")
    workspace = unsupseg_cli.Workspace(str(example["place"] / "artifacts"))
    assert {model: 1}[workspace.get(model.id)] == 1
    with pytest.raises(UsageError, match="not by a NoneType"):
        workspace.get(None)


def test_paths_are_names_and_one_artifact_is_a_report(example, context, tmp_path):
    config = unsupseg_cli.ExtractConfig(dataset=Path("photos"), backbone=Path("tiny"))
    assert (config.dataset, config.backbone) == ("photos", "tiny")
    model = example["model"]
    assert unsupseg_cli.Workspace(example["place"] / "artifacts").get(model.path) == model
    context = unsupseg_cli.Context(unsupseg_cli.Workspace(example["place"] / "artifacts"))
    write_report(model, str(tmp_path / "report.html"), context)
    assert model.id in (tmp_path / "report.html").read_text()


def test_every_stage_and_its_configuration_can_be_imported_and_stands_on_the_page():
    for name in dir(unsupseg_cli):
        value = getattr(unsupseg_cli, name)
        if isinstance(value, Stage):
            assert f"| `{name}` | `{value.config.__name__}` |" in PAGE
            assert getattr(unsupseg_cli, value.config.__name__) is value.config
    files = (path.stem for path in Path(unsupseg_cli.__file__).parent.glob("stages/[!_]*.py"))
    assert set(files) <= set(dir(unsupseg_cli))
