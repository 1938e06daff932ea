"""Frozen vision transformers: from images to patch tokens, CLS token, attention, queries and keys."""

from __future__ import annotations

import json
import math
import textwrap
import types
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unsupseg_cli.core.bounds import require_bounded
from unsupseg_cli.core.errors import UnsupsegError, UsageError, did_you_mean, reason_of
from unsupseg_cli.models.backbones import ALIASES, TINY, BackboneRow
from unsupseg_cli.models.boxes import WHOLE, Box, places
from unsupseg_cli.models.hub import HubSilentError, hub
from unsupseg_cli.models.operators import require_operators
from unsupseg_cli.models.vit import MEAN, STD, build_vit
from unsupseg_cli.models.weights import digest_tensors, read_weights

JSON_NAME, TENSORS_NAME = "backbone.json", "backbone.safetensors"
_PLACES = 16  # cells of a side of the black image that the directions of place are found in
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return fp32, bf16 or fp16; ``auto`` is bf16 where the device computes it natively, else fp32."""
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        native = "AVX512" in capability and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bf16" if native and _has_avx512_bf16() else "fp32"
    return "fp32"


def _has_avx512_bf16() -> bool:
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(check and check())


class Backbone(nn.Module):
    """A frozen vision transformer of timm.

    Args:
        model: a timm ViT with ``dynamic_img_size``.
        name: what it is called in artifacts.
        patch_size: pixels of a token's side.
        weights_digest: SHA-256 of the weights as loaded.
        layer: -1 takes the last block's tokens, -2 the one before, ...; of several blocks, the deepest first, patch
            tokens stand side by side, each as long as the deepest one's, and all else is of the deepest.
        norm: apply the final norm to the patch tokens.
        position: append each token's place in the image, this many times as long as the token; 0 leaves it out.
        debias: number of directions of the tokens' place that are taken out of them, see `place_directions`.
        meta: the JSON that `save_backbone` wrote beside the weights; None for a model that timm knows by name.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        patch_size: int,
        weights_digest: str,
        *,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        layer: int | Sequence[int] = -1,
        norm: bool = True,
        position: float = 0.0,
        debias: int = 0,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.meta = meta
        self.name, self.patch_size, self.weights_digest = name, patch_size, weights_digest
        self.layers = (layer,) if isinstance(layer, int) else tuple(layer)
        self.layer = self.layers[0]
        self.norm, self.position, self.debias = norm, position, debias
        self.precision = "fp32"
        self.depth = len(self.vit.blocks)
        self.channels = int(self.vit.embed_dim) * len(self.layers)
        self.dim = self.channels + (2 if position else 0)
        self.prefix_tokens = int(self.vit.num_prefix_tokens)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        for number in self.layers:
            if not -self.depth <= number <= -1:
                raise UsageError(f"--layer {number} is outside -{self.depth} to -1, the blocks of '{name}'.")
        if not 0 <= debias < self.channels:
            raise UsageError(
                f"--debias {debias} is outside 0 to {self.channels - 1}: tokens of '{name}' have "
                f"{self.channels} channels."
            )
        self.directions: Tensor
        self.register_buffer("directions", self.place_directions(debias), persistent=False)

    @property
    def vit(self) -> Any:
        """The timm model, whose attributes the type checker does not know."""
        return self.model

    def prepare(self, precision: str, device: torch.device) -> Backbone:
        """Move to a device and choose the arithmetic: fp32, bf16 or fp16 (autocast; weights stay float32)."""
        self.precision = precision
        return self.to(device)

    def normalise(self, images: Tensor) -> Tensor:
        """Return float (B, 3, H, W) for uint8 images (B, H, W, 3), by the training's mean and deviation."""
        return (images.movedim(-1, 1).float() - self.mean) / self.std

    @torch.inference_mode()
    def forward(
        self, images: Tensor, keep: Collection[str] = ("patch", "cls"), box: Box = WHOLE
    ) -> dict[str, Tensor]:
        """Return the arrays named in ``keep`` for normalised images (B, 3, H, W), sides whole patches.

        ``box`` says which part of an image they show; it matters where tokens carry their place (``position``).

        patch (B, h, w, C), of L blocks L times as many channels, with the place two more; cls (B, C); pooled, the
        L2-normalised mean of the patch tokens; attention (B, heads, h, w), softmaxed CLS attention of the chosen block
        over all tokens, patches only; query and key (B, h, w, C) of the chosen block, heads side by side; cls_query
        (B, C), the query of the CLS token. Register tokens are skipped.

        Raises:
            UsageError: attention, query, key or cls_query of an architecture that has no plain qkv, or the CLS token,
                its attention or query of one without.
        """
        if {"cls", "attention", "cls_query"} & set(keep) and getattr(self.vit, "cls_token", None) is None:
            raise UsageError(
                f"The backbone '{self.name}' has no CLS token: --keep patch,pooled, or take a ViT of DINO or DINOv2 or "
                "`tiny`, which have one (`unsupseg backbones list`)."
            )
        height, width = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        dtype = DTYPES[self.precision]
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            before, after = self._run_blocks(images)
        patch = self._patch_tokens(after)
        if self.debias:
            patch = patch - (patch @ self.directions.T) @ self.directions
        out = {}
        if "patch" in keep:
            out["patch"] = self._with_place(patch.reshape(len(patch), height, width, -1), box)
        if "cls" in keep:
            out["cls"] = self._normed(after[0].float())[:, 0]
        if "pooled" in keep:
            out["pooled"] = F.normalize(patch.mean(1), dim=-1)
        if {"attention", "query", "key", "cls_query"} & set(keep):
            out |= self._attention(before.float(), keep, height, width)
        return out

    @torch.inference_mode()
    def place_directions(self, count: int) -> Tensor:
        """Return the directions (count, C) along which the tokens of a black image differ most: those of their place.

        A black image shows nothing, so that its tokens, at length 1 and less their mean, differ by their place alone
        (positional debiasing of INSID3, where they are taken out of all tokens).
        """
        if not count:
            return torch.empty(0, self.channels)
        side = _PLACES * self.patch_size
        after = self._run_blocks(self.normalise(torch.zeros(1, side, side, 3, dtype=torch.uint8)))[1]
        unit = F.normalize(self._patch_tokens(after)[0].double(), dim=-1)
        directions: Tensor = torch.linalg.svd(unit - unit.mean(0), full_matrices=False).Vh[:count]
        if len(directions) < count:
            raise UsageError(
                f"--debias {count} is more than the {len(directions)} places that are looked at."
            )
        return directions.float().clone()

    def _normed(self, tokens: Tensor) -> Tensor:
        """Apply the final norm, where there is one."""
        return F.layer_norm(tokens, *_norm_arguments(self.vit.norm)) if self.has_norm else tokens

    def _patch_tokens(self, after: Sequence[Tensor]) -> Tensor:
        """Return the patch tokens (B, N, C) of the chosen blocks side by side, each as long as the first one's."""
        tokens = [block.float()[:, self.prefix_tokens :] for block in after]
        if self.norm:
            tokens = [self._normed(patch) for patch in tokens]
        length = tokens[0].norm(dim=-1, keepdim=True)
        return torch.cat([tokens[0], *(F.normalize(patch, dim=-1) * length for patch in tokens[1:])], -1)

    def _with_place(self, patch: Tensor, box: Box) -> Tensor:
        """Append the place (x, y) of each token in the image, from -1 to 1, ``position`` times its length."""
        if not self.position:
            return patch
        place = places(box, patch.shape[1], patch.shape[2], patch.device)
        return torch.cat([patch, self.position * patch.norm(dim=-1, keepdim=True) * place], -1)

    @property
    def has_norm(self) -> bool:
        """Whether the tokens of a block go through a final norm."""
        return isinstance(self.vit.norm, nn.LayerNorm)

    def tokens_before(self, images: Tensor) -> Tensor:
        """Return the tokens (B, N, C) that enter the chosen block, CLS and registers first."""
        return self._run_blocks(images)[0]

    def require_plain_attention(self) -> Any:
        """Return the attention of the chosen block; raises UsageError where it is of another kind."""
        attention = self.vit.blocks[self.layer].attn
        if not isinstance(getattr(attention, "qkv", None), nn.Linear) or hasattr(self.vit, "rope"):
            raise UsageError(
                f"The backbone '{self.name}' gives no attention, query or key (its attention is of another kind); "
                "keep patch, cls and pooled."
            )
        return attention

    def _run_blocks(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the input of the deepest of the chosen blocks, and the output of each."""
        before: list[Tensor] = []
        after: dict[int, Tensor] = {}

        def catch(number: int, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            after[number] = output
            if number == self.layer:
                before.append(inputs[0])

        handles = [
            self.vit.blocks[number].register_forward_hook(
                lambda _, inputs, output, number=number: catch(number, inputs, output)
            )
            for number in self.layers
        ]
        try:
            self.vit.forward_features(images)
        finally:
            for handle in handles:
                handle.remove()
        return before[0], [after[number] for number in self.layers]

    def _attention(self, before: Tensor, keep: Collection[str], height: int, width: int) -> dict[str, Tensor]:
        """Recompute queries, keys and CLS attention of one block, so that the fused path stays elsewhere."""
        block, attention = self.vit.blocks[self.layer], self.require_plain_attention()
        b, n, c = before.shape
        heads = attention.num_heads
        q, k, _ = attention.qkv(block.norm1(before)).view(b, n, 3, heads, c // heads).unbind(2)
        q, k = attention.q_norm(q), attention.k_norm(k)
        out = {}
        if "attention" in keep:
            logits = torch.einsum("bhd,bnhd->bhn", q[:, 0], k) * attention.scale
            patches = logits.softmax(-1)[..., self.prefix_tokens :]
            out["attention"] = patches.unflatten(-1, (height, width))
        if "cls_query" in keep:
            out["cls_query"] = q[:, 0].flatten(1)
        for name, value in (("query", q), ("key", k)):
            if name in keep:
                out[name] = value[:, self.prefix_tokens :].flatten(2).unflatten(1, (height, width))
        return out


def _norm_arguments(norm: nn.LayerNorm) -> tuple[Any, ...]:
    return norm.normalized_shape, norm.weight, norm.bias, norm.eps


def load_backbone(
    name: str,
    weights: Path | None = None,
    *,
    pos_embed: str = "original",
    layer: int | Sequence[int] = -1,
    norm: bool = True,
    position: float = 0.0,
    debias: int = 0,
) -> Backbone:
    """Load a backbone by alias, ``timm:NAME``, or from a folder that `save_backbone` wrote.

    Args:
        name: see ``unsupseg backbones list``.
        weights: file to take instead of the hub, or the folder of a `backbone` artifact.
        pos_embed: ``original`` interpolates position embeddings as the checkpoint's own code, ``timm`` as timm.
        layer: block whose tokens are given, -1 the last; or several, see `Backbone`.
        norm: apply the final norm to the patch tokens.
        position: append each token's place in the image, this many times as long as the token; 0 leaves it out.
        debias: number of directions of their place that are taken out of the patch tokens.

    Raises:
        UsageError: unknown name, or a layer that does not exist.
        UnsupsegError: no weights (the message names the two ways to get them), or those of another model.
    """
    if weights is not None and weights.is_dir() and (weights / JSON_NAME).exists():
        return _load_folder(weights, name, layer, norm, position, debias)
    if name in ("tiny", "untrained") and weights is not None:
        raise UsageError(
            f"The backbone '{name}' takes no --weights; name the model that '{weights}' belongs to with --backbone."
        )
    if name == "tiny":
        if not TINY.exists():
            raise UnsupsegError(
                "The weights of 'tiny' do not ship with this version; use --backbone untrained."
            )
        return _load_folder(TINY.parent, name, layer, norm, position, debias, "tiny")
    row = backbone_row(name)
    model = _create(row, pretrained=False)
    if name == "untrained":
        model = build_vit({"embed_dim": row.dim, "depth": 12, "num_heads": 3, "patch_size": 16}, row.size)
    elif weights is not None:
        _load_into(model, read_weights(weights), name, weights)
    else:
        model = _from_hub(name, row)
    if pos_embed == "original" and (row.offset or row.antialias):
        _use_original_positions(model, row)
    digest = digest_tensors(model.state_dict())
    config: Any = getattr(model, "pretrained_cfg", {})  # `untrained` has none
    return Backbone(
        model,
        name,
        row.patch_size,
        digest,
        mean=tuple(config.get("mean", MEAN)),
        std=tuple(config.get("std", STD)),
        layer=layer,
        norm=norm,
        position=position,
        debias=debias,
    )


def backbone_row(name: str) -> BackboneRow:
    """Return patch size, channels and more of an alias or ``timm:NAME``; no weights are loaded.

    Raises:
        UsageError: the name is unknown, or the model takes images of one size only.
    """
    if name in ALIASES:
        return ALIASES[name]
    if not name.startswith("timm:"):
        raise UsageError(
            f"Unknown backbone '{name}'{did_you_mean(name, ALIASES)} Any ViT of timm: timm:NAME."
        )
    require_operators()
    import timm

    architecture, _, tag = name.removeprefix("timm:").partition(".")
    if not architecture.startswith("vit_") or not timm.is_model(architecture):
        known = timm.list_models("vit_*")
        raise UsageError(f"timm has no ViT '{architecture}'{did_you_mean(architecture, known)[:200]}")
    config = timm.get_pretrained_cfg(architecture)
    size = config.input_size[-1] if config else 224
    try:
        probe: Any = timm.create_model(architecture, pretrained=False, dynamic_img_size=True)
    except TypeError:
        raise UsageError(
            f"The backbone '{name}' takes images of one size only; choose a plain ViT."
        ) from None
    patch = int(probe.patch_embed.patch_size[0])
    return BackboneRow(architecture, tag or "*", patch, int(probe.embed_dim), size, name)


def _create(row: BackboneRow, pretrained: bool) -> nn.Module:
    require_operators()
    import timm

    name = f"{row.timm}.{row.tag}" if row.tag not in ("", "*") else row.timm
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    return model


def _from_hub(name: str, row: BackboneRow) -> nn.Module:
    file = f" (for example {row.file})" if row.file else ""
    remedies = (
        f"give the file with --weights FILE{file}, or run once on a machine with network and copy its HF_HOME"
    )
    if not row.tag:
        raise UnsupsegError(f"The weights of '{name}' are on no hub: {remedies.split(', or')[0]}.")
    try:
        from huggingface_hub import constants, hf_hub_download

        repo, weights = f"timm/{row.timm}.{row.tag}", "model.safetensors"
        cache = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
        with hub(f"{repo}/resolve/main/{weights}", partial(hf_hub_download, repo, weights), cache):
            return _create(row, pretrained=True)
    except HubSilentError as error:
        raise UnsupsegError(
            f"The weights of '{name}' are not on this machine, and {error}: {remedies}."
        ) from None
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = textwrap.shorten(reason_of(error), 160, placeholder=" ...")
        raise UnsupsegError(
            f"The weights of '{name}' cannot be had from the hub ({reason}): {remedies}."
        ) from None


def _load_into(model: nn.Module, tensors: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Copy tensors into a model, or say which keys differ."""
    expected = model.state_dict()
    tensors = dict(tensors)
    if "pos_embed" in tensors and "pos_embed" in expected:
        _resize_positions(model, tensors["pos_embed"])
        expected = model.state_dict()
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected]
    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in tensors and tensors[key].shape != expected[key].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"{difference}: {', '.join(keys[:3])}{' and more' if len(keys) > 3 else ''}"
            for difference, keys in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
            if keys
        ]
        raise UnsupsegError(
            f"The weights '{path}' are not those of '{name}': {'; '.join(parts)}.{_likely_backbones(tensors)}"
        )
    if wrong := [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise UnsupsegError(
            f"The weights '{path}' hold NaN or infinite values ({', '.join(wrong[:3])}); get the file again."
        )
    model.load_state_dict({key: value.float() for key, value in tensors.items()})


def _resize_positions(model: Any, positions: Tensor) -> None:
    """Make room for the checkpoint's own grid of position embeddings; they are interpolated when used."""
    cls = 0 if getattr(model, "no_embed_class", False) else 1
    side = math.isqrt(positions.shape[1] - cls)
    if positions.shape[-1] == model.pos_embed.shape[-1] and side * side == positions.shape[1] - cls:
        model.pos_embed = nn.Parameter(torch.zeros_like(positions), requires_grad=False)
        model.patch_embed.grid_size = (side, side)


def _likely_backbones(tensors: Mapping[str, Tensor]) -> str:
    """Return a hint which backbone the tensors belong to, by patch size and width."""
    projection = tensors.get("patch_embed.proj.weight")
    if projection is None:
        return " They are not of a vision transformer that this tool knows."
    dim, patch = projection.shape[0], projection.shape[-1]
    fits = [alias for alias, row in ALIASES.items() if row.timm and (row.dim, row.patch_size) == (dim, patch)]
    return f" By their shapes they may be of: {', '.join(fits)}." if fits else ""


def _use_original_positions(model: Any, row: BackboneRow) -> None:
    """Replace timm's interpolation of position embeddings by that of the checkpoint's own code."""
    cache: dict[tuple[int, int], Tensor] = {}

    def pos_embed(self: Any, x: Tensor) -> Tensor:
        b, height, width, _ = x.shape
        prefix = 0 if self.no_embed_class else 1
        positions = self.pos_embed
        if (height, width) not in cache or cache[height, width].device != x.device:
            grid = interpolate_positions(positions[:, prefix:], height, width, row.offset, row.antialias)
            cache[height, width] = torch.cat([positions[:, :prefix], grid], 1)
        tokens = x.flatten(1, 2)
        special = [t.expand(b, -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        if self.no_embed_class:
            tokens = torch.cat([*special, tokens + cache[height, width]], 1)
        else:
            tokens = torch.cat([special[0], tokens], 1) + cache[height, width]
            tokens = torch.cat([tokens[:, :1], *special[1:], tokens[:, 1:]], 1)
        dropped: Tensor = self.pos_drop(tokens)
        return dropped

    model._pos_embed = types.MethodType(pos_embed, model)


def interpolate_positions(
    positions: Tensor, height: int, width: int, offset: float, antialias: bool
) -> Tensor:
    """Return position embeddings (1, height * width, C) of a grid from those (1, s * s, C) of the training.

    Bicubic. With an ``offset`` the scale factor is (size + offset) / s, as in the code of DINO and DINOv2.
    """
    side = math.isqrt(positions.shape[1])
    if (height, width) == (side, side):
        return positions
    grid = positions.float().reshape(1, side, side, -1).movedim(-1, 1)
    if offset:
        factors = ((height + offset) / side, (width + offset) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=antialias)
    else:
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", antialias=antialias)
    return grid.movedim(1, -1).flatten(1, 2).to(positions.dtype)


def save_backbone(folder: Path, model: nn.Module, meta: Mapping[str, Any], stem: str = "backbone") -> None:
    """Write ``backbone.safetensors`` (float16) and ``backbone.json`` (``arch``, ``size``, ``patch_size``, ...)."""
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / f"{stem}.safetensors")
    content = {**meta, "format_version": 1, "digest": digest_tensors(tensors)}
    (folder / f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _load_folder(
    folder: Path,
    name: str,
    layer: int | Sequence[int],
    norm: bool,
    position: float,
    debias: int,
    stem: str = "backbone",
) -> Backbone:
    """Load what `save_backbone` wrote; the digest in the JSON guards against altered weights."""
    path = folder / f"{stem}.safetensors"
    try:
        meta = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
        tensors = load_file(path)
    except (OSError, ValueError) as error:
        raise UnsupsegError(f"The backbone in '{folder}' cannot be read ({error}).") from None
    if missing := {"digest", "arch", "size", "patch_size"} - set(meta):
        raise UnsupsegError(
            f"'{folder / stem}.json' lacks {', '.join(sorted(missing))}; make the backbone again."
        )
    digest = digest_tensors(tensors)
    if digest != meta["digest"]:
        raise UnsupsegError(
            f"The weights '{path}' were altered (digest {digest[:12]}, expected {meta['digest'][:12]}); install the "
            "package again, or make the backbone again."
        )
    try:
        require_bounded({"arch": meta["arch"], "size": meta["size"], "patch_size": meta["patch_size"]})
        model = build_vit(meta["arch"], int(meta["size"]))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise UnsupsegError(
            f"'{folder / stem}.json' describes no architecture ({error}); make the backbone again."
        ) from None
    _load_into(model, tensors, name, path)
    return Backbone(
        model,
        name,
        int(meta["patch_size"]),
        digest,
        mean=tuple(meta.get("mean", MEAN)),
        std=tuple(meta.get("std", STD)),
        layer=layer,
        norm=norm,
        position=position,
        debias=debias,
        meta=meta,
    )
