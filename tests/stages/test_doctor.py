"""doctor: what it finds, what it advises, and when it fails."""

import json
import sys

import huggingface_hub.constants
import pytest
import torch
from typer.testing import CliRunner

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.diagnosis.doctor import examine


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))


def looked(workspace, **more):
    return {(one.topic, one.name): one for one in examine(Workspace(workspace), **more)}


def test_a_healthy_machine_has_everything_and_nothing_is_written(tmp_path):
    found = looked(tmp_path / "w", device="cpu")
    assert not any(one.broken for one in found.values())
    assert torch.__version__.startswith(found["versions", "torch"].value)  # without the name of its build
    assert found["device", "device"].value.startswith("cpu: ")
    assert found["device", "precision"].value.split()[0] in ("bf16", "fp32")
    assert "default" in found["crf", "torch"].value
    assert "not there yet" in found["disk", "workspace"].value
    assert found["weights", "tiny"].value.endswith("tiny.safetensors")
    assert ("weights", "dino_vits8") not in found  # what is simply not there yet reads as no fault
    assert "dino_vits8, dino_vits16, " in found["weights", "on the hub"].value
    ways = found["weights", "to have them"].value
    assert "first `extract --backbone NAME`; without network give --weights FILE" in ways
    of_files = "dino_vits8_300ep (--weights dino_deitsmall8_300ep_pretrain.pth)"
    assert found["weights", "as files only"].value == of_files
    assert not (tmp_path / "w").exists()


def test_weights_are_found_where_they_may_lie(tmp_path):
    hub = tmp_path / "hub" / "models--timm--vit_small_patch8_224.dino"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc")
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "snapshots" / "abc" / "model.safetensors").write_bytes(b"")
    original = tmp_path / "torch" / "checkpoints" / "dino_vitbase8_pretrain.pth"
    original.parent.mkdir(parents=True)
    original.write_bytes(b"")
    own = tmp_path / "own.pth"
    own.write_bytes(b"")
    data = DataSource(dataset="d", split="all", fingerprint="f", count=1)
    recipe = Identity(
        "features", "extract", 1, "x", {"backbone": "dino_vits16"}, data=data, execution={"weights": str(own)}
    )
    Workspace(tmp_path / "w").produce(recipe, lambda draft: {})
    files = {"dinov2_vitb14": own, "dinov2_vits14": tmp_path / "gone.pth"}
    found = looked(tmp_path / "w", files=files)
    assert found["weights", "dino_vits8"].value.endswith("snapshots/abc/model.safetensors")
    assert found["weights", "dino_vitb8"].value == f"{original} (give it with --weights)"
    assert "used before" in found["weights", "dino_vits16"].value
    assert found["weights", "dinov2_vitb14"].value == f"{own} (unsupseg.toml)"
    assert found["weights", "dinov2_vitb14"].advice == ""
    assert "missing" in found["weights", "dinov2_vits14"].value
    assert found["weights", "dinov2_vits14"].advice


def test_what_is_wrong_gets_one_line_of_advice(tmp_path, monkeypatch):
    monkeypatch.setattr("unsupseg_cli.diagnosis.doctor._LITTLE_MEMORY", 2**60)
    monkeypatch.setattr("unsupseg_cli.diagnosis.doctor._LITTLE_DISK", 2**60)
    monkeypatch.setattr("unsupseg_cli.diagnosis.doctor.shutil.which", lambda name: f"/bin/{name}")
    (tmp_path / "w" / "features" / ".partial-0123").mkdir(parents=True)
    found = looked(tmp_path / "w", device="cpu")
    assert "--batch-size" in found["memory", "memory"].advice
    assert "--workspace" in found["disk", "free disk"].advice
    assert "gc" in found["disk", "interrupted"].advice
    assert "NVIDIA driver" in found["device", "device"].advice
    assert "not usable here" in looked(tmp_path / "w", device="cuda:99")["device", "cuda:99"].advice
    assert not any(one.broken for one in found.values())


def test_what_every_command_needs_is_broken(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    found = looked(file / "w")
    assert found["disk", "workspace"].broken
    monkeypatch.setitem(sys.modules, "zarr", None)
    found = looked(tmp_path / "w")
    assert found["versions", "zarr"].broken
    assert "fresh environment" in found["versions", "zarr"].advice


def test_operators_of_torchvision_that_do_not_load_are_one_finding(tmp_path, monkeypatch):
    assert looked(tmp_path / "w")["versions", "operators"].value == "nms and roi_align of torchvision run"
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    found = looked(tmp_path / "w")
    assert [one.name for one in found.values() if one.broken] == ["operators"]
    assert "constraints.txt" in found["versions", "operators"].advice


def test_the_command_prints_and_exits_as_it_should(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unsupseg.toml").write_text('[extract]\nbackbone = "dino_vits8"\nweights = "no.pth"\n')
    result = CliRunner().invoke(app, ["doctor", "-w", str(tmp_path / "w"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "dino_vits8: mend the path" in " ".join(result.stdout.split())
    rows = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert {"topic", "name", "value", "advice", "broken"} == set(rows[0])
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["doctor", "-w", str(tmp_path / "file" / "w")])
    assert result.exit_code == 1
    assert "No command works here" in result.stderr
