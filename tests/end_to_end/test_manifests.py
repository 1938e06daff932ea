"""What every stage writes: manifests that fit their schema, and outputs that stay as their version is."""

import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.artifacts.manifest import Manifest
from unsupseg_cli.artifacts.packed import PackedReader, is_packed
from unsupseg_cli.artifacts.workspace import Workspace

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

DTYPES = {"labels": np.int16, "soft": np.float16}
GOLDEN = Path(__file__).with_name("golden.json")


def figures(artifact):
    """Return shape, type, mean and spread of every array and weight of an artifact, and its other result files."""
    found = {}
    for name, output in artifact.manifest.outputs.items():
        path = artifact.path / name
        if path.suffix == ".h5":
            found[name] = None
        elif path.name == "zarr.json" and is_packed(path.parents[1], path.parent.name):
            reader = PackedReader(path.parents[1], path.parent.name, packed_type(path.parent))
            values = np.concatenate([reader[view].ravel() for view in range(len(reader))])
            found[path.parent.relative_to(artifact.path).as_posix()] = statistics(values)
        elif path.name == "zarr.json":
            reader = RowReader(path.parent)
            found[path.parent.relative_to(artifact.path).as_posix()] = statistics(reader.rows(0, len(reader)))
        elif path.suffix == ".safetensors":
            found |= {f"{name}:{key}": statistics(value) for key, value in load_file(path).items()}
        elif output.result and "c" not in Path(name).parts:
            found[name] = None
    return dict(sorted(found.items()))


def packed_type(path):
    if path.name in DTYPES:
        return DTYPES[path.name]
    return json.loads((path.parent / "types.json").read_text(encoding="utf-8"))[path.name]


def statistics(values):
    values64 = values.astype(np.float64)
    return {
        "shape": list(values.shape),
        "dtype": str(values.dtype),
        "mean": round(float(values64.mean()), 5),
        "spread": round(float(values64.std()), 5),
    }


def state(matrix, stage):
    matrix.make(stage)
    artifact = Workspace(matrix.space).get(matrix.made[stage])
    m = artifact.manifest
    version = m.config.get("method_version", "")
    return {"stage": m.stage, "version": m.stage_version, "method": version, "outputs": figures(artifact)}


def test_outputs_change_only_with_the_version_of_their_stage(matrix, every_call):
    """Artifacts are reused by key, so code that gives other outputs needs another version, of stage or method.

    Means and spreads may move by a tenth of the spread and by 0.001: other processors sum in other orders, and where a
    gradient is next to zero Adam steps by the learning rate either way. When a version was raised:
    ``UNSUPSEG_GOLDEN=write pytest tests/end_to_end/test_manifests.py`` records the new outputs.
    """
    found = state(matrix, every_call)
    known = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.exists() else {}
    if os.environ.get("UNSUPSEG_GOLDEN") == "write":
        GOLDEN.write_text(
            json.dumps(known | {every_call: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
        return
    assert every_call in known, "its outputs are not recorded yet"
    golden = known[every_call]
    for name in ("version", "method"):
        assert found[name] == golden[name], "the version was raised: record the new outputs"
    message = f"the outputs changed: raise the version of '{found['stage']}' and record them"
    assert list(found["outputs"]) == list(golden["outputs"]), message
    for name, one in found["outputs"].items():
        other = golden["outputs"][name]
        if one is None:
            continue
        assert (one["shape"], one["dtype"]) == (other["shape"], other["dtype"]), f"{name}: {message}"
        slack = 0.1 * other["spread"] + 1e-3
        for key in ("mean", "spread"):
            assert one[key] == pytest.approx(other[key], abs=slack), f"{name}, {key}: {message}"


def test_the_manifest_of_every_kind_fits_the_schema(kill_matrix, matrix, every_call):
    matrix.make(every_call)
    path = Workspace(matrix.space).get(matrix.made[every_call]).path / "manifest.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(value, Manifest.model_json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value | {"surprise": 1}, Manifest.model_json_schema())
    assert value["stage"] == kill_matrix.stages()[every_call][0]
    assert set(value["outputs"]) == {
        item.relative_to(path.parent).as_posix()
        for item in path.parent.rglob("*")
        if item.is_file() and item != path
    }


def test_the_workspace_is_taken_from_the_environment(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from unsupseg_cli.cli.main import app

    here, named = tmp_path / "here", tmp_path / "named"
    here.mkdir()
    named.mkdir()
    (here / "unsupseg.toml").write_text(f'workspace = "{tmp_path / "file"}"\n')
    monkeypatch.chdir(here)
    monkeypatch.setenv("UNSUPSEG_WORKSPACE", str(named))
    assert CliRunner().invoke(app, ["list", "--json"]).stdout.strip() == "[]"
    result = CliRunner().invoke(app, ["list", "--json", "-w", str(tmp_path / "absent")])
    assert result.exit_code == 2  # the command line wins over the environment
    monkeypatch.delenv("UNSUPSEG_WORKSPACE")
    assert (
        "file" in CliRunner().invoke(app, ["list", "--json"]).stderr
    )  # the toml names a folder not made yet
