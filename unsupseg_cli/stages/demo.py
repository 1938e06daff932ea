"""demo: extract, pseudolabel, train, predict and eval on the bundled scenes."""

from __future__ import annotations

from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.images import Context
from unsupseg_cli.methods.kmeans import config as kmeans
from unsupseg_cli.stages.config import (
    DemoConfig,
    EvalConfig,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
)
from unsupseg_cli.stages.evaluate import evaluate
from unsupseg_cli.stages.extract import extract
from unsupseg_cli.stages.predict import predict
from unsupseg_cli.stages.pseudolabel import pseudolabel
from unsupseg_cli.stages.train import train


def demo(config: DemoConfig, context: Context | None = None) -> Artifact:
    """Run the chain, with a short training, and return the evaluation on the validation scenes."""
    context = context or Context()
    machine = {"device": config.device, "workers": config.workers, "batch_size": config.batch_size}
    features = extract(
        ExtractConfig(dataset="scenes", split="train", backbone=config.backbone, **machine), context
    )
    masks = pseudolabel(
        PseudolabelConfig(features=features.id, seed=config.seed, **machine),
        context,
        options=kmeans.PseudolabelConfig(sample=50_000, restarts=3),
    )
    model = train(
        TrainConfig(pseudolabels=masks.id, seed=config.seed, **machine),
        context,
        options=kmeans.TrainConfig(steps=100, restarts=4),
    )
    predict(PredictConfig(model=model.id, dataset="scenes", split="val", **machine), context)
    return evaluate(EvalConfig(model=model.id, dataset="scenes", split="val", **machine), context)
