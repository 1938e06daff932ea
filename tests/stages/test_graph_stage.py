import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import ExtractConfig, TrainConfig, extract, graph, train
from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.graph import read_neighbours
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.stages.graph import GraphConfig


def features(tmp_path, context, **fields):
    folder = tmp_path / "photos"
    folder.mkdir(exist_ok=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((48, 32)).save(folder / f"{number}.png")
    given = {"dataset": f"{folder}/", "size": 32, "workers": 0, "backbone": "untrained", "device": "cpu"}
    return extract(ExtractConfig(**{**given, **fields}), context)


def test_a_graph_holds_the_most_similar_views(tmp_path, context):
    source = features(tmp_path, context)
    made = graph(GraphConfig(neighbors=2, device="cpu"), context)
    pooled = FeatureSet(source).rows("pooled").astype(np.float64)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    cosine = pooled @ pooled.T
    np.fill_diagonal(cosine, -2)
    found = read_neighbours(made)
    assert found.dtype == np.int32
    assert (found == np.argsort(-cosine, axis=1)[:, :2]).all()
    similarity = RowReader(made.path / "similarity").rows(0, 5)
    assert similarity.dtype == np.float16
    np.testing.assert_allclose(similarity, -np.sort(-cosine, axis=1)[:, :2], atol=1e-3)
    assert made.manifest.config["engine"] == "exact"
    assert made.manifest.summary["same_image"] == 0
    assert graph(GraphConfig(neighbors=2, device="cpu"), context).manifest.started == made.manifest.started


def test_more_neighbours_than_views_are_all_others_with_a_warning(tmp_path, context):
    features(tmp_path, context)
    made = graph(GraphConfig(device="cpu"), context)
    assert read_neighbours(made).shape == (5, 4)
    assert "only 4 others" in made.manifest.warnings[0]


def test_a_graph_of_other_features_is_refused_with_both_keys(tmp_path, context):
    source = features(tmp_path, context)
    made = graph(GraphConfig(device="cpu"), context)
    other = features(tmp_path, context, size=64)
    config = TrainConfig(method="stego", classes=2, features=other.id, graph=made.id)
    with pytest.raises(UsageError) as caught:
        train(config, context)
    for part in (source.id, source.manifest.key[:12], other.id, other.manifest.key[:12]):
        assert part in str(caught.value)


def test_features_without_descriptors_say_how_to_get_them(tmp_path, context):
    features(tmp_path, context, keep=("patch",))
    with pytest.raises(UsageError, match="--keep patch,pooled"):
        graph(GraphConfig(device="cpu"), context)


def test_crops_of_one_image_may_be_neighbours(tmp_path, context):
    source = features(tmp_path, context, geometry="five-crop", size=64)
    made = graph(GraphConfig(neighbors=24, device="cpu"), context)
    assert made.manifest.summary["views"] == len(FeatureSet(source)) == 25
    assert made.manifest.summary["same_image"] == pytest.approx(4 / 24)
