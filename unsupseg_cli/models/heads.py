"""Heads and networks by name.

Feature heads map tokens to codes and class heads codes to classes; dense networks map arrays of an image to classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.boxes import WHOLE, Box, places
from unsupseg_cli.models.vit import MEAN, STD

HEADS: dict[str, Callable[..., nn.Module]] = {}


def register_head(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a head or a dense network under a name that `model.json` may carry."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        HEADS[name] = cls
        return cls

    return add


def build_head(description: dict[str, Any]) -> nn.Module:
    """Return the head that a model's chain describes: ``{"type": NAME, ...fields}``."""
    fields = dict(description)
    kind = str(fields.pop("type"))
    if kind not in HEADS:
        raise UnsupsegError(
            f"The model has a head of type '{kind}', which neither this version nor an installed method knows "
            f"(known: {', '.join(sorted(HEADS))}); update unsupseg, or install the package of the model's method."
        )
    try:
        signature(HEADS[kind]).bind(**fields)
    except TypeError as error:
        raise UnsupsegError(
            f"The model's head of type '{kind}' does not fit this version ({error}); it was made by another version "
            "of unsupseg or of the method's package: use that version, or train again."
        ) from None
    return HEADS[kind](**fields)


def build_class_head(description: dict[str, Any]) -> ClassHead:
    """Return the class head that a model's chain describes; raises UnsupsegError where it is of another kind."""
    head = build_head(description)
    if not isinstance(head, ClassHead):
        raise UnsupsegError(
            f"'{description['type']}' is no class head ({type(head).__name__} is no ClassHead)."
        )
    return head


def build_network(description: dict[str, Any]) -> DenseNetwork:
    """Return the dense network that a model describes: ``{"type": NAME, "classes": K, ...fields}``.

    Raises:
        UnsupsegError: it is of another kind, or reads arrays that there are none of.
    """
    network, kind = build_head(description), description["type"]
    if not isinstance(network, DenseNetwork):
        raise UnsupsegError(
            f"'{kind}' is no network from images to classes ({type(network).__name__} is no DenseNetwork)."
        )
    known = (*TOKEN_ARRAYS, *PIXEL_ARRAYS)
    if not network.reads or set(network.reads) - set(known):
        raise UnsupsegError(
            f"The network '{kind}' reads {', '.join(network.reads) or 'nothing'}; expected some of {', '.join(known)}."
        )
    return network


def load_part(part: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Load a head or network with the tensors whose names begin with a prefix.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.
    """
    try:
        part.load_state_dict(with_prefix(tensors, prefix))
    except RuntimeError as error:  # names each on a line of its own
        raise ValueError(" ".join(str(error).split())) from None


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class ClassHead(nn.Module):
    """K classes from codes (..., D). Scores are linear in the code, so interpolating them is exact.

    `scores` (..., K) may be averaged over flips and interpolated before `log_probs`; the class of a pixel is
    the arg-max of its scores either way.
    """

    weight: nn.Parameter

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, dim))

    def scores(self, codes: Tensor) -> Tensor:
        """Return scores (..., K), linear in ``codes`` (..., D)."""
        return codes @ self.weight.T

    def log_probs(self, scores: Tensor, norm: Tensor) -> Tensor:
        """Return log-probabilities (..., K) from scores and the codes' norm (...)."""
        raise NotImplementedError


@register_head("cosine")
class CosineHead(ClassHead):
    """Class prototypes compared by cosine: logits = alpha * cos(code, prototype) (STEGO, cluster probe)."""

    def __init__(self, classes: int, dim: int, alpha: float = 2.0) -> None:
        super().__init__(classes, dim)
        self.alpha = alpha

    def scores(self, codes: Tensor) -> Tensor:
        """Return the dot product of codes (..., D) with the unit prototypes: |code| * cosine."""
        return codes @ F.normalize(self.weight, dim=-1).T

    def log_probs(self, scores: Tensor, norm: Tensor) -> Tensor:
        """Return log softmax(alpha * cosine)."""
        return F.log_softmax(self.alpha * scores / norm.clamp_min(1e-6).unsqueeze(-1), dim=-1)


@register_head("linear")
class LinearHead(ClassHead):
    """A 1x1 convolution: logits = W code + b."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__(classes, dim)
        self.bias = nn.Parameter(torch.zeros(classes))

    def scores(self, codes: Tensor) -> Tensor:
        """Return W code + b; affine, so interpolation is exact all the same."""
        return codes @ self.weight.T + self.bias

    def log_probs(self, scores: Tensor, norm: Tensor) -> Tensor:
        """Return log softmax of the scores; ``norm`` is not needed."""
        return F.log_softmax(scores, dim=-1)


TOKEN_ARRAYS = ("patch", "cls", "pooled", "attention", "query", "key")
PIXEL_ARRAYS = ("pixels", "place")


class DenseNetwork(nn.Module, ABC):
    """Arrays of images -> scores of K classes for every cell: a decoder over tokens, or a network on pixels.

    A subclass, registered by `register_head`, says by these attributes (of the class, or set by its constructor) what
    it is fed and what it gives:

    Attributes:
        reads: arrays that `forward` is given. Of the backbone, as `extract` keeps them: patch (B, h, w, C), on features
            that are a model's codes these codes; cls (B, C), pooled, attention, query, key. Of the image: pixels
            (B, 3, H, W), normalised by ``mean`` and ``std``, and place (B, 2, H, W), x and y of each pixel in the whole
            image from -1 to 1. A network that reads no array of the backbone is a model without one.
        multiple: the sides of an image are multiples of it, in pixels (besides those of a patch).
        stride: pixels of a score cell's side; None is the patch size, or 1 without a backbone. The scores of a whole
            image are kept in memory, K floats a cell.
        mean: per channel, of values from 0 to 1 (default: ImageNet's).
        std: per channel, of values from 0 to 1 (default: ImageNet's).
    """

    reads: tuple[str, ...] = ("patch",)
    multiple: int = 1
    stride: int | None = None
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def reads_tokens(self) -> bool:
        """Whether a backbone is needed."""
        return bool(set(self.reads) & set(TOKEN_ARRAYS))

    def grid(self, patch: int) -> tuple[int, int]:
        """Return what the sides of images are multiples of, and the stride, over a patch size (1: no backbone)."""
        stride = self.stride or patch
        return math.lcm(patch, self.multiple, stride), stride

    def image_arrays(self, images: Tensor, box: Box = WHOLE) -> dict[str, Tensor]:
        """Return what the network reads of images (B, H, W, 3), values 0 to 255, that show ``box`` of an image."""
        arrays: dict[str, Tensor] = {}
        if "pixels" in self.reads:
            mean, std = (
                torch.tensor(values, device=images.device).view(1, -1, 1, 1) * 255
                for values in (self.mean, self.std)
            )
            arrays["pixels"] = (images.movedim(-1, 1).float() - mean) / std
        if "place" in self.reads:
            place = places(box, images.shape[1], images.shape[2], images.device).movedim(-1, 0)
            arrays["place"] = place.expand(len(images), -1, -1, -1)
        return arrays

    @abstractmethod
    def forward(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, H / stride, W / stride) before the softmax."""
