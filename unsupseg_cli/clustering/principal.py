"""Principal directions: the first of many small sets at once, and the first ones of a collection."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.core.errors import UsageError

LANCZOS_STEPS = 32
LANCZOS_RESTARTS = 6
LANCZOS_TOLERANCE = 1e-4


def principal_direction(covariance: Tensor) -> Tensor:
    """Return the unit eigenvector (B, C) of the largest eigenvalue of each matrix (B, C, C).

    Restarted Lanczos iteration with full reorthogonalisation; the sign is arbitrary, and a zero matrix has the
    zero direction. For C = 384 it takes a small part of the time of a full eigendecomposition.
    """
    batch, channels, _ = covariance.shape
    steps = min(LANCZOS_STEPS, channels)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(channels, generator=generator).to(covariance)
    direction = F.normalize(start, dim=0).expand(batch, channels)
    for _ in range(LANCZOS_RESTARTS):
        basis = covariance.new_zeros(batch, steps, channels)
        image = covariance.new_zeros(batch, steps, channels)
        current = direction
        for step in range(steps):
            basis[:, step] = current
            image[:, step] = products(covariance, current)
            following, earlier = image[:, step], basis[:, : step + 1]
            scale = following.norm(dim=1, keepdim=True)
            for _ in range(2):
                following = following - (products(earlier, following)[:, None] @ earlier)[:, 0]
            length = following.norm(dim=1, keepdim=True)
            # An exhausted space goes on with zeros: normalised rounding noise would not be orthogonal.
            current = torch.where(length > 1e-5 * scale, following / length.clamp_min(1e-30), 0.0)
        reduced = basis @ image.mT
        values, vectors = torch.linalg.eigh((reduced + reduced.mT) / 2)
        weights, value = vectors[:, None, :, -1], values[:, -1:]
        direction = F.normalize((weights @ basis)[:, 0], dim=1)
        residual = ((weights @ image)[:, 0] - value * direction).norm(dim=1)
        if bool((residual <= LANCZOS_TOLERANCE * value[:, 0].abs()).all()):
            break
    return direction


def products(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return the products (B, n) of matrices (B, n, C) with one vector (B, C) each."""
    if matrices.device.type == "cpu":  # the batched product is about four times slower there
        return torch.stack([matrix.mv(vector) for matrix, vector in zip(matrices, vectors, strict=True)])
    return (matrices @ vectors[..., None])[..., 0]


@torch.no_grad()
def principal_directions(batches: Iterable[Tensor], count: int) -> Tensor:
    """Return the first principal directions of all features, (count, C) float32 unit rows.

    The covariance is summed up batch by batch, so that memory does not grow with the collection. The entry of
    largest magnitude in each direction is positive.

    Args:
        batches: tensors (..., C).
        count: number of classes K.

    Raises:
        UsageError: no features, or K larger than C.
    """
    number, total, moment = 0, None, None
    for batch in batches:
        flat = batch.reshape(-1, batch.shape[-1]).double()
        if total is None or moment is None:
            if count > flat.shape[1]:
                raise UsageError(
                    f"PCA gives at most as many prototypes as features have channels ({flat.shape[1]}); asked "
                    f"for {count} classes. Ask for fewer with --classes."
                )
            total, moment = torch.zeros_like(flat[0]), flat.new_zeros(flat.shape[1], flat.shape[1])
        number += len(flat)
        total += flat.sum(0)
        moment += flat.T @ flat
    if total is None or moment is None:
        raise UsageError("There are no features to start the prototypes from; expected at least one image.")
    mean = total / number
    directions = torch.linalg.eigh(moment / number - torch.outer(mean, mean)).eigenvectors.T.flip(0)[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    oriented: Tensor = directions * torch.where(largest < 0, -1.0, 1.0)
    return oriented.float()


def whitened(tokens: Tensor) -> Tensor:
    """Return tokens (n, C) with each channel over its standard deviation."""
    spread = tokens.std(0, correction=0)
    return tokens / torch.where(spread > 0, spread, 1)
