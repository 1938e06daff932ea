"""Values that no one means: non-finite weights, descriptions out of all bounds, files that are no images, odd names."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.evaluation import write_tables
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.images import UnreadableImage, read_image
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.metrics.scores import score
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.models.backbones import TINY

CLASSES = 3


def features_of(folder, context, **options):
    config = {"dataset": f"{folder}/", "size": 48, "workers": 0, "device": "cpu", "backbone": "untrained"}
    return extract(ExtractConfig(**{**config, **options}), context)


@pytest.fixture
def model(blocks, context):
    masks = pseudolabel(PseudolabelConfig(features=features_of(blocks, context).id, classes=CLASSES), context)
    return train(TrainConfig(pseudolabels=masks.id), context, options=TrainOptions(steps=20))


# Non-finite ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_non_finite_weights_is_refused(model, blocks, context, value):
    tensors = load_file(model.path / "model.safetensors")
    tensors["class_head.weight"][1, 2] = value
    save_file(tensors, model.path / "model.safetensors")
    for call in (
        lambda: predict(PredictConfig(model=model.id, dataset=f"{blocks}/", workers=0), context),
        lambda: features_of(blocks, context, model=model.id, backbone="auto"),
    ):
        with pytest.raises(UnsupsegError, match=r"class_head\.weight' holds NaN or infinite values"):
            call()


def test_a_backbone_with_non_finite_weights_is_refused(tmp_path):
    model = load_backbone("untrained").model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["norm.weight"][0] = float("nan")
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UnsupsegError, match=r"hold NaN or infinite values \(norm\.weight\)"):
        load_backbone("timm:vit_tiny_patch16_224", tmp_path / "weights.safetensors")


def test_codes_that_are_not_finite_are_an_error_and_no_class_0(model, blocks, context, monkeypatch):
    from unsupseg_cli.models.linear_model import LinearModel

    codes = LinearModel.codes
    monkeypatch.setattr(LinearModel, "codes", lambda self, *rest: codes(self, *rest) * float("nan"))
    with pytest.raises(UnsupsegError, match="NaN or infinite codes"):
        predict(PredictConfig(model=model.id, dataset=f"{blocks}/", workers=0), context)


def test_stored_tokens_that_are_not_finite_are_refused(blocks, context):
    features = features_of(blocks, context)
    (shard,) = (path for path in (features.path / "patch" / "c").rglob("*") if path.is_file())
    content = bytearray(shard.read_bytes())
    content[10:12] = np.array([np.nan], np.float16).tobytes()
    shard.write_bytes(content)
    with pytest.raises(UnsupsegError, match=r"'patch' of .* holds NaN"):
        FeatureSet(features).tokens([0])


# Bounds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("geometry", {"size": 20_000}),
        ("class_head", {"dim": 10**9}),
        ("class_head", {"alpha": 1e300}),
        ("backbone", {"layer": -(10**6)}),
        ("backbone", {"position": 1e9}),
    ],
)
def test_a_model_file_out_of_all_bounds_is_refused(model, blocks, context, part, change):
    content = json.loads((model.path / "model.json").read_text())
    content[part] |= change
    (model.path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UnsupsegError, match="is damaged"):
        predict(PredictConfig(model=model.id, dataset=f"{blocks}/", workers=0), context)


@pytest.mark.parametrize("change", [{"depth": 10**6}, {"embed_dim": 10**8}])
def test_a_backbone_out_of_all_bounds_is_refused(tmp_path, change):
    for suffix in ("safetensors", "json"):
        shutil.copy(TINY.with_suffix(f".{suffix}"), tmp_path / f"backbone.{suffix}")
    meta = json.loads((tmp_path / "backbone.json").read_text())
    meta["arch"] |= change
    (tmp_path / "backbone.json").write_text(json.dumps(meta))
    with pytest.raises(UnsupsegError, match=r"describes no architecture .*expected at most"):
        load_backbone("mine", tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"classes": ["a"], "void": 10**9}, "void value is 1000000000"),
        ({"classes": ["a"], "void": [255, 1.5]}, "void value is 1.5"),
        ({"classes": [f"c{i}" for i in range(60_000)]}, "60,000 classes, expected at most 4,096"),
    ],
)
def test_a_class_file_out_of_all_bounds_is_refused(tmp_path, content, reason):
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=reason):
        LabelSpace.from_file(tmp_path / "classes.json")


def test_names_of_classes_are_no_formulas(tmp_path):
    (tmp_path / "classes.txt").write_text('=HYPERLINK("http://x")\n+1\nroad\n')
    space = LabelSpace.from_file(tmp_path / "classes.txt")
    matrix = np.eye(3, dtype=np.int64)
    write_tables(tmp_path, matrix, np.arange(3), score(matrix, np.arange(3)), space, range(3))
    cells = (tmp_path / "confusion.csv").read_text().replace('"', "").replace("\n", ",").split(",")
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")]
    assert "road" in cells


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_a_file_is_an_image_by_what_it_holds_and_starts_no_program(tmp_path, ending, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    path = tmp_path / f"picture.{ending}"
    Image.new("RGB", (20, 20)).save(path, "EPS")
    with pytest.raises(UnreadableImage, match="no known image format"):
        read_image(path)


# Options without effect ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [{"backbone": "untrained"}, {"layer": -2}, {"norm": False}, {"position": 1.0}, {"debias": 5}]
)
def test_options_of_a_backbone_beside_a_model_are_refused(model, blocks, context, option):
    with pytest.raises(UsageError, match="has no effect: the model brings its backbone"):
        features_of(blocks, context, **{"backbone": "auto", "model": model.id, **option})


def test_a_root_beside_a_folder_is_refused(blocks, context):
    with pytest.raises(UsageError, match="--root has no effect"):
        features_of(blocks, context, root=blocks)


# Names of images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".secret.png", "x" * 240 + ".png", "a%2Fb.png", "a\nb.png", "=1.png"])
def test_images_of_any_name_get_a_label_map(model, tmp_path, context, name):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "in" / name)
    out = tmp_path / "out"
    predictions = predict(
        PredictConfig(model=model.id, images=(tmp_path / "in" / name,), workers=0, out=out), context
    )
    assert len(list((predictions.path / "ids").glob("[!.]*.png"))) == 1
    assert len(list((out / "color").glob("[!.]*.png"))) == 1
    assert context.workspace.verify(predictions) == []


def test_images_whose_results_would_have_one_name_are_refused(model, tmp_path, context):
    for name in (".a.png", "_a.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    paths = (tmp_path / ".a.png", tmp_path / "_a.png")
    with pytest.raises(UsageError, match=r"'\.a\.png' and '_a\.png' would have the same name"):
        predict(PredictConfig(model=model.id, images=paths, workers=0), context)


def test_images_of_one_name_in_two_unicode_forms_are_refused(tmp_path):
    for name in ("caf\u00e9.png", "cafe\u0301.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    if len(list(tmp_path.glob("*.png"))) < 2:
        return  # this disk knows one form only
    with pytest.raises(UsageError, match="have the same name"):
        open_dataset(f"{tmp_path}/")


def test_an_image_in_a_folder_is_not_taken_for_another_with_its_path_as_name(model, tmp_path, context):
    """The notes of finished images do not confuse `a/b.png` with `a%2Fb.png`."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    for number, name in enumerate(("a/b.png", "a%2Fb.png")):
        Image.new("RGB", (64, 48), (255 * number, 0, 0)).save(tmp_path / "in" / name)
    predictions = predict(PredictConfig(model=model.id, images=(tmp_path / "in",), workers=0), context)
    assert len(list((predictions.path / "ids").rglob("*.png"))) == 2


def test_control_characters_reach_no_terminal(tmp_path, call):
    folder = tmp_path / "evil\x1b[2Jname"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (64, 48)).save(folder / f"{number}\x1b[31m.png")
    (folder / "2\x1b[31m.png").write_bytes(b"no image")
    options = ("--size", 32, "--backbone", "untrained", "--workers", 0)
    path, said = call("extract", "--dataset", folder, *options)
    assert "\x1b" not in said + path
    assert len(path.splitlines()) == 1
    assert "\x1b" not in call("list")[0] + call("show", path)[0]
    assert "control characters" in call("list", "--workspace", "a\nb", code=2)[1]


def test_another_batch_size_agrees_to_rounding_and_show_says_so(blocks, tmp_path, call):
    tokens = []
    for size in (1, 3):
        space = tmp_path / f"batch{size}"
        features = features_of(blocks, Context(Workspace(space)), batch_size=size)
        assert features.manifest.execution["batch_size"] == size
        tokens.append(np.stack([view.numpy() for view in FeatureSet(features).tokens(range(4))]))
        assert "at the same batch size" in " ".join(
            call("show", features.id, "--workspace", space)[0].split()
        )
    assert np.abs(tokens[0] - tokens[1]).max() <= 1e-3 * np.abs(tokens[0]).max()
