"""The number of classes: features -> a criterion over K, its picture, and sheets of a few K.

`classes scan` makes the artifact, and so does `--classes auto` of other stages; it is no command of its own.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from unsupseg_cli.artifacts.identity import UNKNOWN, Identity
from unsupseg_cli.core.config import execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import DeviceConfig
from unsupseg_cli.core.ports import FEATURES
from unsupseg_cli.pipeline.stage import Call, Stage, perform, settle

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact


class ScanConfig(DeviceConfig):
    """Look for the number of classes that some features have."""

    features: str | None = execution(
        None, "Features artifact; default: the last one.", argument=True, also=("--features",)
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

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of classes."""
        low, high = self.range.split("-")
        return int(low), int(high)


def identify(call: Call) -> Identity:
    """Return what decides the scan; raises UsageError for a range beyond the tokens."""
    from unsupseg_cli.models.device import resolve_device

    features, data = call.input("features"), call.input("features").manifest.data
    _require_tokens(call)
    return Identity(
        kind="scan",
        stage="scan",
        stage_version=STAGE.version,
        slug=f"{data.dataset if data else 'images'}-classes{call.config.range}",
        config=call.config.result(),
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


def auto_classes(features: Artifact, context: Context) -> int | str:
    """Return the number of classes behind `--classes auto`: the scan of the features is made, or reused.

    In a dry run it is `UNKNOWN` until there is such a scan.

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
    """Cluster samples of the tokens into each number of classes, and draw what comes out."""
    import torch

    from unsupseg_cli.clustering.class_number import scan
    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.contents.scan_sheet import draw_scan
    from unsupseg_cli.models.device import resolve_device
    from unsupseg_cli.training.tokens import sample_tokens

    config, context, device = call.config, call.context, resolve_device(call.config.device)
    draft.deterministic = device.type == "cpu"
    features = FeatureSet(call.input("features"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    sample = sample_tokens(features, config.sample, _SEED, context.reporter).to(device)
    outcome = scan(sample, *config.bounds, seed=_SEED, reporter=context.reporter)
    draw_scan(draft.folder, outcome, features, config.sheet, context)
    return {"classes": outcome.best, "components": outcome.components, "rows": outcome.rows()}


_TOKENS_OF_A_CLASS = 10
_SEED = 0  # the number of classes is one of the features, whatever the seed of what is made with it

STAGE = Stage(
    name="scan",
    config=ScanConfig,
    makes="scan",
    version=1,
    identify=identify,
    work=work,
    ports=(FEATURES,),
)
