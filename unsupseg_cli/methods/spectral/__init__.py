"""Spectral clustering of tokens by their neighbours in other images, and a linear head that learns the clusters.

Pseudo-labels: a sample of tokens, each joined with its nearest ones in other images; the first K eigenvectors of the
normalised affinity, clustered by k-means (Ng, Jordan and Weiss, NeurIPS 2001), or the tokens themselves after a
diffusion along the graph (Zhang, Liu, Li and Wu, IJCAI 2019). All other tokens take the class that most of the nearest
ones of the sample have.

Training: a linear classifier by cross-entropy on the classes of any pseudo-labels.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.spectral.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.spectral.deviations import DEVIATIONS

METHOD = Method(
    name="spectral",
    summary="Spectral clustering of tokens by their neighbours in other images",
    paper="Ng, Jordan and Weiss, NeurIPS 2001; the graph across images is ours",
    labellers=(Part(PseudolabelOptions, "unsupseg_cli.methods.spectral.pseudolabel:SpectralLabeller"),),
    trainer=Part(TrainOptions, "unsupseg_cli.methods.spectral.train:LinearTrainer"),
    deviations=DEVIATIONS,
    version="5",
)
