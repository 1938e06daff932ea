"""What a call takes when it names nothing, what belongs together, and what a method does not read."""

from dataclasses import dataclass, field
from functools import partial

import pytest

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    extract,
    graph,
    pseudolabel,
    train,
)
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions as KMeansLabels
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain
from unsupseg_cli.methods.primaps.config import PseudolabelOptions as Primaps
from unsupseg_cli.methods.primaps.config import TrainOptions as PrimapsTrain
from unsupseg_cli.methods.stego.config import TrainOptions as StegoTrain
from unsupseg_cli.stages.graph import GraphConfig

SHORT = KMeansTrain(steps=2, restarts=1, batch=2)
QUICK = KMeansLabels(restarts=1, iterations=3)


@dataclass
class Listener(Silent):
    """Keeps what was said."""

    said: list[str] = field(default_factory=list)

    def info(self, message):
        self.said.append(message)


@pytest.fixture
def context(tmp_path):
    return Context(Workspace(tmp_path / "work"), Listener())


@pytest.fixture
def source(blocks):
    def make(context, size=48):
        return extract(
            ExtractConfig(dataset=f"{blocks}/", size=size, workers=0, device="cpu", backbone="untrained"),
            context,
        )

    return make


def label(context, method="primaps", options=None, **fields):
    options = options or (Primaps(crf=False) if method == "primaps" else QUICK)
    return pseudolabel(
        PseudolabelConfig(method=method, sheet=0, workers=0, **fields), context, options=options
    )


def test_proposals_serve_every_number_of_classes_and_every_seed(context, source):
    source(context)
    made = {label(context, seed=seed, classes=classes).id for seed in (0, 1) for classes in (3, 5)}
    assert len(made) == 1
    assert len(list(context.workspace.artifacts("pseudolabels"))) == 1
    assert any("reads no --classes and --seed" in text for text in context.reporter.said)
    clusters = {label(context, "kmeans", seed=seed, classes=k).id for seed in (0, 1) for k in (3, 5)}
    assert len(clusters) == 4


def test_training_makes_as_many_classes_as_the_masks_were_last_asked_for(context, source):
    source(context)
    for classes in (3, 5):
        label(context, classes=classes)
        model = train(TrainConfig(device="cpu"), context, options=PrimapsTrain(epochs=1))
        assert model.manifest.config["classes"] == classes
    model = train(TrainConfig(device="cpu", classes=2), context, options=PrimapsTrain(epochs=1))
    assert model.manifest.config["classes"] == 2


def test_masks_that_were_asked_for_no_number_leave_it_to_training(context, source):
    source(context)
    label(context)
    with pytest.raises(UsageError, match="--classes"):
        train(TrainConfig(device="cpu"), context, options=PrimapsTrain(epochs=1))


def test_k_means_takes_its_own_labels_and_no_masks_of_another_method(context, source):
    features = source(context)
    masks = label(context, classes=3)
    config = TrainConfig(method="kmeans", classes=3, device="cpu")
    alone = train(config, context, options=SHORT)
    assert [item.role for item in alone.manifest.inputs] == ["features"]
    with pytest.raises(UsageError, match=rf"'{masks.id}' is of method 'primaps'.*leave --pseudolabels out"):
        train(config.model_copy(update={"pseudolabels": masks.id}), context, options=SHORT)
    clusters = label(context, "kmeans", classes=3)
    started = train(config, context, options=SHORT)
    assert started.input("pseudolabels").id == clusters.id
    assert started.input("features").id == features.id
    other = source(context, size=64)
    apart = train(config.model_copy(update={"features": other.id}), context, options=SHORT)
    assert apart.input("pseudolabels") is None  # they are of other features
    assert apart.input("features").id == other.id


def test_the_features_are_those_of_the_masks_and_the_graph_is_one_of_the_features(context, source):
    first = source(context)
    label(context, classes=3)
    near = graph(GraphConfig(neighbors=2, device="cpu"), context)
    second = source(context, size=64)
    model = train(TrainConfig(device="cpu"), context, options=PrimapsTrain(epochs=1))
    assert model.input("features").id == first.id
    config = TrainConfig(method="stego", classes=2, device="cpu")
    short = StegoTrain(steps=1, batch=2, restarts=1, codes=4)
    with pytest.raises(UsageError, match=f"`unsupseg graph --features {second.id}`"):
        train(config, context, options=short)
    graph(GraphConfig(neighbors=2, device="cpu"), context)  # of the second features, the last ones
    model = train(config.model_copy(update={"features": first.id}), context, options=short)
    assert model.input("graph").id == near.id


def test_primaps_takes_masks_of_other_features_of_the_same_views(context, source, blocks):
    """As published: masks from the backbone's tokens, EM on the codes of a model over it."""
    tokens = source(context)
    graph(GraphConfig(neighbors=2, device="cpu"), context)
    short = StegoTrain(steps=1, batch=2, restarts=1, codes=4)
    stego = train(TrainConfig(method="stego", classes=2, device="cpu"), context, options=short)
    config = ExtractConfig(dataset=f"{blocks}/", size=48, model=stego.id, workers=0, device="cpu")
    codes = extract(config, context)
    masks = label(context, features=tokens.id)
    config = TrainConfig(features=codes.id, pseudolabels=masks.id, classes=2, device="cpu")
    model = train(config, context, options=PrimapsTrain(epochs=1, init="model"))
    assert model.input("features").id == codes.id
    assert model.input("pseudolabels").id == masks.id
    larger = source(context, size=64)
    with pytest.raises(UsageError, match="were made from the features"):
        train(config.model_copy(update={"features": larger.id}), context, options=PrimapsTrain(epochs=1))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (PseudolabelConfig(classes=3, graph="x"), r"'kmeans' reads no graph here; leave --graph out"),
        (PseudolabelConfig(method="primaps", model="x"), r"'primaps' reads no model here; leave --model out"),
        (TrainConfig(method="stego", pseudolabels="x"), r"'stego' reads no pseudo-labels"),
        (TrainConfig(method="primaps", regions="x"), r"'primaps' reads no regions"),
        (PseudolabelConfig(method="stego"), r"'stego' makes no pseudo-labels; its first command is `train`"),
        (TrainConfig(features="x"), r"--features alone does not say how to train"),
    ],
)
def test_an_input_that_a_method_does_not_read_is_refused(context, source, config, said):
    source(context)
    with pytest.raises(UsageError, match=said):
        (train if isinstance(config, TrainConfig) else pseudolabel)(config, context)


@pytest.mark.parametrize(
    ("options", "config", "said"),
    [
        (PrimapsTrain(mirror=0.1), TrainConfig(), "--set mirror has no effect.*--tokens live"),
        (PrimapsTrain(init_epochs=1), TrainConfig(), "--set init_epochs has no effect.*init=pca"),
        (PrimapsTrain(init="pca", init_restarts=2), TrainConfig(), "--set init_restarts has no effect"),
        (None, ExtractConfig(dataset="scenes", ratios=(0.8,)), "--ratios has no effect.*five-crop"),
        (
            None,
            ExtractConfig(dataset="scenes", model="x", keep="cls"),
            "--keep has no effect.*patch and pooled",
        ),
    ],
)
def test_a_value_without_effect_is_refused(context, source, options, config, said):
    source(context)
    label(context, classes=2)
    call = extract if options is None else partial(train, options=options)
    with pytest.raises(UsageError, match=said):
        call(config, context)


def test_options_of_another_method_are_refused(context, source):
    source(context)
    with pytest.raises(UsageError, match="method 'primaps' expects PseudolabelOptions"):
        label(context, options=StegoTrain())
