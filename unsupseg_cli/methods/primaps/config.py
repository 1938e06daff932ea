"""Hyper-parameters of PriMaPs proposals and PriMaPs-EM."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import field_validator

from unsupseg_cli.core.config import Config, setting
from unsupseg_cli.core.ports import ANY_MASKS, FEATURES, MODEL
from unsupseg_cli.methods.declaration import MethodOptions, Needs

_CODE = "PriMaPs, published code"
_AUGMENTATION = (
    "mirror",
    "augment",
    "blur_kernel",
    "blur_sigma_min",
    "blur_sigma_max",
    "color_choice",
    "jitter",
    "jitter_probability",
    "grey_probability",
)


class PseudolabelOptions(MethodOptions):
    """Options of ``pseudolabel --method primaps``."""

    threshold: float = setting(
        0.4,
        "A cell joins a mask if its similarity is at least this share of the highest.",
        gt=0,
        le=1,
        source=f"{_CODE}: README, threshold 0.4",
    )
    center: Literal["auto", "none", "image"] = setting(
        "auto",
        "Tokens are compared as they are (none) or less the mean of their image; auto: image where two random tokens "
        "of the collection are as alike as the threshold asks, so that every image would be one mask.",
        source=f"ours (docs/choices.md); {_CODE}: none",
    )
    anchor: Literal["largest", "signed"] = setting(
        "largest",
        "A mask starts at the free cell with the largest score on the axis, whatever its sign (largest), or at the "
        "positive end of the axis, as the published code does (signed); signs follow from the cells.",
        source=f"largest: ours (docs/deviations.md); {_CODE}: signed, by the sign that a random solver gives",
    )
    coverage: float = setting(
        0.95,
        "Stop once this share of an image's cells is covered.",
        gt=0,
        le=1,
        source=f"{_CODE}: primaps.py",
    )
    stall: int = setting(
        3, "Stop after this many iterations in a row that cover nothing.", ge=1, source=f"{_CODE}: primaps.py"
    )
    max_masks: int = setting(
        254,
        "Most masks of an image; the published label images (8 bit, 0 and 255 taken) hold no more.",
        ge=1,
        le=32_767,
        source=f"{_CODE}: label format",
    )
    median: Literal[1, 3, 5, 7] = setting(
        3, "Side of the median filter in cells; 1 is none.", source=f"{_CODE}: 3x3"
    )
    gain: float = setting(
        10.0, "Masks are multiplied by this and clamped to [0, 1].", gt=0, source=f"{_CODE}: primaps.py"
    )
    crf: bool = setting(True, "Refine the masks with a dense CRF.", source=f"{_CODE}: dense_crf")

    def needs(self) -> Needs:
        """Return what the proposals read: tokens, and images for the CRF; neither classes nor chance."""
        return Needs(images=self.crf, identity=())


class TrainOptions(MethodOptions):
    """Options of ``train --method primaps``."""

    init: Literal["pca", "kmeans", "model"] = setting(
        "kmeans",
        "First prototypes: pca (then cosine k-means), spherical kmeans, or the model that the features come from. They "
        "keep their length, which slows their turning.",
        source=f"kmeans: ours (docs/choices.md); {_CODE}: pca on a backbone, the cluster probe on STEGO",
    )
    init_batches: int = setting(
        93,
        "Batches whose features give the first prototypes by PCA.",
        ge=1,
        source=f"{_CODE}: num_batch_pcainit, the last one counted from 0",
    )
    init_epochs: int = setting(2, "Epochs of cosine k-means before EM.", ge=0, source=f"{_CODE}: train.py")
    init_sample: int = setting(50_000, "Tokens that spherical k-means starts from.", ge=1, source="ours")
    init_restarts: int = setting(8, "Starts of spherical k-means.", ge=1, le=1000, source="ours")
    epochs: int = setting(
        10, "Epochs of EM.", ge=1, length=True, source=f"ours (docs/choices.md); {_CODE}: 50, best by labels"
    )
    batch: int = setting(32, "Images per step.", ge=1, source=f"{_CODE}: train.py")
    lr: float = setting(5e-3, "Adam's learning rate.", gt=0, source=f"{_CODE}: train.py")
    resolution: int = setting(
        0,
        "Side in pixels that class scores and masks are compared at; 0 is the token grid (fast, any aspect ratio).",
        ge=0,
        source=f"ours; {_CODE}: 320",
    )
    ema_decay: float = setting(
        0.98, "Decay of the momentum prototypes.", ge=0, lt=1, source=f"{_CODE}: train.py"
    )
    ema_every: int = setting(
        10, "Steps between two updates of the momentum prototypes.", ge=1, source=f"{_CODE}: ema-update-step"
    )
    ema_count: Literal["steps", "updates"] = setting(
        "steps",
        "The decay warms up as n / (n + 1): by steps, which keeps much of the first prototypes, or by updates, of "
        "which the first two copy.",
        source=f"steps: ours (docs/fidelity.md); {_CODE}: updates (ema.py)",
    )
    focal_gamma: float = setting(
        2.0, "Exponent of the class weights; 0 is plain CE.", ge=0, source=f"{_CODE}: seghead-focalloss"
    )
    alpha: float = setting(
        4.0,
        "Sharpness of the class scores: they spread over the classes as alpha * cosine does; 0: as they were trained.",
        ge=0,
        source=f"ours (docs/choices.md); {_CODE}: as trained",
    )
    mirror: float = setting(
        0.5, "Probability that an image is mirrored (live tokens only).", ge=0, le=1, source=f"{_CODE}: HFlip"
    )
    augment: Literal["image", "normalised"] = setting(
        "image",
        "Blur and colours change the image, or the image after the normalisation, where changes of colour cut off what "
        "lies outside of 0 to 1.",
        source=f"image: ours (docs/deviations.md); {_CODE}: normalised",
    )
    blur_kernel: int = setting(21, "Side of the Gaussian blur in pixels (odd).", ge=1, source=f"{_CODE}")
    blur_sigma_min: float = setting(0.1, "Least blur in pixels.", gt=0, source=f"{_CODE}")
    blur_sigma_max: float = setting(2.0, "Most blur in pixels.", gt=0, source=f"{_CODE}")
    color_choice: float = setting(
        0.5, "Probability of the jitter branch; else the grey branch.", ge=0, le=1, source=f"{_CODE}"
    )
    jitter: float = setting(
        0.1, "Reach of brightness, contrast, saturation and hue.", ge=0, le=0.5, source=f"{_CODE}"
    )
    jitter_probability: float = setting(
        0.3, "Probability of jitter in its branch.", ge=0, le=1, source=f"{_CODE}"
    )
    grey_probability: float = setting(
        0.1, "Probability of grey in its branch.", ge=0, le=1, source=f"{_CODE}"
    )

    @field_validator("blur_kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("expected an odd number")
        return value

    def needs(self) -> Needs:
        """Return what EM reads: tokens and masks; the prototypes of the model under the features to start from."""
        model = (replace(MODEL, optional=True),) if self.init == "model" else ()
        masks = tuple(
            replace(port, views=True) for port in ANY_MASKS
        )  # of a backbone, say, under STEGO's codes
        return Needs(reads=(FEATURES, *masks, *model), network="optional")

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of other starts, and those of augmentation on stored tokens."""
        starts = {
            "init_batches": "pca",
            "init_epochs": "pca",
            "init_sample": "kmeans",
            "init_restarts": "kmeans",
        }
        unread = {
            name: f"it is read with init={start}, and init is {self.init}"
            for name, start in starts.items()
            if self.init != start
        }
        if getattr(stage, "tokens", "live") == "stored":
            unread |= dict.fromkeys(_AUGMENTATION, "images are changed with --tokens live only")
        return unread

    def work(self, images: int) -> float:
        """Return the images that all epochs look at."""
        return float(images * self.epochs)
