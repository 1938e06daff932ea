"""A labeller or a trainer that gives what does not fit: said in a sentence, and nothing is published."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PseudolabelConfig,
    TrainConfig,
    Workspace,
    extract,
    pseudolabel,
    train,
)
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.kmeans.pseudolabel import KMeansLabeller
from unsupseg_cli.methods.kmeans.train import KMeansTrainer

QUICK = PseudolabelOptions(restarts=1, iterations=2)


@pytest.fixture
def context(tmp_path, blocks):
    space = Context(Workspace(tmp_path / "work"))
    extract(
        ExtractConfig(dataset=f"{blocks}/", size=48, workers=0, device="cpu", backbone="untrained"), space
    )
    return space


def label(context):
    return pseudolabel(PseudolabelConfig(classes=3, sheet=0, workers=0), context, options=QUICK)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda masks: replace(masks, labels=masks.labels[:1]),
            r"a label map of \(1, \d\), expected \(\d, \d\)",
        ),
        (lambda masks: replace(masks, labels=masks.labels / 2), "of type float.*expected integers"),
        (
            lambda masks: replace(masks, labels=masks.labels + np.int16(9)),
            r"mask ids from -1 to \d+, expected -1 to \d",
        ),
        (lambda masks: replace(masks, labels=masks.labels - np.int16(5)), "mask ids from -5"),
        (lambda masks: replace(masks, score=masks.score[:0]), "0 scores.*expected as many of each"),
        (lambda masks: replace(masks, score=masks.score * np.nan), "scores that are NaN"),
    ],
    ids=["shape", "type", "beyond", "below", "table", "nan"],
)
def test_masks_that_do_not_fit_are_named_with_their_image(context, monkeypatch, change, said):
    whole = KMeansLabeller.label

    def broken(self, views):
        first, *rest = whole(self, views)
        return [change(first), *rest]

    monkeypatch.setattr(KMeansLabeller, "label", broken)
    with pytest.raises(UnsupsegError, match=rf"masks of '0\.png' that do not fit: .*{said}"):
        label(context)
    assert not list(context.workspace.artifacts("pseudolabels"))


def test_masks_of_too_few_views_are_refused(context, monkeypatch):
    monkeypatch.setattr(KMeansLabeller, "label", lambda self, views: [])
    with pytest.raises(UnsupsegError, match="masks of 0 views, expected 4"):
        label(context)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda head: replace(head, class_head={**head.class_head, "dim": 5}), "size mismatch"),
        (lambda head: replace(head, class_head={**head.class_head, "type": "cosin"}), "head of type 'cosin'"),
        (
            lambda head: replace(head, class_head={**head.class_head, "heat": 1.0}),
            "unexpected keyword argument 'heat'",
        ),
        (lambda head: replace(head, tensors={}), "Missing key"),
        (
            lambda head: replace(head, tensors={name: v * torch.nan for name, v in head.tensors.items()}),
            "'class_head.weight' holds NaN",
        ),
    ],
    ids=["shape", "type", "field", "nothing", "nan"],
)
def test_a_model_whose_parts_do_not_fit_is_not_written(context, monkeypatch, change, said):
    label(context)
    whole = KMeansTrainer.finish
    monkeypatch.setattr(KMeansTrainer, "finish", lambda self: change(whole(self)))
    config = TrainConfig(device="cpu")
    options = TrainOptions(steps=2, restarts=1)
    with pytest.raises(
        UnsupsegError, match=f"trainer of 'kmeans' gave a model whose parts do not fit.*{said}"
    ):
        train(config, context, options=options)
    assert not list(context.workspace.artifacts("model"))
    monkeypatch.setattr(KMeansTrainer, "finish", whole)
    assert train(config, context, options=options).manifest.summary["classes"] == 3


def test_centres_of_another_number_of_classes_are_told(context):
    label(context)
    model = train(TrainConfig(classes=4, device="cpu"), context, options=TrainOptions(steps=2, restarts=1))
    assert any(
        "have 3 centres, which start no training of 4 classes" in text for text in model.manifest.warnings
    )
