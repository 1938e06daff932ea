"""graph: Features -> the nearest neighbours of every view.

Rows are views: with several crops per image, crops of the same image may be neighbours, as in STEGO.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.options import DividedConfig
from unsupseg_cli.core.ports import FEATURES
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft


class GraphConfig(DividedConfig):
    """Find the nearest neighbours of every view."""

    device: str = execution("auto", "auto, cpu, cuda, cuda:1, mps, ...")
    features: str | None = execution(None, "Features artifact; default: the last one.")
    neighbors: int = setting(
        30, "Neighbours of a view, itself left out.", ge=1, le=10_000, source="STEGO, precompute_knns.py: 30"
    )
    engine: Literal["auto", "exact", "faiss"] = setting(
        "auto", "exact, or faiss for large collections; auto: faiss beyond 100,000 views."
    )

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of an executor where there is none."""
        return self.unread_of_executor()


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


def parts(call: Call, draft: Draft) -> _Search:
    """Open the search for the neighbours by the cosine of pooled features; finished parts survive a kill."""
    return _Search(call, draft)


class _Search:
    """The neighbours of all views, of which this process finds some."""

    def __init__(self, call: Call, draft: Draft) -> None:
        from unsupseg_cli.clustering.neighbours import NeighbourSearch
        from unsupseg_cli.contents.features import FeatureSet
        from unsupseg_cli.contents.graph import GraphWriter
        from unsupseg_cli.models.device import resolve_device

        config, device = call.config, resolve_device(call.config.device)
        draft.deterministic = device.type == "cpu"
        self._call, self._draft = call, draft
        self._features = FeatureSet(call.input("features"))
        search = NeighbourSearch(
            self._features.rows("pooled"),
            config.neighbors,
            engine=config.engine,
            device=device,
            reporter=call.context.reporter,
        )
        self._writer = GraphWriter(draft, search, parse_shard(config.shard))
        self.missing = self._writer.missing

    def write(self) -> None:
        """Find the neighbours of the shard's rows."""
        self._writer.write(self._call.context.reporter)

    def close(self) -> dict[str, Any]:
        """Join the parts, and return the summary."""
        graph, count = self._writer.close(), self._call.config.neighbors
        views, neighbors = graph.indices.shape
        if neighbors < count:
            self._draft.warnings.append(
                f"{views} views have only {neighbors} others: the graph holds {neighbors} neighbours of each, not "
                f"{count}"
            )
        return {
            "views": views,
            "neighbors": neighbors,
            "engine": graph.engine,
            "nearest_similarity": float(graph.similarity[:, 0].astype("float64").mean()),
            "same_image": self._features.share_of_same_image(graph.indices),
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
    parts=parts,
    ports=(FEATURES,),
    foresee=foresee,
    room="fewer --neighbors",
)
