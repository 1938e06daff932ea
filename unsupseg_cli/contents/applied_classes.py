"""Stored label maps under the classes of another model that gives the same outputs: what a name or a merge changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.label_maps import LabelMaps
from unsupseg_cli.contents.model import ModelFile, read_model
from unsupseg_cli.contents.predictions import model_key
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.labels import VOID

LabelReader = Callable[[str], NDArray[np.int16]]
"""Returns the label map (H, W) of the image of a key: indices of classes."""

_SHOWN = ("keep", "overlay", "only")  # options of `predict` that change no label map


def reader_of(predictions: Artifact, model: Artifact, context: Context) -> LabelReader:
    """Return a function that reads the label maps of predictions as a model with other classes would give them.

    Raises:
        UsageError: the predictions were made by another training, their model is gone, or it merged classes that are
            apart in ``model``.
    """
    key = model_key(predictions, context)
    before = context.workspace.find_key("model", key) if key else None
    if before is None:
        raise UsageError(
            f"The model that made '{predictions.id}' is gone, so that nobody knows which clusters its classes are made "
            f"of: run `unsupseg predict --model {model.id}`."
        )
    if not _same_outputs(before, model):
        raise UsageError(
            f"'{predictions.id}' was made by '{before.id}', which is not '{model.id}' with other names, colours or "
            f"merged classes: run `unsupseg predict --model {model.id}`."
        )
    table = _table(read_model(before)[0], read_model(model)[0])
    if table is None:
        raise UsageError(
            f"'{before.id}', which made '{predictions.id}', merged classes that are apart in '{model.id}': apply it to "
            f"predictions of before that merge, or run `unsupseg predict --model {model.id}`."
        )
    return _reader(predictions, table)


def find_same_maps(
    identity: Identity, model: Artifact, context: Context
) -> tuple[Artifact, LabelReader] | None:
    """Return stored predictions from which those of an identity follow without a network, and what reads their maps.

    They are of the same images with the same options, by the same outputs under other names, colours or finer classes.
    """
    assert identity.data is not None
    for listed in reversed(context.workspace.listed("predictions")):
        stored = listed.open()
        manifest = stored.manifest
        if manifest.stage != identity.stage or manifest.stage_version != identity.stage_version:
            continue
        if manifest.data is None or manifest.data.fingerprint != identity.data.fingerprint:
            continue
        if manifest.key == identity.key or _deciding(manifest.config) != _deciding(identity.config):
            continue  # what is made again is not made from itself
        try:
            read = reader_of(stored, model, context)
        except UsageError:
            continue
        if not context.workspace.verify(stored):
            return stored, read
    return None


def _deciding(config: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in config.items() if name not in _SHOWN}


def _same_outputs(first: Artifact, second: Artifact) -> bool:
    """Tell whether two models are the same but for the classes that their outputs stand for."""
    classes: dict[str, object] = {"classes": [], "class_of": None}
    files = [read_model(model)[0].model_copy(update=classes) for model in (first, second)]
    weights = [model.manifest.outputs["model.safetensors"].sha256 for model in (first, second)]
    return files[0] == files[1] and weights[0] == weights[1]


def _table(before: ModelFile, after: ModelFile) -> NDArray[np.int16] | None:
    """Return the index in ``after`` of each class in ``before``, (K,); None where one of them became several."""
    pairs = set(zip(before.index_of_outputs, after.index_of_outputs, strict=True))
    if len(pairs) > len(before.classes):
        return None
    return np.array([new for _, new in sorted(pairs)], np.int16)


def _reader(predictions: Artifact, table: NDArray[np.int16]) -> LabelReader:
    maps, with_void = LabelMaps(predictions.path), np.append(table, np.int16(VOID))  # VOID is -1, the last

    def read(key: str) -> NDArray[np.int16]:
        labels: NDArray[np.int16] = with_void[maps.read(key)]
        return labels

    return read
