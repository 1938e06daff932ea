"""Which features hold the very tokens that a model reads of a split, so that no backbone need run."""

from __future__ import annotations

import shlex
from typing import Any

from unsupseg_cli.artifacts.identity import UNKNOWN
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.backbone import TOKEN_FIELDS
from unsupseg_cli.contents.features import stored_geometry
from unsupseg_cli.contents.images import reading_of, same_images
from unsupseg_cli.contents.model import BackboneRef, read_model
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.reading import Reading


def require_tokens(
    features: Artifact, model: Artifact, data: DataSource, geometry: Geometry, *, flip: bool
) -> None:
    """Refuse features that are not what a model would read of some images by itself.

    Args:
        features: whose tokens are to be read.
        model: reads them; one that a dry run promises is not looked at.
        data: the images.
        geometry: how they become views.
        flip: whether mirror images are read too.

    Raises:
        UsageError: they are of other images, views, weights or options; the message says of which, and how to make
            those that fit.
    """
    if not model.is_made or not features.is_made:
        return
    backbone = read_model(model)[0].backbone
    if backbone is None:
        raise UsageError(
            f"The model '{model.id}' stands on no backbone: it reads the images, so leave --features out."
        )
    differences = _differences(features, model, backbone, data, geometry, flip)
    if differences:
        raise UsageError(
            f"The features '{features.id}' are not those that the model '{model.id}' reads here: "
            f"{'; '.join(differences)}. Those that fit: {_command(model, backbone, data, geometry, flip)}"
        )


def _differences(
    features: Artifact,
    model: Artifact,
    backbone: BackboneRef,
    data: DataSource,
    geometry: Geometry,
    flip: bool,
) -> list[str]:
    """Return in what features differ from what is read, a phrase each."""
    config, summary, theirs = features.manifest.config, features.manifest.summary, features.manifest.data
    if features.input("model") is not None:
        return ["they are codes of a model, and tokens of its backbone are read"]
    differences = []
    if theirs is not None and UNKNOWN not in (theirs.fingerprint, data.fingerprint):
        if theirs.fingerprint != data.fingerprint:
            ours, named = f"{data.dataset}/{data.split}", f"{theirs.dataset}/{theirs.split}"
            differences.append(
                f"of other images than those of {ours} here: changed since, or chosen otherwise"
                if ours == named
                else f"of other images ({named}, not {ours})"
            )
        elif reading_of(features) != reading_of(model):
            differences.append("images read with other --bands or --stretch")
    for name, value in _token_options(backbone).items():
        made_with = config.get(name, BackboneRef.model_fields[name].default)
        if made_with != value:
            differences.append(f"--{name.replace('_', '-')} {_word(made_with)} instead of {_word(value)}")
    if summary["weights_digest"] != backbone.weights_digest:
        differences.append(f"other weights ('{config['backbone']}', not those of '{backbone.name}')")
    own = Geometry(**stored_geometry(config))
    if (own.kind, own.size, own.filter) != (geometry.kind, geometry.size, geometry.filter):
        differences.append(f"views {_told(own)} instead of {_told(geometry)}")
    if flip and not config.get("flip", False):
        differences.append("no mirror images")
    return differences


def _token_options(backbone: BackboneRef) -> dict[str, Any]:
    """Return the options of `extract` that decide a backbone's tokens, as they are stored."""
    return backbone.model_dump(mode="json", include={*TOKEN_FIELDS})


def _word(value: Any) -> str:
    """Return the value of an option as it is given on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _told(geometry: Geometry) -> str:
    size = geometry.size
    sides = "x".join(map(str, size)) if isinstance(size, tuple) else str(size or 0)
    return f"{geometry.kind} {sides} {geometry.filter}"


def _command(model: Artifact, backbone: BackboneRef, data: DataSource, geometry: Geometry, flip: bool) -> str:
    """Return the call that makes the features that fit."""
    if isinstance(geometry.size, tuple):
        return "none, views of two given sides are not stored; leave --features out"
    words = ["unsupseg extract --dataset", shlex.quote(str(same_images(data)["dataset"]))]
    words += [f"--split {data.split}"] if data.split != "all" else []
    words += [f"--backbone {backbone.name} --geometry {geometry.kind} --size {geometry.size or 0}"]
    words += [f"--filter {geometry.filter}"]
    for name, value in _token_options(backbone).items():
        if value != BackboneRef.model_fields[name].default:
            words.append("--no-norm" if name == "norm" else f"--{name.replace('_', '-')} {_word(value)}")
    reading = reading_of(model)
    if reading != Reading():
        words.append("(with the --bands and --stretch of the model's features)")
    return f"`{' '.join([*words, '--flip'] if flip else words)}`"
