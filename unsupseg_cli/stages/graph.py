"""graph: Features -> the nearest neighbours of every view.

Rows are views: with several crops per image, crops of the same image may be neighbours, as in STEGO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.ports import FEATURES
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft


class GraphConfig(Config):
    """Find the nearest neighbours of every view."""

    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    features: str | None = execution(None, "Features artifact; default: the last one.")
    neighbors: int = setting(
        30, "Neighbours of a view, itself left out.", ge=1, le=10_000, source="STEGO, precompute_knns.py: 30"
    )
    engine: Literal["auto", "exact", "faiss"] = setting(
        "auto", "exact, or faiss for large collections; auto: faiss beyond 100,000 views."
    )


def identify(call: Call) -> Identity:
    """Return what decides the graph of some features."""
    from unsupseg_cli.clustering.neighbours import resolve_engine
    from unsupseg_cli.models.device import resolve_device

    manifest = call.input("features").manifest
    source = f"{manifest.data.dataset}-{manifest.data.split}" if manifest.data else "images"
    engine = resolve_engine(call.config.engine, manifest.summary["views"])
    return Identity(
        kind="graph",
        stage="graph",
        stage_version=STAGE.version,
        slug=f"{source}-knn{call.config.neighbors}",
        config={**call.config.result(), "engine": engine},
        inputs=call.described(),
        data=manifest.data,
        execution={"device": str(resolve_device(call.config.device))},
        used_labels=call.used_labels,
    )


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Find the neighbours by the cosine of pooled features."""
    from unsupseg_cli.clustering.neighbours import nearest_neighbours
    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.contents.graph import write_graph
    from unsupseg_cli.models.device import resolve_device

    device, count = resolve_device(call.config.device), call.config.neighbors
    draft.deterministic = device.type == "cpu"
    features = FeatureSet(call.input("features"))
    graph = nearest_neighbours(
        features.rows("pooled"),
        count,
        engine=call.config.engine,
        device=device,
        reporter=call.context.reporter,
    )
    views, neighbors = graph.indices.shape
    if neighbors < count:
        draft.warnings.append(
            f"{views} views have only {neighbors} others: the graph holds {neighbors} neighbours of each, not {count}"
        )
    write_graph(draft.folder, graph)
    return {
        "views": views,
        "neighbors": neighbors,
        "engine": graph.engine,
        "nearest_similarity": float(graph.similarity[:, 0].astype("float64").mean()),
        "same_image": features.share_of_same_image(graph.indices),
    }


def foresee(call: Call) -> Foreseen:
    """Return the bytes of the two arrays."""
    views = int(call.input("features").manifest.summary["views"])
    pair = 4 + 2  # int32 and float16
    return Foreseen(bytes=views * min(call.config.neighbors, views - 1) * pair)


STAGE = Stage(
    name="graph",
    config=GraphConfig,
    makes="graph",
    version=1,
    identify=identify,
    work=work,
    ports=(FEATURES,),
    foresee=foresee,
)
