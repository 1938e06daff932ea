"""MaskDistill (Van Gansbeke, Vandenhende, Van Gool: arXiv 2206.06363, 2022): masks with classes become a model.

1. ``train``: a network learns the classes of masks; only the hardest pixels of each image count.
2. ``pseudolabel --part filter``: an initial model scores masks, or makes its own; sure ones that do not overlap stay.
3. ``train`` on those gives the final model.

The published detector between the two trainings is replaced by the initial model itself.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.maskdistill.train_config import FilterOptions, TrainOptions

_HERE = "unsupseg_cli.methods.maskdistill"
METHOD = Method(
    name="maskdistill",
    summary="Object masks with classes, filtered by a model and distilled into one",
    paper="MaskDistill, Van Gansbeke et al., arXiv 2022",
    labellers=(
        Part(FilterOptions, f"{_HERE}.filter:FilterLabeller", "filter", "Sure masks of an initial model"),
    ),
    trainer=Part(TrainOptions, f"{_HERE}.train:MaskDistillTrainer"),
    heads={"maskdistill-decoder": f"{_HERE}.network", "deeplabv3-resnet50": f"{_HERE}.network"},
)
