"""A stage: what it reads, what decides the artifact that it makes, and how it makes it. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.layers import require_effect
from unsupseg_cli.core.memory import keep_freed_memory
from unsupseg_cli.core.ports import ROLES, Port
from unsupseg_cli.methods.declaration import Method, MethodOptions, Needs, Part, blamed_on
from unsupseg_cli.methods.registry import get_method, method_of

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.draft import Draft, SharedWork
    from unsupseg_cli.artifacts.identity import Identity
    from unsupseg_cli.artifacts.manifest import Input
    from unsupseg_cli.artifacts.workspace import Artifact

T = TypeVar("T")


@dataclass(frozen=True)
class Foreseen:
    """What a dry run knows of an artifact before it is made.

    ``summary`` is as much of its summary as later stages need, ``bytes`` about the size of its arrays and pictures.
    """

    summary: dict[str, Any] = field(default_factory=dict)
    bytes: int = 0


@dataclass(frozen=True)
class Stage:
    """One command that makes an artifact; each file of ``stages`` ends in one.

    Args:
        name: of the command.
        config: its options; a field for each port names the artifact that is read there.
        makes: the kind of its artifact; empty: the kind of the artifact that it reads.
        version: another one says that the outputs changed: it enters the key.
        identify: what decides the artifact. In a dry run the inputs may be promises, of which the manifest is known.
        work: fills the draft's folder and returns the summary for the manifest.
        parts: instead of ``work``, opens work on the draft whose parts several processes may make (--shard).
        also: other kinds that it makes, by the option that asks for them.
        ports: the artifacts that it may read.
        reads: which of them it reads, by the values of its options that are set; default: all.
        uses: the part of a method that does the work, whose own ports and options come on top.
        foresee: what is known before the work.
        room: where given, the disk must have room for what ``foresee`` says before the work; tells what takes less.
        produce: makes or reuses the artifact where that is more than calling ``work``; None where others must finish.
        finish: is called with the artifact, made or reused.
    """

    name: str
    config: type[Config]
    makes: str
    version: int
    identify: Callable[[Call], Identity]
    work: Callable[[Call, Draft], dict[str, Any]] | None = None
    parts: Callable[[Call, Draft], SharedWork] | None = None
    also: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    reads: Callable[[Mapping[str, Any]], tuple[Port, ...]] | None = None
    uses: Literal["", "labeller", "trainer"] = ""
    foresee: Callable[[Call], Foreseen] = lambda call: Foreseen()
    room: str | None = None
    produce: Callable[[Call, Identity], tuple[Artifact | None, bool]] | None = None
    finish: Callable[[Call, Artifact], None] | None = None

    def __call__(
        self, config: Config | None = None, context: Context | None = None, **given: Any
    ) -> Artifact | None:
        """Do what the command does, see `perform`."""
        return perform(self, self.config() if config is None else config, context, **given)

    def fill(self, call: Call, draft: Draft) -> dict[str, Any]:
        """Do all the work of a call on a draft; return the summary for the manifest."""
        if self.parts is None:
            assert self.work is not None
            return self.work(call, draft)
        whole = self.parts(call, draft)
        whole.write()
        return whole.close()

    @property
    def divides(self) -> bool:
        """Whether several processes may make its artifact, each a shard of it (--shard)."""
        return self.parts is not None

    @property
    def roles(self) -> dict[str, str]:
        """Every role that an artifact may have here, with its kind."""
        return (
            {role: kind for role, kind in ROLES.items() if role in self.config.model_fields}
            if self.uses
            else {port.role: port.kind for port in self.ports}
        )

    def kind(self, config: Config, roles: Iterable[str]) -> str:
        """Return the kind of the artifact that a call makes from inputs in these roles."""
        kinds = [kind for option, kind in self.also.items() if getattr(config, option) is not None]
        kinds += [self.makes] if self.makes else [self.roles[role] for role in roles if role in self.roles]
        return next(iter(kinds), "")

    def part(self, method: Method, name: str | None = None) -> Part:
        """Return the part of a method that does the work: the labeller of a name, or the trainer.

        Raises:
            UsageError: the method has no such part.
        """
        return method.labeller(name) if self.uses == "labeller" else method.require_trainer()


@dataclass
class Call:
    """One call of a stage, with everything settled that its identity and its work need.

    ``inputs`` are the artifacts by role; ``options`` those of the part of a ``method`` that does the work.
    """

    stage: Stage
    config: Any
    context: Context
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    method: Method | None = None
    options: MethodOptions | None = None
    memory: dict[Any, Any] = field(default_factory=dict)

    @property
    def part(self) -> Part:
        """The part of the method."""
        assert self.method is not None
        return self.stage.part(self.method, getattr(self.config, "part", None))

    @property
    def needs(self) -> Needs:
        """What the part of the method reads."""
        return Needs() if self.options is None else self.options.needs()

    def input(self, role: str) -> Artifact:
        """Return the artifact in a role that is always filled."""
        return self.inputs[role]

    def described(self) -> list[Input]:
        """Return the inputs as the identity lists them."""
        return [artifact.as_input(role) for role, artifact in self.inputs.items()]

    @property
    def used_labels(self) -> bool:
        """Whether an input was made with labels."""
        return any(artifact.manifest.used_labels for artifact in self.inputs.values())


def once(function: Callable[[Call], T]) -> Callable[[Call], T]:
    """Let a function of a call do its work once for each call."""

    def remembered(call: Call) -> T:
        if function not in call.memory:
            call.memory[function] = function(call)
        value: T = call.memory[function]
        return value

    return remembered


def perform(
    stage: Stage,
    config: Config,
    context: Context | None = None,
    *,
    options: MethodOptions | None = None,
    inputs: Mapping[str, Artifact] | None = None,
) -> Artifact | None:
    """Make or reuse the artifact of a call, and say so.

    Args:
        stage: the command.
        config: its options.
        context: the workspace, and whom to tell; default: the workspace of this folder, silently.
        options: of the method; default: its own.
        inputs: the artifacts by role; default: those that the options name, else the last ones.

    Returns:
        the artifact, or None while other processes have a part of it to make.

    Raises:
        UsageError: the call does not fit together, see `settle`; or its executor cannot be used.
        UnsupsegError: the work fails; a call with the same options goes on with what is finished.
    """
    from unsupseg_cli.artifacts.context import Context
    from unsupseg_cli.artifacts.sources import Sources

    if getattr(config, "executor", None) is not None:
        return _perform_elsewhere(stage, config, context or Context(), options, inputs)
    keep_freed_memory()
    context = replace(context or Context(), sources=Sources())
    call = settle(stage, config, context, options, inputs)
    with blamed_on(call.method):
        identity = stage.identify(call)
        artifact, reused = _producer(stage)(call, identity)
    if artifact is None:
        return None
    _require_all_read(config, artifact)
    if stage.finish:
        stage.finish(call, artifact)
    return call.context.say(artifact, reused)


def _producer(stage: Stage) -> Callable[[Call, Identity], tuple[Artifact | None, bool]]:
    """Return what makes or reuses the artifact of a call."""
    if stage.divides:
        from unsupseg_cli.pipeline.shards import produce_divided

        return produce_divided
    return stage.produce or produce


def _perform_elsewhere(
    stage: Stage,
    config: Any,
    context: Context,
    options: MethodOptions | None,
    inputs: Mapping[str, Artifact] | None,
) -> Artifact | None:
    """Let the executor of a call do what `perform` does."""
    from unsupseg_cli.pipeline.executor import executor

    require_effect(config)
    with executor(config.executor, config.address) as perform_there:
        return perform_there(stage, config, context, options=options, inputs=inputs)


def _require_all_read(config: Config, artifact: Artifact) -> None:
    """Raise UnsupsegError for --strict where an artifact that is reused was made without some images."""
    skipped = artifact.manifest.summary.get("skipped")
    if getattr(config, "strict", False) and skipped:
        key, reason = next(iter(skipped.items()))
        raise UnsupsegError(
            f"'{artifact.id}' was made without unreadable images, {len(skipped)} of them (the first: '{key}': "
            f"{reason}), which --strict does not take: mend or remove them."
        )


def produce(call: Call, identity: Identity) -> tuple[Artifact, bool]:
    """Make the artifact of a call unless it is there; return it, and whether it was there."""
    context = call.context
    return context.workspace.produce(
        identity,
        lambda draft: _work(call, draft),
        force=context.force,
        current=context.current,
        tell=context.reporter.info,
    )


def _work(call: Call, draft: Draft) -> dict[str, Any]:
    """Do the work of a call on files that stay as they were when its key was made."""
    context = call.context
    if context.sources.begin(draft):
        context.reporter.info("files were changed since this was begun: it begins anew")
    require_room(call, draft)
    summary = call.stage.fill(call, draft)
    try:
        context.sources.require_unchanged()
    except UnsupsegError:
        draft.clear()
        raise
    return summary


_BESIDE = 4_000_000  # bytes of sheets, tables and manifest, which every stage writes beside its arrays


def require_room(call: Call, draft: Draft) -> None:
    """Raise StorageError where the disk has no room for what a call will write, but for what its draft holds."""
    from unsupseg_cli.artifacts.files import require_space, size_on_disk

    stage = call.stage
    needed = (stage.foresee(call).bytes or 0) if stage.room is not None else 0
    lacking = (max(0, needed - size_on_disk(draft.folder)) if needed else 0) + _BESIDE
    require_space(draft.folder, lacking, f"What `{stage.name}` writes", stage.room or "")


def settle(
    stage: Stage,
    config: Any,
    context: Context,
    options: MethodOptions | None = None,
    inputs: Mapping[str, Artifact] | None = None,
) -> Call:
    """Return the call: the method is chosen, options are checked against each other, inputs are taken.

    Raises:
        UsageError: an option has no effect, an input is missing or does not fit.
    """
    from unsupseg_cli.artifacts.outside import require_outside
    from unsupseg_cli.pipeline.inputs import require_inputs, require_method, take_inputs

    if not isinstance(config, stage.config):
        raise UsageError(
            f"`{stage.name}` takes a {stage.config.__name__}, and was given a {type(config).__name__}."
        )
    require_effect(config)
    for name in ("out", "tensorboard"):
        if (place := getattr(config, name, None)) is not None:
            require_outside(place, f"--{name}")
    method = None
    if stage.uses:
        method = choose_method(config, context)
        part = stage.part(method, getattr(config, "part", None))
        options = part.options() if options is None else options
        if not isinstance(options, part.options):
            raise UsageError(
                f"The options are {type(options).__name__}; method '{method.name}' expects {part.options.__name__}."
            )
    with blamed_on(method):
        check_reads(stage, config, method, options)
        ports = ports_of(stage, dict(config), options)
    if inputs is None:
        inputs = take_inputs(ports, config, context)
    require_inputs(ports, inputs, stage.name)
    ordered = {port.role: inputs[port.role] for port in ports if port.role in inputs}
    for port in ports:
        if port.role in ordered:
            require_method(port, ordered[port.role])
    return Call(stage, config, context, ordered, method, options)


def choose_method(config: Any, context: Context) -> Method:
    """Return the method of a call: the one named, else that of the pseudo-labels; raises UsageError without any."""
    if config.method is not None:
        return get_method(config.method)
    for role in ("features", "masks"):
        if config.pseudolabels is None and getattr(config, role) is not None:
            raise UsageError(f"--{role} alone does not say how to train: give --method or --pseudolabels.")
    from unsupseg_cli.pipeline.inputs import take_artifact

    labels = take_artifact("pseudolabels", config.pseudolabels, context, quiet=True)
    return method_of(labels.id, labels.manifest.config)


def ports_of(stage: Stage, values: Mapping[str, Any], options: MethodOptions | None) -> tuple[Port, ...]:
    """Return what a call reads: what the stage says with these values, and what the part of the method says."""
    own = stage.reads(values) if stage.reads else stage.ports
    return (*own, *(options.needs().reads if options is not None else ()))


def say_unread(call: Call, artifact: Artifact) -> None:
    """Say that a number of classes or a seed was given which the method does not read."""
    fields = type(call.config).model_fields
    unread = [
        f"--{name}"
        for name in ("classes", "seed")
        if name not in call.needs.identity and getattr(call.config, name) != fields[name].default
    ]
    if unread and call.method is not None:
        call.context.reporter.info(
            f"method '{call.method.name}' reads no {' and '.join(unread)} here: '{artifact.id}' serves them all"
        )


def check_reads(stage: Stage, config: Any, method: Method | None, options: MethodOptions | None) -> None:
    """Raise UsageError where a call asks for what its method does not read."""
    if method is None or options is None:
        return
    require_effect(options, config, prefix="--set ")
    needs = options.needs()
    read = {port.role for port in needs.reads}
    for role in stage.roles.keys() - read:
        if getattr(config, role) is not None:
            noun = "pseudo-labels" if role == "pseudolabels" else role
            raise UsageError(f"Method '{method.name}' reads no {noun} here; leave --{role} out.")
    if getattr(config, "tokens", "stored") == "live" and needs.network == "no":
        raise UsageError(f"Method '{method.name}' trains on stored tokens only; leave --tokens live out.")
