"""The four commands of the published chain, literally, on Cityscapes in its official layout."""

import json

import pytest
import timm
import torch
from fixtures.layouts import build
from safetensors.torch import save_file
from typer.testing import CliRunner

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """DINOv2 ViT-B/14 with random weights, as a file."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch14_dinov2", num_classes=0, img_size=518)
    path = tmp_path_factory.mktemp("weights") / "dinov2_vitb14_pretrain.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def test_the_four_commands_on_cityscapes(tmp_path, monkeypatch, weights):
    build("cityscapes", tmp_path / "cityscapes")
    (tmp_path / "unsupseg.toml").write_text(
        f'dataset = "cityscapes"\nroot = "cityscapes"\n\n[extract]\nweights = "{weights}"\nsize = 56\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNSUPSEG_WORKSPACE", raising=False)
    for command in (
        "unsupseg extract --backbone dinov2_vitb14",
        "unsupseg pseudolabel --method primaps",
        "unsupseg train",
        "unsupseg eval --dataset cityscapes",
    ):
        result = CliRunner().invoke(app, command.split()[1:])
        assert result.exit_code == 0, result.output
    (features,) = Workspace(tmp_path / "unsupseg-workspace").artifacts("features")
    assert features.manifest.config["backbone"] == "dinov2_vitb14"
    assert (features.manifest.data.dataset, features.manifest.data.split) == ("cityscapes", "train")
    (model,) = Workspace(tmp_path / "unsupseg-workspace").artifacts("model")
    assert (model.manifest.config["method"], model.manifest.config["classes"]) == ("primaps", 27)
    (scores,) = Workspace(tmp_path / "unsupseg-workspace").artifacts("evaluation")
    assert scores.manifest.summary["protocol"]["name"] == "stego"
    assert scores.manifest.summary["images"] == 4
    assert json.loads((scores.path / "assignment.json").read_text())
