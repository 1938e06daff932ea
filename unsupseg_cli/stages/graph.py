"""graph: features -> the nearest views of every view."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unsupseg_cli.artifacts.arrays import RowReader, write_array
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.clustering.neighbours import nearest_neighbours, resolve_engine
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import Context, resolve_device
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.stages.config import GraphConfig

STAGE_VERSION = 1
NEIGHBOURS, SIMILARITY = "neighbors", "similarity"


def graph(config: GraphConfig, context: Context | None = None) -> Artifact:
    """Find the nearest views of every view by the cosine of their pooled features.

    Rows are views: with several crops per image, crops of the same image may be neighbours, as in STEGO.
    """
    context = context or Context()
    device = resolve_device(config.device)
    artifact = context.take("features", config.features)
    features = FeatureSet(artifact)
    recipe = graph_recipe(config, artifact, device)
    engine = recipe.config["engine"]

    def work(draft: Draft) -> dict[str, Any]:
        draft.deterministic = device.type == "cpu"
        found = nearest_neighbours(
            features.rows("pooled"),
            config.neighbors,
            engine=engine,
            device=device,
            reporter=context.reporter,
        )
        views, neighbors = found.indices.shape
        if neighbors < config.neighbors:
            draft.warnings.append(
                f"{views} views have only {neighbors} others: the graph holds {neighbors} neighbours of each, not "
                f"{config.neighbors}"
            )
        for name, values in ((NEIGHBOURS, found.indices), (SIMILARITY, found.similarity)):
            shutil.rmtree(draft.folder / name, ignore_errors=True)  # of a call that was killed here
            write_array(draft.folder / name, values)
        names = np.array(features.views["key"])
        return {
            "views": views,
            "neighbors": neighbors,
            "engine": engine,
            "nearest_similarity": float(found.similarity[:, 0].astype(np.float64).mean()),
            "same_image": float((names[found.indices] == names[:, None]).mean()),
        }

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def graph_recipe(config: GraphConfig, features: Artifact, device: torch.device) -> Recipe:
    """Return what decides the graph of some features."""
    data = features.manifest.data
    return Recipe(
        kind="graph",
        stage="graph",
        stage_version=STAGE_VERSION,
        slug=f"{f'{data.dataset}-{data.split}' if data else 'images'}-knn{config.neighbors}",
        config={
            **config.result(),
            "engine": resolve_engine(config.engine, features.manifest.summary["views"]),
        },
        inputs=[features.as_input("features")],
        data=data,
        execution={"device": str(device)},
        used_labels=features.manifest.used_labels,
    )


def read_neighbours(artifact: Artifact, features: Artifact) -> NDArray[np.int32]:
    """Return the neighbours (N, k) of a graph for the views of some features.

    Raises:
        UsageError: the graph was made from other features; the message says which.
    """
    used = artifact.input("features")
    if used is None or used.key != features.manifest.key:
        made = f"'{used.id}' (key {used.key[:12]})" if used else "no features"
        raise UsageError(
            f"The graph '{artifact.id}' was made from {made}, but training reads '{features.id}' (key "
            f"{features.manifest.key[:12]}); run `unsupseg graph --features {features.id}`."
        )
    reader = RowReader(artifact.path / NEIGHBOURS)
    return reader.rows(0, len(reader)).astype(np.int32, copy=False)
