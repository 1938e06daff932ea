"""The linear probe: how much of the labels a linear map reads from frozen features. It uses labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.progress import Reporter, Silent

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A 1x1 convolution on raw features: ``weight`` (K, C), ``bias`` (K,), and the loss of each step."""

    weight: Tensor
    bias: Tensor
    losses: tuple[float, ...]

    def scores(self, features: Tensor) -> Tensor:
        """Return logits (..., K) of features (..., C)."""
        return features @ self.weight.T + self.bias


def fit_linear_probe(
    batches: Batches,
    classes: int,
    dim: int,
    *,
    steps: int = 1000,
    lr: float = 5e-3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
) -> LinearProbe:
    """Fit a linear classifier on frozen features by cross-entropy with Adam (lr 5e-3 in STEGO).

    Features are standardised with the mean and deviation of all those seen so far, which makes one learning
    rate fit every backbone; both are folded into the weights at the end.

    Args:
        batches: called again whenever it is exhausted; yields features (..., C) and integer labels of the
            same leading shape. Features (B, h, w, C) may come with larger labels (B, H, W): the logits are
            then interpolated bilinearly. Labels outside [0, classes) are void.
        classes: number of classes K.
        dim: channels C.
        steps: optimizer steps; batches without a labelled pixel do not count.
        lr: Adam's learning rate.
        seed: of the random start.
        device: where to fit.
        reporter: is told the steps.

    Raises:
        UsageError: fewer than one class or step.
        UnsupsegError: a whole pass holds no labelled pixel, or the loss is not finite.
    """
    if classes < 1 or steps < 1:
        raise UsageError(f"A linear probe needs at least one class and one step, got {classes} and {steps}.")
    generator = torch.Generator().manual_seed(seed)
    weight = (0.01 * torch.randn(classes, dim, generator=generator)).to(device).requires_grad_()
    bias = torch.zeros(classes, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=lr)
    moments = _Moments(dim, device)
    losses: list[float] = []
    tracked = (reporter or Silent()).track(_labelled(batches, classes, steps), "linear probe", total=steps)
    for features, labels in tracked:
        features, labels = features.to(device).float(), labels.to(device)
        moments.add(features.reshape(-1, dim))
        logits = (features - moments.mean) / moments.deviation @ weight.T + bias
        loss = _cross_entropy(logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] != losses[-1]:
            raise UnsupsegError("The linear probe's loss is not a number: the features hold NaN or infinity.")
    with torch.no_grad():
        folded = weight / moments.deviation
        return LinearProbe(folded, bias - folded @ moments.mean, tuple(losses))


class _Moments:
    """Running mean and deviation (C,) of all features seen (Chan et al.'s merge of two samples)."""

    def __init__(self, dim: int, device: torch.device | str) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, device=device)
        self.squares = torch.zeros(dim, device=device)

    def add(self, points: Tensor) -> None:
        new, total = len(points), self.count + len(points)
        mean = points.mean(0)
        delta = mean - self.mean
        self.squares += (points - mean).square().sum(0) + delta.square() * (self.count * new / total)
        self.mean = self.mean + delta * (new / total)
        self.count = total

    @property
    def deviation(self) -> Tensor:
        """Standard deviation (C,); 1 for a constant channel, which then carries nothing."""
        deviation = (self.squares / self.count).sqrt()
        return torch.where(deviation > 1e-6, deviation, 1.0)


def _labelled(batches: Batches, classes: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` batches with a labelled pixel; labels are int64, those outside [0, classes) `VOID`."""
    count = 0
    while count < steps:
        before = count
        for features, labels in batches():
            labels = labels.long()
            labels = labels.where((labels >= 0) & (labels < classes), VOID)
            if count < steps and bool((labels >= 0).any()):
                count += 1
                yield features, labels
            if count == steps:
                return
        if count == before:
            raise UnsupsegError(
                "The linear probe found no labelled pixel in the whole split: expected label ids from 0 to "
                f"{classes - 1}; check the data set's label mapping."
            )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (..., K) on labels (...) or, finer, (B, H, W)."""
    if logits.shape[:-1] != labels.shape:
        maps = logits.movedim(-1, 1)
        maps = F.interpolate(maps, labels.shape[-2:], mode="bilinear", align_corners=False)
        logits = maps.movedim(1, -1)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=VOID)
