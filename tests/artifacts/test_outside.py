"""Results go beside a workspace, never into it."""

import re

import numpy as np
import pytest

from unsupseg_cli import Context, PredictConfig, RefineConfig, Workspace, predict, refine
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.contents.class_sheet import require_class_sheet
from unsupseg_cli.contents.result_folder import require_own
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.pipeline.export_labels import export_labels
from unsupseg_cli.pipeline.options import ExportLabelsConfig
from unsupseg_cli.pipeline.report import write_report

from fixtures.labelled import predictions_of  # isort: skip


@pytest.fixture
def context(tmp_path):
    return Context(Workspace(tmp_path / "work"), force=True)


@pytest.fixture
def predictions(context, tmp_path):
    labels = {"a.png": np.zeros((8, 8), np.int16)}
    return predictions_of(labels, ["sky", "road"], context, tmp_path / "photos")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "place", ["work", "work/predictions", "work/predictions/new", "{id}", "{id}/ids/b.html"]
)
def test_no_command_writes_into_a_workspace(predictions, context, tmp_path, place):
    out = tmp_path / place.format(id=f"work/predictions/{predictions.id}")
    before = files(tmp_path / "work")
    said = "is a workspace" if place == "work" else "lies among the art|lies in, the art"
    for write in (
        lambda: export_labels(ExportLabelsConfig(format="voc", out=out), predictions.id, context),
        lambda: write_report([predictions], out, context),
        lambda: predict(PredictConfig(out=out), context),
        lambda: require_own(out),
        lambda: require_class_sheet(out),
    ):
        with pytest.raises(UsageError, match=said):
            write()
    assert files(tmp_path / "work") == before


def test_a_copied_artifact_is_one_too_and_other_manifests_are_not(predictions, tmp_path):
    copy = predictions.path.rename(tmp_path / "copied")
    with pytest.raises(UsageError, match="lies in, the artifact 'copied'"):
        require_outside(copy / "color")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web site"}')
    require_outside(tmp_path / "site" / "out")


def test_folders_of_others_in_a_workspace_are_none_of_its_kinds(predictions, context, tmp_path):
    (tmp_path / "work" / "results" / "ids").mkdir(parents=True)
    assert context.workspace.kinds() == ["predictions"]
    assert context.workspace.damaged() == []
    require_outside(tmp_path / "work" / "results")
    (predictions.path / "manifest.json").unlink()
    assert len(context.workspace.damaged()) == 1


def test_a_damaged_artifact_is_named_as_damaged(predictions, context):
    (predictions.path / "manifest.json").write_text("{")
    with pytest.raises(UnsupsegError, match=re.escape(f"{predictions.id}/manifest.json' cannot be read")):
        context.workspace.get(predictions.id, "predictions")


def test_labels_no_more_probable_than_others_are_refused(predictions, context):
    with pytest.raises(UsageError, match=r"0.4 says of 2 classes .* give more than 0.5, such as 0.9"):
        refine(RefineConfig(predictions=predictions.id, label_confidence=0.4), context)


def test_of_one_class_a_label_has_no_confidence(context, tmp_path):
    predictions = predictions_of({"a.png": np.zeros((8, 8), np.int16)}, ["sky"], context, tmp_path / "photos")
    with pytest.raises(UsageError, match="nothing to refine: with one class"):
        refine(RefineConfig(predictions=predictions.id, label_confidence=0.9), context)
