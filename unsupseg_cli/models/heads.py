"""Heads by name: feature heads map tokens to codes, class heads map codes to classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError

HEADS: dict[str, Callable[..., nn.Module]] = {}


def register_head(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register a head class under a name that `model.json` may carry."""

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
    return HEADS[kind](**fields)


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
