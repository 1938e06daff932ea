"""pseudolabel: features -> pseudo-masks by a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from unsupseg_cli.artifacts.grids import GridReader, GridWriter, views_per_block
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import Masks, PseudolabelSet
from unsupseg_cli.methods.registry import get_method
from unsupseg_cli.stages.config import PseudolabelConfig
from unsupseg_cli.stages.context import Context
from unsupseg_cli.stages.features import FeatureSet
from unsupseg_cli.stages.spaces import default_classes

STAGE_VERSION = 1
MASKS, STATE = "masks.parquet", "state.safetensors"


def pseudolabel(
    config: PseudolabelConfig, context: Context | None = None, *, options: Config | None = None
) -> Artifact:
    """Make pseudo-masks of every view; ``options`` is the method's own configuration."""
    context = context or Context()
    method = get_method(config.method)
    options = options or method.pseudolabel_config()()
    artifact = context.take("features", config.features)
    features = FeatureSet(artifact)
    classes = config.classes or default_classes(artifact)
    cells = int(features.grids.prod(1).sum())
    if classes > cells:
        raise UsageError(
            f"--classes {classes} is more than the {cells} patches of the features '{artifact.id}'; ask for fewer."
        )
    recipe = Recipe(
        kind="pseudolabels",
        stage="pseudolabel",
        stage_version=STAGE_VERSION,
        slug=f"{artifact.manifest.data.dataset if artifact.manifest.data else 'images'}-{config.method}{classes}",
        config={**config.result(), "classes": classes, "options": options.result()},
        inputs=[artifact.as_input("features")],
        data=artifact.manifest.data,
        used_labels=artifact.manifest.used_labels,
    )

    def work(draft: Draft) -> dict[str, Any]:
        labeller = method.pseudolabeller(options, classes, config.seed)
        figures = labeller.fit(features, context.reporter)
        save_file(labeller.state(), draft.folder / STATE)
        table = _write_masks(draft, labeller, features, context)
        masks_per_view = np.bincount(table["view"], minlength=len(features))
        empty = [features.views["key"][view] for view in np.flatnonzero(masks_per_view == 0)]
        if empty:
            draft.warnings.append(f"no mask was found in {len(empty)} views ({', '.join(empty[:5])})")
        return {
            **figures,
            **labeller.figures(),
            "views": len(features),
            "masks": len(table["view"]),
            "masks_per_view": float(masks_per_view.mean()),
            "empty": empty,
        }

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def _write_masks(draft: Draft, labeller: Any, features: FeatureSet, context: Context) -> dict[str, Any]:
    size = views_per_block(features.grids, (), np.int16)
    writer: GridWriter | None = None
    table: dict[str, list[Any]] = {"view": [], "id": [], "area": [], "score": [], "class": []}
    starts = range(0, len(features), size)
    for block, start in enumerate(context.reporter.track(starts, "pseudolabel", total=len(starts))):
        views = list(range(start, min(start + size, len(features))))
        masks: Sequence[Masks] = labeller.label(features.tokens(views), None)
        if writer is None:
            writer = GridWriter(draft.folder, "labels", features.grids, (), np.int16, size)
        writer.write(block, [mask.labels for mask in masks])
        for view, mask in zip(views, masks, strict=True):
            count = len(mask.area)
            table["view"] += [view] * count
            table["id"] += range(count)
            table["area"] += mask.area.tolist()
            table["score"] += mask.score.tolist()
            table["class"] += mask.group.tolist()
    assert writer is not None
    writer.close()
    pq.write_table(pa.table(table), draft.folder / MASKS)
    return table


class _Labels(Sequence[Any]):
    """Label maps by view, read when they are asked for."""

    def __init__(self, reader: GridReader) -> None:
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, view: Any) -> Any:
        return self._reader[view]


def read_pseudolabels(artifact: Artifact) -> PseudolabelSet:
    """Open a `pseudolabels` artifact for training."""
    return PseudolabelSet(_Labels(GridReader(artifact.path, "labels")), load_file(artifact.path / STATE))
