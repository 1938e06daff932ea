"""Is the encoder still saying different things of different images? Measures that need no label."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(x: Tensor) -> float:
    """Return exp(entropy) of the normalised singular values of centred rows (N,C): 1 to min(N-1,C).

    Source: Roy and Vetterli 2007, "The effective rank". Rows that are all equal, or not all finite, have rank 0.
    """
    x = x.double() - x.double().mean(0)
    if not bool(torch.isfinite(x).all()):
        return 0.0
    values = torch.linalg.svdvals(x)
    if values.max() <= 1e-9:
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def spread(x: Tensor) -> float:
    """Return sqrt(C) times the mean deviation per dimension of unit rows (N,C).

    0 when all rows are equal, about 1 when they point everywhere (SimSiam, Sec. 4.1).
    """
    unit = F.normalize(x.double(), dim=-1)
    return float(unit.std(0, unbiased=False).mean() * x.shape[1] ** 0.5)


def neighbour_agreement(a: Tensor, b: Tensor) -> float:
    """Return how often the nearest row of ``b`` (N,C), by cosine, is the partner of a row of ``a`` (N,C).

    1/N by chance. Ties count as misses, so that equal rows do not agree.
    """
    similarity = F.normalize(a.double(), dim=-1) @ F.normalize(b.double(), dim=-1).T
    partner = similarity.diagonal().clone()
    similarity.fill_diagonal_(-2)
    return float((partner > similarity.max(1).values + 1e-9).double().mean())


@dataclass(frozen=True)
class Health:
    """State of an encoder on a fixed set of images.

    rank and spread are those of whole images, patch_rank that of patches; agreement is the share of images
    whose second view is the nearest one, patch_agreement the same of places against other images' places.
    """

    rank: float
    spread: float
    patch_rank: float
    agreement: float
    patch_agreement: float

    def as_record(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def warnings(health: Health) -> list[str]:
    """Return one sentence per sign of collapse; empty for a healthy encoder."""
    sentences = []
    if health.spread < 0.01:
        sentences.append(
            f"Collapse: all images have nearly the same features (spread {health.spread:.4f}, healthy is "
            "above 0.1); are the images identical? Otherwise lower the learning rate or use "
            "--objective contrastive."
        )
    elif health.rank < 3:
        sentences.append(
            f"Partial collapse: the features of whole images span {health.rank:.1f} directions (healthy is "
            "above 10); use more varied images or a larger batch."
        )
    if health.spread >= 0.01 and health.patch_rank < 3:
        sentences.append(
            f"Partial collapse: the patch features span {health.patch_rank:.1f} directions (healthy is "
            "above 10); raise --dense-weight."
        )
    return sentences
