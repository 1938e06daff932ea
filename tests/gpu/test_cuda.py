"""Every stage on CUDA beside the CPU, with tolerances: `make test-gpu`. Skipped without a GPU."""

import numpy as np
import pytest
import torch

from unsupseg_cli import (
    Context,
    EvalConfig,
    ExtractConfig,
    GraphConfig,
    PredictConfig,
    PretrainConfig,
    PseudolabelConfig,
    TrainConfig,
    evaluate,
    extract,
    graph,
    predict,
    pretrain,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.graph import read_neighbours
from unsupseg_cli.contents.label_maps import read_ids
from unsupseg_cli.contents.masks import LabelMaps
from unsupseg_cli.crf import CRFConfig
from unsupseg_cli.crf.meanfield import refine
from unsupseg_cli.methods.context.config import TrainOptions as ContextTrain
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain
from unsupseg_cli.methods.maskdistill.config import ClustersOptions, FilterOptions
from unsupseg_cli.methods.maskdistill.config import TrainOptions as MaskdistillTrain
from unsupseg_cli.methods.primaps.config import TrainOptions as PrimapsTrain
from unsupseg_cli.methods.spectral.config import TrainOptions as SpectralTrain
from unsupseg_cli.methods.stego.config import TrainOptions as StegoTrain
from unsupseg_cli.methods.transfgu.config import TrainOptions as TransfguTrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICES = ("cpu", "cuda")
SCORE = 0.03  # of accuracy and mIoU: other orders of summation move a few pixels of a boundary


@pytest.fixture(scope="module")
def spaces(tmp_path_factory):
    """A workspace for each device, with features of the scenes in fp32."""
    found = {device: Context(Workspace(tmp_path_factory.mktemp(device))) for device in DEVICES}
    for device, context in found.items():
        extract(ExtractConfig(dataset="scenes", size=96, device=device, precision="fp32"), context)
    return found


def test_features_agree(spaces):
    one, two = (FeatureSet(spaces[device].workspace.current("features")) for device in DEVICES)
    for view in range(0, len(one), 7):
        a, b = one.tokens([view])[0], two.tokens([view])[0]
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.999


def test_regions_agree(spaces):
    rows = []
    for device, context in spaces.items():
        config = ExtractConfig(
            dataset="scenes", split="val", regions="pyramid", size=64, device=device, precision="fp32"
        )
        rows.append(torch.from_numpy(FeatureSet(extract(config, context)).rows("cls")))
    assert torch.cosine_similarity(*rows, dim=-1).min() > 0.999


def test_graphs_agree(spaces):
    neighbours = []
    for device, context in spaces.items():
        made = graph(GraphConfig(neighbors=5, device=device), context)
        neighbours.append(read_neighbours(made))
    assert (neighbours[0] == neighbours[1]).mean() > 0.98


@pytest.mark.parametrize("method", ["kmeans", "primaps"])
def test_pseudo_labels_agree(spaces, method):
    maps = []
    for device, context in spaces.items():
        made = pseudolabel(PseudolabelConfig(method=method, device=device), context)
        labels = LabelMaps(made)
        maps.append([labels[view] for view in range(len(labels))])
    same = [(one == two).mean() for one, two in zip(*maps, strict=True)]
    # A tie between two anchors may fall otherwise, and all masks of that image with it.
    assert np.median(same) > 0.99


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("kmeans", KMeansTrain(steps=50, restarts=2)),
        ("primaps", PrimapsTrain(epochs=2)),
        ("stego", StegoTrain(steps=50, restarts=2)),
    ],
)
def test_training_and_evaluation_agree(spaces, method, options):
    scores = []
    for device, context in spaces.items():
        if method == "stego":
            graph(GraphConfig(neighbors=5, device=device), context)
        else:
            pseudolabel(PseudolabelConfig(method=method, device=device), context)
        train(TrainConfig(method=method, device=device), context, options=options)
        evaluation = evaluate(EvalConfig(dataset="scenes", split="val", device=device), context)
        scores.append((evaluation.manifest.summary["accuracy"], evaluation.manifest.summary["miou"]))
    np.testing.assert_allclose(scores[0], scores[1], atol=SCORE)


def chain(method, device, context):
    """Make a short model of a method as its sample script does."""
    views = {"dataset": "scenes", "size": 96, "device": device, "precision": "fp32"}
    labels = {"device": device, "sheet": 0}
    kept = ("patch", "cls", "attention", "key", "cls_query")
    features = extract(ExtractConfig(**views, keep=kept), context).id

    def label(options=None, **given):
        return pseudolabel(PseudolabelConfig(**labels, **given), context, options=options).id

    def fit(options, **given):
        return train(TrainConfig(method=method, device=device, **given), context, options=options).id

    if method == "spectral":
        return fit(SpectralTrain(), pseudolabels=label(method=method, features=features))
    if method == "transfgu":
        crops = ExtractConfig(**views, regions="anchors", embed="masked", scales=(0.5,), foreground_share=0.0)
        maps = label(method=method, features=features, regions=extract(crops, context).id)
        return fit(TransfguTrain(cycles=1, cycle_steps=40), pseudolabels=maps)
    if method == "context":
        pyramid = extract(ExtractConfig(**views, regions="pyramid", levels=2, keep=("cls", "patch")), context)
        guidance = label(method=method, features=features, regions=pyramid.id)
        return fit(ContextTrain(steps=40), pseudolabels=guidance)
    proposals = label(method="primaps", features=features)
    clusters = label(ClustersOptions(), method=method, part="clusters", pseudolabels=proposals)
    initial = fit(MaskdistillTrain(epochs=2), pseudolabels=clusters)
    sure = label(FilterOptions(), method=method, part="filter", pseudolabels=clusters, model=initial)
    return fit(MaskdistillTrain(epochs=2), pseudolabels=sure)


@pytest.mark.parametrize("method", ["spectral", "transfgu", "context", "maskdistill"])
def test_chains_of_several_stages_agree(spaces, method):
    scores = []
    for device, context in spaces.items():
        model = chain(method, device, context)
        evaluation = evaluate(EvalConfig(model=model, dataset="scenes", split="val", device=device), context)
        scores.append((evaluation.manifest.summary["accuracy"], evaluation.manifest.summary["miou"]))
    np.testing.assert_allclose(scores[0], scores[1], atol=SCORE)


def test_the_directions_of_place_agree(spaces):
    sets = [
        FeatureSet(
            extract(
                ExtractConfig(
                    dataset="scenes", split="val", size=96, debias=5, device=device, precision="fp32"
                ),
                context,
            )
        )
        for device, context in spaces.items()
    ]
    for view in range(0, len(sets[0]), 7):
        a, b = (features.tokens([view])[0] for features in sets)
        assert torch.cosine_similarity(a, b, dim=-1).min() > 0.999


def test_predictions_of_one_model_agree(spaces):
    context = spaces["cpu"]
    model = context.workspace.current("model").id
    maps = []
    for device in DEVICES:
        made = predict(
            PredictConfig(model=model, dataset="scenes", split="val", device=device, precision="fp32"),
            Context(context.workspace, force=True),
        )
        maps.append([read_ids(made.path, key) for key in made.manifest.summary["keys"]])
    same = [(one == two).mean() for one, two in zip(*maps, strict=True)]
    assert min(same) > 0.99


@pytest.mark.parametrize("engine", ["torch", "exact"])
def test_the_crf_agrees(engine):
    config = CRFConfig(engine=engine)
    scores = torch.log_softmax(torch.randn(5, 40, 60, generator=torch.Generator().manual_seed(0)), 0)
    image = torch.randint(0, 255, (80, 120, 3), generator=torch.Generator().manual_seed(1)).byte()
    one, two = refine(scores, image, config), refine(scores.cuda(), image.cuda(), config).cpu()
    assert (one.argmax(0) == two.argmax(0)).float().mean() > 0.995


def test_pretraining_starts_alike(tmp_path, spaces):
    losses = []
    for device in DEVICES:
        short = {"steps": 3, "batch": 8, "size": 32, "final_size": 32}
        config = PretrainConfig(**short, images=(scenes(),), precision="fp32", device=device)
        made = pretrain(config, Context(Workspace(tmp_path / device)))
        losses.append(
            float((made.path / "metrics.jsonl").read_text().split('"loss": ')[1].split(",")[0].rstrip("}"))
        )
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def scenes():
    from unsupseg_cli.data.datasets import scenes_root

    return scenes_root() / "images" / "train"
