"""Tokens as colours: what a backbone tells apart, at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SHARES = (0.02, 0.98)  # of the tokens that are darkest and brightest in a colour


def token_colors(tokens: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint8]]:
    """Return pictures (h, w, 3) of tokens (h, w, C): their first three principal components as red, green and blue.

    The components are those of all tokens together, so that equal colours mean like tokens, in any picture.
    """
    flat = np.concatenate([one.reshape(-1, one.shape[-1]) for one in tokens])
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean)
    directions = np.linalg.eigh(covariance)[1][:, ::-1][:, :3]
    directions = np.pad(directions, ((0, 0), (0, 3 - directions.shape[1])))  # of fewer channels than colours
    directions = directions * np.where(directions.sum(0) < 0, -1, 1)  # the sign is arbitrary
    low, high = np.quantile((flat - mean) @ directions, _SHARES, axis=0)
    span = np.where(high > low, high - low, 1)
    return [(255 * (((one - mean) @ directions - low) / span).clip(0, 1)).astype(np.uint8) for one in tokens]
