"""TransFGU's maps in one run beside the plain way: K gradients through the block, and the bytes that maps take.

    python benchmarks/transfgu_maps.py [--concepts 27] [--images 8] [--size 320] [--backbone dino_vits8] [--rounds 5]

The weights are random, which times the same. Ratios of medians; both ways run on the same images, a round after the
other. ``step`` is from the tokens that enter the last block to all gradients; ``maps`` from images to maps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from unsupseg_cli.methods.transfgu.maps import pack_maps
from unsupseg_cli.methods.transfgu.pseudolabel import maps_of
from unsupseg_cli.models.backbone import Backbone, backbone_row
from unsupseg_cli.models.class_row import class_row


def through_the_block(backbone: Backbone, tokens: Tensor, concepts: Tensor) -> Tensor:
    """Return the gradients (B, K, P) by K calls of autograd, with the block's attention written out."""
    block: Any = backbone.vit.blocks[backbone.layer]
    attention = block.attn
    batch, count, channels = tokens.shape
    shape = (batch, count, 3, attention.num_heads, channels // attention.num_heads)
    query, key, value = attention.qkv(block.norm1(tokens)).view(shape).permute(2, 0, 3, 1, 4)
    weights = (attention.q_norm(query) @ attention.k_norm(key).mT * attention.scale).softmax(-1)
    weights.requires_grad_()
    after = tokens + block.ls1(attention.proj((weights @ value).transpose(1, 2).flatten(2)))
    after = backbone.vit.norm(after + block.ls2(block.mlp(block.norm2(after))))
    rows = []
    for concept in concepts:
        loss = (1 - F.cosine_similarity(after[:, 0], concept[None])).sum()
        (gradient,) = torch.autograd.grad(loss, weights, retain_graph=True)
        rows.append(gradient[:, :, 0, backbone.prefix_tokens :].mean(1))
    return torch.stack(rows, 1)


def median(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):  # the first round warms up
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concepts", type=int, default=27)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--backbone", default="dino_vits8")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    row = backbone_row(options.backbone)
    torch.manual_seed(0)
    backbone = Backbone(
        timm.create_model(row.timm, num_classes=0, dynamic_img_size=True),
        options.backbone,
        row.patch_size,
        "",
    )
    images = torch.randn(options.images, 3, options.size, options.size)
    concepts = torch.randn(options.concepts, backbone.dim)
    with torch.no_grad():
        tokens = backbone.tokens_before(images)
        known = class_row(backbone, images)

    seconds = median(
        {
            "step": lambda: known.gradients(concepts),
            "plain step": lambda: through_the_block(backbone, tokens, concepts),
            "maps": lambda: maps_of(class_row(backbone, images), concepts, 0.125, 0.8),
            "plain maps": lambda: through_the_block(backbone, backbone.tokens_before(images), concepts),
        },
        options.rounds,
    )
    print(
        f"{options.images} images of {options.size} pixels, {options.concepts} concepts, {options.backbone}\n"
    )
    print("| | one row | K gradients through the block | ratio |\n|---|---|---|---|")
    for name in ("step", "maps"):
        ours, plain = seconds[name], seconds[f"plain {name}"]
        print(f"| {name} | {1e3 * ours:.1f} ms | {1e3 * plain:.1f} ms | {plain / ours:.1f} |")
    side = options.size // row.patch_size
    maps = [part[0] for part in maps_of(known, concepts, 0.125, 0.8)]
    arrays = pack_maps(*(part.reshape(*part.shape[:-1], side, side) for part in maps), top=8)
    stored, plain_bytes = sum(array.nbytes for array in arrays.values()), options.concepts * side**2 * 4
    print(f"\nbytes an image: {stored:,} before compression, beside {plain_bytes:,} as K x h x w float32")


if __name__ == "__main__":
    main()
