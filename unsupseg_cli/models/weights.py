"""Weights: read from a file by timm's names in float32, and told apart by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.weight_files import load_checkpoint
from unsupseg_cli.models.weight_names import timm_names


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors of a weights file, by timm's names, in float32 whatever they are stored in.

    Of a full checkpoint the teacher is taken.

    Raises:
        UnsupsegError: the file is missing, damaged, holds more than tensors, several networks, or whole numbers.
    """
    named = timm_names(read_tensors(path, "a ViT"), f"'{path}'")
    whole = next((name for name, value in named.items() if not value.is_floating_point()), None)
    if whole is not None:
        raise UnsupsegError(
            f"The weights file '{path}' holds whole numbers ({whole}: {named[whole].dtype}), as quantised weights do; "
            "take the weights in floating point."
        )
    return {name: value.float() for name, value in named.items()}


def read_tensors(path: Path, network: str) -> dict[str, Tensor]:
    """Return all tensors of a weights file as they are, nested names joined by dots; ``network`` is what it may hold.

    Raises:
        UnsupsegError: the file is missing, damaged, or holds more than tensors, or none.
    """
    tensors = dict(_tensors(load_checkpoint(path)))
    if not tensors:
        raise UnsupsegError(
            f"The weights file '{path}' holds no tensors; expected a state_dict of {network}."
        )
    return tensors


def _tensors(state: object, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Return the tensors of nested mappings, their names joined by dots."""
    if isinstance(state, Tensor):
        return [(prefix.removesuffix("."), state)]
    if not isinstance(state, Mapping):
        return []
    return [pair for name, value in state.items() for pair in _tensors(value, f"{prefix}{name}.")]


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
