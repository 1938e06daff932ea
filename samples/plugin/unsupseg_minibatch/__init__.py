"""Mini-batch k-means (Sculley, WWW 2010) in two commands: clusters of tokens, then a linear head that learns them.

This file declares the method and its options; it imports no torch, so that the command line answers at once.
"""

from unsupseg_cli.core.config import setting
from unsupseg_cli.core.ports import FEATURES, PSEUDOLABELS
from unsupseg_cli.methods.declaration import Method, MethodOptions, Needs, Part


class LabelOptions(MethodOptions):
    sample: int = setting(50_000, "Tokens that the clusters are fitted on.", ge=1)


class TrainOptions(MethodOptions):
    steps: int = setting(100, "Optimizer steps.", ge=1, length=True)
    batch: int = setting(8, "Images per step.", ge=1)
    lr: float = setting(1e-2, "Adam's learning rate.", gt=0)

    def needs(self) -> Needs:
        return Needs(reads=(FEATURES, PSEUDOLABELS))


METHOD = Method(
    name="minibatch",
    summary="Mini-batch k-means of scikit-learn, and a linear head trained on its clusters",
    paper="Sculley, WWW 2010",
    labellers=(Part(LabelOptions, "unsupseg_minibatch.parts:MiniBatchLabeller"),),
    trainer=Part(TrainOptions, "unsupseg_minibatch.parts:LinearTrainer"),
)
