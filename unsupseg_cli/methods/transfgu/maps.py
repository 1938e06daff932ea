"""Class activation maps as they are stored, and put together again.

A map of a concept is the normalised attention of the image plus the concept's evidence, and zero where the gradient
says that more attention would take the image away from the concept. The attention is the same for all concepts, so it
is stored once, and of the evidence the highest few concepts of each patch: the maps of 171 concepts take about as
little as those of 27. At half precision evidence would be lost beside the attention; as a share of a scale of its own
it keeps its digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def compose(attention: Tensor, open_to: Tensor, evidence: Tensor) -> Tensor:
    """Return the maps (K, h, w): attention (h, w) plus evidence (K, h, w) where a concept may be, else zero."""
    return torch.where(open_to, attention + evidence, 0)


def pack_maps(attention: Tensor, open_to: Tensor, evidence: Tensor, top: int) -> dict[str, NDArray[Any]]:
    """Return the arrays that `unpack_maps` takes; which concept is highest at a patch survives.

    Args:
        attention: (h, w) in [0, 1], that of the CLS token over its maximum.
        open_to: (K, h, w) bool, where a concept may be at all.
        evidence: (K, h, w), not negative, zero where the concept may not be.
        top: concepts whose evidence is kept at each patch.
    """
    total = compose(attention, open_to, evidence)
    concept = total.sort(dim=0, descending=True, stable=True).indices[:top]
    total, highest = total.gather(0, concept), torch.where(open_to, evidence, 0).gather(0, concept)
    scale = float(highest.max()) or 1.0
    # As integers, bits of half precision are in the order of their numbers: what differed must not become equal.
    bits = (highest / scale).half().view(torch.int16)
    for rank in range(1, len(bits)):
        lower = torch.minimum(bits[rank], (bits[rank - 1] - 1).clamp_min(0))
        bits[rank] = torch.where(total[rank] < total[rank - 1], lower, bits[rank - 1])
    return {
        "attention": attention.float().cpu().numpy(),
        "open": np.packbits(open_to.cpu().numpy(), axis=0),
        "concept": concept.to(torch.int16).cpu().numpy(),
        "evidence": bits.view(torch.float16).cpu().numpy(),
        "scale": np.array([scale], np.float32),
    }


def unpack_maps(arrays: Mapping[str, NDArray[Any]], concepts: int) -> Tensor:
    """Return the maps (K, h, w) float32 of a view: attention plus evidence where a concept may be, else zero.

    Args:
        arrays: what `pack_maps` returned.
        concepts: K.
    """
    open_to = torch.from_numpy(np.unpackbits(arrays["open"], axis=0, count=concepts)).bool()
    evidence = torch.zeros(open_to.shape)
    share = torch.from_numpy(arrays["evidence"]).float()
    evidence.scatter_(0, torch.from_numpy(arrays["concept"]).long(), share * float(arrays["scale"][0]))
    return compose(torch.from_numpy(arrays["attention"]), open_to, evidence)
