"""Hyper-parameters of MaskDistill."""

from __future__ import annotations

from typing import Literal

from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.ports import ANY_MASKS, FEATURES, MODEL, REGIONS, SUPPORT
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_CODE = "MaskDistill, published code"
_OURS = "ours"


class MasksOptions(MethodOptions):
    """Options of ``pseudolabel --method maskdistill --part masks``."""

    heads: int = setting(
        5,
        "The CLS affinity is the mean over this many first heads; more than there are: all.",
        ge=1,
        source=f"{_CODE}: gen_masks.py, --heads 5 of 6",
    )
    head_size: int = setting(64, "Channels of a head.", ge=1, source="ViT-S/16: 384 channels, 6 heads")
    top: float = setting(
        0.4,
        "Share of the patches that may be sources, by CLS affinity.",
        gt=0,
        le=1,
        source=f"{_CODE}: gen_masks.py, --topk 0.4",
    )
    order: Literal["affinity", "mass"] = setting(
        "affinity",
        "Sources are ranked by CLS affinity; mass: after all outside of half of its sum were set to 0.",
        source=f"ours; {_CODE}: mass",
    )
    center: Literal["none", "image"] = setting(
        "image",
        "Keys agree as they are (none), or less the mean of their image.",
        source=f"ours (README.md); {_CODE}: none",
    )
    threshold: float = setting(
        0.1,
        "Least cosine between a cell's key and the sum of the nodes' keys; 0: all that agree.",
        ge=0,
        lt=1,
        source=f"ours (README.md); {_CODE}: 0",
    )
    objects: int = setting(
        1,
        "Most objects of an image; each is sought in what the others left.",
        ge=1,
        source=f"ours; {_CODE}: 1",
    )

    def needs(self) -> Needs:
        """Return what the masks read: keys and the query of the CLS token; neither classes nor chance."""
        return Needs(arrays=("key", "cls_query"), identity=())


class ClustersOptions(MethodOptions):
    """Options of ``pseudolabel --method maskdistill --part clusters``."""

    token: Literal["masked", "cls", "pooled"] = setting(
        "masked",
        "What stands for a mask: the mean of the features' tokens under it, or of its crop (--regions) the CLS token "
        "or the mean token.",
        source=f"ours (README.md); {_CODE}: cls",
    )
    whiten: bool = setting(
        False,
        "Each channel is divided by its standard deviation before tokens get unit length.",
        source=f"ours (README.md); {_CODE}: cluster.py, scipy's whiten",
    )
    background: bool = setting(
        True,
        "Class 0 is the background, so that clusters begin at 1; false for masks of everything.",
        source=f"{_CODE}: label 0",
    )
    minibatch: bool = setting(
        False, "Mini-batches of 1000 instead of all crops at once.", source=f"ours; {_CODE}: true"
    )
    restarts: int = setting(
        10, "Starts of k-means, of which the best counts.", ge=1, le=1000, source=f"ours; {_CODE}: 3"
    )

    def needs(self) -> Needs:
        """Return what clusters are made of: masks, and tokens under them or the regions that are their crops."""
        if self.token == "masked":
            return Needs(reads=(FEATURES, *ANY_MASKS))
        return Needs(reads=(FEATURES, *ANY_MASKS, REGIONS, SUPPORT), arrays=())


class FilterOptions(MethodOptions):
    """Options of ``pseudolabel --method maskdistill --part filter``."""

    source: Literal["masks", "predictions", "detector"] = setting(
        "masks",
        "What is filtered: the masks that are read (by the share of their pixels that the model gives their class, or "
        "its best one for masks without), the connected regions that the model predicts (by its mean probability), or "
        "the objects of a Mask R-CNN (torchvision) that is trained on the masks first, and needs no model.",
        source=f"{_OURS}; {_CODE}: predictions of a detector",
    )
    score: float = setting(
        0.5,
        "Least score of a mask; the best one of an image stays in any case.",
        ge=0,
        le=1,
        source=f"{_OURS}; {_CODE}: gen_segmentation.py, .9 in the command, of a detector's scores",
    )
    background: bool = setting(
        True, "Class 0 of the model is background, of which no mask is made.", source=f"{_CODE}: label 0"
    )
    crf: bool = setting(
        False,
        "The model's probabilities are refined by the dense CRF first: with source=predictions and score=0, the labels "
        "of a round of self-training.",
        source=f"{_OURS}; {_CODE}: train_plus_crf.sh trains on refined predictions",
    )
    resnet: str = setting(
        "hub",
        "Weights of the detector's ResNet-50: hub (torchvision's, of ImageNet's labels), random, or a file of a "
        "state_dict.",
        file=True,
        source=_OURS,
    )
    detector_epochs: int = setting(10, "Epochs of the detector.", ge=1, length=True, source=_OURS)
    detector_batch: int = setting(2, "Images per step of the detector.", ge=1, source=_OURS)
    detector_lr: float = setting(5e-3, "Learning rate of the detector.", gt=0, source=_OURS)

    def needs(self) -> Needs:
        """Return what the filter reads: images, a model's scores or a seed for the detector, and masks it works on."""
        if self.source == "detector":
            return Needs(reads=(FEATURES, *ANY_MASKS), images=True, identity=("seed",))
        masks = ANY_MASKS if self.source == "masks" else ()
        return Needs(reads=(FEATURES, *masks, MODEL), images=True, model="scores", identity=())

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of the detector where there is none, and of a model where there is one."""
        if self.source == "detector":
            return {"crf": "a detector gives masks, not a model's probabilities"}
        return dict.fromkeys(
            ("resnet", "detector_epochs", "detector_batch", "detector_lr"),
            "they are read with source=detector only",
        )


class TrainOptions(MethodOptions):
    """Options of ``train --method maskdistill``."""

    arch: Literal["decoder", "deeplabv3_resnet50"] = setting(
        "decoder",
        "Network: a light decoder on the frozen stored tokens, or DeepLab v3 on pixels.",
        source=f"{_OURS}; {_CODE}: DeepLab v3, ResNet-50",
    )
    background: bool = setting(
        True, "Cells of no mask are class 0; without it they teach nothing.", source=f"{_CODE}: label 0"
    )
    hard_share: float = setting(
        0.2, "Share of an image's pixels, the hardest, that count.", gt=0, le=1, source=f"{_CODE}: losses.py"
    )
    hard_of: Literal["valid", "all"] = setting(
        "valid",
        "What it is a share of: pixels with a class, or all pixels (then at most those with a class).",
        source=f"{_OURS}; {_CODE}: all",
    )
    width: int = setting(128, "Hidden channels of the decoder.", ge=1, source=_OURS)
    resnet: str = setting(
        "hub",
        "Weights of the ResNet-50: hub (torchvision's, of ImageNet's labels), random, or a file of a state_dict.",
        file=True,
        source=f"{_OURS}; {_CODE}: MoCo",
    )
    epochs: int = setting(20, "Epochs.", ge=1, length=True, source=f"{_OURS}; {_CODE}: 45")
    batch: int = setting(16, "Images per step.", ge=1, source=f"{_CODE}: deeplab.yml")
    lr: float = setting(
        2e-3,
        "Learning rate: of Adam for the decoder, of SGD for DeepLab.",
        gt=0,
        source=f"{_CODE}: deeplab.yml",
    )
    drop_at: float = setting(
        0.91,
        "Share of the run after which the learning rate is a tenth.",
        gt=0,
        le=1,
        source=f"{_CODE}: epochs 41 to 44 of 45",
    )

    def needs(self) -> Needs:
        """Return what training reads: masks, and tokens or images."""
        return Needs(reads=(FEATURES, *ANY_MASKS), images=self.arch != "decoder")

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of the other network."""
        other = "resnet" if self.arch == "decoder" else "width"
        return {other: f"the network is {self.arch}"}

    def work(self, images: int) -> float:
        """Return the images that all epochs look at."""
        return float(images * self.epochs)

    def channels(self, dim: int) -> int | None:
        """Return None: classes are not linear in codes."""
        return None
