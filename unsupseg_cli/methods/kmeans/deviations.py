"""What the k-means baseline does otherwise than the published ones."""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Deviation

DEVIATIONS = (
    Deviation(
        "starts",
        "eight from k-means++, trained side by side, the lowest loss wins, without labels (in the recipes too)",
        "one: drawn at random (STEGO's probe), or PCA (PriMaPs-EM's baseline)",
        "a single start decides much of the result",
        "train --set restarts=1",
    ),
)
