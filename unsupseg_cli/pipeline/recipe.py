"""From a recipe to steps: every option settled and checked. This module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.layers import build_config
from unsupseg_cli.methods.registry import Method, get_method
from unsupseg_cli.pipeline.recipe_file import COMMANDS, RecipeFile, StageTable
from unsupseg_cli.stages.config import PseudolabelConfig, RunConfig

COMMAND_LINE = "command line"
T = TypeVar("T")

Defaults = Callable[[str, set[str]], dict[str, Any]]
"""The values that an ``unsupseg.toml`` has for the fields of a command."""


@dataclass(frozen=True)
class Step:
    """A stage ready to run: options of the command and of the method, and which earlier stage each input is.

    ``layers`` and ``method_layers`` tell where each value came from, the winning layer first.
    """

    id: str
    command: str
    config: Any
    options: Config | None
    inputs: Mapping[str, str]
    layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    method_layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def makes(self) -> str:
        """The kind of its artifact."""
        if self.command == "refine" and "pseudolabels" in self.inputs:
            return "pseudolabels"
        return COMMANDS[self.command].makes

    @property
    def overridden(self) -> dict[str, Any]:
        """The values of the command line that make it another setting than the recipe's; another seed does not."""
        ignored = type(self.config).execution_fields() - {"dataset", "split"} | {"seed"}
        found = {k: v for k, v in _changed(self.config, self.layers).items() if k not in ignored}
        return found if self.options is None else found | _changed(self.options, self.method_layers)


def _changed(config: Config, layers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the values that the command line has other than the layers below it, or the default."""
    found = {}
    for name in layers.get(COMMAND_LINE, {}):
        below = [values[name] for layer, values in layers.items() if layer != COMMAND_LINE and name in values]
        before = below[0] if below else type(config).model_fields[name].default
        if str(before) != str(getattr(config, name)):
            found[name] = getattr(config, name)
    return found


@dataclass
class _Assignment:
    """One ``--set STAGE.key=value``: the stages it is meant for, and whether one of them knew the key."""

    target: str
    key: str
    value: Any
    stages: set[str]
    taken: bool = False
    known: set[str] = field(default_factory=set)


def resolve(
    recipe: RecipeFile,
    given: RunConfig | None = None,
    assignments: Mapping[str, Any] | None = None,
    defaults: Defaults | None = None,
) -> list[Step]:
    """Return the steps of a recipe with every option settled and checked, as the commands would check it.

    Args:
        recipe: the recipe.
        given: values for every stage that knows them; they win over the recipe.
        assignments: ``STAGE.key`` to value, for an option of a stage or of its method; STAGE is an id, or a command
            for all its stages.
        defaults: gives the values of an ``unsupseg.toml``; the recipe wins over them.

    Raises:
        UsageError: an option, an input or a method is unknown or does not fit; the message names the stage.
    """
    everywhere = {key: value for key, value in (given or RunConfig()) if value is not None}
    wanted = [_assignment(recipe, name, value) for name, value in (assignments or {}).items()]
    steps: list[Step] = []
    for stage in recipe.stages:
        mine = [one for one in wanted if stage.id in one.stages]
        steps.append(_resolve(recipe, stage, steps, everywhere, mine, defaults))
    for one in wanted:
        if not one.taken:
            raise UsageError(
                f"Unknown option '{one.key}' of stage '{one.target}' (--set){did_you_mean(one.key, one.known)}"
            )
    return steps


def select(steps: Sequence[Step], name: str) -> Step:
    """Return the step of a name; raises UsageError with a suggestion for an unknown one."""
    for step in steps:
        if step.id == name:
            return step
    raise UsageError(f"The recipe has no stage '{name}'{did_you_mean(name, [step.id for step in steps])}")


def _assignment(recipe: RecipeFile, name: str, value: Any) -> _Assignment:
    target, dot, key = name.partition(".")
    if not dot or not key:
        raise UsageError(f"--set '{name}' is not of the form STAGE.key=value, such as train.seed=1.")
    ids = {stage.id for stage in recipe.stages}
    same = {stage.id for stage in recipe.stages if stage.command == target}
    stages = {target} if target in ids else same
    if not stages:
        names = ids | {stage.command for stage in recipe.stages}
        raise UsageError(f"--set '{name}': the recipe has no stage '{target}'{did_you_mean(target, names)}")
    return _Assignment(target, key.replace("-", "_"), value, stages)


def _resolve(
    recipe: RecipeFile,
    stage: StageTable,
    earlier: Sequence[Step],
    everywhere: Mapping[str, Any],
    assignments: Sequence[_Assignment],
    defaults: Defaults | None,
) -> Step:
    command = COMMANDS[stage.command]
    fields = set(command.config.model_fields)
    written = dict(stage.options)
    named = {role: str(written.pop(role)) for role in command.reads if role in written}
    method = _method(stage, {**written, **{one.key: one.value for one in assignments}}, named, earlier)
    if method is not None:
        written.setdefault("method", method.name)
    inputs = _inputs(stage, method, named, earlier)
    options_class: type[Config] | None = None
    if method is not None:
        make = method.pseudolabel_config if stage.command == "pseudolabel" else method.train_config
        options_class = _placed(stage, make)
    method_fields = set(options_class.model_fields) if options_class else set()
    line, method_line = _share(assignments, fields - set(command.reads), method_fields)
    line = {**{key: value for key, value in everywhere.items() if key in fields}, **line}
    layers = {COMMAND_LINE: line, stage.place: written}
    layers[f"'{recipe.path}', [data]"] = _fitting(recipe.data, fields, line.get("dataset"), None)
    if defaults is not None:
        decided = {key: value for layer in reversed(list(layers.values())) for key, value in layer.items()}
        backbones = [one.config.backbone for one in earlier if one.command == "extract"]
        backbone = decided.get("backbone", backbones[0] if backbones else None)
        found = defaults(stage.command, fields | {"dataset", "backbone"})
        own = fields - set(command.reads)
        layers["unsupseg.toml"] = _fitting(found, own, decided.get("dataset"), backbone)
    config = build_config(command.config, layers, prefix=f"{stage.id}.")
    method_layers = {COMMAND_LINE: method_line, f"{stage.place}, set": stage.set}
    options = build_config(options_class, method_layers, prefix=f"{stage.id}.set.") if options_class else None
    if stage.set and options_class is None:
        raise UsageError(
            f"{stage.place}: `{stage.command}` has no method, so that 'set' has no meaning here."
        )
    return Step(stage.id, stage.command, config, options, inputs, layers, method_layers)


def _share(
    assignments: Sequence[_Assignment], fields: set[str], method_fields: set[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Share out the assignments of a stage: its own options, and those of its method."""
    own: dict[str, Any] = {}
    method: dict[str, Any] = {}
    for one in assignments:
        one.known |= fields | method_fields
        if one.key in fields:
            own[one.key] = one.value
        elif one.key in method_fields:
            method[one.key] = one.value
        one.taken |= one.key in fields | method_fields
    return own, method


def _fitting(values: dict[str, Any], fields: set[str], dataset: object, backbone: object) -> dict[str, Any]:
    """Return the values of some fields, without those of other images or weights than the ones chosen."""
    dropped: set[str] = set()
    if dataset is not None and values.get("dataset", dataset) != dataset:
        dropped |= {"dataset", "root", "labels", "class_file", "split"}
    if backbone is not None and values.get("backbone", backbone) != backbone:
        dropped |= {"backbone", "weights"}
    return {key: value for key, value in values.items() if key in fields - dropped}


def _method(
    stage: StageTable, values: Mapping[str, Any], named: Mapping[str, str], earlier: Sequence[Step]
) -> Method | None:
    """Return the method of a stage: the one written, else that of the pseudo-labels it trains on."""
    name = values.get("method")
    if stage.command == "pseudolabel":
        name = name or PseudolabelConfig().method
    elif stage.command == "train" and name is None:
        labels = [one for one in earlier if one.makes == "pseudolabels"]
        chosen = [one for one in labels if one.id == named.get("pseudolabels", one.id)]
        if not chosen:
            raise UsageError(f"{stage.place}: give a method, or a `pseudolabel` stage before it.")
        name = _unrefined(chosen[-1], earlier).config.method
    elif stage.command != "train":
        return None
    return _placed(stage, lambda: get_method(str(name)))


def _placed(stage: StageTable, action: Callable[[], T]) -> T:
    """Call something and say in its error which stage was meant."""
    try:
        return action()
    except UsageError as error:
        raise UsageError(f"{stage.place}: {error}") from None


def _inputs(
    stage: StageTable, method: Method | None, named: Mapping[str, str], earlier: Sequence[Step]
) -> dict[str, str]:
    """Return the earlier stage that each input comes from: the one named, else the last one of its kind."""
    reads = COMMANDS[stage.command].reads
    found = {role: _named(stage, role, reads[role], name, earlier) for role, name in named.items()}

    def last(role: str) -> None:
        if role in found:
            return
        made = [one.id for one in earlier if one.makes == reads[role]]
        if not made:
            makers = [name for name, one in COMMANDS.items() if one.makes == reads[role]]
            raise UsageError(f"{stage.place} reads {reads[role]}, but no stage before it is `{makers[0]}`.")
        found[role] = made[-1]

    if stage.command == "train":
        assert method is not None
        labelled = method.pseudolabels and any(one.makes == "pseudolabels" for one in earlier)
        if "pseudolabels" in found or (labelled and "features" not in found):
            last("pseudolabels")
            labels = _unrefined(select(earlier, found["pseudolabels"]), earlier)
            found.setdefault("features", labels.inputs["features"])
        last("features")
        if method.graph:
            last("graph")
    elif stage.command == "eval":
        if "predictions" not in found:
            last("model")
    elif stage.command == "refine":
        if "pseudolabels" not in found:
            last("predictions")
    elif stage.command != "extract":
        last(next(iter(reads)))
    return found


def _unrefined(labels: Step, earlier: Sequence[Step]) -> Step:
    """Return the `pseudolabel` step behind pseudo-labels that may have been refined."""
    while labels.command == "refine":
        labels = select(earlier, labels.inputs["pseudolabels"])
    return labels


def _named(stage: StageTable, role: str, kind: str, name: str, earlier: Sequence[Step]) -> str:
    makers = [one.id for one in earlier if one.makes == kind]
    if name not in makers:
        raise UsageError(
            f"{stage.place}: {role} = '{name}' is no earlier stage that makes {kind}{did_you_mean(name, makers)}"
        )
    return name
