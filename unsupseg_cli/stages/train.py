"""train: features (and pseudo-labels) -> a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.backbone import TOKEN_FIELDS
from unsupseg_cli.contents.features import FeatureSet, stored_geometry
from unsupseg_cli.contents.images import Context, resolve_device
from unsupseg_cli.contents.masks import read_pseudolabels
from unsupseg_cli.contents.model import BackboneRef, ClassEntry, ModelFile, read_model, write_model
from unsupseg_cli.contents.network import live_source
from unsupseg_cli.contents.spaces import default_classes
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.interface import TrainedHead
from unsupseg_cli.methods.registry import Method, get_method
from unsupseg_cli.report.palette import class_colors
from unsupseg_cli.report.plots import progress_figure, save
from unsupseg_cli.stages.config import TrainConfig
from unsupseg_cli.stages.graph import read_neighbours
from unsupseg_cli.training.loop import Plan, Record, fit

STAGE_VERSION = 1
METRICS = "metrics.jsonl"


def train(config: TrainConfig, context: Context | None = None, *, options: Config | None = None) -> Artifact:
    """Train a head by a method; ``options`` is the method's own configuration.

    The last state is the result; nothing is selected by labels.
    """
    context = context or Context()
    device = resolve_device(config.device)
    method = choose_method(config, context)
    labels, features_artifact = _inputs(config, context, method)
    graph = context.take("graph", config.graph) if method.graph else None
    neighbours = read_neighbours(graph, features_artifact) if graph else None
    name = method.name
    if config.tokens == "live" and not method.live:
        raise UsageError(f"Method '{name}' trains on stored tokens only; leave --tokens live out.")
    options = options or method.train_config()()
    features = FeatureSet(features_artifact)
    recipe = train_recipe(config, name, features_artifact, labels, graph, options, device)
    classes = recipe.config["classes"]
    masks = labels.manifest.summary["masks"] if labels else None
    if labels and not masks:
        raise UsageError(f"The pseudo-labels '{labels.id}' hold no mask to train on; make others.")
    live = config.tokens == "live"

    def work(draft: Draft) -> dict[str, Any]:
        draft.deterministic = device.type == "cpu"
        torch.use_deterministic_algorithms(True, warn_only=True)
        task = method.task(
            options,
            source=features,
            pseudolabels=read_pseudolabels(labels) if labels else None,
            classes=classes,
            seed=config.seed,
            device=device,
            **({"neighbours": neighbours} if graph else {}),
            **({"head": _base_head(features_artifact, context)} if method.continues else {}),
            **({"live": live_source(features, context, device, config.workers)} if live else {}),
        )
        _fit(task, config, features, draft, context, device)
        head: TrainedHead = task.finish()
        draft.warnings += head.warnings
        if masks is not None and masks < classes:
            draft.warnings.append(f"there are only {masks} masks for {classes} classes: try fewer --classes")
        _write(draft.folder, name, head, features_artifact, context, classes)
        return {"method": name, "classes": classes, **head.figures}

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def train_recipe(
    config: TrainConfig,
    method: str,
    features: Artifact,
    labels: Artifact | None,
    graph: Artifact | None,
    options: Config,
    device: torch.device,
) -> Recipe:
    """Return what decides the model trained by a method."""
    classes = config.classes or (labels.manifest.config["classes"] if labels else default_classes(features))
    data = features.manifest.data
    return Recipe(
        kind="model",
        stage="train",
        stage_version=STAGE_VERSION,
        slug=f"{data.dataset if data else 'images'}-{method}{classes}-seed{config.seed}",
        config={**config.result(), "method": method, "classes": classes, "options": options.result()},
        inputs=[
            features.as_input("features"),
            *([labels.as_input("pseudolabels")] if labels else []),
            *([graph.as_input("graph")] if graph else []),
        ],
        data=data,
        execution={"device": str(device)},
        used_labels=features.manifest.used_labels or bool(labels and labels.manifest.used_labels),
    )


def choose_method(config: TrainConfig, context: Context) -> Method:
    """Return the method of a call: the one named, else that of the pseudo-labels."""
    if config.method is not None:
        return get_method(config.method)
    if config.pseudolabels is None and config.features is not None:
        raise UsageError("--features alone does not say how to train: give --method or --pseudolabels.")
    labels = (
        context.workspace.get(config.pseudolabels, "pseudolabels")
        if config.pseudolabels
        else context.workspace.current("pseudolabels")
    )
    return get_method(labels.manifest.config["method"])


def _inputs(config: TrainConfig, context: Context, method: Method) -> tuple[Artifact | None, Artifact]:
    """Return pseudo-labels (None for a method without) and features that belong together."""
    labels: Artifact | None = None
    if not method.pseudolabels and config.pseudolabels is not None:
        raise UsageError(f"Method '{method.name}' reads no pseudo-labels; leave --pseudolabels out.")
    if not method.pseudolabels:
        return None, context.take("features", config.features)
    if config.pseudolabels is not None or config.features is None:
        labels = context.take("pseudolabels", config.pseudolabels)
    if labels is None:
        return None, context.take("features", config.features)
    used = labels.input("features")
    assert used is not None
    if config.features is not None:
        given = context.workspace.get(config.features, "features")
        if given.manifest.key != used.key:
            raise UsageError(
                f"The pseudo-labels '{labels.id}' were made from the features '{used.id}', not from '{given.id}'; "
                "give the features that belong to them, or none."
            )
        return labels, given
    found = context.workspace.find_key("features", used.key)
    if found is None:
        raise UsageError(
            f"The features '{used.id}' of the pseudo-labels '{labels.id}' are gone; run their `extract` again."
        )
    return labels, found


def _fit(
    task: Any,
    config: TrainConfig,
    features: FeatureSet,
    draft: Draft,
    context: Context,
    device: torch.device,
) -> None:
    devices = 1 if device.index is None or device.type == "cpu" else [device.index]
    fabric = Fabric(accelerator=device.type, devices=devices)
    plan = Plan(task.steps, task.batch, len(features), config.seed)
    checkpoint = _DiskCheckpoint(draft.folder / "checkpoint")
    metrics = draft.folder / METRICS
    first = checkpoint.step()
    records = [record for record in _read_records(metrics) if record["step"] < first]
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if first:
        context.reporter.info(f"going on after step {first}")

    def log(record: Record) -> None:
        records.append(record)
        with metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def track(steps: range, done: int) -> Iterator[int]:
        return context.reporter.track(steps, "train", total=plan.steps, done=done)

    fit(task, plan, fabric, checkpoint=checkpoint, log=log, track=track)
    save(progress_figure(records), draft.folder / "progress.png")


def _read_records(path: Path) -> list[Record]:
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run may be cut
    return records


class _DiskCheckpoint:
    """The loop's state in the draft's folder, replaced atomically, read without unpickling code."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.pt"
        folder.mkdir(exist_ok=True)

    def step(self) -> int:
        """Return the step to go on from."""
        state = self.load()
        return int(state["step"]) if state else 0

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state, or None."""
        if not self._path.exists():
            return None
        state: dict[str, Any] = torch.load(self._path, weights_only=True)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state."""
        partial = self._path.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self._path)


def _write(
    folder: Path, method: str, head: TrainedHead, features: Artifact, context: Context, classes: int
) -> None:
    """Write the model: the heads of the features' own model come first in the chain."""
    chain, tensors = list(head.feature_heads), dict(head.tensors)
    config = features.manifest.config
    backbone = BackboneRef(
        name=config["backbone"],
        weights_digest=features.manifest.summary["weights_digest"],
        **{name: config[name] for name in TOKEN_FIELDS if name in config},  # older features lack some
    )
    base = features.input("model")
    if base is not None:
        below, below_tensors = read_model(context.workspace.get(base.id, "model"))
        offset = len(below.feature_heads)
        tensors = {_shift(name, offset): value for name, value in tensors.items()}
        tensors |= {name: value for name, value in below_tensors.items() if name.startswith("feature_heads.")}
        chain, backbone = [*below.feature_heads, *chain], below.backbone
    file = ModelFile(
        method=method,
        backbone=backbone,
        feature_heads=chain,
        class_head=head.class_head,
        geometry=stored_geometry(config),
        classes=[
            ClassEntry(name=f"class {i}", color=(int(r), int(g), int(b)))
            for i, (r, g, b) in enumerate(class_colors(classes))
        ],
    )
    write_model(folder, file, tensors)


def _base_head(features: Artifact, context: Context) -> torch.Tensor | None:
    """Return the weight (K, C) of the class head of the model that features are codes of.

    Of outputs that were merged into one class the mean direction is taken.
    """
    base = features.input("model")
    if base is None:
        return None
    file, tensors = read_model(context.workspace.get(base.id, "model"))
    weight = tensors.get("class_head.weight")
    if weight is None or file.class_of is None:
        return weight
    unit, class_of = torch.nn.functional.normalize(weight, dim=-1), torch.tensor(file.class_of)
    return torch.stack([unit[class_of == one].mean(0) for one in range(len(file.classes))])


def _shift(name: str, offset: int) -> str:
    if not name.startswith("feature_heads."):
        return name
    _, index, rest = name.split(".", 2)
    return f"feature_heads.{int(index) + offset}.{rest}"
