"""Counts of predictions against labels -> scores, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.contents.evaluation import (
    CLUSTER_IDS,
    CLUSTER_OUTPUTS,
    cluster_ids,
    write_sheet,
    write_tables,
)
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.labels import OBJECTS, VOID
from unsupseg_cli.data.label_survey import remark_on_counts
from unsupseg_cli.data.labels import LabelSpace
from unsupseg_cli.inference.tally import Tally
from unsupseg_cli.metrics.matching import MatchingRule, match, scored
from unsupseg_cli.metrics.protocols import Protocol
from unsupseg_cli.metrics.scores import score
from unsupseg_cli.report.sheet import Sample


def score_tally(
    folder: Path,
    tally: Tally,
    ids: Sequence[int],
    outputs: Sequence[Sequence[int]],
    space: LabelSpace,
    protocol: Protocol,
    assignment: NDArray[np.int64] | None,
    warnings: list[str],
) -> dict[str, Any]:
    """Match, score, and write tables and pictures; return the summary.

    ``ids`` are those of the clusters, which the tally counts from 0, and ``outputs`` those of the model that each is
    made of; ``warnings`` gets lines about classes that never occur and much void.

    Raises:
        UnsupsegError: no image was counted.
    """
    if not tally.images:
        raise UnsupsegError("No labelled image could be read, so there is nothing to score.")
    matrix, classes = tally.confusion.matrix, len(space.names)
    warnings += remark_on_counts(space, {VOID: tally.void} | dict(enumerate(matrix.sum(0).tolist())))
    counts = matrix
    if assignment is None:
        rule = "hungarian" if protocol.matching == "per-image" else protocol.matching
        assignment = match(counts, cast("MatchingRule", rule))
        counts = scored(counts, rule)
        if dropped := int(matrix.sum() - counts.sum()):
            warnings.append(
                f"matching {rule} leaves out {dropped / matrix.sum():.1%} of the labelled pixels, those of "
                f"clusters from {classes} on: compare with scores of the same matching only"
            )
    scores = score(counts, assignment)
    summary = {
        "protocol": protocol.describe(),
        "images": tally.images,
        "clusters": tally.confusion.clusters,
        "class_names": list(space.names),
        **scores.to_json(),
    }
    if space.by_kind:
        summary["kinds"] = {kind: scores.of(members) for kind, members in space.by_kind.items()}
    if list(ids) != cluster_ids(summary):
        summary[CLUSTER_IDS] = list(ids)
    if any(len(own) > 1 for own in outputs):
        summary[CLUSTER_OUTPUTS] = [list(own) for own in outputs]
    if protocol.matching == OBJECTS:
        summary["hungarian"] = score(matrix, match(matrix)).to_json()
    if tally.probe.matrix.any():
        summary["linear_probe"] = score(tally.probe.matrix, np.arange(classes)).to_json()
    if protocol.matching == "per-image":
        summary["per_image"] = tally.per_image.compute().to_json()
    write_tables(folder, matrix, assignment, scores, space, ids)
    samples = [
        Sample(shown.image, assignment[shown.prediction], shown.truth, name=shown.key)
        for shown in tally.shown
    ]
    write_sheet(folder, samples, space)
    return summary
