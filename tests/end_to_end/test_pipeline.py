"""The installed command and the Python API, from images to scores, on small pictures made here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    evaluate,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain

COLORS = np.array([[30, 120, 220], [60, 160, 60], [120, 110, 100], [220, 60, 40]], np.uint8)
SMALL = ["--size", "64", "--workers", "0", "--backbone", "untrained"]


def picture(index, height=64, width=96):
    """A sky over grass with a road and a box, and the class of every pixel."""
    rng = np.random.default_rng(index)
    label = np.zeros((height, width), np.uint8)
    horizon = height // 2 + int(rng.integers(-height // 8, height // 8))
    label[horizon:] = 1
    label[horizon:, width // 3 : width // 2] = 2
    side = min(height, width) // 3
    x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
    label[y : y + side, x : x + side] = 3
    image = COLORS[label].astype(float) + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), label


@pytest.fixture
def photos(tmp_path):
    """Six labelled training and four validation pictures in folders of splits."""
    root = tmp_path / "photos"
    for split, numbers in (("train", range(6)), ("val", range(6, 10))):
        for number in numbers:
            image, label = picture(number)
            for kind, pixels, suffix in (("images", image, ".jpg"), ("labels", label, ".png")):
                path = root / kind / split / f"frame {number:02d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path, **({"quality": 95} if suffix == ".jpg" else {}))
    (root / "classes.json").write_text(
        json.dumps({"classes": ["sky", "grass", "road", "box"], "void": [255]})
    )
    return root


def images(root, split):
    return root / "images" / split


def test_the_chain_by_hand(call, photos, tmp_path):
    train_images, val_images = images(photos, "train"), images(photos, "val")
    features, _ = call("extract", "--dataset", train_images, *SMALL)
    masks, said = call("pseudolabel", "--classes", 4)
    assert "taking features" in said
    model, _ = call("train", "--set", "steps=30")
    predictions, _ = call("predict", val_images, "--out", tmp_path / "out", "--workers", 0)
    labels = ("--labels", photos / "labels" / "val", "--class-file", photos / "classes.json")
    scores, said = call("eval", "--dataset", val_images, *labels, "--workers", 0)
    for path, kind in ((features, "features"), (masks, "pseudolabels"), (model, "model")):
        assert "\n" not in path
        assert Path(path).parent.name == kind
    assert "mIoU" in said
    summary = json.loads((Path(scores) / "manifest.json").read_text())["summary"]
    assert summary["images"] == 4
    assert summary["miou"] > 0.4  # chance is below 0.2
    for name in ("sheet.png", "confusion.png", "iou.png", "confusion.csv"):
        assert (Path(scores) / name).stat().st_size > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "ids",
        "color",
        "overlay",
        "legend.png",
        "classes.json",
    }
    same, said = call("eval", "--predictions", predictions, "--dataset", val_images, *labels)
    again = json.loads((Path(same) / "manifest.json").read_text())["summary"]
    assert again["confusion"] == summary["confusion"]  # predict | eval and eval of the model are one figure
    assert call("extract", "--dataset", train_images, *SMALL)[0] == features
    assert call("train", "--set", "steps=30")[0] == model
    call("verify")
    listed = json.loads(call("list", "--json")[0])
    assert {row["kind"] for row in listed} == {
        "features",
        "pseudolabels",
        "model",
        "predictions",
        "evaluation",
    }
    table = call("show", scores, "--csv")[0]
    assert "iou/sky" in table
    assert not any(row["used_labels"] for row in listed)


def test_the_number_of_classes_that_the_class_file_has_is_proposed(call, photos):
    call("extract", "--dataset", photos, "--split", "train", *SMALL)
    _, said = call("pseudolabel", code=2)
    assert f"or --classes 4, as '{photos / 'classes.json'}' has" in said
    call("extract", "--dataset", images(photos, "val"), *SMALL)
    _, said = call("pseudolabel", code=2)
    assert "or --classes K (try 5 to 30)" in said


def test_kinds_of_classes_have_scores_of_their_own(call, photos):
    kinds = [("sky", "stuff"), ("grass", "stuff"), ("road", "stuff"), ("[red]box", "thing")]
    (photos / "kinds.json").write_text(
        json.dumps({"classes": [{"name": name, "kind": kind} for name, kind in kinds], "void": [255]})
    )
    call("extract", "--dataset", images(photos, "train"), *SMALL)
    call("pseudolabel", "--classes", 4)
    call("train", "--set", "steps=30")
    labels = ("--labels", photos / "labels" / "val", "--class-file", photos / "kinds.json")
    scores, said = call("eval", "--dataset", images(photos, "val"), *labels, "--workers", 0)
    summary = json.loads((Path(scores) / "manifest.json").read_text())["summary"]
    iou, confusion = summary["iou"], summary["confusion"]
    assert summary["kinds"]["thing"]["miou"] == pytest.approx(iou[3] or 0)
    assert summary["kinds"]["stuff"]["miou"] == pytest.approx(sum(iou[:3]) / 3)
    right = sum(confusion[index][index] for index in range(3))
    assert summary["kinds"]["stuff"]["accuracy"] == pytest.approx(right / sum(summary["pixels"][:3]))
    assert "mIoU of kind stuff" in said
    assert "[red]box" in said
    assert "miou/thing" in call("show", scores, "--csv")[0]
    assert "classes of kind thing alone" in Path(call("report", scores)[0]).read_text()


def chain(workspace, photos, **execution):
    """Run the stages of the Python API and return their artifacts."""
    context = Context(Workspace(workspace))
    fields = {"size": 64, "workers": 0, "backbone": "untrained", **execution}
    features = extract(ExtractConfig(dataset=f"{images(photos, 'train')}/", **fields), context)
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=4), context)
    model = train(TrainConfig(pseudolabels=masks.id), context, options=KMeansTrain(steps=20))
    config = PredictConfig(model=model.id, dataset=f"{images(photos, 'val')}/", workers=0)
    return [features, masks, model, predict(config, context)]


def test_equal_runs_give_equal_bytes_and_workers_do_not_matter(photos, tmp_path):
    first, second = chain(tmp_path / "a", photos), chain(tmp_path / "b", photos, workers=2, batch_size=16)
    assert [one.manifest.key for one in first] == [one.manifest.key for one in second]
    assert [one.manifest.digest for one in first] == [one.manifest.digest for one in second]


def test_no_stage_but_eval_opens_a_label(photos, tmp_path):
    for path in (photos / "labels").rglob("*.png"):
        path.write_bytes(b"no label can be read from this")
    context = Context(Workspace(tmp_path / "w"))
    labels = {"labels": photos / "labels" / "train", "class_file": photos / "classes.json"}
    dataset = f"{images(photos, 'train')}/"
    fields = {"size": 64, "workers": 0, "backbone": "untrained"}
    features = extract(ExtractConfig(dataset=dataset, **fields, **labels), context)
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=4), context)
    model = train(TrainConfig(pseudolabels=masks.id), context, options=KMeansTrain(steps=5))
    predictions = predict(PredictConfig(model=model.id, dataset=dataset, workers=0, **labels), context)
    assert not predictions.manifest.used_labels
    with pytest.raises(UnsupsegError, match=r"frame 00\.png"):
        evaluate(EvalConfig(model=model.id, dataset=dataset, workers=0, **labels), context)


def test_the_linear_probe_beats_the_clusters_and_is_marked(call, tmp_path):
    call("extract", "--dataset", "scenes", "--split", "train", "--size", 64, "--backbone", "untrained")
    call("pseudolabel")
    call("train", "--set", "steps=30")
    path, said = call("eval", "--dataset", "scenes", "--linear-probe", "--probe-steps", 150)
    manifest = json.loads((Path(path) / "manifest.json").read_text())
    assert manifest["used_labels"]
    assert "used labels" in said
    assert manifest["summary"]["miou"] > 0.10  # random labels reach about 0.05
    assert manifest["summary"]["linear_probe"]["miou"] > manifest["summary"]["miou"]


def test_images_of_any_shape_and_kind_keep_their_size(call, tmp_path):
    folder = tmp_path / "mixed" / "tief verschachtelt ü"
    folder.mkdir(parents=True)
    sizes = {"wide.png": (40, 333), "tall.webp": (200, 50), "even.bmp": (64, 64), "odd.tiff": (77, 91)}
    for name, (height, width) in sizes.items():
        Image.fromarray(picture(1, height, width)[0]).save(folder / name)
    call("extract", "--dataset", tmp_path / "mixed", *SMALL)
    call("pseudolabel", "--classes", 3)
    call("train", "--set", "steps=5")
    path, _ = call(
        "predict", tmp_path / "mixed", "--flip", "--keep", "scores", "--only", "class 1", "--workers", 0
    )
    for name, (height, width) in sizes.items():
        ids = Image.open(Path(path) / "ids" / folder.name / f"{name}.png")
        assert (ids.height, ids.width) == (height, width)
        assert set(np.unique(ids)) <= {0, 1, 2}
        overlay = Image.open(Path(path) / "overlay" / folder.name / f"{name}.jpg")
        assert (overlay.height, overlay.width) == (height, width)
    features = FeatureSet(Workspace(Path("unsupseg-workspace")).current("features"))
    assert not features.patch.regular


def test_tiles_cover_the_image_and_agree_with_the_whole(call, photos, tmp_path):
    call("extract", "--dataset", images(photos, "train"), *SMALL)
    call("pseudolabel", "--classes", 3)
    call("train", "--set", "steps=20")
    big = tmp_path / "big.png"
    Image.fromarray(picture(3, 256, 384)[0]).save(big)
    whole, _ = call("predict", big, "--size", 0, "--workers", 0)
    tiled, _ = call("predict", big, "--size", 0, "--tile", 128, "--workers", 0)
    a, b = (np.asarray(Image.open(Path(path) / "ids" / "big.png.png")) for path in (whole, tiled))
    assert a.shape == b.shape == (256, 384)
    assert (a == b).mean() > 0.8


def test_with_much_position_a_class_is_a_part_of_the_frame(call, photos, tmp_path):
    call("extract", "--dataset", images(photos, "train"), *SMALL, "--position", 5)
    call("pseudolabel", "--classes", 4)
    call("train", "--set", "steps=20")
    for seed in (3, 4):
        Image.fromarray(picture(seed, 128, 192)[0]).save(tmp_path / f"{seed}.png")
    frames = [tmp_path / f"{seed}.png" for seed in (3, 4)]
    whole, _ = call("predict", *frames, "--size", 0, "--workers", 0)
    tiled, _ = call("predict", *frames, "--size", 0, "--tile", 64, "--flip", "--workers", 0)
    first, second, again = (
        np.asarray(Image.open(Path(path) / "ids" / f"{seed}.png.png"))
        for path, seed in ((whole, 3), (whole, 4), (tiled, 3))
    )
    assert len(np.unique(first)) == 4
    assert (first == second).mean() > 0.9
    assert (first == again).mean() > 0.9
    model = Workspace(Path("unsupseg-workspace")).current("model").id
    _, said = call("extract", "--dataset", images(photos, "train"), "--model", model, "--position", 1, code=2)
    assert "--position (command line) has no effect: the model brings its backbone" in said
    again = ("extract", "--dataset", images(photos, "train"), *SMALL[:4], "--model", model)
    call(*again)
    assert "carry their place" in call(*again, "--geometry", "five-crop", code=2)[1]


def test_unreadable_images_are_skipped_counted_and_named(call, photos):
    folder = images(photos, "train")
    (folder / "text.jpg").write_text("hello")
    whole = (folder / "frame 00.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    path, said = call("extract", "--dataset", folder, *SMALL)
    manifest = json.loads((Path(path) / "manifest.json").read_text())
    assert sorted(manifest["summary"]["skipped"]) == ["cut.jpg", "text.jpg"]
    assert manifest["summary"]["views"] == 6
    assert "unreadable images skipped: 2" in said
    features = FeatureSet(Workspace(Path("unsupseg-workspace")).current("features"))
    assert len(features) == len(features.patch) == len(features.rows("cls")) == 6
    assert np.isfinite(features.patch[5]).all()
    assert np.abs(features.patch[5].astype(float)).sum() > 0
    _, said = call("extract", "--dataset", folder, *SMALL, "--strict", "--force", code=1)
    assert "text.jpg" in said or "cut.jpg" in said


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["extract"], 2, "--dataset"),
        (["extract", "--dataset", "missing/folder"], 2, "missing/folder"),
        (["extract", "--dataset", "EMPTY"], 2, "No image in"),
        (["extract", "--dataset", "camvidd"], 2, "did you mean 'camvid'"),
        (["extract", "--dataset", "scenes", "--backbone", "dino_vits7"], 2, "did you mean 'dino_vits"),
        (["extract", "--dataset", "scenes", "--size", "big"], 2, "--size 'big' (command line)"),
        (["extract", "--dataset", "scenes", "--keep", "patches"], 2, "expected some of patch"),
        (["extract", "--dataset", "scenes", "--split", "vall"], 2, "did you mean 'val'"),
        (["extract", "--dataset", "camvid"], 2, "--root"),
        (["extract", "--dataset", "scenes", "--position", "1", "--geometry", "stego"], 2, "whole images"),
        (["extract", "--datset", "scenes"], 2, "--dataset"),
        (["pseudolabel"], 2, "unsupseg extract"),
        (["pseudolabel", "--method", "kmeens"], 2, "did you mean 'kmeans'"),
        (["pseudolabel", "--set", "restart=3"], 2, "did you mean 'restarts'"),
        (["pseudolabel", "--set", "restarts=0"], 2, "greater than or equal to 1"),
        (["train"], 2, "unsupseg pseudolabel"),
        (["eval"], 2, "unsupseg train"),
        (["show", "nothing"], 2, "workspace"),
        (["--workspace", "x"], 2, "--workspace"),
    ],
)
def test_a_wrong_call_says_what_and_how_to_mend_it(call, tmp_path, arguments, code, expected):
    (tmp_path / "empty").mkdir()
    arguments = [str(tmp_path / "empty") if one == "EMPTY" else one for one in arguments]
    _, said = call(*arguments, code=code)
    assert expected in said
    assert "Traceback" not in said


def test_mistakes_after_extraction(call, photos, tmp_path):
    call("extract", "--dataset", images(photos, "train"), *SMALL)
    assert "--classes" in call("pseudolabel", code=2)[1]
    assert "more than the" in call("pseudolabel", "--classes", 9999, code=2)[1]
    masks, _ = call("pseudolabel", "--classes", 4)
    other, _ = call("extract", "--dataset", images(photos, "val"), *SMALL)
    said = call("train", "--pseudolabels", masks, "--features", other, code=2)[1]
    assert "were made from the features" in said
    call("train", "--set", "steps=5")
    assert "--labels" in call("eval", "--dataset", images(photos, "val"), code=2)[1]
    labels = ("--labels", photos / "labels" / "val", "--class-file", photos / "classes.json")
    bad = photos / "labels" / "val" / "frame 07.png"
    good = bad.read_bytes()
    Image.fromarray(np.full((64, 96), 77, np.uint8)).save(bad)
    said = call("eval", "--dataset", images(photos, "val"), *labels, "--workers", 0, code=2)[1]
    assert "frame 07.png" in said
    assert "77" in said
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(bad)
    said = call("eval", "--dataset", images(photos, "val"), *labels, "--workers", 0, code=2)[1]
    assert "20x10" in said
    assert "96x64" in said
    bad.unlink()
    _, said = call("eval", "--dataset", images(photos, "val"), *labels, "--workers", 0)
    assert "1 image without a label" in said
    bad.write_bytes(good)
    shard = next((Path(other) / "patch" / "c").rglob("0"))
    while shard.is_dir():
        shard = next(shard.iterdir())
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    assert "was changed" in call("verify", code=1)[1]


def test_a_workspace_that_cannot_be_written_is_named(call, tmp_path):
    (tmp_path / "file").write_text("")
    said = call("extract", "--dataset", "scenes", *SMALL, "-w", tmp_path / "file" / "w", code=1)[1]
    assert "--workspace" in said


def test_weights_of_another_model_and_no_network(call, tmp_path, monkeypatch):
    import torch

    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    said = call(
        "extract",
        "--dataset",
        "scenes",
        "--backbone",
        "dino_vits16",
        "--weights",
        tmp_path / "other.pth",
        code=1,
    )
    assert "unknown: conv1.weight" in said[1]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = call("extract", "--dataset", "scenes", "--backbone", "dino_vits16", code=1)[1]
    assert "--weights FILE" in said
    assert "network" in said


def test_settings_come_from_the_file_and_the_command_line_wins(call, photos):
    folder = Path.cwd()
    (folder / "set").symlink_to(photos)
    (folder / "unsupseg.toml").write_text(
        'dataset = "camvid"\nroot = "set"\nworkspace = "store"\n[extract]\nsize = 32\nbackbone = "untrained"\n'
    )
    path, said = call("extract", "--workers", 0, "--explain")
    manifest = json.loads((Path(path) / "manifest.json").read_text())
    assert Path(path).is_relative_to(folder / "store")
    assert manifest["data"]["dataset"] == "camvid"
    assert manifest["config"]["size"] == 32
    assert "unsupseg.toml" in said
    path, _ = call("extract", "--workers", 0, "--size", 48)
    assert json.loads((Path(path) / "manifest.json").read_text())["config"]["size"] == 48
    (folder / "unsupseg.toml").write_text('workspace = "store"\n[extract]\nsise = 32\n')
    assert "did you mean 'size'" in call("extract", code=2)[1]
    (folder / "unsupseg.toml").write_text('workspace = "store"\n')
    call("extract", "--dataset", "camvid", *SMALL)  # the root is remembered


def test_five_crops_give_five_views(call, photos):
    call("extract", "--dataset", images(photos, "train"), *SMALL, "--geometry", "five-crop")
    features = FeatureSet(Workspace(Path("unsupseg-workspace")).current("features"))
    assert len(features) == 30
    assert features.patch.regular
    assert [features.views["crop"][view] for view in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], ("torch", "numpy", "pydantic", "zarr")),
        (["extract", "--help"], ("torch", "numpy", "zarr", "ray")),
        (["train", "--method", "stego", "--help"], ("torch", "numpy", "zarr")),
        (["run", "--help"], ("torch", "numpy", "zarr", "ray")),
    ],
)
def test_help_imports_nothing_heavy(arguments, heavy):
    code = (
        "import sys; from typer.testing import CliRunner; from unsupseg_cli.cli.main import app; "
        f"result = CliRunner().invoke(app, {arguments}); assert result.exit_code == 0, result.output; "
        f"assert not set({heavy}) & set(sys.modules), set({heavy}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_nan_features_are_refused(call, photos, monkeypatch):
    import torch

    from unsupseg_cli.models.backbone import Backbone

    forward = Backbone.forward
    monkeypatch.setattr(
        Backbone,
        "forward",
        lambda self, x, keep=(): {k: v * torch.nan for k, v in forward(self, x, keep).items()},
    )
    assert "NaN" in call("extract", "--dataset", images(photos, "train"), *SMALL, code=1)[1]


def test_predictions_reject_a_protocol_that_crops(call, photos):
    call("extract", "--dataset", images(photos, "train"), *SMALL)
    call("pseudolabel", "--classes", 3)
    call("train", "--set", "steps=5")
    labels = ("--labels", photos / "labels" / "val", "--class-file", photos / "classes.json")
    path, _ = call("predict", images(photos, "val"), "--workers", 0)
    said = call(
        "eval",
        "--predictions",
        path,
        "--dataset",
        images(photos, "val"),
        *labels,
        "--protocol",
        "stego",
        code=2,
    )
    assert "'native' only" in said[1]
    path, _ = call("eval", "--dataset", images(photos, "val"), *labels, "--protocol", "stego", "--workers", 0)
    assert json.loads((Path(path) / "manifest.json").read_text())["summary"]["protocol"]["flip"] is True


def test_unknown_references_are_refused(call, photos):
    with pytest.raises(UsageError):
        Workspace(photos).current("model")


SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.mark.parametrize("script", sorted(path.name for path in SAMPLES.glob("*.sh")))
def test_the_sample_scripts_run(photos, tmp_path, script, command_folder):
    few = {"STEPS": "5", "CYCLES": "1", "CYCLE_STEPS": "2", "EPOCHS": "1", "BACKBONE": "untrained"}
    done = subprocess.run(
        ["bash", SAMPLES / script, "camvid", "--root", photos, "--size", "64"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{command_folder}{os.pathsep}{os.environ['PATH']}", **few},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("unsupseg-workspace/evaluation/*/sheet.png"))
    features = list(Workspace(tmp_path / "unsupseg-workspace").artifacts("features"))
    assert len(features) == (2 if script == "stego_primaps.sh" else 1)  # tokens, and codes


def test_crf_in_eval_and_by_refine_give_one_figure(call, photos):
    call("extract", "--dataset", images(photos, "train"), *SMALL)
    call("pseudolabel", "--classes", 4)
    call("train", "--set", "steps=20")
    val = images(photos, "val")
    labels = ("--labels", photos / "labels" / "val", "--class-file", photos / "classes.json")
    call("predict", val, "--workers", 0)
    assert "--keep scores" in call("refine", code=2)[1]
    call("refine", "--label-confidence", 0.8, "--iterations", 2)
    call("predict", val, "--keep", "scores", "--workers", 0)
    refined, _ = call("refine")
    by_hand, _ = call("eval", "--predictions", refined, "--dataset", val, *labels)
    direct, said = call("eval", "--dataset", val, *labels, "--crf", "--workers", 0)
    plain, _ = call("eval", "--dataset", val, *labels, "--workers", 0)
    confusion = [
        json.loads((Path(path) / "manifest.json").read_text())["summary"]["confusion"]
        for path in (by_hand, direct, plain)
    ]
    assert confusion[0] == confusion[1] != confusion[2]
    assert "CRF" in said
