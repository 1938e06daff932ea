"""`predict --crf`: the figures of `eval --crf`, at the size of any image, before and after merges."""

import json

import numpy as np
import pytest
from fixtures.pictures import save

from unsupseg_cli import EvalConfig, PredictConfig, classes, evaluate, extract, predict
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.crf.config import LONGEST_SIDE
from unsupseg_cli.stages.classes import ClassesConfig
from unsupseg_cli.stages.extract import ExtractConfig


def segment(model, images, context, **options):
    return predict(PredictConfig(model=model.id, dataset=f"{images}/", workers=0, **options), context)


def id_maps(predictions):
    return np.stack([read_ids(predictions.path, key) for key in predictions.manifest.summary["keys"]])


@pytest.fixture
def labelled(blocks, tmp_path):
    """Label images of the blocks' upper and lower part."""
    for number in range(4):
        save(
            tmp_path / "labels" / f"{number}.png", np.repeat([[0], [1]], 36, 0).repeat(96, 1).astype(np.uint8)
        )
    (tmp_path / "classes.json").write_text(json.dumps(["above", "below"]))
    return {
        "dataset": f"{blocks}/",
        "labels": tmp_path / "labels",
        "class_file": tmp_path / "classes.json",
        "workers": 0,
    }


@pytest.mark.parametrize("stored", [False, True])
def test_its_maps_have_the_scores_of_eval_with_the_crf(model, blocks, labelled, context, stored):
    features = {}
    if stored:
        config = ExtractConfig(dataset=f"{blocks}/", size=72, workers=0, device="cpu", backbone="untrained")
        features = {"features": extract(config, context).id}
    predictions = segment(model, blocks, context, crf=True, **features)
    direct = evaluate(EvalConfig(model=model.id, crf=True, **labelled, **features), context)
    of_maps = evaluate(EvalConfig(predictions=predictions.id, **labelled), context)
    plain = evaluate(EvalConfig(model=model.id, **labelled, **features), context)
    assert of_maps.scores["confusion"] == direct.scores["confusion"]
    assert of_maps.scores["confusion"] != plain.scores["confusion"]


def test_without_it_predictions_have_the_key_that_they_had(model, blocks, context):
    assert "crf" not in segment(model, blocks, context).manifest.config
    assert segment(model, blocks, context, crf=True).manifest.config["crf"]["iterations"] == 10


def test_merged_classes_are_those_of_the_stored_maps_put_together(model, blocks, context):
    before = id_maps(segment(model, blocks, context, crf=True))
    merged = classes(ClassesConfig(model=model.id, merge=(("3", "1"),)), context)
    taken = segment(merged, blocks, context, crf=True)
    np.testing.assert_array_equal(id_maps(taken), np.array([0, 3, 2, 3, 4])[before])
    context.force = True
    np.testing.assert_array_equal(id_maps(segment(merged, blocks, context, crf=True)), id_maps(taken))


def test_a_large_image_is_refined_at_the_longest_side_and_follows_its_edges(model, context, tmp_path):
    height, width, edge = 700, 2 * LONGEST_SIDE, 500
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[:, edge:] = (200, 180, 60)
    pixels += np.random.default_rng(0).integers(0, 9, pixels.shape, np.uint8)
    save(tmp_path / "large" / "a.png", pixels)
    wide = {
        crf: id_maps(segment(model, tmp_path / "large", context, crf=crf, size=48))[0]
        for crf in (False, True)
    }
    assert wide[True].shape == (height, width)

    def astray(ids):
        sides = ids[:, :edge], ids[:, edge:]
        return sum((side != np.bincount(side.ravel()).argmax()).sum() for side in sides)

    assert astray(wide[True]) < astray(wide[False])
