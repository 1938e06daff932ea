"""One file carries a model to another workspace, backbone and all."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    classes,
    evaluate,
    extract,
    graph,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.inference import onnx_program
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain
from unsupseg_cli.methods.stego.config import TrainOptions as StegoTrain
from unsupseg_cli.models.backbones import ALIASES
from unsupseg_cli.pipeline.compare import compare
from unsupseg_cli.pipeline.export import export
from unsupseg_cli.pipeline.options import ExportConfig
from unsupseg_cli.stages.classes import ClassesConfig
from unsupseg_cli.stages.graph import GraphConfig

TIMM = "timm:vit_tiny_patch16_224"
DINO = "dino_vits16"


def space(tmp_path, name):
    return Context(Workspace(tmp_path / name))


def features_of(blocks, context, **options):
    config = ExtractConfig(
        dataset=f"{blocks}/", size=96, workers=0, device="cpu", precision="fp32", **options
    )
    return extract(config, context)


def trained(features, context):
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=4), context)
    return train(TrainConfig(pseudolabels=masks.id), context, options=KMeansTrain(steps=5))


def label_maps(blocks, context, model):
    config = PredictConfig(model=model, dataset=f"{blocks}/", workers=0, device="cpu", precision="fp32")
    found = predict(config, context)
    return np.stack([read_ids(found.path, key) for key in found.manifest.summary["keys"]])


def timm_weights(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(TIMM.removeprefix("timm:"), pretrained=False, num_classes=0)
    path = tmp_path / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.mark.parametrize("backbone", ["tiny", "untrained", TIMM])
def test_the_file_says_the_same_of_every_pixel_elsewhere(blocks, tmp_path, backbone):
    here, there = space(tmp_path, "here"), space(tmp_path, "there")
    weights = timm_weights(tmp_path) if backbone == TIMM else None
    position = 0.5 if backbone == "tiny" else 0.0
    model = trained(features_of(blocks, here, backbone=backbone, weights=weights, position=position), here)
    expected = label_maps(blocks, here, model.id)
    file = export(ExportConfig(out=tmp_path / "out" / "model.safetensors"), model.id, here)
    if weights is not None:
        weights.unlink()
    assert np.array_equal(label_maps(blocks, there, str(file)), expected)
    assert label_maps(blocks, there, str(file)).max() > 0
    unpacked = take_model(str(file), there)
    assert len(list(there.workspace.artifacts("model"))) == 1  # unpacked once
    named = classes(ClassesConfig(model=unpacked.id, names={"0": "wall"}), there)
    again = export(ExportConfig(out=tmp_path / "again.safetensors"), named.id, there)
    assert np.array_equal(label_maps(blocks, space(tmp_path, "third"), str(again)), expected)
    assert not there.workspace.verify(unpacked)


def test_codes_of_a_file_carry_its_backbone_on(blocks, tmp_path):
    here, there = space(tmp_path, "here"), space(tmp_path, "there")
    weights = timm_weights(tmp_path)
    features = features_of(blocks, here, backbone=TIMM, weights=weights)
    neighbours = graph(GraphConfig(features=features.id, neighbors=2), here)
    config = TrainConfig(method="stego", features=features.id, graph=neighbours.id, classes=3)
    stego = train(config, here, options=StegoTrain(steps=3, batch=4, codes=8))
    file = export(ExportConfig(out=tmp_path / "stego.safetensors"), stego.id, here)
    weights.unlink()
    codes = extract(
        ExtractConfig(dataset=f"{blocks}/", size=96, workers=0, precision="fp32", model=str(file)), there
    )
    assert FeatureSet(codes).dim == 8
    label_maps(blocks, there, trained(codes, there).id)


def test_what_is_no_export_is_refused_by_name(blocks, tmp_path):
    context = space(tmp_path, "here")
    model = trained(features_of(blocks, context, backbone="untrained"), context)
    file = export(ExportConfig(out=tmp_path / "model.safetensors"), model.id, context)
    with pytest.raises(UsageError, match="exists"):
        export(ExportConfig(out=file), model.id, context)
    with pytest.raises(UsageError, match="does not exist"):
        take_model(str(tmp_path / "none.safetensors"), context)
    with pytest.raises(UsageError, match="no model of `unsupseg export`"):
        take_model(str(model.path / "model.safetensors"), context)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsupsegError, match="cannot be read"):
        take_model(str(file), context)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "newer format"),
        ({"model": None}, "cannot be read"),
        ({"model.method": "../outside"}, "cannot be read"),
        ({"model.class_of": [0, 1]}, "do not make 4 classes"),
        ({"model.class_of": [0, 1, 2, 7]}, "do not make 4 classes"),
        ({"model.classes": [{"name": "a", "color": [0, 0, 300]}] * 4}, "cannot be read"),
        ({"model.classes": [{"id": i, "name": "a", "color": [0, 0, 0]} for i in (0, 1, 2, 9)]}, "of id 9"),
        ({"model.classes": [{"id": i, "name": "a", "color": [0, 0, 0]} for i in (0, 2, 1, 3)]}, "ascending"),
        ({"model.class_head": {"type": "cosine", "classes": 3, "dim": 192}}, "cannot be read"),
        ({"model.class_head": {"classes": 4, "dim": 192}}, "cannot be read"),
        ({"model.geometry": {"kind": "sphere"}}, "cannot be read"),
        ({"config": None}, "cannot be read"),
        ({"config": {"x": float("nan")}}, "cannot be read"),
        ({"name": "../../outside-00000000"}, None),
    ],
)
def test_a_header_that_was_tampered_with_does_no_harm(blocks, tmp_path, change, message):
    context = space(tmp_path, "here")
    model = trained(features_of(blocks, context, backbone="untrained"), context)
    file = export(ExportConfig(out=tmp_path / "model.safetensors"), model.id, context)
    tensors = load_file(file)
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["unsupseg"])
    for name, value in change.items():
        *outer, last = name.split(".")
        (header[outer[0]] if outer else header)[last] = value
    save_file(tensors, file, metadata={"unsupseg": json.dumps(header)})
    if message is None:
        assert take_model(str(file), context).path.parent == context.workspace.root / "model"
        return
    with pytest.raises(UnsupsegError, match=message):
        take_model(str(file), context)
    assert len(list(context.workspace.artifacts("model"))) == 1  # nothing of it was unpacked


def test_a_file_does_not_become_the_last_model(blocks, tmp_path):
    context = space(tmp_path, "here")
    first, second = (
        trained(features_of(blocks, context, backbone=name), context) for name in ("untrained", "tiny")
    )
    file = export(ExportConfig(out=tmp_path / "first.safetensors"), first.id, context)
    take_model(str(file), context)
    assert context.workspace.current("model").id == second.id


def test_two_files_are_two_rows_of_a_comparison(tmp_path):
    context = space(tmp_path, "here")
    scores = []
    for size in (48, 64):
        config = ExtractConfig(dataset="scenes", split="train", size=size, workers=0, backbone="untrained")
        masks = pseudolabel(PseudolabelConfig(features=extract(config, context).id), context)
        model = train(TrainConfig(pseudolabels=masks.id), context, options=KMeansTrain(steps=2))
        file = export(ExportConfig(out=tmp_path / f"{size}.safetensors"), model.id, context)
        scores.append(
            evaluate(EvalConfig(model=str(file), dataset="scenes", workers=0, protocol="native"), context)
        )
    rows = compare(scores).rows
    assert [(row.backbone, len(row.seeds)) for row in rows] == [("untrained", 1)] * 2


@pytest.mark.parametrize("backbone", ["tiny", TIMM, DINO])
def test_an_onnx_file_says_what_predict_says(blocks, tmp_path, backbone, monkeypatch):
    """DINO's own positions (here of a small model) are kept from one pass to the next."""
    monkeypatch.setitem(ALIASES, DINO, replace(ALIASES[DINO], timm="vit_tiny_patch16_224", tag="*", dim=192))
    context = space(tmp_path, "here")
    weights = None if backbone == "tiny" else timm_weights(tmp_path)
    tokens = {"tiny": {"position": 0.5}, TIMM: {"layer": (-1, -4)}}.get(backbone, {})
    features = features_of(blocks, context, backbone=backbone, weights=weights, **tokens)
    model = classes(ClassesConfig(model=trained(features, context).id, merge=(("2", "0"),)), context)
    expected = label_maps(blocks, context, model.id)
    file = export(ExportConfig(out=tmp_path / "new" / "model.onnx", frame=(72, 96)), model.id, context)
    session = onnxruntime.InferenceSession(file)
    for path, labels in zip(sorted(blocks.iterdir()), expected, strict=True):
        frame = np.asarray(Image.open(path))[None]
        found, log_probs = session.run(["labels", "log_probs"], {"frame": frame})
        assert found.shape == (1, 72, 96)
        assert np.mean(found[0] == labels) > 0.995  # resized pixels may differ by one level
        assert log_probs.shape[1] == 3
        np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, atol=1e-5)
    assert len(np.unique(expected)) == 3
    about = session.get_modelmeta().custom_metadata_map
    entries = [(entry["id"], entry["name"]) for entry in json.loads(about["classes"])]
    assert entries == [(1, "class 1"), (2, "class 2"), (3, "class 3")]
    assert np.unique(expected).tolist() == [1, 2, 3]
    assert about["model"] == model.id
    assert b"unsupseg_cli" not in file.read_bytes()  # no paths of this machine
    with pytest.raises(UsageError, match="for other programs"):
        take_model(str(file), context)


def test_an_onnx_file_for_maps_gives_probabilities_of_each_class(blocks, tmp_path):
    context, said = space(tmp_path, "here"), []
    model = trained(features_of(blocks, context, backbone="tiny"), context)
    named = classes(ClassesConfig(model=model.id, names={"0": "roof"}, merge=(("1", "2"),)), context)
    context.reporter.warn = said.append
    expected = label_maps(blocks, context, named.id)
    config = ExportConfig(out=tmp_path / "model.onnx", frame=(72, 96), layout="nchw")
    session = onnxruntime.InferenceSession(export(config, named.id, context))
    for path, labels in zip(sorted(blocks.iterdir()), expected, strict=True):
        image = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1)[None] / 255
        (found,) = session.run(["probabilities"], {"image": image})
        assert found.shape == (1, 3, 72, 96)
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
        by_channel = np.array([0, 1, 3])[found[0].argmax(0)]
        assert np.mean(by_channel == labels) > 0.98  # labels of merged outputs count before they are joined
    assert ": 3 is 2 by channel" in said[0]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == {"0": "roof", "1": "class 1", "2": "class 3"}
    assert json.loads(about["model_type"]) == "Segmentor"


def test_an_onnx_file_of_codes_and_of_another_size(blocks, tmp_path, monkeypatch):
    context = space(tmp_path, "here")
    features = features_of(blocks, context, backbone="tiny")
    neighbours = graph(GraphConfig(features=features.id, neighbors=2), context)
    config = TrainConfig(method="stego", features=features.id, graph=neighbours.id, classes=3)
    model = train(config, context, options=StegoTrain(steps=3, batch=4, codes=8))
    file = export(ExportConfig(out=tmp_path / "model.onnx", frame=(72, 96), size=64), model.id, context)
    frame = np.asarray(Image.open(blocks / "0.png"))[None]
    labels, log_probs = onnxruntime.InferenceSession(file).run(None, {"frame": frame})
    assert log_probs.shape == (1, 3, 8, 11)
    config = PredictConfig(model=model.id, dataset=f"{blocks}/", size=64, workers=0, precision="fp32")
    found = predict(config, context)
    assert np.mean(read_ids(found.path, "0.png") == labels[0]) > 0.995
    with pytest.raises(UsageError, match="smaller --size"):
        export(ExportConfig(out=tmp_path / "new" / "a.onnx", frame=(1000, 1000), size=0), model.id, context)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(onnx_program, "_ONE_FILE", 10**6)
    with pytest.raises(UsageError, match=r"weights of 'tiny'.*safetensors"):
        export(ExportConfig(out=tmp_path / "a.onnx", frame=(72, 96)), model.id, context)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "model.bin"}, r"\.safetensors or \.onnx"),
        ({"out": "model.onnx"}, "--frame"),
        ({"out": "model.onnx", "frame": "720"}, "HEIGHTxWIDTH"),
        ({"out": "model.onnx", "frame": "0x720"}, "greater than 0"),
        ({"out": "model.onnx", "frame": (-4, 64)}, "greater than 0"),
        ({"out": "model.safetensors", "frame": "72x96"}, r"\.onnx"),
        ({"out": "model.safetensors", "layout": "nchw"}, r"\.onnx"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ExportConfig(**options)


def test_the_command_prints_the_file(blocks, tmp_path):
    context = space(tmp_path, "here")
    trained(features_of(blocks, context, backbone="untrained"), context)
    call = ["export", "--out", str(tmp_path / "a.safetensors"), "--workspace", str(context.workspace.root)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "a.safetensors")
    assert CliRunner().invoke(app, call).exit_code == 2
    assert CliRunner().invoke(app, [*call, "--force"]).exit_code == 0
    (tmp_path / "file").write_text("")
    inside = CliRunner().invoke(app, [*call[:2], str(tmp_path / "file" / "a.safetensors"), *call[3:]])
    assert inside.exit_code == 2
    assert "cannot be written" in " ".join(inside.stderr.split())
    missing = CliRunner().invoke(app, ["export", "--workspace", str(context.workspace.root)])
    assert missing.exit_code == 2
    assert "--out" in missing.stderr
