"""Models that are no linear head over tokens: a transformer decoder, and a network on pixels without a backbone."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    RefineConfig,
    TrainConfig,
    Workspace,
    classes,
    evaluate,
    extract,
    predict,
    pseudolabel,
    refine,
    train,
)
from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.model import open_model, read_model, view_multiple
from unsupseg_cli.contents.model_file import take_model
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data import datasets
from unsupseg_cli.methods import registry
from unsupseg_cli.models import heads
from unsupseg_cli.models.heads import DenseNetwork, register_head
from unsupseg_cli.models.network_model import NetworkModel
from unsupseg_cli.pipeline.export import export
from unsupseg_cli.pipeline.options import ExportConfig
from unsupseg_cli.stages.classes import ClassesConfig

from fixtures import toy_cnn, toy_decoder  # isort: skip

KINDS = {"toy-decoder": toy_decoder, "toy-cnn": toy_cnn}
HERE = {"workers": 0, "device": "cpu"}
SCENES = {**HERE, "dataset": "scenes", "precision": "fp32"}
CLASSES = 4


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """Both methods, as if a package of theirs were installed; of the bundled scenes every eighth."""
    whole, few = Path(__file__).parents[2] / "samples" / "scenes", tmp_path_factory.mktemp("scenes")
    for path in ("images/train", "images/val", "labels/train", "labels/val"):
        (few / path).mkdir(parents=True)
        for file in sorted((whole / path).iterdir())[::8]:
            shutil.copy(file, few / path)
    shutil.copy(whole / "classes.json", few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "scenes_root", lambda: few)
        for name, module in KINDS.items():
            patch.setitem(registry.BUNDLED, name, module.__name__)
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Features and pseudo-labels of a few scenes."""
    context = Context(Workspace(tmp_path_factory.mktemp("dense")))
    extract(ExtractConfig(**SCENES, split="train", backbone="tiny", size=96), context)
    pseudolabel(PseudolabelConfig(**HERE, classes=CLASSES, sheet=0), context)
    return context.workspace


@pytest.fixture(scope="module", params=KINDS)
def trained(request, workspace):
    """A model of each kind: the context, the artifact, and the model opened."""
    context = Context(workspace)
    model = train(TrainConfig(method=request.param, device="cpu"), context)
    return SimpleNamespace(
        kind=request.param, context=context, artifact=model, opened=open_(model, context), model=model.id
    )


def open_(model, context):
    return open_model(model, context, torch.device("cpu"), precision="fp32")


def scenes(trained, **options):
    return predict(PredictConfig(**SCENES, split="val", model=trained.model, **options), trained.context)


def label_maps(predictions):
    """Return the classes of all pixels, image by image, in one row."""
    keys = predictions.manifest.summary["keys"]
    return np.concatenate([read_ids(predictions.path, key).ravel() for key in keys])


def picture(sides=(96, 144), seed=0):
    """Return an image (H, W, 3) of smooth blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((sides[1], sides[0]), Image.Resampling.BICUBIC))


def agreement(one, two):
    return float(np.mean(np.asarray(one) == np.asarray(two)))


def test_it_is_trained_and_segments_whole_images(trained):
    file = read_model(trained.artifact)[0]
    assert (file.format_version, file.network["type"], file.class_head) == (2, trained.kind, None)
    assert (file.backbone is None) == (trained.kind == "toy-cnn")
    assert trained.artifact.manifest.summary["toy"] == 1
    predictions = scenes(trained)
    images = {item.key: item.image for item in datasets.open_dataset("scenes", split="val").items}
    assert predictions.manifest.summary["keys"] == list(images)
    for key in images:
        assert read_ids(predictions.path, key).shape == Image.open(images[key]).size[::-1]
    assert len(np.unique(label_maps(predictions))) > 1


def test_the_sizes_are_those_that_the_network_says(trained):
    model = trained.opened.segmenter
    assert (model.multiple, model.stride) == {"toy-decoder": (8, 8), "toy-cnn": (12, 4)}[trained.kind]
    (scores,) = model.score(picture()[None])
    assert scores.scores.shape == (CLASSES, 96 // model.stride, 144 // model.stride)


@pytest.mark.parametrize(("flip", "tile"), [(False, None), (True, None), (False, 48), (True, 48)])
def test_probabilities_sum_to_one_at_any_size(trained, flip, tile):
    model, image = trained.opened.segmenter, picture()
    found = model.score_tiled(image, tile, flip=flip) if tile else model.score(image[None], flip)[0]
    log_probs = model.log_probs(found, 70, 101)
    torch.testing.assert_close(log_probs.exp().sum(0), torch.ones(70, 101))
    assert torch.equal(log_probs.argmax(0), torch.from_numpy(model.labels(found, 70, 101)).long())


def test_the_mirror_image_has_the_mirrored_classes(trained):
    model, image = trained.opened.segmenter, picture()
    (one,) = model.score(image[None], flip=True)
    (mirror,) = model.score(image[:, ::-1].copy()[None], flip=True, box=(1.0, 0.0, 0.0, 1.0))
    torch.testing.assert_close(mirror.scores.flip(-1), one.scores, atol=1e-4, rtol=1e-4)
    assert agreement(model.labels(mirror, 96, 144)[:, ::-1], model.labels(one, 96, 144)) > 0.999
    (without,) = model.score(image[None])
    (other,) = model.score(image[:, ::-1].copy()[None], box=(1.0, 0.0, 0.0, 1.0))
    mean = (without.scores.exp() + other.scores.flip(-1).exp()) / 2  # probabilities are averaged
    torch.testing.assert_close(one.scores.exp(), mean, atol=1e-5, rtol=1e-4)


def test_tiles_find_what_the_whole_image_finds(trained):
    model, image = trained.opened.segmenter, picture((192, 240))
    whole = model.labels(model.score(image[None])[0], 192, 240)
    tiled = model.labels(model.score_tiled(image, tile=144, overlap=0.5), 192, 240)
    least = {"toy-decoder": 0.85, "toy-cnn": 0.99}[trained.kind]  # tokens of another tile are not attended to
    assert agreement(whole[16:-16, 16:-16], tiled[16:-16, 16:-16]) > least


@pytest.fixture
def registered():
    """The table of heads, in which a test may register some of its own."""
    before = dict(heads.HEADS)
    yield register_head
    heads.HEADS.clear()
    heads.HEADS.update(before)


def test_a_tile_knows_where_in_the_image_it_lies(registered):
    @registered("test-place")
    class Place(DenseNetwork):
        reads, multiple, stride = ("place",), 8, 4

        def __init__(self, classes):
            super().__init__()

        def forward(self, arrays):
            cells = torch.nn.functional.avg_pool2d(arrays["place"], 4)
            return torch.cat([cells, -cells], 1)

    model, image = NetworkModel({"type": "test-place", "classes": 4}, {}), picture((48, 72))
    (whole,) = model.score(image[None], flip=True)
    tiled = model.score_tiled(image, tile=24, flip=True)
    torch.testing.assert_close(tiled.scores, whole.scores)
    assert len(whole.scores.argmax(0).unique()) == 4


def test_tiles_and_flips_of_predict_work_for_every_size(trained):
    plain, tiled = scenes(trained), scenes(trained, flip=True, tile=64, keep="scores")
    assert agreement(label_maps(plain), label_maps(tiled)) > 0.7
    key = tiled.manifest.summary["keys"][0]
    reader = RowReader(tiled.path / "scores" / key)
    probabilities = np.exp(reader.rows(0, len(reader)).astype(np.float64))
    assert np.allclose(probabilities.sum(0), 1, atol=5e-3)


def test_scores_that_are_refined_and_scored_are_those_of_eval_crf(trained):
    kept = scenes(trained, keep="scores")
    refined = refine(RefineConfig(predictions=kept.id, workers=1, device="cpu"), trained.context)
    there = EvalConfig(**HERE, dataset="scenes", split="val", protocol="native", sheet=0)
    one = evaluate(there.model_copy(update={"predictions": refined.id}), trained.context)
    there = there.model_copy(update={"precision": "fp32"})
    two = evaluate(there.model_copy(update={"model": trained.model, "crf": True}), trained.context)
    for name in ("accuracy", "miou", "confusion"):
        assert one.manifest.summary.get(name) == two.manifest.summary.get(name)
    plain = evaluate(there.model_copy(update={"model": trained.model}), trained.context)
    assert plain.manifest.summary["clusters"] == CLASSES
    stego = there.model_copy(update={"model": trained.model, "protocol": "stego"})  # crops and flips
    assert evaluate(stego, trained.context).manifest.summary["images"] == 4


def test_merged_classes_take_their_own_pixels_and_no_others(trained):
    merged = classes(
        ClassesConfig(model=trained.model, merge=[["3", "1"]], names={"0": "a"}), trained.context
    )
    into = np.array([0, 3, 2, 3])
    before = label_maps(scenes(trained))
    after = label_maps(scenes(SimpleNamespace(model=merged.id, context=trained.context)))
    assert np.array_equal(into[before], after)
    model = open_(merged, trained.context).segmenter
    log_probs = model.log_probs(model.score(picture()[None])[0], 50, 60)
    assert log_probs.shape == (3, 50, 60)
    torch.testing.assert_close(log_probs.exp().sum(0), torch.ones(50, 60))


def test_an_onnx_file_says_what_predict_says(trained, tmp_path):
    merged = classes(ClassesConfig(model=trained.model, merge=[["0", "2"]]), trained.context)
    opened = open_(merged, trained.context)
    image = picture((100, 130))
    Image.fromarray(image).save(tmp_path / "image.png")
    file = export(ExportConfig(out=tmp_path / "model.onnx", frame=(100, 130)), merged.id, trained.context)
    session = onnxruntime.InferenceSession(file)
    labels, log_probs = session.run(["labels", "log_probs"], {"frame": image[None]})
    config = PredictConfig(**HERE, precision="fp32", images=(tmp_path / "image.png",), model=merged.id)
    expected = label_maps(predict(config, trained.context))
    assert agreement(expected, labels.ravel()) > 0.99  # resized pixels may differ by one level
    (view,) = opened.geometry.views(100, 130, opened.segmenter.multiple)
    shown = opened.geometry.render(image, view)
    (scores,) = opened.segmenter.score(shown[None])
    ours = opened.segmenter.log_probs(scores, *scores.scores.shape[-2:])
    assert np.abs(log_probs[0] - ours.numpy()).mean() < 0.02


def test_a_network_that_is_no_graph_is_told(trained, tmp_path, monkeypatch):
    def forward(self, arrays):
        scores = whole(self, arrays)
        return scores if float(scores.sum()) > 0 else -scores

    network = {"toy-cnn": toy_cnn.CNN, "toy-decoder": toy_decoder.Decoder}[trained.kind]
    whole = network.forward
    monkeypatch.setattr(network, "forward", forward)
    out = tmp_path / "model.onnx"
    with pytest.raises(
        UsageError, match=rf"'{trained.kind}' cannot be written as an ONNX graph.*safetensors"
    ):
        export(ExportConfig(out=out, frame=(48, 48)), trained.model, trained.context)
    assert not out.exists()


def test_a_file_carries_it_to_an_empty_workspace(trained, tmp_path):
    file = export(ExportConfig(out=tmp_path / "model.safetensors"), trained.model, trained.context)
    has_backbone = any(name.startswith("backbone.") for name in load_file(file))
    assert has_backbone == (trained.kind == "toy-decoder")
    there = SimpleNamespace(model=str(file), context=Context(Workspace(tmp_path / "there")))
    assert np.array_equal(label_maps(scenes(there)), label_maps(scenes(trained)))
    multiple = trained.opened.segmenter.multiple
    assert view_multiple(trained.artifact, trained.context) == multiple
    if trained.kind == "toy-cnn":  # which needs no features for that
        assert view_multiple(take_model(str(file), there.context), there.context) == multiple
    again = export(ExportConfig(out=tmp_path / "again.safetensors"), str(file), there.context)
    assert load_file(again).keys() == load_file(file).keys()


def tampered(file, out, tensors=None, **changes):
    """Write a model file with other tensors, or another header: ``outer__inner`` names a field."""
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["unsupseg"])
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = header
        for part in outer:
            place = place[part]
        place[last] = value
    save_file(tensors or load_file(file), out, metadata={"unsupseg": json.dumps(header)})
    return out


def test_a_file_that_does_not_fit_is_refused_by_name(trained, tmp_path):
    file = export(ExportConfig(out=tmp_path / "model.safetensors"), trained.model, trained.context)
    weights = load_file(file)
    name = next(name for name in weights if name.startswith("heads.network.") and weights[name].ndim > 1)
    broken = [
        ({"tensors": {**weights, name: weights[name] * torch.nan}}, "NaN"),
        ({"tensors": {**weights, name: weights[name][:1]}}, "size mismatch"),
        ({"tensors": {key: value for key, value in weights.items() if key != name}}, "Missing key"),
        ({"tensors": {**weights, "heads.network.more": torch.ones(1)}}, "Unexpected key"),
        ({"model__network__type": "toy-other"}, "type 'toy-other'"),
        ({"model__network__type": "cosine", "model__network__dim": 3}, "no network|unexpected keyword"),
        ({"model__network__surprise": 1}, "surprise"),
        ({"model__network__classes": CLASSES + 1}, "size mismatch|make 4 classes"),
        ({"model__format_version": 1}, "cannot be read"),
        ({"format_version": 3}, "newer format"),
        (
            {
                "model__backbone": None
                if trained.kind == "toy-decoder"
                else {"name": "tiny", "weights_digest": ""}
            },
            "backbone",
        ),
    ]
    context = Context(Workspace(tmp_path / "there"))
    for index, (changes, said) in enumerate(broken):
        with pytest.raises(UnsupsegError, match=said):
            take_model(str(tampered(file, tmp_path / f"{index}.safetensors", **changes)), context)
    assert not list(context.workspace.artifacts("model"))


def test_a_method_that_is_gone_is_missed_by_name(trained, monkeypatch):
    monkeypatch.delitem(heads.HEADS, trained.kind)
    monkeypatch.delitem(registry.BUNDLED, trained.kind)
    with pytest.raises(UsageError, match=rf"made by the method '{trained.kind}'.*install it again"):
        scenes(trained, size=48)


def test_what_needs_codes_is_refused_with_the_way_out(trained):
    with pytest.raises(UsageError, match=r"has no codes.*tokens of a backbone"):
        extract(ExtractConfig(**SCENES, split="val", model=trained.model), trained.context)
    with pytest.raises(UsageError, match="has no codes"):
        evaluate(EvalConfig(**SCENES, model=trained.model, linear_probe=True), trained.context)
    if trained.kind == "toy-cnn":
        with pytest.raises(UsageError, match="stands on no backbone; leave --weights out"):
            scenes(trained, weights="weights.pth", size=48)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: replace(model, network={**model.network, "type": "toy-other"}), "type 'toy-other'"),
        (lambda model: replace(model, tensors={}), "Missing key"),
        (
            lambda model: replace(model, tensors={n: v * torch.nan for n, v in model.tensors.items()}),
            "holds NaN",
        ),
    ],
    ids=["type", "nothing", "nan"],
)
def test_a_network_that_does_not_fit_is_not_written(workspace, tmp_path, monkeypatch, change, said):
    whole = toy_cnn.CNNTrainer.finish
    monkeypatch.setattr(toy_cnn.CNNTrainer, "finish", lambda self: change(whole(self)))
    count = len(list(workspace.artifacts("model")))
    config, options = TrainConfig(method="toy-cnn", device="cpu", seed=9), toy_cnn.Options(steps=1)
    with pytest.raises(UnsupsegError, match=f"parts do not fit.*{said}"):
        train(config, Context(workspace), options=options)
    assert len(list(workspace.artifacts("model"))) == count


@pytest.mark.parametrize(
    ("give", "said"),
    [
        (lambda pixels: pixels, r"shape \(1, 3, 16, 16\).*expected \(1, 3, 4, 4\)"),
        (lambda pixels: pixels[..., ::4, ::4] * torch.inf, "NaN or infinite"),
        (
            lambda pixels: pixels[:, 7],
            r"'test-wrong' failed on images of 16x16 pixels \(IndexError: .*its package",
        ),
    ],
    ids=["shape", "infinite", "error"],
)
def test_a_network_that_gives_something_else_is_told(registered, give, said):
    @registered("test-wrong")
    class Wrong(DenseNetwork):
        reads, stride = ("pixels",), 4

        def __init__(self, classes):
            super().__init__()

        def forward(self, arrays):
            return give(arrays["pixels"])

    model = NetworkModel({"type": "test-wrong", "classes": 3}, {})
    with pytest.raises(UnsupsegError, match=said):
        model.score(np.ones((1, 16, 16, 3), np.uint8))


def test_a_network_that_reads_what_there_is_none_of_is_told(registered):
    @registered("test-reads")
    class Reads(DenseNetwork):
        reads = ("patch", "depth")

        def __init__(self, classes):
            super().__init__()

        def forward(self, arrays):
            return arrays["depth"]

    with pytest.raises(UnsupsegError, match="reads patch, depth; expected some of patch, cls"):
        NetworkModel({"type": "test-reads", "classes": 3}, {})


def test_arithmetic_of_half_length_finds_nearly_the_same(trained):
    exact = trained.opened.segmenter.score(picture()[None])[0].scores
    device = torch.device("cpu")
    half = open_model(trained.artifact, trained.context, device, precision="bf16").segmenter
    (rough,) = half.score(picture()[None])
    assert not torch.equal(rough.scores, exact)
    assert agreement(rough.scores.argmax(0), exact.argmax(0)) > 0.9


def test_batches_give_what_single_images_give(trained):
    images = np.stack([picture(seed=seed) for seed in range(3)])
    together = trained.opened.segmenter.score(images, flip=True)
    alone = [trained.opened.segmenter.score(image[None], flip=True)[0] for image in images]
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one.scores, two.scores, atol=1e-4, rtol=1e-4)


RECIPE = """
name = "dense"
description = "a dense model"

[data]
dataset = "scenes"

[[stage]]
command = "extract"
split = "train"
backbone = "tiny"
size = 48
workers = 0

[[stage]]
command = "pseudolabel"
method = "kmeans"
classes = 3
sheet = 0

[[stage]]
command = "train"
method = "{kind}"
set = {{ steps = 2 }}

[[stage]]
command = "predict"
split = "val"
keep = "scores"
overlay = false
workers = 0

[[stage]]
command = "eval"
split = "val"
protocol = "native"
sheet = 0
workers = 0
"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_plans_runs_and_shows_it(kind, call, tmp_path):
    (tmp_path / "here" / "dense.toml").write_text(RECIPE.format(kind=kind))
    planned = json.loads(call("run", "dense.toml", "--dry-run", "--json")[0])
    call("run", "dense.toml")
    again = json.loads(call("run", "dense.toml", "--dry-run", "--json")[0])
    assert all(stage["reused"] for stage in again["stages"])
    assert planned["stages"][3]["bytes"] > 0  # log-probabilities
    assert len(json.loads(call("classes", "show", "--json")[0])["classes"]) == 3
    call("classes", "name", "0=sky")
    model = call("train", "--method", kind, "--set", "steps=2", "--workers", 0)[0].rsplit("/", 1)[-1]
    assert kind in call("show", model)[0]
    assert "has no codes" in call("extract", "--dataset", "scenes", "--model", model, code=2)[1]
