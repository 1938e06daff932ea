"""TransFGU (Yin, Wang, Cao, Wang et al.: ECCV 2022, arXiv 2112.01515), as its published code does it.

1. CLS tokens of crops of many sizes, found by the CLS attention, are clustered: the centres are the concepts.
2. A map of each concept shows where an image is like it: the gradient of the cosine of the image's CLS token to the
   concept with respect to the attention of the last block, together with that attention.
3. A mask transformer on the frozen tokens, with a token for each concept, learns the maps' highest concepts. In cycles
   a teacher takes the student's place and the student begins anew, with targets of maps and teacher.
"""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Method, Part
from unsupseg_cli.methods.transfgu.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.transfgu.deviations import DEVIATIONS

METHOD = Method(
    name="transfgu",
    summary="Concepts from crops, their activation maps, then a mask transformer",
    paper="TransFGU, Yin et al., ECCV 2022",
    labellers=(Part(PseudolabelOptions, "unsupseg_cli.methods.transfgu.pseudolabel:TransfguLabeller"),),
    trainer=Part(TrainOptions, "unsupseg_cli.methods.transfgu.train:TransfguTrainer"),
    heads={"transfgu": "unsupseg_cli.models.decoders"},
    deviations=DEVIATIONS,
)
