"""Reading weights files: safetensors, and the original checkpoints of DINO to DINOv3, without unpickling code."""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError, reason_of

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
        reason = reason_of(error)
        raise UnsupsegError(f"The weights file '{path}' cannot be read ({reason}).") from None
    return _rename(_tensors_of(_teacher_state(state), path))


def _teacher_state(state: object) -> object:
    if isinstance(state, Mapping):
        for key in ("teacher", "model", "state_dict"):
            if isinstance(state.get(key), Mapping):
                return _teacher_state(state[key])
    return state


def _tensors_of(state: object, path: Path) -> dict[str, Tensor]:
    tensors = {}
    if isinstance(state, Mapping):
        tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UnsupsegError(f"The weights file '{path}' holds no tensors; expected a state_dict of a ViT.")
    return tensors


def _rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip wrappers, drop students and heads, and give the original names of DINO to DINOv3 those of timm."""
    if any(_belongs_to(name, "teacher") for name in tensors):
        tensors = {name: value for name, value in tensors.items() if _belongs_to(name, "teacher")}
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
    if "storage_tokens" in renamed:
        return _rename_dinov3(renamed)
    return _fold_cls_position(renamed) if "reg_token" in renamed else renamed


def _belongs_to(name: str, network: str) -> bool:
    """Tell whether a tensor of a full checkpoint belongs to ``teacher`` or ``student``."""
    return name.removeprefix("module.").removeprefix("model.").startswith(f"{network}.")


def _fold_cls_position(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the position of the CLS token to it where a model with registers keeps one: timm's has none there."""
    positions = tensors.get("pos_embed")
    if positions is None or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        return tensors
    return tensors | {
        "cls_token": tensors["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


def _rename_dinov3(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give DINOv3's names those of timm, without buffers and the biases of queries, keys and values if zero."""
    renamed = {}
    for name, value in tensors.items():
        if name.startswith(("rope_embed.", "local_cls_norm.")) or name.endswith(".bias_mask"):
            continue
        if name.endswith("attn.qkv.bias"):  # the keys' third is masked out
            query, _, values = value.chunk(3)
            if not query.any() and not values.any():
                continue
        name = name.replace("storage_tokens", "reg_token")
        renamed[re.sub(r"\bls([12])\.gamma", r"gamma_\1", name)] = value
    return renamed


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
