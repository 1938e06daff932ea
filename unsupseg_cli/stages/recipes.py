"""Recipes: a published setting as an ordered list of stages, written in TOML. This module imports no torch."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.layers import build_config
from unsupseg_cli.methods.registry import Method, get_method
from unsupseg_cli.stages.config import (
    DataConfig,
    EvalConfig,
    ExtractConfig,
    GraphConfig,
    PredictConfig,
    PseudolabelConfig,
    RefineConfig,
    RunConfig,
    TrainConfig,
)

FOLDER = Path(__file__).parents[1] / "recipes"
COMMAND_LINE = "command line"
T = TypeVar("T")

Defaults = Callable[[str, set[str]], dict[str, Any]]
"""The values that an ``unsupseg.toml`` has for the fields of a command."""


@dataclass(frozen=True)
class Command:
    """A command as a stage of a recipe: its options, what it makes, and the kind of each input by its name."""

    config: type[Config]
    makes: str
    reads: Mapping[str, str]


COMMANDS = {
    "extract": Command(ExtractConfig, "features", {"model": "model"}),
    "graph": Command(GraphConfig, "graph", {"features": "features"}),
    "pseudolabel": Command(PseudolabelConfig, "pseudolabels", {"features": "features"}),
    "train": Command(
        TrainConfig, "model", {"features": "features", "pseudolabels": "pseudolabels", "graph": "graph"}
    ),
    "predict": Command(PredictConfig, "predictions", {"model": "model"}),
    "refine": Command(
        RefineConfig, "predictions", {"predictions": "predictions", "pseudolabels": "pseudolabels"}
    ),
    "eval": Command(
        EvalConfig,
        "evaluation",
        {"model": "model", "predictions": "predictions", "assignment": "evaluation"},
    ),
}


class Published(Config):
    """What a paper and its readers report, in percent; all may be unknown."""

    accuracy: float | None = Field(None, ge=0, le=100)
    miou: float | None = Field(None, ge=0, le=100)
    source: str = ""
    retrained: str = Field("", description="What people who trained it again report.")
    hardware: str = Field("", description="Time and memory on one GPU, or the machine, where it is known.")
    evaluation: str = Field("", description="Stage whose scores these are; default: the last evaluation.")


class _File(Config):
    name: str
    description: str
    paper: str = ""
    data: dict[str, Any] = Field(default_factory=dict)
    published: dict[str, Any] = Field(default_factory=dict)
    stage: list[dict[str, Any]] = Field(min_length=1)


@dataclass(frozen=True)
class StageTable:
    """One ``[[stage]]`` as it is written: its options, its method's (``set``) and where it stands."""

    id: str
    command: str
    options: dict[str, Any]
    set: dict[str, Any]
    place: str


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it is written."""

    path: Path
    name: str
    description: str
    paper: str
    data: dict[str, Any]
    published: Published
    stages: tuple[StageTable, ...]

    @property
    def backbone(self) -> str:
        """The backbone of the first stage that names one."""
        named = (stage.options["backbone"] for stage in self.stages if "backbone" in stage.options)
        return str(next(named, ""))


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


def bundled() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))}


def load_recipe(reference: str | Path) -> RecipeFile:
    """Read a recipe by the name of a bundled one or by path.

    Raises:
        UsageError: there is none, or it is not a recipe; the message names the file and the entry.
    """
    path = Path(reference)
    names = bundled()
    if os.sep not in str(reference) and path.suffix != ".toml":
        if str(reference) not in names:
            raise UsageError(
                f"No bundled recipe '{reference}'{did_you_mean(str(reference), names)} For a file of your own "
                "give its path, ending in .toml."
            )
        path = names[str(reference)]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The recipe '{path}' is not valid TOML: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = f" The bundled one is called '{path.stem}'." if path.stem in names else ""
        raise UsageError(f"The recipe '{path}' cannot be read: {reason}.{hint}") from None
    file = build_config(_File, {f"'{path}'": raw}, prefix="")
    published = build_config(Published, {f"'{path}', [published]": file.published}, prefix="")
    if unknown := set(file.data) - set(DataConfig.model_fields):
        name = sorted(unknown)[0]
        raise UsageError(
            f"Unknown option '{name}' ('{path}', [data]){did_you_mean(name, DataConfig.model_fields)}"
        )
    stages = _stages(path, file.stage)
    evaluations = [stage.id for stage in stages if stage.command == "eval"]
    if published.evaluation and published.evaluation not in evaluations:
        raise UsageError(
            f"No evaluation '{published.evaluation}' ('{path}', [published])"
            + did_you_mean(published.evaluation, evaluations)
        )
    data = _anchored(path, file.data)
    return RecipeFile(path, file.name, file.description, file.paper, data, published, stages)


def _stages(path: Path, tables: list[dict[str, Any]]) -> tuple[StageTable, ...]:
    found: list[StageTable] = []
    for number, table in enumerate(tables, 1):
        options = {key.replace("-", "_"): value for key, value in table.items()}
        command = str(options.pop("command", ""))
        if command not in COMMANDS:
            raise UsageError(
                f"'{path}', stage {number}: unknown command '{command}'{did_you_mean(command, COMMANDS)}"
            )
        repeated = sum(stage.command == command for stage in found)
        name = str(options.pop("id", f"{command}-{repeated + 1}" if repeated else command))
        if any(stage.id == name for stage in found):
            raise UsageError(f"'{path}', stage {number}: the id '{name}' is taken by an earlier stage.")
        method_options = options.pop("set", {})
        place = f"'{path}', stage {number} ({name})"
        if not isinstance(method_options, dict):
            raise UsageError(f"{place}: 'set' holds the options of a method: write set = {{ key = value }}.")
        found.append(StageTable(name, command, _anchored(path, options), method_options, place))
    return tuple(found)


def _anchored(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Read paths relative to the recipe they are written in; a data set's name is no path."""
    found = dict(values)
    folder = path.resolve().parent
    for key in {"root", "labels", "class_file", "weights"} & found.keys():
        found[key] = str(folder / str(found[key]))
    if os.sep in str(found.get("dataset", "")):
        found["dataset"] = f"{folder / str(found['dataset'])}{os.sep}"
    return found


# From a recipe to steps -----------------------------------------------------------------------------------


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
