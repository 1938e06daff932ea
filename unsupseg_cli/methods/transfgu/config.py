"""Hyper-parameters of TransFGU."""

from __future__ import annotations

from dataclasses import replace

from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.ports import FEATURES, PSEUDOLABELS, REGIONS
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_CODE = "TransFGU, published code"
LIVE_SIZE = 0.5  # published code, data_augment: crops are resized to half of the image's side
JITTER, HUE = 0.8, 0.2  # published code, data_augment: ColorJitter(.8, .8, .8, .2)
BLUR_KERNEL, BLUR_SIGMA = 3, (1.0, 2.0)  # published code, data_augment
_AUGMENTATION = ("jitter_probability", "grey_probability", "blur_probability")


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method transfgu``."""

    things: int | None = setting(
        None,
        "Concepts that are clustered from foreground regions, the first ones; stuff are the rest. Default: all "
        "concepts from all regions.",
        ge=0,
        source=f"{_CODE}: COCO-Stuff-27 12, COCO-Stuff-171 80",
    )
    stuff: int | None = setting(
        None,
        "Concepts that are clustered from background regions.",
        ge=0,
        source=f"{_CODE}: COCO-Stuff-27 15, COCO-Stuff-171 91",
    )
    background: bool = setting(
        False,
        "Class 0 is the background, where every map is low; for collections of objects.",
        source=f"{_CODE}: VOC, COCO-80, LIP",
    )
    background_level: float = setting(
        0.1, "The background's map is what maps lack of this.", gt=0, le=1, source=f"{_CODE}: 0.1"
    )
    gradient_scale: float = setting(
        0.125,
        "Factor on the gradients beside the attention.",
        gt=0,
        source=f"{_CODE}: 1 / images at a time, 8 for COCO-Stuff and VOC, 2 for Cityscapes and LIP",
    )
    mass: float = setting(
        0.8,
        "Share of a map's evidence that is kept, that of the patches with most of it.",
        gt=0,
        le=1,
        source=f"{_CODE}: 0.8",
    )
    top: int = setting(
        8, "Concepts whose evidence is stored at each patch.", ge=1, source="ours; all of them"
    )
    restarts: int = setting(
        10, "Starts of k-means on the regions, of which the best counts.", ge=1, le=1000, source="ours; 1"
    )
    iterations: int = setting(100, "Most iterations of k-means.", ge=1, source=f"{_CODE}: 100")

    def needs(self) -> Needs:
        """Return what the maps read: regions to cluster, and the network's last block on the images."""
        return Needs(reads=(FEATURES, REGIONS), arrays=(), network="always")

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the level of a background that there is not."""
        return {} if self.background else {"background_level": "it is read with background=true"}


class TrainOptions(MethodOptions):
    """Options of ``train --method transfgu``."""

    cycles: int = setting(
        3,
        "Students, one after the other; each but the first has the one before as its teacher.",
        ge=1,
        source=f"ours; {_CODE}: 20 (VOC) to 200",
    )
    cycle_steps: int = setting(
        200,
        "Steps of each student.",
        ge=1,
        length=True,
        source=f"ours; {_CODE}: teacher_update_interval, 1 to 5 epochs",
    )
    batch: int = setting(16, "Images per step.", ge=1, source=f"ours; {_CODE}: 256 or 512")
    lr: float = setting(
        1e-4, "Adam's learning rate, which stays.", gt=0, source=f"{_CODE}: cocostuff.yaml, pascalvoc.yaml"
    )
    weight_decay: float = setting(
        5e-4, "Weight decay, not of biases and norms.", ge=0, source=f"{_CODE}: configs"
    )
    clip: float = setting(
        1.0, "Most that an entry of a gradient may be.", gt=0, source=f"{_CODE}: *_trainval.py"
    )
    dropout: float = setting(0.1, "Dropout of the decoder.", ge=0, lt=1, source=f"{_CODE}: decoder.py")
    uncertainty: float = setting(
        0.3, "Weight of the loss of undecided patches.", ge=0, source=f"{_CODE}: loss weights 1, .3, 1"
    )
    separation: float = setting(
        1.0,
        "Weight of the loss of class tokens that are alike.",
        ge=0,
        source=f"{_CODE}: loss weights 1, .3, 1",
    )
    negative: float = setting(
        0.03,
        "Weight of the permuted, negative classes in the first epoch of a cycle with a teacher.",
        ge=0,
        source=f"{_CODE}: BootstrappingLoss.py",
    )
    negative_step: float = setting(
        0.01, "What each epoch of the cycle adds to it.", ge=0, source=f"{_CODE}: BootstrappingLoss.py"
    )
    negative_most: float = setting(
        0.1, "Most that it becomes.", ge=0, source=f"{_CODE}: BootstrappingLoss.py"
    )
    crop_least: float = setting(
        0.4, "Least side of a crop, as a share.", gt=0, le=1, source=f"{_CODE}: data_augment, .4 to .9"
    )
    crop_most: float = setting(
        0.9, "Most side of a crop, as a share.", gt=0, le=1, source=f"{_CODE}: data_augment, .4 to .9"
    )
    mirror: float = setting(
        0.5, "Probability that an image is mirrored.", ge=0, le=1, source=f"{_CODE}: data_augment"
    )
    jitter_probability: float = setting(
        0.3,
        "Probability that a batch changes its colours (live tokens only).",
        ge=0,
        le=1,
        source=f"{_CODE}: data_augment",
    )
    grey_probability: float = setting(
        0.2,
        "Probability that a batch is made grey (live tokens only).",
        ge=0,
        le=1,
        source=f"{_CODE}: data_augment",
    )
    blur_probability: float = setting(
        0.2,
        "Probability that a batch is blurred (live tokens only).",
        ge=0,
        le=1,
        source=f"{_CODE}: data_augment",
    )

    def needs(self) -> Needs:
        """Return what the decoder reads: tokens, and the maps of the pseudo-labels."""
        return Needs(reads=(FEATURES, replace(PSEUDOLABELS, method="transfgu")), network="optional")

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of augmentation on stored tokens."""
        if getattr(stage, "tokens", "live") == "stored":
            return dict.fromkeys(_AUGMENTATION, "images are changed with --tokens live only")
        return {}

    def work(self, images: int) -> float:
        """Return the images that all steps look at."""
        return float(self.cycles * self.cycle_steps * min(self.batch, images))

    def channels(self, dim: int) -> int | None:
        """Return None: a mask transformer has no codes."""
        return None
