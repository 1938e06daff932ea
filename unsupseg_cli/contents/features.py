"""Reading a `features` artifact: its views, its tokens, its descriptors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader, has_array
from unsupseg_cli.artifacts.columns import Columns
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.int8_tokens import TokenReader
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.options import INT8_ARRAYS, StoreDtype
from unsupseg_cli.data.geometry import View
from unsupseg_cli.data.views import ViewTable

VIEWS = "views.parquet"
# Tokens keep 11 bits in float16, far finer than what clustering resolves; descriptors are few and stay exact.
GRID_DTYPES: dict[str, type[np.generic]] = {
    "patch": np.float16,
    "query": np.float16,
    "key": np.float16,
    "attention": np.float16,
}


def grid_dtypes(store_dtype: StoreDtype) -> dict[str, type[np.generic]]:
    """Return the type of each array of grids where tokens are stored as ``float16`` or as ``int8``."""
    return GRID_DTYPES | (dict.fromkeys(INT8_ARRAYS, np.int8) if store_dtype == "int8" else {})


def stored_geometry(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the geometry that features of this configuration were extracted with."""
    fields = {"kind": config["geometry"], "size": config["size"] or None, "filter": config["filter"]}
    return fields | ({"ratios": config["ratios"]} if "ratios" in config else {})


def view_of(views: Mapping[str, Sequence[Any]], row: int) -> View:
    """Return a row of a table of views, read by column: its box in the image, its size."""
    fields = {name: views[name][row] for name in ("crop", "height", "width", "flip")}
    return View(box=tuple(views["box"][row]), **fields)


class FeatureSet:
    """The features of one split; also the `TokenSource` of stored tokens."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.views = Columns(artifact.path / VIEWS)

    def __len__(self) -> int:
        return self.views.rows

    def view(self, row: int) -> View:
        """Return a view: its box in the image, its size."""
        return view_of(self.views, row)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Height and width of each view in pixels, (N, 2)."""
        return np.stack([self.views[name].numpy() for name in ("height", "width")], axis=1).astype(np.int64)

    def share_of_same_image(self, neighbours: NDArray[np.int32]) -> float:
        """Return the share of neighbours (N, k) that are views of the same image."""
        keys = self.views["key"].codes()
        return float((keys[neighbours] == keys[:, None]).mean())

    @property
    def store_dtype(self) -> StoreDtype:
        """Type that tokens are stored in."""
        stored: StoreDtype = self.artifact.manifest.config.get("store_dtype", "float16")
        return stored

    def has(self, name: str) -> bool:
        """Tell whether an array was kept."""
        return has_array(self.artifact.path / name)

    @property
    def patch(self) -> TokenReader:
        """The patch tokens; raises UsageError where they were not kept."""
        self.require("patch")
        if not hasattr(self, "_patch"):
            self._patch = TokenReader(self.artifact.path, "patch")
        return self._patch

    def rows(self, name: str) -> NDArray[np.float32]:
        """Return all rows of ``cls`` or ``pooled``, (N, C) float32; raises UsageError where they were not kept."""
        self.require(name)
        reader = RowReader(self.artifact.path / name)
        rows: NDArray[np.float32] = reader.rows(0, len(reader)).astype(np.float32)
        self._require_finite(name, torch.from_numpy(rows))
        return rows

    def _require_finite(self, name: str, values: Tensor) -> None:
        """Raise UnsupsegError for NaN and infinite values, which `extract` never writes."""
        if not bool(torch.isfinite(values.sum())):
            raise UnsupsegError(
                f"The array '{name}' of '{self.artifact.id}' holds NaN or infinite values; run `unsupseg verify "
                f"{self.artifact.id}` and extract again with --force."
            )

    def require(self, name: str) -> None:
        """Raise UsageError where an array was not kept; the message says how to extract it."""
        if not self.has(name):
            kept = ", ".join(self.artifact.manifest.config["keep"])
            raise UsageError(
                f"The features '{self.artifact.id}' have no '{name}' (they keep {kept}); extract them with "
                f"--keep {kept.replace(' ', '')},{name}."
            )

    # TokenSource -----------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Channels C of a token."""
        return int(self.patch.channels[0])

    @property
    def grids(self) -> NDArray[np.int64]:
        """Rows and columns of each view, (N, 2)."""
        return self.patch.grids

    def tokens(self, views: Sequence[int]) -> list[Tensor]:
        """Return the tokens of some views, each (h, w, C) float32."""
        return self._finite("patch", self.patch.take(views))

    def array(self, name: str, views: Sequence[int]) -> list[Tensor]:
        """Return an array of some views as float32: (h, w, C) of a grid, (C,) of ``cls`` and ``pooled``.

        Raises:
            UsageError: the array was not kept.
        """
        self.require(name)
        if name in GRID_DTYPES:
            rows = TokenReader(self.artifact.path, name).take(views)
        else:
            rows = list(RowReader(self.artifact.path / name).take(list(views)))
        return self._finite(name, rows)

    def _finite(self, name: str, rows: Sequence[NDArray[Any]]) -> list[Tensor]:
        """Return rows as float32."""
        values = [torch.from_numpy(np.asarray(row).astype(np.float32)) for row in rows]
        for value in values:
            self._require_finite(name, value)
        return values


def features_behind(artifact: Artifact, context: Context) -> Artifact:
    """Return the features that an artifact was made from; raises UsageError where they are gone."""
    used = artifact.input("features")
    features = context.workspace.find_key("features", used.key) if used else None
    if features is None:
        name = f"'{used.id}' " if used else ""
        raise UsageError(f"The features {name}of '{artifact.id}' are gone; run their `extract` again.")
    return features


def foreseen_grids(features: Artifact) -> NDArray[np.int64]:
    """Return the token grid of each view, (N, 2), of features that are there or that a dry run promises."""
    promised = features.manifest.summary.get("grids")
    grids: NDArray[np.int64] = FeatureSet(features).grids if promised is None else promised
    return grids


def write_views(folder: Path, keys: Sequence[str], table: ViewTable, *, regions: bool = False) -> None:
    """Write the table of views, one row per row of the arrays; of regions also their parents and tags.

    ``keys`` are the names of the images that the table counts.
    """
    columns: dict[str, Any] = {
        "key": [keys[item] for item in table.item.tolist()],
        "crop": table.crop,
        "box": table.box.tolist(),
        "height": table.height,
        "width": table.width,
        "flip": table.flip,
    }
    if regions:
        columns |= {"parent": table.parent, "tag": table.tag}
    pq.write_table(pa.table(columns), folder / VIEWS)
