"""Names of tensors: from wrappers, Hugging Face and the original code of DINO to DINOv3 to those of timm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from unsupseg_cli.core.errors import UnsupsegError

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
_PREFIXES = ("module.", "backbone.", "teacher.", "student.", "encoder.", "model.", "state_dict.")
_HEADS = (
    "head.",
    "ibot_head.",
    "dino_head.",
    "fc.",
    "mask_token",
    "pooler.",
    "classifier.",
    "rope_embeddings.",
)
_PATCHES = r"(?:patch_embed\.proj|embeddings\.patch_embeddings(?:\.projection)?)\.weight"
_HUGGING_FACE = (
    (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.(?:intermediate\.dense|mlp\.weights_in|mlp\.up_proj)\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
"""Names of Hugging Face's ViT, Dinov2 (with registers) and DINOv3ViT, and what timm calls them."""


def timm_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return a vision transformer's tensors by timm's names.

    Wrappers are stripped, heads and students dropped; queries, keys and values that stand apart are joined.

    Args:
        tensors: by their full names in the checkpoint, nested mappings joined by dots.
        source: what they come from, for messages.

    Raises:
        UnsupsegError: there are several networks, and none is a teacher.
    """
    for wrapper in _WRAPPERS:
        tensors = {name.replace(wrapper, ""): value for name, value in tensors.items()}
    prefix = _prefix_of_network(tensors, source)
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if prefix is None:
            while name.startswith(_PREFIXES):
                name = name.split(".", 1)[1]
        elif not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix or "")
        if not name.startswith(_HEADS):
            renamed[name] = value
    if any(name.startswith("embeddings.") for name in renamed):
        renamed = _from_hugging_face(renamed)
    return _from_original(renamed)


def _prefix_of_network(tensors: Mapping[str, Tensor], source: str) -> str | None:
    """Return what stands before the names of the network, None where there is no vision transformer."""
    prefixes = [match[1] for name in tensors if (match := re.fullmatch(rf"((?:.+\.)?){_PATCHES}", name))]
    teachers = [prefix for prefix in prefixes if "teacher" in prefix.split(".")]
    chosen = teachers or [prefix for prefix in prefixes if "student" not in prefix.split(".")] or prefixes
    if len(chosen) > 1:
        names = ", ".join(f"'{prefix.removesuffix('.') or 'without a prefix'}'" for prefix in chosen[:4])
        raise UnsupsegError(
            f"The weights {source} hold {len(chosen)} networks ({names}), none of them the one teacher; save "
            "the one that is meant as .safetensors."
        )
    return chosen[0] if chosen else None


def _from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    third = "embeddings.patch_embeddings.weight" in tensors  # DINOv3's alone is no module of its own
    registers = "storage_tokens" if third else "register_tokens"
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("embeddings.register_tokens", registers)
        for pattern, target in _HUGGING_FACE:
            name = re.sub(pattern, target, name)
        if name != "mask_token":
            renamed[name] = value
    return _join_attention(renamed)


def _join_attention(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join queries, keys and values; a bias that one of them lacks is zero."""
    joined = {name: value for name, value in tensors.items() if not re.search(r"\.attn\.[qkv]\.", name)}
    for name, query in tensors.items():
        if match := re.fullmatch(r"(.+\.attn)\.q\.(weight|bias)", name):
            block, kind = match.groups()
            parts = [tensors.get(f"{block}.{part}.{kind}", torch.zeros_like(query)) for part in "qkv"]
            joined[f"{block}.qkv.{kind}"] = torch.cat(parts)
    return joined


def _from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)  # chunked blocks of DINOv2
        name = name.replace("register_tokens", "reg_token")
        renamed[name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")] = value
    if "storage_tokens" in renamed:
        return _from_dinov3(renamed)
    return _fold_cls_position(renamed) if "reg_token" in renamed else renamed


def _fold_cls_position(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the position of the CLS token to it where a model with registers keeps one: timm's has none there."""
    positions = tensors.get("pos_embed")
    if positions is None or math.isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
        return tensors
    return tensors | {
        "cls_token": tensors["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


def _from_dinov3(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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
