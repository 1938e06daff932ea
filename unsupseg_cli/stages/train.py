"""train: Features and pseudo-labels -> a model.

The last state is the result; nothing is selected by labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import execution, setting
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.options import ClassCount, DeviceConfig, EventFolder
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.pipeline.stage import Call, Stage, once, say_unread
from unsupseg_cli.pipeline.together import Processes, produce_together, train_together

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from lightning_fabric import Fabric

    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.methods.interface import Trainer
    from unsupseg_cli.training.loop import Schedule


class TrainConfig(DeviceConfig):
    """Train a model by a method."""

    features: str | None = execution(None, "Features artifact; default: those of the pseudo-labels.")
    pseudolabels: str | None = execution(None, "Pseudo-labels artifact; default: the last one.")
    masks: str | None = execution(
        None, "Imported masks instead of pseudo-labels, for a method that reads them."
    )
    graph: str | None = execution(None, "Graph artifact, for a method that reads one; default: the last one.")
    regions: str | None = execution(None, "Regions artifact, for a method that reads one.")
    model: str | None = execution(None, "Model artifact, for a method that starts from one.")
    method: str | None = setting(None, "Method; default: that of the pseudo-labels.")
    classes: ClassCount | None = setting(
        None,
        "Number of classes K, or auto: by the features. Default, and auto: that of the pseudo-labels, if any.",
    )
    tokens: Literal["stored", "live"] = setting(
        "stored",
        "stored features (fast), or live: the frozen backbone in the loop, with the method's augmentation.",
    )
    seed: int = setting(0, "Seed of every random choice.", ge=0)
    devices: int = execution(
        1,
        "GPUs (or CPU processes) that train together: each step's batch is split over them. Under torchrun, which "
        "starts the processes itself, on several machines too, leave it out.",
        ge=1,
    )
    tensorboard: EventFolder = execution(
        None, "Also write the losses of this run as TensorBoard events here (extra `tensorboard`)."
    )


def identify(call: Call) -> Identity:
    """Return what decides the model: the options, and of classes and seed what the method reads."""
    from unsupseg_cli.contents.option_files import decided_by
    from unsupseg_cli.models.device import resolve_device

    config, data = call.config, call.input("features").manifest.data
    assert call.method is not None
    assert call.options is not None
    identity_values, name = _classes_and_seed(call), call.method.name
    seed = f"-seed{identity_values['seed']}" if "seed" in identity_values else ""
    return Identity(
        kind="model",
        stage="train",
        stage_version=STAGE.version,
        slug=f"{data.dataset if data else 'images'}-{name}{identity_values.get('classes', '')}{seed}",
        config={
            "method": name,
            "method_version": call.method.version,
            "tokens": "live" if call.needs.network == "always" else config.tokens,
            "options": decided_by(call.options, call.context),
            **identity_values,
        },
        inputs=call.described(),
        data=data,
        execution={
            "device": str(resolve_device(config.device)),
            "devices": config.devices,
            "work": call.options.work(data.count if data else 1),
        },
        used_labels=call.used_labels,
    )


@once
def _classes_and_seed(call: Call) -> dict[str, Any]:
    """Return the number of classes and the seed, as far as the method reads them."""
    from unsupseg_cli.contents.images import default_classes
    from unsupseg_cli.stages.scan import auto_classes

    identity_values: dict[str, Any] = {}
    if "classes" in call.needs.identity:
        features = call.input("features")
        classes = _classes_asked_for(call) or default_classes(features)
        identity_values["classes"] = auto_classes(features, call.context) if classes == "auto" else classes
    if "seed" in call.needs.identity:
        identity_values["seed"] = call.config.seed
    return identity_values


def _classes_asked_for(call: Call) -> int | str | None:
    """Return the number that the call gives; where it is None or auto that of the pseudo-labels, if they have one."""
    labels, context = call.inputs.get("pseudolabels"), call.context
    classes: int | str | None = call.config.classes
    if labels is None or classes not in (None, "auto"):
        return classes
    own = _classes_of(labels, context)
    if classes == "auto" and isinstance(own, int) and not context.by_recipe:
        context.reporter.info(f"--classes auto: {own}, as '{labels.id}' has")
    return own or classes


def _classes_of(labels: Artifact, context: Context) -> int | str | None:
    """Return the number of classes of pseudo-labels: what decided them, else what `pseudolabel` was last asked for."""
    from unsupseg_cli.artifacts.context import ASKED

    asked = {} if context.by_recipe else context.remembered(ASKED).get(labels.id, {})
    if classes := labels.manifest.config.get("classes", asked.get("classes")):
        return classes if isinstance(classes, str) else int(classes)
    before = labels.input("pseudolabels")  # they were refined
    earlier = context.workspace.find_key("pseudolabels", before.key) if before else None
    return _classes_of(earlier, context) if earlier else None


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Train to the end, with checkpoints, and write the model."""
    labels, processes = _masks(call), _processes(call)
    if labels and not labels.manifest.summary["masks"]:
        raise UsageError(f"The {labels.manifest.kind} '{labels.id}' hold no mask to train on; make others.")
    draft.deterministic = processes.device.type == "cpu"
    return train_together(call, draft, _train, processes)


def _masks(call: Call) -> Artifact | None:
    """Return the masks that are trained on, of a labeller or imported."""
    return call.inputs.get("pseudolabels") or call.inputs.get("masks")


def produce(call: Call, identity: Identity) -> tuple[Artifact | None, bool]:
    """Make or reuse the model, or help the process that does."""
    return produce_together(call, identity, _train, _processes)


def _processes(call: Call) -> Processes:
    from unsupseg_cli.models.device import resolve_device

    unused = call.part.load().unused_parameters
    return Processes(resolve_device(call.config.device), call.config.devices, unused_parameters=unused)


def _train(fabric: Fabric, call: Call, draft: Draft) -> dict[str, Any]:
    """Train in one of the processes that do; the first one writes the model and returns the summary."""
    import torch

    from unsupseg_cli.contents.features import FeatureSet
    from unsupseg_cli.contents.method_inputs import open_inputs
    from unsupseg_cli.contents.model import write_trained
    from unsupseg_cli.training.loop import Schedule

    config, identity_values, labels = call.config, _classes_and_seed(call), _masks(call)
    torch.use_deterministic_algorithms(True, warn_only=True)
    inputs = open_inputs(
        call.inputs,
        call.needs,
        call.context,
        fabric.device,
        workers=config.workers,
        live=config.tokens == "live",
        **identity_values,
    )
    assert call.method is not None
    trainer = call.part.load()(call.options, inputs)
    views = len(FeatureSet(call.input("features")))
    _fit(
        trainer,
        Schedule(trainer.steps, trainer.batch, views, identity_values.get("seed", 0)),
        draft,
        fabric,
        call.context,
        config.tensorboard,
    )
    if not fabric.is_global_zero:
        return {}
    trained = trainer.finish()
    draft.warnings += trained.warnings
    classes = trained.classes
    if classes != identity_values.get("classes", classes):
        raise UnsupsegError(f"The trainer gave {classes} classes, expected {identity_values['classes']}.")
    if labels and (masks := labels.manifest.summary["masks"]) < classes:
        draft.warnings.append(
            f"there {are(masks)} only {counted(masks, 'mask')} for {counted(classes, 'class')}: try fewer --classes"
        )
    write_trained(draft.folder, call.method.name, trained, call.input("features"), call.context)
    return {"method": call.method.name, "classes": classes, **trained.figures}


def _fit(
    trainer: Trainer,
    schedule: Schedule,
    draft: Draft,
    fabric: Fabric,
    context: Context,
    events: Path | None,
) -> None:
    """Train, going on from the checkpoint of the draft if there is one."""
    from unsupseg_cli.report.plots import progress_figure, save
    from unsupseg_cli.training.checkpoint import DiskCheckpoint, Journal
    from unsupseg_cli.training.loop import EXPLAINED, fit

    checkpoint = DiskCheckpoint(draft.folder, context.reporter.warn)
    first = checkpoint.step()
    journal = Journal(draft.folder, first, fabric.is_global_zero, events)
    if first:
        context.reporter.info(f"going on after step {first}")

    def track(steps: Iterable[int], done: int) -> Iterator[int]:
        return context.reporter.track(steps, "train", total=schedule.steps, done=done)

    fit(trainer, schedule, fabric, checkpoint=checkpoint, log=journal.add, track=track)
    if fabric.is_global_zero:
        save(
            progress_figure(journal.records, explained={**EXPLAINED, **trainer.explained}),
            draft.folder / "progress.png",
        )


STAGE = Stage(
    name="train",
    config=TrainConfig,
    makes="model",
    version=1,
    identify=identify,
    work=work,
    uses="trainer",
    produce=produce,
    finish=say_unread,
)
