"""From a recipe to steps: every option settled and checked. This module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError, did_you_mean
from unsupseg_cli.core.layers import build_config
from unsupseg_cli.core.ports import Port, ports_to_fill
from unsupseg_cli.methods.declaration import Method, MethodOptions, Part
from unsupseg_cli.methods.registry import get_method
from unsupseg_cli.pipeline.options import RunConfig
from unsupseg_cli.pipeline.recipe_file import RecipeFile, StageTable
from unsupseg_cli.pipeline.stage import Stage, check_reads, ports_of
from unsupseg_cli.pipeline.table import get_stage, makers

COMMAND_LINE = "command line"
VARIED = "--vary"
EVERY_STAGE = "command line, for all stages"
SETTINGS = "unsupseg.toml"
T = TypeVar("T")

_Placed = dict[str, dict[str, Any]]
"""Values by name, by the place of their assignment: what is tried wins over what is set."""
Defaults = Callable[[str, set[str]], dict[str, Any]]
"""The values that an ``unsupseg.toml`` has for the fields of a command."""
MethodDefaults = Callable[[str, str, str], dict[str, Any]]
"""The values that an ``unsupseg.toml`` has for the options of a method, by command, method and part."""


@dataclass(frozen=True)
class Step:
    """A stage ready to run: options of the command and of the method, and which earlier step each input is.

    ``layers`` and ``method_layers`` tell where each value came from, the winning layer first.
    """

    id: str
    command: str
    config: Any
    options: MethodOptions | None
    inputs: Mapping[str, str]
    layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    method_layers: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def stage(self) -> Stage:
        """The stage of the command."""
        return get_stage(self.command)

    @property
    def makes(self) -> str:
        """The kind of its artifact."""
        return self.stage.kind(self.config, self.inputs)

    @property
    def overridden(self) -> dict[str, Any]:
        """The values of the command line that make it another setting than the recipe's; another seed does not."""
        ignored = type(self.config).execution_fields() - {"dataset", "split"} | {"seed"}
        changed = {k: v for k, v in _changed(self.config, self.layers).items() if k not in ignored}
        return changed if self.options is None else changed | _changed(self.options, self.method_layers)


def _changed(config: Config, layers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the values that the command line has other than the layers below it, or the default."""
    overriding = (COMMAND_LINE, EVERY_STAGE)
    changed = {}
    for name in {name for place in overriding for name in layers.get(place, {})}:
        below = [
            values[name] for place, values in layers.items() if place not in overriding and name in values
        ]
        before = below[0] if below else type(config).model_fields[name].default
        if str(before) != str(getattr(config, name)):
            changed[name] = getattr(config, name)
    return changed


@dataclass
class _Assignment:
    """One ``STAGE.key=value``: where it stands, the stages it is meant for, and whether one of them knew the key."""

    target: str
    key: str
    value: Any
    place: str
    stages: set[str]
    taken: bool = False
    known: set[str] = field(default_factory=set)


def resolve(
    recipe: RecipeFile,
    overrides: RunConfig | None = None,
    assignments: Mapping[str, Any] | None = None,
    defaults: Defaults | None = None,
    method_defaults: MethodDefaults | None = None,
    *,
    tried: Mapping[str, Any] | None = None,
    tried_at: str = VARIED,
) -> list[Step]:
    """Return the steps of a recipe with every option settled and checked, as the commands would check it.

    Args:
        recipe: the recipe.
        overrides: values for every stage that reads them; they win over the recipe.
        assignments: ``STAGE.key`` to value, for an option of a stage or of its method; STAGE is an id, or a command
            for all its stages.
        defaults: gives the values of an ``unsupseg.toml`` for a command; the recipe wins over them.
        method_defaults: those for a method.
        tried: more assignments, of a candidate of `tune`.
        tried_at: where those stand, for messages.

    Raises:
        UsageError: an option, an input or a method is unknown, does not fit or has no effect; the message names the
            stage.
    """
    resolver = _Resolver(recipe, overrides or RunConfig(), defaults, method_defaults)
    given = [(COMMAND_LINE, assignments or {}), (tried_at, tried or {})]
    parsed = [
        _parse_assignment(recipe, name, value, place)
        for place, values in given
        for name, value in values.items()
    ]
    for table in recipe.stages:
        resolver.add(table, [assignment for assignment in parsed if table.id in assignment.stages])
    for assignment in parsed:
        if not assignment.taken:
            raise UsageError(
                f"Unknown option '{assignment.key}' of stage '{assignment.target}' ({_shown(assignment.place)})"
                f"{did_you_mean(assignment.key, assignment.known)}"
            )
    return resolver.steps


def select(steps: Sequence[Step], name: str) -> Step:
    """Return the step of a name; raises UsageError with a suggestion for an unknown one."""
    for step in steps:
        if step.id == name:
            return step
    raise UsageError(f"The recipe has no stage '{name}'{did_you_mean(name, [step.id for step in steps])}")


def _parse_assignment(recipe: RecipeFile, name: str, value: Any, place: str) -> _Assignment:
    target, _, key = name.partition(".")
    if not target or not key:
        raise UsageError(
            f"{_shown(place)} '{name}' is not of the form STAGE.key=value, such as train.seed=1."
        )
    ids = {stage.id for stage in recipe.stages}
    of_command = {stage.id for stage in recipe.stages if stage.command == target}
    stages = {target} if target in ids else of_command
    if not stages:
        names = ids | {stage.command for stage in recipe.stages}
        raise UsageError(
            f"{_shown(place)} '{name}': the recipe has no stage '{target}'{did_you_mean(target, names)}"
        )
    return _Assignment(target, key.replace("-", "_"), value, place, stages)


def _shown(place: str) -> str:
    """Return how messages name the place of an assignment."""
    return "--set" if place == COMMAND_LINE else place


class _Resolver:
    """The steps settled so far, and what each next one is settled with."""

    def __init__(
        self,
        recipe: RecipeFile,
        overrides: RunConfig,
        defaults: Defaults | None,
        method_defaults: MethodDefaults | None,
    ) -> None:
        self.recipe = recipe
        self.everywhere = {key: value for key, value in overrides if value is not None}
        self.defaults, self.method_defaults = defaults, method_defaults
        self.steps: list[Step] = []

    def add(self, table: StageTable, assignments: Sequence[_Assignment]) -> None:
        """Settle one more stage."""
        stage = get_stage(table.command)
        written = dict(table.options)
        named = {role: str(written.pop(role)) for role in stage.roles if role in written}
        assigned = {**written, **{assignment.key: assignment.value for assignment in assignments}}
        method = self._method(stage, table, assigned, named)
        part = None
        if method is not None:
            written.setdefault("method", method.name)
            part = _with_place(table, lambda: stage.part(method, assigned.get("part")))
        method_fields = set(part.options.model_fields) if part else set()
        stage_values, method_values = _split_assignments(
            assignments, set(stage.config.model_fields) - stage.roles.keys(), method_fields
        )
        options, method_layers = self._options(table, method, part, method_values)
        inputs = self._inputs(table, stage, {**written, **assigned}, options, named)
        layers = self._layers(stage, table, stage_values, written, inputs)
        config = build_config(
            stage.config,
            layers,
            prefix=f"{table.id}.",
            shared=(EVERY_STAGE, SETTINGS, _data_place(self.recipe)),
        )
        if part is not None:
            options = build_config(
                part.options, method_layers, prefix=f"{table.id}.set.", shared=(SETTINGS,), stage=config
            )
            _with_place(table, lambda: check_reads(stage, config, method, options))
        elif table.set:
            raise UsageError(
                f"{table.place}: `{table.command}` has no method, so that 'set' has no meaning here."
            )
        del layers[_WIRED]
        self.steps.append(Step(table.id, table.command, config, options, inputs, layers, method_layers))

    def _method(
        self, stage: Stage, table: StageTable, values: Mapping[str, Any], named: Mapping[str, str]
    ) -> Method | None:
        """Return the method of a stage: the one written, else that of the pseudo-labels it trains on."""
        if not stage.uses:
            return None
        name = values.get("method", stage.config.model_fields["method"].default)
        if name is None:
            labels = [step for step in self.steps if step.makes == "pseudolabels"]
            chosen = [step for step in labels if step.id == named.get("pseudolabels", step.id)]
            if not chosen:
                raise UsageError(f"{table.place}: give a method, or a `pseudolabel` stage before it.")
            name = _unrefined(chosen[-1], self.steps).config.method
        return _with_place(table, lambda: get_method(str(name)))

    def _options(
        self, table: StageTable, method: Method | None, part: Part | None, assigned: _Placed
    ) -> tuple[MethodOptions | None, dict[str, dict[str, Any]]]:
        """Return the options of the part of a method, and the layers they come from."""
        if method is None or part is None:
            return None, {}
        layers = {**assigned, f"{table.place}, set": table.set}
        if self.method_defaults is not None:
            layers[SETTINGS] = self.method_defaults(table.command, method.name, part.name)
        return build_config(part.options, layers, prefix=f"{table.id}.set.", shared=(SETTINGS,)), layers

    def _layers(
        self,
        stage: Stage,
        table: StageTable,
        assigned: _Placed,
        written: dict[str, Any],
        inputs: Mapping[str, str],
    ) -> dict[str, dict[str, Any]]:
        """Return the values of a stage's own options by the place they come from, the winning one first."""
        fields = set(stage.config.model_fields)
        everywhere = {key: value for key, value in self.everywhere.items() if key in fields}
        layers = {**assigned, EVERY_STAGE: everywhere, table.place: written}
        chosen = next(
            (layer["dataset"] for layer in (*assigned.values(), everywhere) if "dataset" in layer), None
        )
        layers[_data_place(self.recipe)] = _fitting(self.recipe.data, fields, chosen, None)
        if self.defaults is not None:
            decided = {
                key: value for layer in reversed(list(layers.values())) for key, value in layer.items()
            }
            backbones = [step.config.backbone for step in self.steps if step.command == "extract"]
            backbone = decided.get("backbone", backbones[0] if backbones else None)
            values = self.defaults(table.command, fields | {"dataset", "backbone"})
            layers[SETTINGS] = _fitting(values, fields - stage.roles.keys(), decided.get("dataset"), backbone)
        if stage.uses == "trainer" and "pseudolabels" in inputs:
            labels = _unrefined(select(self.steps, inputs["pseudolabels"]), self.steps)
            if labels.config.classes is not None:
                layers[f"stage {labels.id}"] = {"classes": labels.config.classes}
        layers[_WIRED] = dict(inputs)
        return layers

    def _inputs(
        self,
        table: StageTable,
        stage: Stage,
        values: Mapping[str, Any],
        options: MethodOptions | None,
        named: Mapping[str, str],
    ) -> dict[str, str]:
        """Return the earlier step that each input comes from: the one named, else the last that fits."""
        ports = ports_of(stage, values, options)
        unread = named.keys() - {port.role for port in ports}
        if unread:
            role = sorted(unread)[0]
            what = "its method" if stage.uses else f"`{table.command}`"
            raise UsageError(f"{table.place}: {what} reads no {role} here; leave it out.")
        wired = {
            role: self._require_earlier(table, role, stage.roles[role], name) for role, name in named.items()
        }
        kinds = {step.makes for step in self.steps}
        for port in _with_place(
            table, lambda: ports_to_fill(ports, wired, lambda other: other.kind in kinds)
        ):
            if port.role in wired:
                continue
            source = self._last_step(port, wired)
            if source is not None:
                wired[port.role] = source
            elif not port.optional:
                commands = " or ".join(f"`{name}`" for name in makers(port.kind))
                raise UsageError(f"{table.place} reads {port.kind}, but no stage before it is {commands}.")
        return wired

    def _last_step(self, port: Port, wired: Mapping[str, str]) -> str | None:
        """Return the last step that fills a port, and fits what is wired already."""
        steps = [step for step in self.steps if step.makes == port.kind]
        if port.role == "features" and "pseudolabels" in wired:
            return _unrefined(select(self.steps, wired["pseudolabels"]), self.steps).inputs["features"]
        if port.optional:
            if not port.method or "features" in wired or not steps:
                return None
            last = steps[-1]
            return last.id if _unrefined(last, self.steps).config.method == port.method else None
        if "features" in wired:
            of_features = [step for step in steps if step.inputs.get("features") == wired["features"]]
            steps = of_features or steps
        return steps[-1].id if steps else None

    def _require_earlier(self, table: StageTable, role: str, kind: str, name: str) -> str:
        earlier = [step.id for step in self.steps if step.makes == kind]
        if name not in earlier:
            raise UsageError(
                f"{table.place}: {role} = '{name}' is no earlier stage that makes {kind}{did_you_mean(name, earlier)}"
            )
        return name


_WIRED = "the stages before"


def _data_place(recipe: RecipeFile) -> str:
    return f"'{recipe.path}', [data]"


def _split_assignments(
    assignments: Sequence[_Assignment], fields: set[str], method_fields: set[str]
) -> tuple[_Placed, _Placed]:
    """Share out the assignments of a stage, by their places: its own options, and those of its method."""
    places = [*dict.fromkeys(assignment.place for assignment in assignments)][
        ::-1
    ]  # what is tried is given last
    stage_values: _Placed = {place: {} for place in (*places, COMMAND_LINE)}
    method_values: _Placed = {place: {} for place in (*places, COMMAND_LINE)}
    for assignment in assignments:
        assignment.known |= fields | method_fields
        if assignment.key in fields:
            stage_values[assignment.place][assignment.key] = assignment.value
        elif assignment.key in method_fields:
            method_values[assignment.place][assignment.key] = assignment.value
        assignment.taken |= assignment.key in fields | method_fields
    return stage_values, method_values


def _fitting(values: dict[str, Any], fields: set[str], dataset: object, backbone: object) -> dict[str, Any]:
    """Return the values of some fields, without those of other images or weights than the ones chosen."""
    dropped: set[str] = set()
    if dataset is not None and values.get("dataset", dataset) != dataset:
        dropped |= {
            "dataset",
            "root",
            "split",
            "labels",
            "class_file",
            "image_suffix",
            "label_suffix",
            "pages",
            "windows",
        }
    if backbone is not None and values.get("backbone", backbone) != backbone:
        dropped |= {"backbone", "weights"}
    return {key: value for key, value in values.items() if key in fields - dropped}


def _with_place(table: StageTable, action: Callable[[], T]) -> T:
    """Call something and say in its error which stage was meant."""
    try:
        return action()
    except UsageError as error:
        raise UsageError(f"{table.place}: {error}") from None


def _unrefined(labels: Step, earlier: Sequence[Step]) -> Step:
    """Return the `pseudolabel` step behind pseudo-labels that may have been refined."""
    while labels.command == "refine":
        labels = select(earlier, labels.inputs["pseudolabels"])
    return labels
