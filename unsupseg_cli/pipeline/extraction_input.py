"""What a call of `extract` works with: the images, the views or regions of them, the network that embeds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import WHOLE_VIEWS
from unsupseg_cli.pipeline.model_input import opened_model
from unsupseg_cli.pipeline.stage import Call, once

if TYPE_CHECKING:
    import torch

    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.backbone import BackboneInfo
    from unsupseg_cli.contents.model import BackboneRef, OpenModel
    from unsupseg_cli.data.datasets import Dataset
    from unsupseg_cli.data.geometry import Geometry
    from unsupseg_cli.inference.extraction import Layout, Network


@once
def device_of(call: Call) -> torch.device:
    """Return the device."""
    from unsupseg_cli.models.device import resolve_device

    return resolve_device(call.config.device)


@once
def images_of(call: Call) -> Dataset:
    """Return the images: those named, else those of what regions are found in."""
    from unsupseg_cli.contents.images import open_data, open_paths, require_videos, settle_pixels
    from unsupseg_cli.data.rasters import Windows
    from unsupseg_cli.data.reading import Reading

    config, source = call.config, found_in(call)
    data = source.manifest.data if source else None
    if config.dataset is None and data is not None:
        config = config.model_copy(update={"split": data.split})
    windows = Windows(config.windows, whole=True) if config.windows else None
    if config.images:
        require_videos(config.images, config.step)
        given = (config.images, call.context, None, config.strict, config.pages, windows, config.step)
        dataset = open_paths(*given)
    else:
        dataset = open_data(config, call.context, source=data, windows=windows)
    if (before := call.inputs.get("model") or source) is not None:
        return settle_pixels(dataset, call.context, before)
    return settle_pixels(dataset, call.context, Reading(config.bands or ()), config.stretch)


def found_in(call: Call) -> Artifact | None:
    """Return the artifact that regions are found in, if they are found in one."""
    return next(
        (call.inputs[role] for role in ("features", "pseudolabels", "masks") if role in call.inputs), None
    )


@once
def features_behind_regions(call: Call) -> Artifact | None:
    """Return the features that regions are found in, or that their masks were made from."""
    from unsupseg_cli.contents.features import features_behind

    labels = call.inputs.get("pseudolabels")
    return features_behind(labels, call.context) if labels else call.inputs.get("features")


@once
def weights_of(call: Call) -> Path | None:
    """Return the file of the weights: the one named, else the one of the features that give the backbone."""
    config, source = call.config, features_behind_regions(call)
    if config.weights is not None or config.backbone != "auto" or source is None or "model" in call.inputs:
        weights: Path | None = config.weights
        return weights
    return Path(used) if (used := source.manifest.execution.get("weights")) else None


def backbone_name(call: Call) -> str:
    """Return the backbone: the one named, else that of the features, else the default."""
    from unsupseg_cli.models.backbones import default_backbone

    config, source = call.config, features_behind_regions(call)
    if config.backbone != "auto":
        return str(config.backbone)
    return str(source.manifest.config["backbone"]) if source else default_backbone()


@once
def layout_of(call: Call) -> Layout:
    """Return the views of the images, or the regions."""
    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.inference.extraction import lay_out_views, require_bounded
    from unsupseg_cli.inference.regions import lay_out_regions

    config, patch = call.config, network_of(call).backbone.patch_size
    skipped = Skipped(call.context, config.strict)
    if config.regions is None:
        layout = lay_out_views(images_of(call), geometry_of(call), patch, skipped, flip=config.flip)
        require_bounded(layout, patch, call.context.reporter)
        return layout
    return lay_out_regions(
        images_of(call),
        config,
        call.inputs,
        call.context,
        config.size or None,
        config.filter,
        patch,
        skipped,
        geometry_of(call) if config.embed == "masked" else None,
    )


def geometry_of(call: Call) -> Geometry:
    """Return how an image becomes views."""
    from unsupseg_cli.data.geometry import Geometry

    config = call.config
    return Geometry(
        kind=config.geometry, size=config.size or None, filter=config.filter, ratios=config.ratios
    )


def kept_arrays(call: Call) -> tuple[str, ...]:
    """Return the arrays that are stored: those named, else the default of whole images or of regions."""
    whole = call.config.regions is None
    if "model" in call.inputs:
        return ("patch", "pooled") if whole else ("pooled",)
    if not whole and call.config.embed == "masked":
        return ("cls",)
    return call.config.keep or (("patch", "cls", "pooled") if whole else ("cls", "pooled"))


@once
def backbone_of(call: Call) -> BackboneInfo:
    """Describe what gives the tokens or codes: in a dry run without loading its weights."""
    from unsupseg_cli.contents.backbone import BackboneInfo, known_backbone
    from unsupseg_cli.contents.model import code_channels, features_of

    context, model = call.context, call.inputs.get("model")
    if not context.read_only:
        backbone = network_of(call).backbone
        return BackboneInfo(backbone.name, backbone.weights_digest, backbone.patch_size, backbone.dim)
    if model is None:
        return known_backbone(backbone_name(call), weights_of(call), context)
    manifest = features_of(model, context).manifest
    return BackboneInfo(
        manifest.config["backbone"],
        manifest.summary["weights_digest"],
        manifest.summary["patch_size"],
        code_channels(model, context),
    )


@once
def token_fields(call: Call) -> dict[str, Any]:
    """Return the options that decide a backbone's tokens: under a model, those that it was trained with."""
    from unsupseg_cli.contents.backbone import TOKEN_FIELDS
    from unsupseg_cli.contents.model import features_of

    given = call.config.result()
    options = {name: given[name] for name in TOKEN_FIELDS}
    if "model" not in call.inputs:
        return {**options, "debias": _settled_debias(call)}
    if not call.context.read_only:
        ref = _model(call).file.backbone
        assert ref is not None
        return ref.model_dump(mode="json", include={*TOKEN_FIELDS})
    config = features_of(call.input("model"), call.context).manifest.config
    return {name: config.get(name, value) for name, value in options.items()} | {
        "debias": config.get("debias", 0)
    }


def _settled_debias(call: Call) -> int | str:
    """Return how many directions of place are taken out of the tokens, and tell what ``auto`` chose.

    In a dry run it is `UNKNOWN` until it was chosen once.
    """
    from unsupseg_cli.artifacts.identity import UNKNOWN
    from unsupseg_cli.contents.backbone import adds_places
    from unsupseg_cli.data.placement import ENOUGH_IMAGES
    from unsupseg_cli.inference.placement import DIRECTIONS, LEAST_SHARE

    wanted, say = call.config.debias, call.context.reporter.info
    if wanted is None:
        wanted = "auto" if call.config.windows else 0
    if wanted != "auto":
        return int(wanted)
    if not adds_places(backbone_name(call), weights_of(call), call.context):
        say("debias: this backbone adds no place to its tokens, they stay as they are")
        return 0
    enough = len(images_of(call).items) >= ENOUGH_IMAGES
    share = _place_in_tokens(call) if enough else None
    if share is None and enough and call.context.read_only:
        return UNKNOWN
    if share is None:
        say(f"debias: fewer than {ENOUGH_IMAGES} images, tokens stay as they are")
        return 0
    out = share < LEAST_SHARE
    say(
        f"debias: without the {DIRECTIONS} directions of their place, place tells {100 * max(share, 0):.0f} % of the "
        f"tokens' variance within images, {'they are taken out' if out else 'tokens stay as they are'}"
    )
    return DIRECTIONS if out else 0


def _place_in_tokens(call: Call) -> float | None:
    """Return how much of the tokens, without the directions of their place, place tells.

    It is remembered, since all processes and later calls are to choose alike. None of too few readable images, and in a
    dry run before it was found once.
    """
    from unsupseg_cli.artifacts.canonical import digest_json
    from unsupseg_cli.artifacts.context import PLACES
    from unsupseg_cli.contents.backbone import known_backbone, load_frozen
    from unsupseg_cli.contents.images import identify_images
    from unsupseg_cli.inference.placement import DIRECTIONS, place_in_tokens

    context, name, weights = call.context, backbone_name(call), weights_of(call)
    images, given = images_of(call), call.config.result()
    fields = {"layer": given["layer"], "norm": given["norm"], "pos_embed": given["pos_embed"]}
    fields |= {"position": 0.0, "debias": DIRECTIONS}
    of_images = identify_images(images, context).fingerprint

    def key(digest: str) -> str:
        return digest_json([name, digest, fields, of_images])

    remembered = context.remembered(PLACES)
    if isinstance(share := remembered.get(key(known_backbone(name, weights, context).digest)), float):
        return share
    if context.read_only:
        return None
    backbone = load_frozen(name, weights, fields, context, device_of(call), "fp32")
    share = place_in_tokens(backbone, images.items, device_of(call), context.reporter)
    if share is not None:
        context.remember(PLACES, {**remembered, key(backbone.weights_digest): share})
    return share


@once
def _model(call: Call) -> OpenModel:
    from unsupseg_cli.contents.model import read_model, require_codes

    model = call.input("model")
    file = read_model(model)[0]
    require_codes(model, file)
    assert file.backbone is not None
    _require_model_tokens(call.config, file.backbone, model)
    return opened_model(call)


@once
def network_of(call: Call) -> Network:
    """Return what embeds the images: a model's codes, or a backbone's arrays."""
    import torch.nn.functional as F

    from unsupseg_cli.contents.backbone import load_frozen
    from unsupseg_cli.inference.extraction import Network

    config, device, keep = call.config, device_of(call), kept_arrays(call)
    if "model" in call.inputs:
        linear = _model(call).require_codes()

        def codes(images: torch.Tensor) -> dict[str, torch.Tensor]:
            patch = linear.codes(linear.look(images).arrays["patch"])
            arrays = {"patch": patch, "pooled": F.normalize(patch.flatten(1, 2).mean(1), dim=-1)}
            return {name: arrays[name] for name in keep}

        assert linear.backbone is not None
        return Network(linear.backbone, codes, keep, device)
    fields = token_fields(call)
    backbone = load_frozen(
        backbone_name(call), weights_of(call), fields, call.context, device, config.precision
    )

    def tokens(images: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = backbone.normalise(images.to(device, non_blocking=True))
        arrays: dict[str, torch.Tensor] = backbone(batch, keep=keep)
        return arrays

    return Network(backbone, tokens, keep, device)


def _require_model_tokens(config: Any, backbone: BackboneRef, model: Artifact) -> None:
    """Refuse views that do not go with the tokens that a model was trained on."""
    whole = config.geometry in WHOLE_VIEWS and config.regions is None
    if backbone.position and not whole:
        raise UsageError(
            f"The tokens of '{model.id}' carry their place, which needs views of whole images: --geometry "
            f"{' or '.join(WHOLE_VIEWS)}, and no --regions."
        )
