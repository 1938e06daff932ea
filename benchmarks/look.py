"""What a backbone sees: for each image its patch tokens as colours (PCA over all images) and its CLS attention.

    python benchmarks/look.py BACKBONE OUT.png IMAGE... [--size 240]

The first three principal components of all images' tokens together are red, green and blue; attention is the mean
over the heads of the last block, each picture scaled to its own largest value.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import read_image
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.report.sheet import grid
from unsupseg_cli.report.token_colors import token_colors

_COLUMNS = 6


def heat(attention: Tensor) -> NDArray[np.uint8]:
    mean = attention.mean(0)
    return (255 * colormaps["magma"]((mean / mean.max()).numpy())[..., :3]).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbone")
    parser.add_argument("out", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=240, help="shorter side in pixels")
    options = parser.parse_args()
    folder = Path(options.backbone)
    backbone = load_backbone(options.backbone, folder if folder.is_dir() else None)
    geometry = Geometry(kind="native", size=options.size)
    images, tokens, attention = [], [], []
    for path in options.images:
        image = read_image(path)
        (view,) = geometry.views(image.shape[0], image.shape[1], backbone.patch_size)
        images.append(geometry.render(image, view))
        out = backbone(
            backbone.normalise(torch.from_numpy(images[-1].copy())[None]), keep=("patch", "attention")
        )
        tokens.append(out["patch"][0].numpy())
        attention.append(out["attention"][0])
    pictures: list[Image.Image] = []
    for image, colors, heads in zip(images, token_colors(tokens), attention, strict=True):
        size = (image.shape[1], image.shape[0])
        pictures.append(Image.fromarray(image))
        pictures += [
            Image.fromarray(one).resize(size, Image.Resampling.NEAREST) for one in (colors, heat(heads))
        ]
    rows = [pictures[start : start + _COLUMNS] for start in range(0, len(pictures), _COLUMNS)]
    grid(rows, ["image", "patch PCA", "CLS attention"] * (len(rows[0]) // 3), cell=240).save(options.out)


if __name__ == "__main__":
    main()
