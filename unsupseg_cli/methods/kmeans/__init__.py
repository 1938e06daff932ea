"""The k-means baseline: cluster the frozen patch features, call every cluster a class.

Pseudo-labels: spherical k-means (k-means++, restarts, lowest inertia) over the patch tokens of the training
images; each token's nearest centre is its label.

Training: K prototypes by mini-batch gradient descent on the mean cosine to the nearest prototype, which is
the "cluster probe" of STEGO (Hamilton et al., ICLR 2022, section 3.3 and its published code) and the
"baseline" row of PriMaPs-EM (Hahn et al., TMLR 2024, table 1). Several restarts are trained side by side and
the one with the lowest unsupervised loss is kept, since a single run depends strongly on its start.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.kmeans.deviations import DEVIATIONS

METHOD = Method(
    name="kmeans",
    summary="Spherical k-means on frozen patch features: the baseline of every paper",
    paper="the 'baseline' rows of STEGO and PriMaPs-EM",
    labellers=(Part(PseudolabelOptions, "unsupseg_cli.methods.kmeans.pseudolabel:KMeansLabeller"),),
    trainer=Part(TrainOptions, "unsupseg_cli.methods.kmeans.train:KMeansTrainer"),
    deviations=DEVIATIONS,
)
