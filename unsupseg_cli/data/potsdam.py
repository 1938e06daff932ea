"""datasets prepare potsdam3: the official Potsdam tiles -> images and labels of 200x200 pixels, by a fixed rule.

Each tile of 6000x6000 is cut into 15x15 blocks of 400x400, each halved to 200x200 (Ji et al., IIC, ICCV 2019). IIC drew
its test images at random and its seed is not known, so that its split cannot be made again. Here a block is of split
`val` if the SHA-256 of its name, as a number, is divisible by ten, else of `train`; blocks without a label are
`unlabelled`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data.images import read_image

BLOCK, SIDE = 400, 200
"""Side of a block and of what is kept of it, in pixels. Source: IIC, potsdam_prepare."""
VAL_SHARE = 10
"""One of so many blocks is held out. Source: IIC, potsdam_prepare (855 of 8,550)."""

# Colours of the official label tiles, in the order of the classes 0 to 5 (ISPRS).
_COLORS = {
    (255, 255, 255): 0,  # roads
    (0, 0, 255): 1,  # buildings
    (0, 255, 255): 2,  # low vegetation
    (0, 255, 0): 3,  # trees
    (255, 255, 0): 4,  # cars
    (255, 0, 0): 5,  # clutter
}
_VOID = 255
_TILE = re.compile(r"top_potsdam_(\d+_\d+)_RGB\.tif$")
Track = Callable[[list[Path]], Iterable[Path]]


def prepare_potsdam(root: Path, out: Path, track: Track) -> dict[str, int]:
    """Cut the official tiles and return the number of blocks of each split.

    Args:
        root: holds ``top_potsdam_*_RGB.tif`` and ``top_potsdam_*_label.tif``, in any folders below.
        out: gets images/SPLIT/*.png and labels/SPLIT/*.png; must be new or empty.
        track: wraps the list of tiles to show progress.

    Raises:
        UsageError: there is no tile below ``root``, or ``out`` is not empty.
        UnsupsegError: a label tile has another size than its image, or other colours than the six.
    """
    images = {path: tile[1] for path in sorted(root.rglob("*.tif")) if (tile := _TILE.search(path.name))}
    labels = {
        name: path for name in images.values() for path in sorted(root.rglob(f"top_potsdam_{name}_label.tif"))
    }
    if not images:
        raise UsageError(
            f"No tile in '{root}' or below; expected top_potsdam_*_RGB.tif (folder 2_Ortho_RGB) and "
            "top_potsdam_*_label.tif (5_Labels_all) of the ISPRS download."
        )
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"The folder '{out}' is not empty; give a new one.")
    counts = {"train": 0, "val": 0, "unlabelled": 0}
    for path in track(list(images)):
        name = images[path]
        image = read_image(path)
        label = _classes(labels[name], image.shape[:2]) if name in labels else None
        for row in range(image.shape[0] // BLOCK):
            for column in range(image.shape[1] // BLOCK):
                key = f"{name}_{row:02d}_{column:02d}"
                split = split_of(key) if label is not None else "unlabelled"
                window = np.s_[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
                block = Image.fromarray(image[window]).resize((SIDE, SIDE), Image.Resampling.BOX)
                _save(block, out / "images" / split / f"{key}.png")
                if label is not None:
                    small = label[window][
                        BLOCK // SIDE // 2 :: BLOCK // SIDE, BLOCK // SIDE // 2 :: BLOCK // SIDE
                    ]
                    _save(Image.fromarray(small), out / "labels" / split / f"{key}.png")
                counts[split] += 1
    return counts


def split_of(key: str) -> str:
    """Return the split of a labelled block by its name."""
    return "val" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % VAL_SHARE == 0 else "train"


def _classes(path: Path, size: tuple[int, ...]) -> NDArray[np.uint8]:
    colors = read_image(path)
    if colors.shape[:2] != size:
        raise UnsupsegError(
            f"The label tile '{path}' is {colors.shape[1]}x{colors.shape[0]} pixels, its image {size[1]}x{size[0]}."
        )
    codes = (colors.astype(np.int64) * [1 << 16, 1 << 8, 1]).sum(-1)
    classes = np.full(codes.shape, _VOID, np.uint8)
    for (red, green, blue), number in _COLORS.items():
        classes[codes == (red << 16 | green << 8 | blue)] = number
    unknown = float((classes == _VOID).mean())
    if unknown > 0.01:  # single pixels of other colours are known in the official labels
        raise UnsupsegError(
            f"{unknown:.0%} of the label tile '{path}' have none of the six colours of ISPRS; take the labels of the "
            "folder 5_Labels_all, not those without boundaries."
        )
    return classes


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
