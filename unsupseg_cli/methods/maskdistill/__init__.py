"""MaskDistill (Van Gansbeke, Vandenhende, Van Gool: 2022, arXiv 2206.06363): object masks from a transformer's keys.

Not the masked-image pretraining of the same name (2024).

`masks`: the patch that the CLS token attends to most is the source; the attended patches whose keys agree with it
vote for every patch, and the connected component around the source is an object.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.maskdistill.config import MasksOptions

METHOD = Method(
    name="maskdistill",
    summary="Object masks from a transformer's keys",
    paper="MaskDistill, Van Gansbeke et al., 2022",
    labellers=(
        Part(
            MasksOptions,
            "unsupseg_cli.methods.maskdistill.masks:ObjectMasks",
            "masks",
            "one or several object masks per image",
        ),
    ),
)
