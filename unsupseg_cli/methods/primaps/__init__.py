"""PriMaPs-EM (Hahn, Araslanov, Schaub-Meyer, Roth: TMLR 2024, arXiv 2404.16818), as its published code does it.

1. Proposals: the first principal direction of an image's uncovered patch features finds an
   anchor, the uncovered cell most aligned with it; every uncovered cell that is similar enough to the anchor
   joins a mask and is covered. Repeat until 95 % of the image is covered.
2. The masks are smoothed, turned into log-probabilities with a background channel, and refined by a dense CRF.
3. Prototypes start from the principal directions of the whole collection and are moved to
   cluster centres by mini-batch cosine k-means.
4. Stochastic EM: in the E-step the momentum prototypes classify every pixel of the clean image
   and every mask takes the most frequent class; in the M-step the running prototypes learn these labels on a
   photometrically augmented image, with a focal weight per class.
5. The momentum prototypes follow the running ones as a moving average and are the result.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.primaps.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.primaps.deviations import DEVIATIONS

METHOD = Method(
    name="primaps",
    summary="Principal mask proposals per image, then EM over class prototypes",
    paper="PriMaPs-EM, Hahn et al., TMLR 2024",
    labellers=(Part(PseudolabelOptions, "unsupseg_cli.methods.primaps.pseudolabel:PrimapsLabeller"),),
    trainer=Part(TrainOptions, "unsupseg_cli.methods.primaps.train:PrimapsTrainer"),
    version="2",
    deviations=DEVIATIONS,
)
