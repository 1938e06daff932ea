"""Context-aware clustering: a re-interpretation from the abstract of Zhuo et al. (IEEE TMM 2024).

Neither code nor text of the paper is public, so that what the abstract names is kept and the rest is our own design:

1. Pyramid semantic guidance (PSG): patch tokens of the collection are clustered into K classes, and holistic tokens of
   the views of a pyramid, level by level, into clusters that co-occurrence aligns to these classes. A map of the
   classes for every image joins what its patches, those of its finest views, and the levels' holistic clusters say.
2. A siamese network clusters the cells of two views of an image, one of which is cropped and mirrored before the
   network and one after, by centroids that move along. PSG guides the clusters.
3. A context-aware embedding (CAE) fuses patch tokens with the image's global token and, at half the stride, with place,
   colour and gradients.
"""

from __future__ import annotations

from unsupseg_cli.methods.context.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.context.deviations import DEVIATIONS
from unsupseg_cli.methods.declaration import Method, Part

METHOD = Method(
    name="context",
    summary="Pixel clustering guided by a pyramid of views (re-interpretation from the abstract)",
    paper="re-interpretation of Zhuo et al., IEEE TMM 2024, from its abstract",
    labellers=(Part(PseudolabelOptions, "unsupseg_cli.methods.context.pseudolabel:ContextLabeller"),),
    trainer=Part(TrainOptions, "unsupseg_cli.methods.context.train:ContextTrainer"),
    heads={"context": "unsupseg_cli.methods.context.network"},
    deviations=DEVIATIONS,
    version="2",
)
