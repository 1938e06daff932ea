"""The pictures of a report: images of predictions and evaluations in several views, as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.evaluation import read_assignment, read_legend, read_samples
from unsupseg_cli.contents.label_maps import LabelMaps, read_outputs
from unsupseg_cli.contents.native_masks import NativeMasks
from unsupseg_cli.contents.predictions import predicted_images
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.data.images import read_image
from unsupseg_cli.data.items import Item
from unsupseg_cli.report.overlay import blend, colorize
from unsupseg_cli.report.page import Picture, Slides
from unsupseg_cli.report.palette import UNMATCHED_COLOR, class_colors

SIDE = 480  # pixels of the longer side of a slide
SHOWN = 6  # images of a group of slides
_MOST = 3_400_000  # bytes of all pictures: as base64 a third more, so that the page stays below 5 MB
_NO_RESULTS = ("image", "errors", "truth")  # views that are not what was found
_FORMATS = ("PNG", "JPEG")

View = Callable[[str], NDArray[np.uint8]]
"""What shows an image, by its key, as a picture (H, W, 3)."""


class Album:
    """Pictures as data URIs, up to a size of all together; ``left_out`` names those beyond it and those gone."""

    def __init__(self, most: int = _MOST) -> None:
        self._room = most
        self.left_out: list[str] = []

    def add(
        self, picture: Path | NDArray[np.uint8] | Image.Image, alt: str, side: int = SIDE
    ) -> Picture | None:
        """Return a picture, its longer side at most ``side`` pixels; None if there is no room, or it is gone.

        Flat colours become PNG, everything else JPEG.
        """
        try:
            image = _opened(picture)
        except (OSError, ValueError, Image.DecompressionBombError):
            self.left_out.append(f"{alt}: the file of the picture is gone or damaged")
            return None
        data, kind = _encoded(image, side)
        if len(data) > self._room:
            self.left_out.append(f"{alt}: left out to keep the page small")
            return None
        self._room -= len(data)
        image.thumbnail((side, side))
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return Picture(source, image.width, image.height, alt)


def _opened(picture: Path | NDArray[np.uint8] | Image.Image) -> Image.Image:
    if isinstance(picture, Path):
        with Image.open(picture, formats=_FORMATS) as opened:
            return opened.convert("RGB")
    return (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).convert("RGB")


def _encoded(image: Image.Image, side: int) -> tuple[bytes, str]:
    """Return a picture as a file, and the type of the file."""
    flat = image.getcolors(256) is not None
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.NEAREST if flat else Image.Resampling.LANCZOS)
    if flat:
        small.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    else:
        small.save(buffer, "jpeg", quality=82, optimize=True)
    return buffer.getvalue(), "png" if flat else "jpeg"


def evaluation_slides(
    evaluations: Sequence[Artifact], views: Sequence[tuple[str, View]], names: Sequence[str], album: Album
) -> list[Slides]:
    """Return images of evaluations: image, further views, what was scored in each, errors of a single one, truth.

    The pictures of the evaluations are taken, for nothing but an evaluation opens label files.

    Args:
        evaluations: of the same images.
        views: shown behind the image.
        names: what is scored in each evaluation.
        album: takes the pictures.
    """
    samples = [dict(read_samples(evaluation)) for evaluation in evaluations]
    shared = [key for key in (samples[0] if samples else ()) if all(key in others for others in samples)]
    slides = []
    for key in _spread(shared):
        files = samples[0][key]
        pictures: list[tuple[str, Path | View]] = (
            [("image", files["image"]), *views] if "image" in files else [*views]
        )
        pictures += [
            (name, by_key[key]["prediction"])
            for name, by_key in zip(names, samples, strict=True)
            if "prediction" in by_key[key]
        ]
        last = ("errors", "truth") if len(evaluations) == 1 else ("truth",)
        pictures += [(name, files[name]) for name in last if name in files]
        slides.append(_slides(key, pictures, album))
    return [of_image for of_image in slides if of_image.views]


def prediction_slides(
    predictions: Artifact, views: Sequence[tuple[str, View]], context: Context, album: Album
) -> list[Slides]:
    """Return some images of predictions, evenly chosen: image and further views.

    Raises:
        UnsupsegError: the images are gone.
    """
    summary = predictions.manifest.summary
    images = predicted_images(predictions, context)
    keys = _spread([key for key in summary["keys"] if key not in summary["skipped"] and key in images])
    return [_slides(key, [("image", image_view(images)), *views], album) for key in keys]


def _slides(key: str, views: Sequence[tuple[str, Path | View]], album: Album) -> Slides:
    shown = []
    for name, view in views:
        alt = f"{name} of {key}"
        try:
            picture = album.add(view if isinstance(view, Path) else view(key), alt)
        except (UnsupsegError, OSError, KeyError):
            album.left_out.append(f"{alt}: it is gone")
            continue
        if picture is not None:
            shown.append((name, picture))
    results = [index for index, (name, _) in enumerate(shown) if name not in _NO_RESULTS]
    return Slides(key, shown, first=results[-1] if results else 0)


def _spread(keys: Sequence[str]) -> list[str]:
    """Return some keys, evenly chosen."""
    chosen = np.linspace(0, len(keys) - 1, min(SHOWN, len(keys))).round().astype(int)
    return [keys[index] for index in chosen]


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)


def image_view(images: dict[str, Item]) -> View:
    """Return a view of the images themselves."""
    return lambda key: _small(read_image(images[key].image, images[key].reading))


def prediction_view(predictions: Artifact, evaluation: Artifact | None = None) -> View:
    """Return a view of label maps, in the colours of their classes; of an evaluation's, if it tells them.

    Raises:
        UnsupsegError: the evaluation is of other clusters.
        OSError: the file of the classes is gone.
    """
    maps = LabelMaps(predictions.path)
    colors = np.array([entry.color for entry in maps.classes], np.uint8).reshape(-1, 3)
    if evaluation is not None and (legend := read_legend(evaluation)):
        own = np.array([*(rgb for _, rgb in legend), UNMATCHED_COLOR], np.uint8)
        ids, outputs = [entry.id for entry in maps.classes], read_outputs(predictions.path)
        colors = own[read_assignment(evaluation, ids, outputs, len(legend))]

    def view(key: str) -> NDArray[np.uint8]:
        labels = maps.read(key)
        step = max(1, max(labels.shape) // SIDE)
        return colorize(labels[::step, ::step], colors, void_color=UNMATCHED_COLOR)

    return view


def mask_slides(artifact: Artifact, context: Context, album: Album) -> list[Slides]:
    """Return some images with their masks, evenly chosen; raises UnsupsegError as `mask_view`."""
    masks = NativeMasks(artifact, context)
    images = {item.key: item for item in masks.items}
    views = [("image", image_view(images)), ("masks", _mask_view(masks))]
    return [_slides(key, views, album) for key in _spread(list(images))]


def mask_view(artifact: Artifact, context: Context) -> View:
    """Return a view of masks over their image: coloured by class, or one by one where they have none.

    Raises:
        UnsupsegError: the images, or the features that the masks were made from, are gone.
    """
    return _mask_view(NativeMasks(artifact, context))


def _mask_view(masks: NativeMasks) -> View:
    items, colors = {item.key: item for item in masks.items}, class_colors(256)

    def view(key: str) -> NDArray[np.uint8]:
        image = _small(read_image(items[key].image, items[key].reading))
        labels = np.full(image.shape[:2], VOID, np.int16)
        ordered = sorted(enumerate(masks(items[key], image.shape[:2])), key=lambda pair: pair[1].score)
        for number, mask in ordered:
            labels[mask.mask] = (number if mask.group < 0 else mask.group) % len(colors)
        return blend(image, labels, colors)

    return view
