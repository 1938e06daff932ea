"""The number of classes: features -> a criterion over K, its picture, and sheets of a few K.

`classes scan` makes the artifact, and so does `--classes auto` of other stages; it is no command of its own.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.options import DeviceConfig
from unsupseg_cli.core.ports import ANY_MASKS, FEATURES
from unsupseg_cli.methods.declaration import Background
from unsupseg_cli.pipeline.stage import Call, Stage, perform, settle

if TYPE_CHECKING:
    from torch import Tensor

    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.contents.features import FeatureSet


class ScanConfig(DeviceConfig):
    """Look for the number of classes that some features have."""

    features: str | None = execution(
        None, "Features artifact; default: the last one.", argument=True, also=("--features",)
    )
    pseudolabels: str | None = execution(
        None, "Masks of objects before a background: the number is looked for within them."
    )
    masks: str | None = execution(None, "Imported masks of objects instead.")
    outside: Literal["auto", "background"] = setting(
        "auto", "What the masks given leave out: background, one class more; auto: if they are objects."
    )
    range: str = setting("4-30", "Numbers of classes that are tried, such as 4-30.")
    sample: int = setting(4000, "Most tokens that are clustered, drawn evenly over the images.", ge=100)
    sheet: int = execution(4, "Images on the sheet of each K.", ge=0)

    @field_validator("range")
    @classmethod
    def _is_a_range(cls, value: str) -> str:
        match = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", value)
        if match is None or not 2 <= int(match[1]) <= int(match[2]):
            raise ValueError("expected the least and the largest number, at least 2, such as 4-30")
        return f"{int(match[1])}-{int(match[2])}"

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return what is of masks where none are given."""
        return (
            {} if self.pseudolabels or self.masks else {"outside": "no --pseudolabels or --masks are given"}
        )

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of classes."""
        low, high = self.range.split("-")
        return int(low), int(high)


def identify(call: Call) -> Identity:
    """Return what decides the scan; raises UsageError for a range beyond the tokens."""
    from unsupseg_cli.contents.method_inputs import masks_of
    from unsupseg_cli.models.device import resolve_device

    features, data = call.input("features"), call.input("features").manifest.data
    _require_tokens(call)
    config = call.config.result()
    if masks_of(call.inputs) is None:
        del config["outside"]
    return Identity(
        kind="scan",
        stage="scan",
        stage_version=STAGE.version,
        slug=f"{data.dataset if data else 'images'}-classes{call.config.range}",
        config=config,
        inputs=call.described(),
        data=features.manifest.data,
        execution={"device": str(resolve_device(call.config.device))},
        used_labels=call.used_labels,
    )


def _require_tokens(call: Call) -> None:
    from unsupseg_cli.contents.features import foreseen_grids

    high, tokens = call.config.bounds[1], _tokens(foreseen_grids(call.input("features")))
    tokens = min(tokens, call.config.sample)
    if high * _TOKENS_OF_A_CLASS > tokens:
        most = tokens // _TOKENS_OF_A_CLASS
        advice = (
            f"end the range at {most}" if most >= call.config.bounds[0] else "extract more or larger images"
        )
        raise UsageError(
            f"--range {call.config.range} goes up to {high} classes, and there are {tokens:,} tokens in "
            f"'{call.input('features').id}' to tell them apart, fewer than {_TOKENS_OF_A_CLASS} for each: {advice}."
        )


def _tokens(grids: Any) -> int:
    return int(grids.prod(1).sum())


def auto_classes(
    features: Artifact, context: Context, masks: Artifact | None = None, background: Background = "none"
) -> int | str:
    """Return the number of classes behind `--classes auto`: the scan of the features is made, or reused.

    In a dry run it is `UNKNOWN` until there is such a scan.

    Args:
        features: that are clustered.
        context: the workspace.
        masks: of objects before a background: the classes are those of what they cover, and the background.
        background: see `Needs`.

    Raises:
        UsageError: the features have too few tokens for two classes.
    """
    from unsupseg_cli.contents.features import foreseen_grids

    low, high = ScanConfig().bounds
    most = min(high, _tokens(foreseen_grids(features)) // _TOKENS_OF_A_CLASS)
    if most < 2:
        raise UsageError(
            f"'{features.id}' has too few tokens for --classes auto: give a number, or more or larger images."
        )
    if most < high:
        context.reporter.info(f"few tokens: the number of classes is looked for up to {most}")
    config, inputs = ScanConfig(range=f"{min(low, most)}-{most}"), {"features": features}
    if masks is not None and background != "none":
        inputs[masks.manifest.kind] = masks
        outside = "background" if background == "outside" else "auto"
        config = config.model_copy(update={masks.manifest.kind: masks.id, "outside": outside})
    identity = identify(settle(STAGE, config, context, None, inputs))
    if context.workspace.has(identity):
        made = context.workspace.find_key("scan", identity.key)
    else:
        made = None if context.read_only else perform(STAGE, config, context, inputs=inputs)
    if made is None:
        return UNKNOWN
    classes = int(made.manifest.summary["classes"])
    context.reporter.info(f"--classes auto: {classes}, by '{made.id}'")
    return classes


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Cluster a sample of the tokens, or of those on objects, into each number of classes, and draw what comes out."""
    import torch

    from unsupseg_cli.clustering.class_number import scan
    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.contents.scan_sheet import draw_scan
    from unsupseg_cli.models.device import resolve_device
    from unsupseg_cli.training.tokens import draw_tokens

    config, context, device = call.config, call.context, resolve_device(call.config.device)
    draft.deterministic = device.type == "cpu"
    features = FeatureSet(call.input("features"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    objects = _objects(call, features)
    within = None if objects is None else torch.cat([cells.flatten() for cells in objects])
    sample, _ = draw_tokens(features, config.sample, _SEED, context.reporter, within)
    low, high = config.bounds if within is None else _bounds_within(call, len(sample))
    outcome = scan(sample.to(device), low, high, seed=_SEED, reporter=context.reporter)
    draw_scan(draft.folder, outcome, features, config.sheet, context, objects)
    summary: dict[str, Any] = {
        "classes": outcome.best,
        "components": outcome.components,
        "rows": outcome.rows(),
    }
    if objects is not None:  # one class more
        summary["classes"] += 1
        summary["rows"] = [{**row, "classes": row["classes"] + 1} for row in summary["rows"]]
    return {**summary, "background": objects is not None}


def _objects(call: Call, features: FeatureSet) -> list[Tensor] | None:
    """Return the cells of each view that are objects before a background, (h, w) bool; None where there is none.

    Raises:
        UsageError: the masks, which are said to be objects, cover nothing.
    """
    from unsupseg_cli.contents.method_inputs import read_any_masks
    from unsupseg_cli.data.foreground import find_foreground

    masks = read_any_masks(call.inputs, features, call.context)
    if masks is None:
        return None
    foreground = find_foreground(masks.labels, features.grids)
    if call.config.outside == "auto" and not foreground.objects:
        call.context.reporter.info("the masks are no objects before a background: all tokens are looked at")
        return None
    if not foreground.anything:
        raise UsageError("The masks cover nothing, so that there are no classes to look for; give others.")
    call.context.reporter.info(
        "the number of classes is looked for within the masks, and the background is one more"
    )
    return foreground.cells


def _bounds_within(call: Call, tokens: int) -> tuple[int, int]:
    """Return the range as far as the tokens that masks cover can tell classes apart.

    Raises:
        UnsupsegError: they are too few for two classes.
    """
    low, high = call.config.bounds
    most = min(high, tokens // _TOKENS_OF_A_CLASS)
    if most < 2:
        raise UnsupsegError(
            f"The masks cover {tokens} tokens, too few to look for a number of classes: give --classes, or other masks."
        )
    if most < high:
        call.context.reporter.info(
            f"few tokens lie within the masks: up to {most} classes are looked for in them"
        )
    return min(low, most), most


_TOKENS_OF_A_CLASS = 10
_SEED = 0  # the number of classes is one of the features, whatever the seed of what is made with it

STAGE = Stage(
    name="scan",
    config=ScanConfig,
    makes="scan",
    version=2,
    identify=identify,
    work=work,
    ports=(FEATURES, *(replace(port, optional=True, views=True) for port in ANY_MASKS)),
)
