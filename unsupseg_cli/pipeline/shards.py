"""An artifact that several processes make: each its shard of the parts, and the last one publishes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.pipeline import stage as stages
from unsupseg_cli.pipeline.stage import Call, perform
from unsupseg_cli.pipeline.table import get_stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_fabric import Fabric

    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.draft import Draft, SharedWork
    from unsupseg_cli.artifacts.identity import Identity
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.core.config import Config
    from unsupseg_cli.methods.declaration import MethodOptions


def produce_divided(call: Call, identity: Identity) -> tuple[Artifact | None, bool]:
    """Make an artifact in this process, in several of this machine (--devices), or one shard of it (--shard).

    Returns:
        the artifact, or None while other shards are missing; and whether it was there.

    Raises:
        UsageError: --devices or --shard with --force, or both of them.
    """
    config, context = call.config, call.context
    if config.shard is not None:
        return _produce_shard(call, identity)
    launched = config.devices > 1 and not context.workspace.has(identity)
    if launched:
        from unsupseg_cli.models.device import resolve_device
        from unsupseg_cli.training.launch import launch

        _refuse_force(context, "--devices")
        launch(
            _perform_on_device,
            *(call.stage.name, config, context, call.options, dict(call.inputs)),
            accelerator=resolve_device(config.device).type,
            devices=config.devices,
        )
    artifact, reused = stages.produce(call, identity)
    return artifact, reused and not launched


def _produce_shard(call: Call, identity: Identity) -> tuple[Artifact | None, bool]:
    """Make one of several processes' shard of an artifact.

    The processes (or machines with a common disk whose file locks work) run independently, each with its own i
    and otherwise equal options. Whichever finishes last publishes the artifact, which is the same as that of
    one process. A shard that died is made by calling it again, or by a call without shards, which goes on with all
    that is finished.
    """
    config, context = call.config, call.context
    shard = parse_shard(config.shard)
    _refuse_force(context, "--shard")  # a forced shard could not tell the shards of this call from the last's
    if config.devices > 1:
        raise UsageError("--shard and --devices do not go together: give each shard a device of its own.")
    opened: list[SharedWork] = []

    def open_work(draft: Draft) -> SharedWork:
        assert call.stage.parts is not None
        stages.require_room(call, draft)
        opened.append(call.stage.parts(call, draft))
        return opened[0]

    artifact, reused = context.workspace.produce_shard(
        identity,
        f"{shard.number}-of-{shard.of}",
        open_work,
        current=context.current,
        tell=context.reporter.info,
    )
    if artifact is None:
        missing = opened[0].missing()
        context.reporter.info(
            f"shard {shard} is finished; {missing:,} parts of other shards are missing: the last of them publishes "
            f"'{identity.id}'"
        )
    return artifact, reused


def _perform_on_device(
    fabric: Fabric,
    stage: str,
    config: Config,
    context: Context,
    options: MethodOptions | None,
    inputs: Mapping[str, Artifact],
) -> None:
    """Make the shard of one of several processes; the first one reports for all."""
    from unsupseg_cli.core.progress import Silent

    changes = {
        "device": str(fabric.device),
        "shard": f"{fabric.global_rank + 1}/{fabric.world_size}",
        "devices": 1,
    }
    reporter = context.reporter if fabric.is_global_zero else Silent()
    context = replace(context, reporter=reporter)
    perform(get_stage(stage), config.model_copy(update=changes), context, options=options, inputs=inputs)


def _refuse_force(context: Context, option: str) -> None:
    if context.force:
        raise UsageError(f"{option} and --force do not go together: remove the old artifact first.")
