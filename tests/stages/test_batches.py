"""`predict` and `eval` put images of one size through the network together; the results are those of one at a time."""

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
    Workspace,
    evaluate,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.methods.kmeans.config import TrainOptions
from unsupseg_cli.models.linear_model import LinearModel


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that go through the network."""
    sizes = []
    codes = LinearModel.codes

    def recording(self, images, *arguments, **named):
        sizes.append(len(images))
        return codes(self, images, *arguments, **named)

    monkeypatch.setattr(LinearModel, "codes", recording)
    return sizes


@pytest.fixture
def model(tmp_path):
    """A model of seven pictures, of which the fifth has another shape."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(7):
        rng = np.random.default_rng(number)
        colors = rng.integers(0, 256, (4, 6 if number == 4 else 4, 3)).repeat(16, 0).repeat(16, 1)
        Image.fromarray(colors.astype(np.uint8)).save(folder / f"{number}.png")
    context = Context(Workspace(tmp_path / "work"))
    source = {"dataset": f"{folder}/", "workers": 0, "device": "cpu"}
    extract(ExtractConfig(**source, size=32, backbone="untrained", precision="fp32"), context)
    pseudolabel(PseudolabelConfig(classes=3, sheet=0, workers=0, device="cpu"), context)
    train(TrainConfig(device="cpu"), context, options=TrainOptions(steps=3, restarts=1))
    return context, PredictConfig(**source, precision="fp32", overlay=False)


def test_images_of_one_size_go_together(model, batches):
    context, config = model
    alone = predict(config.model_copy(update={"batch_size": 1}), context)
    labels = {key: read_ids(alone.path, key) for key in alone.manifest.summary["keys"]}
    assert batches == [1] * 7
    batches.clear()
    context.force = True
    together = predict(config.model_copy(update={"batch_size": 3}), context)
    assert batches == [3, 3, 1]  # six of one size, one of another
    assert together.manifest.key == alone.manifest.key
    for key, before in labels.items():
        assert (read_ids(together.path, key) == before).mean() > 0.999


def test_eval_does_so_too_and_gives_the_same_scores(batches, tmp_path):
    context = Context(Workspace(tmp_path / "work"), most_images=9)
    scenes = {"dataset": "scenes", "workers": 0, "device": "cpu"}
    extract(ExtractConfig(**scenes, size=32, backbone="untrained", precision="fp32"), context)
    pseudolabel(PseudolabelConfig(sheet=0, workers=0, device="cpu"), context)
    train(TrainConfig(device="cpu"), context, options=TrainOptions(steps=3, restarts=1))
    config = EvalConfig(**scenes, split="val", precision="fp32", sheet=0, protocol="stego")
    scores = []
    for size in (1, 8):
        context.force = bool(scores)
        made = evaluate(config.model_copy(update={"batch_size": size}), context)
        scores.append(made.manifest.summary["miou"])
    assert {1, 8} <= set(batches)
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_tiles_go_alone(model, batches):
    context, config = model
    tiled = predict(config.model_copy(update={"batch_size": 3, "tile": 32, "size": 64}), context)
    assert set(batches) == {1}
    assert tiled.manifest.summary["images"] == 7
