"""What the re-interpretation of context-aware clustering does otherwise than what was published."""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Deviation

DEVIATIONS = (
    Deviation(
        "everything but the abstract",
        "our own design; from the abstract come the guidance of pyramid views, the siamese framework and the fusion of "
        "global features with geometry and appearance",
        "neither code nor text is public",
        "there is nothing to follow; its figures are not the paper's",
    ),
)
