"""Reading weights files: safetensors, and the original DINO and DINOv2 checkpoints, without unpickling code."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError

_PREFIXES = ("module.", "backbone.", "teacher.", "student.", "encoder.", "model.")
_HEADS = ("head.", "ibot_head.", "dino_head.", "fc.", "mask_token")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors of a weights file, by timm's names.

    Of a full checkpoint the teacher is taken. Pickled files are loaded weights-only; the one further type
    allowed is `argparse.Namespace`, which full DINO checkpoints carry.

    Raises:
        UnsupsegError: the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise UnsupsegError(
            f"The weights file '{path}' does not exist; give --weights FILE (.safetensors or .pth)."
        )
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UnsupsegError(
            f"The weights file '{path}' holds objects other than tensors and is not loaded, since that would run code "
            f"from the file ({reason}); save its state_dict as .safetensors."
        ) from None
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupsegError(f"The weights file '{path}' cannot be read ({reason}).") from None
    return _rename(_tensors(_teacher(state), path))


def _teacher(state: object) -> object:
    if isinstance(state, Mapping):
        for key in ("teacher", "model", "state_dict"):
            if isinstance(state.get(key), Mapping):
                return _teacher(state[key])
    return state


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    found = {}
    if isinstance(state, Mapping):
        found = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not found:
        raise UnsupsegError(f"The weights file '{path}' holds no tensors; expected a state_dict of a ViT.")
    return found


def _rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrappers, drop heads, and give DINOv2's original names those of timm."""
    renamed = {}
    for name, value in tensors.items():
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if name.startswith(_HEADS):
            continue
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # chunked blocks of DINOv2
        name = name.replace("register_tokens", "reg_token")
        name = name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
        renamed[name] = value
    return renamed


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
