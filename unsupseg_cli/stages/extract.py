"""extract: Images -> features of a frozen backbone or codes of a model, of whole images or of regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.core.bounds import LONGEST_SIDE
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import (
    CROPS,
    INT8_ARRAYS,
    WHOLE_VIEWS,
    BatchConfig,
    Directions,
    DividedConfig,
    GeometryName,
    Layer,
    NamedImagesConfig,
    PixelConfig,
    Precision,
    RegionConfig,
    ResizeFilter,
    StoreDtype,
    split,
)
from unsupseg_cli.core.ports import ANY_MASKS, FEATURES, Port
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.core.words import counted
from unsupseg_cli.pipeline.extraction_input import (
    backbone_of,
    device_of,
    found_in,
    geometry_of,
    images_of,
    kept_arrays,
    layout_of,
    network_of,
    token_fields,
    weights_of,
)
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.manifest import DataSource
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.backbone import BackboneInfo
    from unsupseg_cli.inference.extraction import Extraction

_ARRAYS = ("patch", "cls", "pooled", "attention", "query", "key", "cls_query")


class ExtractConfig(NamedImagesConfig, BatchConfig, DividedConfig, PixelConfig, RegionConfig):
    """Run a frozen backbone over the images, or over regions of them, and store its features.

    ``store`` does not enter the key: it says how the bytes lie on disk, not what they say, so that whatever was
    made from the features of one store is also what the other's would give. The digest of the artifact is
    that of the arrays before they are packed, equal for both.
    """

    model: str | None = execution(
        None, "Store the codes of this model, or file of `export`, not a backbone's tokens."
    )
    features: str | None = execution(None, "Features for --regions anchors; default: the last ones.")
    pseudolabels: str | None = execution(None, "Pseudo-labels for --regions masks; default: the last ones.")
    masks: str | None = execution(None, "Imported masks instead of pseudo-labels, for --regions masks.")
    backbone: str = setting(
        "auto",
        "Backbone name (`unsupseg backbones list`), or a `backbone` artifact; auto: of regions that of the features.",
    )
    weights: Path | None = execution(None, "Weights file (.safetensors, or the original .pth).")
    geometry: GeometryName = setting("native", "How an image becomes views: native keeps it whole.")
    size: int | None = setting(
        320,
        "Length of a view's shorter side in pixels, of regions of both sides; 0 keeps the image's, or the box's.",
        ge=0,
        le=LONGEST_SIDE,
    )
    ratios: tuple[float, ...] = setting(
        (0.5,), "Sides of five- and ten-crops over the image's; several, such as 0.5,0.8, for several scales."
    )
    filter: ResizeFilter = setting(
        "bilinear",
        "Filter of the resize, as Pillow does it; tensor: bilinear as torch does it, without antialiasing.",
    )
    flip: bool = setting(
        False, "Also embed the mirror image of each view, which `eval --features` and `predict` average with."
    )
    layer: Layer = setting(
        -1,
        "Block whose tokens are kept, -1 is the last; several, such as -1,-3, side by side. All else is the deepest's.",
    )
    norm: bool = setting(True, "Apply the backbone's final norm to the tokens.")
    pos_embed: Literal["original", "timm"] = setting("original", "How position embeddings are interpolated.")
    position: float = setting(
        0.0,
        "Append each token's place in the image, this many times as long as the token: for collections with one "
        "point of view, such as street scenes. 0 leaves it out.",
        ge=0,
        le=10,
    )
    debias: Directions | None = setting(
        None,
        "Directions of the tokens' place that are taken out of them: for collections without up and down, such as "
        "aerial images. auto: 20 of these where little that place tells is left without them; default: auto with "
        "--windows, else 0.",
    )
    keep: tuple[str, ...] | None = setting(
        None, f"What is stored: {', '.join(_ARRAYS)}; default: patch,cls,pooled, of regions cls,pooled."
    )
    precision: Precision = setting("auto", "Arithmetic of the backbone; auto: bf16 where the device has it.")
    store_dtype: StoreDtype = setting(
        "float16",
        "Type of the stored tokens; int8: half the room, with a scale and a zero for each channel of a view.",
    )
    store: Literal["zarr", "hdf5"] = execution(
        "zarr", "Files of the arrays: zarr shards, or one HDF5 file (packed at the end)."
    )

    @field_validator("keep", "ratios", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split(value)

    @field_validator("keep")
    @classmethod
    def _known_arrays(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not value or set(value) - set(_ARRAYS):
            raise ValueError(f"expected some of {', '.join(_ARRAYS)}, separated by commas")
        return tuple(name for name in _ARRAYS if name in value)

    @model_validator(mode="after")
    def _whole_views(self) -> ExtractConfig:
        if self.position and self.regions is not None:
            raise ValueError("--position needs views of whole images, not --regions")
        if self.position and self.geometry not in WHOLE_VIEWS:
            raise ValueError(
                "--position needs views of whole images: --geometry "
                f"{' or '.join(WHOLE_VIEWS)}, not {self.geometry}"
            )
        return self

    @model_validator(mode="after")
    def _mirrored_once(self) -> ExtractConfig:
        if self.flip and self.position:
            raise ValueError("--flip and --position do not go together: a mirror image shows other places")
        if self.flip and self.geometry == "ten-crop" and self.regions is None:
            raise ValueError("--geometry ten-crop holds mirror images already; leave --flip out")
        return self

    @model_validator(mode="after")
    def _maskable(self) -> ExtractConfig:
        if self.regions is None or self.embed == "crop":
            return self
        if self.geometry not in WHOLE_VIEWS:
            raise ValueError(
                f"--embed masked needs --geometry {' or '.join(WHOLE_VIEWS)}, not {self.geometry}"
            )
        if self.model is not None:
            raise ValueError("--embed masked gives CLS tokens of a backbone, not codes of a --model")
        return self

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of other geometries and regions, and of a backbone where a model is given."""
        unread = self.unread_of_regions() | self.unread_of_images() | self.unread_of_executor()
        if self.geometry not in CROPS:
            unread["ratios"] = f"it is read with --geometry {' or '.join(CROPS)}, not {self.geometry}"
        if self.regions is not None and self.embed == "crop":
            unread |= dict.fromkeys(("geometry", "ratios"), "regions are squares of --size")
        if self.regions is not None:
            unread["flip"] = "it is of whole images, not of --regions"
        read = {
            port.role for port in _reads({"regions": self.regions, "foreground_share": self.foreground_share})
        }
        if read & {"features", "pseudolabels", "masks"}:
            unread |= dict.fromkeys(
                ("bands", "stretch"), "images are read as those that the regions are found in"
            )
        for role, kind in (("features", "anchors"), ("pseudolabels", "masks"), ("masks", "masks")):
            if role not in read:
                unread[role] = f"it is read with --regions {kind}"
        if self.model is not None:
            unread |= dict.fromkeys(
                ("bands", "stretch"), "images are read as those that the model was trained on"
            )
            unread["keep"] = "the codes of a model are stored as patch and pooled, of regions as pooled"
            options = ("backbone", "layer", "norm", "pos_embed", "position", "debias")
            unread |= dict.fromkeys(options, "the model brings its backbone and how its tokens are made")
        elif self.regions is not None and self.embed == "masked":
            unread["keep"] = "of masked regions the CLS token is stored"
        if not self._stores_tokens():
            unread["store_dtype"] = f"it is of {', '.join(INT8_ARRAYS)}, of which none is stored"
        return unread

    def _stores_tokens(self) -> bool:
        """Return whether an array is stored that may be int8."""
        if self.regions is None:
            return self.model is not None or bool({*INT8_ARRAYS} & {*(self.keep or INT8_ARRAYS)})
        return self.embed == "crop" and self.model is None and bool({*INT8_ARRAYS} & {*(self.keep or ())})


def _reads(values: Mapping[str, Any]) -> tuple[Port, ...]:
    """Return what is read with some values of the options."""
    model = Port("model", "model", optional=True)
    if values.get("regions") == "masks":
        return (model, *ANY_MASKS)
    if values.get("regions") == "anchors" and float(values.get("foreground_share", 1)) > 0:
        return (model, FEATURES)
    return (model,)


def identify(call: Call) -> Identity:
    """Return what decides the features."""
    from unsupseg_cli.contents.digests import remember_weights
    from unsupseg_cli.contents.images import identify_images
    from unsupseg_cli.inference.extraction import default_batch
    from unsupseg_cli.models.backbone import resolve_precision

    config, device, model = call.config, device_of(call), call.inputs.get("model")
    dataset = images_of(call)  # before the weights: that there are no images is found in no time
    info, tokens, weights = backbone_of(call), token_fields(call), weights_of(call)
    if weights is not None and info.digest != UNKNOWN:
        remember_weights(info.name, weights, info.digest, call.context)
    data = identify_images(dataset, call.context)
    _require_same_images(call, data)
    slug = f"{data.dataset}-{data.split}-{model.manifest.config['method'] if model else info.name}"
    return Identity(
        kind="features" if config.regions is None else "regions",
        stage="extract",
        stage_version=STAGE.version,
        slug=slug if config.regions is None else f"{slug}-{config.regions}",
        config={
            **_read_options(config),
            **({"reading": data.reading} if data.reading else {}),
            **{
                name: value for name, value in tokens.items() if (name, value) != ("debias", 0)
            },  # as before it
            "backbone": info.name,
            "precision": resolve_precision(config.precision, device),
            "keep": list(kept_arrays(call)),
        },
        inputs=call.described(),
        data=data,
        weights=info.digest,
        execution={
            "device": str(device),
            "weights": str(weights.absolute()) if weights else "",
            "batch_size": config.batch_size or default_batch(device),
            "store": config.store,
        },
        used_labels=call.used_labels,
    )


def _read_options(config: ExtractConfig) -> dict[str, Any]:
    """Return the options that decide the result: of regions those that are read, of whole images all others."""
    options = config.result()
    unread = config.unread() if config.regions is not None else RegionConfig.model_fields
    left_out = {*unread, *PixelConfig.model_fields, "debias"}  # these enter as they were settled
    # Features of before these options have the same keys.
    left_out |= set() if config.flip else {"flip"}
    left_out |= {"store_dtype"} if config.store_dtype == "float16" else set()
    return {name: value for name, value in options.items() if name not in left_out}


def _require_same_images(call: Call, data: DataSource) -> None:
    """Raise UsageError where regions are found in artifacts of other images."""
    source = found_in(call)
    theirs = source.manifest.data if source else None
    if source is None or theirs is None or UNKNOWN in (theirs.fingerprint, data.fingerprint):
        return
    if theirs.fingerprint != data.fingerprint:
        raise UsageError(
            f"'{source.id}' was made from other images ({theirs.dataset}, {theirs.split}: {theirs.count}) than "
            f"those named ({data.dataset}, {data.split}: {data.count}); leave --dataset out, or name what "
            "belongs to it."
        )


def foresee(call: Call) -> Foreseen:
    """Return the summary as far as later stages need it, and the bytes of the arrays."""
    import numpy as np

    from unsupseg_cli.artifacts.grids import array_bytes
    from unsupseg_cli.contents.features import grid_dtypes

    info = backbone_of(call)
    grids = _foreseen_grids(call, info)
    of_model = "model" in call.inputs
    pooled = info.dim if of_model or isinstance(call.config.layer, int) else info.dim * len(call.config.layer)
    placed = pooled + 2 if call.config.position and not of_model else pooled
    size, dtypes, row = 0, grid_dtypes(call.config.store_dtype), np.dtype(np.float32).itemsize
    for array in kept_arrays(call):
        if array in dtypes:
            channels = {"attention": info.dim // _HEAD_DIM, "patch": placed}.get(array, info.dim)
            size += array_bytes(grids, (channels,), dtypes[array])
            size += 2 * len(grids) * channels * row if dtypes[array] == np.int8 else 0  # scale and zero
        else:
            size += len(grids) * (pooled if array == "pooled" else info.dim) * row
    summary = {
        "views": len(grids),
        "dim": placed,
        "patch_size": info.patch_size,
        "weights_digest": info.digest,
    }
    return Foreseen({**summary, "grids": grids}, size)


def _foreseen_grids(call: Call, info: BackboneInfo) -> NDArray[np.int64]:
    """Return the token grid of each view, (N, 2); of regions that are not known yet, of as many as there may be."""
    import numpy as np

    from unsupseg_cli.artifacts.arrays import has_array
    from unsupseg_cli.artifacts.grids import GridReader
    from unsupseg_cli.contents.features import foreseen_grids
    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.data.geometry import snap
    from unsupseg_cli.inference.extraction import lay_out_views, require_bounded
    from unsupseg_cli.inference.regions import lay_out_regions, most_anchors

    config, dataset, context = call.config, images_of(call), call.context
    existing = context.workspace.find_key("features", identify(call).key)
    if existing is not None and has_array(existing.path / "patch"):
        return GridReader(existing.path, "patch").grids
    made = all(artifact.is_made for artifact in call.inputs.values())
    if config.regions is not None and not made:
        count = 0
        if config.regions == "anchors":
            count = most_anchors(foreseen_grids(call.input("features")), config.scales)
        bound = f"at most {count:,}" if count else "an unknown number of"
        context.reporter.info(
            f"{bound} regions of {counted(len(dataset.items), 'image')}: more is known with their input"
        )
        return np.full((count, 2), snap(config.size or 0, info.patch_size) // info.patch_size)
    context.reporter.info(f"reading the sizes of {counted(len(dataset.items), 'image')}")
    skipped = Skipped(context, config.strict)
    if config.regions is None:
        layout = lay_out_views(dataset, geometry_of(call), info.patch_size, skipped, flip=config.flip)
        require_bounded(layout, info.patch_size, context.reporter)
        return layout.views.grids(info.patch_size)
    views = lay_out_regions(
        dataset,
        config,
        call.inputs,
        call.context,
        config.size or None,
        config.filter,
        info.patch_size,
        skipped,
    ).views
    forwards = len(views) if config.embed == "crop" else len(np.unique(views.item))
    context.reporter.info(
        f"{counted(len(views), 'region')} of {counted(len(dataset.items), 'image')}, {counted(forwards, 'forward')}"
    )
    return views.grids(info.patch_size)


def finish(call: Call, features: Artifact) -> None:
    """Say so where the features lie in another store than the one asked for."""
    store = call.config.store
    if (stored := features.manifest.execution.get("store", store)) != store:
        call.context.reporter.info(
            f"'{features.id}' is stored as {stored}; --force --store {store} makes it again"
        )


def parts(call: Call, draft: Draft) -> Extraction:
    """Open the work on all images, or on all regions."""
    from unsupseg_cli.inference.extraction import Extraction
    from unsupseg_cli.inference.masked import MaskedExtraction

    config = call.config
    kind = MaskedExtraction if config.regions is not None and config.embed == "masked" else Extraction
    return kind(
        draft,
        call.context,
        layout_of(call),
        network_of(call),
        strict=config.strict,
        store=config.store,
        store_dtype=config.store_dtype,
        batch_size=config.batch_size,
        workers=config.workers,
        shard=parse_shard(config.shard),
    )


_HEAD_DIM = 64  # channels of an attention head: the same in every ViT of `backbones list`

STAGE = Stage(
    name="extract",
    config=ExtractConfig,
    makes="features",
    version=2,
    identify=identify,
    parts=parts,
    also={"regions": "regions"},
    ports=(Port("model", "model", optional=True), FEATURES, *ANY_MASKS),
    reads=_reads,
    foresee=foresee,
    finish=finish,
)
