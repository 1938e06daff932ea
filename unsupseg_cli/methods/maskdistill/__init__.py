"""MaskDistill (Van Gansbeke, Vandenhende, Van Gool: 2022, arXiv 2206.06363): masks from a transformer become a model.

Not the masked-image pretraining of the same name (2024).

1. `masks`: the patch that the CLS token attends to most is the source; the attended patches whose keys agree with it
   vote for every patch, and the connected component around the source is an object.
2. `clusters`: k-means over the CLS tokens of the objects' crops gives them classes.
3. `train`: a network learns the classes of masks; only the hardest pixels of each image count.
4. `filter`: this initial model scores masks, or makes its own; sure ones that do not overlap stay.
5. `train` on those gives the final model.

The published detector between the two trainings is replaced by the initial model itself.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.maskdistill.config import (
    ClustersOptions,
    FilterOptions,
    MasksOptions,
    TrainOptions,
)
from unsupseg_cli.methods.maskdistill.deviations import DEVIATIONS

_HERE = "unsupseg_cli.methods.maskdistill"
METHOD = Method(
    name="maskdistill",
    summary="Object masks from a transformer's keys, clustered, filtered and distilled into a model",
    paper="MaskDistill, Van Gansbeke et al., 2022",
    labellers=(
        Part(MasksOptions, f"{_HERE}.masks:ObjectMasks", "masks", "one or several object masks per image"),
        Part(
            ClustersOptions, f"{_HERE}.clusters:MaskClusters", "clusters", "classes of masks, by their crops"
        ),
        Part(FilterOptions, f"{_HERE}.filter:FilterLabeller", "filter", "the masks that a model is sure of"),
    ),
    trainer=Part(TrainOptions, f"{_HERE}.train:MaskDistillTrainer"),
    version="2",
    heads={
        "maskdistill-decoder": "unsupseg_cli.models.decoders",
        "deeplabv3-resnet50": "unsupseg_cli.models.deeplab",
    },
    deviations=DEVIATIONS,
)
