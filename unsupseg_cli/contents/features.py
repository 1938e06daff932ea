"""Reading a `features` artifact: its views, its tokens, its descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from unsupseg_cli.artifacts.arrays import RowReader, has_array
from unsupseg_cli.artifacts.grids import GridReader
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.core.errors import UsageError

VIEWS = "views.parquet"


def stored_geometry(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the geometry that features of this configuration were extracted with."""
    fields = {"kind": config["geometry"], "size": config["size"] or None, "filter": config["filter"]}
    return fields | ({"ratios": config["ratios"]} if "ratios" in config else {})


class FeatureSet:
    """The features of one split; also the `TokenSource` of stored tokens."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.views: dict[str, list[Any]] = pq.read_table(artifact.path / VIEWS).to_pydict()

    def __len__(self) -> int:
        return len(self.views["key"])

    def has(self, name: str) -> bool:
        """Tell whether an array was kept."""
        return has_array(self.artifact.path / name)

    @property
    def patch(self) -> GridReader:
        """The patch tokens; raises UsageError where they were not kept."""
        self._require("patch")
        if not hasattr(self, "_patch"):
            self._patch = GridReader(self.artifact.path, "patch")
        return self._patch

    def rows(self, name: str) -> NDArray[np.float32]:
        """Return all rows of ``cls`` or ``pooled``, (N, C) float32."""
        self._require(name)
        reader = RowReader(self.artifact.path / name)
        return reader.rows(0, len(reader)).astype(np.float32)

    def _require(self, name: str) -> None:
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
        return [torch.from_numpy(view.astype(np.float32)) for view in self.patch.take(views)]
