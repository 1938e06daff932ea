"""Commands from configuration classes: the same names, defaults, bounds and help as the Python API."""

from __future__ import annotations

import errno
import inspect
import json
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic_core import PydanticUndefined
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

from unsupseg_cli.cli.completion import completer
from unsupseg_cli.cli.console import LOG, StderrConsole, TerminalReporter, result
from unsupseg_cli.cli.settings import Settings, find_cache, find_settings, find_workspace, parse_assignments
from unsupseg_cli.cli.workspace import (
    CacheOption,
    CacheSizeOption,
    WorkspaceOption,
    open_place,
    refuse_address,
)
from unsupseg_cli.core.address import Address
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UnsupsegError, UsageError, reason_of
from unsupseg_cli.core.layers import build_config, explain
from unsupseg_cli.core.names import visible
from unsupseg_cli.core.options import BatchConfig, DataConfig
from unsupseg_cli.core.processes import is_first_process
from unsupseg_cli.core.threads import prepare_threads
from unsupseg_cli.methods.declaration import Method, MethodOptions, Part

_err = StderrConsole()


@dataclass
class Invocation:
    """One call of a command, parsed."""

    command: str
    config: Any
    settings: Settings
    workspace: Path | Address
    cache: tuple[Path | None, str | None]
    reporter: TerminalReporter
    force: bool
    json: bool
    explain: bool = False
    assignments: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def context(self) -> Any:
        """Return the stages' context."""
        from unsupseg_cli.artifacts.context import Context

        cache = find_cache(*self.cache, self.settings)
        return Context(
            open_place(self.workspace, cache, self.reporter.info), self.reporter, self.force, cache=cache
        )

    def method_options(self, method: Method, part: Part) -> MethodOptions:
        """Return the options of a method: from ``--set``, then from ``unsupseg.toml``."""
        place = str(self.settings.path or "unsupseg.toml")
        layers = {
            "--set": self.assignments,
            place: self.settings.for_method(self.command, method.name, part.name),
        }
        options = build_config(part.options, layers, prefix="--set ", shared=(place,), stage=self.config)
        if self.explain:
            print_origins(explain(options, layers, self.config), prefix="set.")
        return options

    def done(self, artifact: Any) -> None:
        """Print the one line of stdout: the artifact's path, or with --json its manifest."""
        if self.json:
            value = json.loads(artifact.manifest.model_dump_json())
            result(json.dumps({"path": str(artifact.place), **value}, indent=1))
        else:
            result(str(artifact.place))


_COMMON: dict[str, Any] = {
    "workspace": WorkspaceOption,
    "cache": CacheOption,
    "cache_size": CacheSizeOption,
    "force": Annotated[bool, typer.Option("--force", help="Make the artifact again even if it is there.")],
    "json_": Annotated[bool, typer.Option("--json", help="Print the manifest as JSON instead of the path.")],
    "explain_": Annotated[bool, typer.Option("--explain", help="Print where each value comes from first.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")],
    "threads": Annotated[
        int | None,
        typer.Option(
            "--threads",
            help="Threads of this process; default: OMP_NUM_THREADS, else the cores that it may use.",
            min=1,
            max=9999,
            show_default=False,
        ),
    ],
    "log": Annotated[
        Path | None,
        typer.Option(
            "--log",
            help="Also write what is told here into this file, as plain lines after those that it holds.",
            show_default=False,
            callback=refuse_address,
        ),
    ],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Print the traceback of an error.")],
}
_FLAGS = ("force", "json_", "explain_", "quiet", "verbose")
_SET = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option of the method, KEY=VALUE; repeat it. `--method M --help` lists them.",
    ),
]


class MethodCommand(TyperCommand):
    """A command whose help also lists the options of the method named in the call."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the arguments for the help."""
        self._arguments = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, then the method's options."""
        super().format_help(ctx, formatter)
        arguments = self._arguments
        if "--method" in arguments[:-1]:
            from unsupseg_cli.cli.tables import method_tables

            for table in method_tables(arguments[arguments.index("--method") + 1], str(self.name)):
                Console().print(table)


def stage_command(
    app: typer.Typer,
    config: type[Config],
    *,
    name: str,
    methods: bool = False,
    settings: bool = True,
    extra: dict[str, Any] | None = None,
    without: Collection[str] = (),
) -> Callable[[Callable[[Invocation], None]], Callable[[Invocation], None]]:
    """Register a function of an `Invocation` as a command with one option per field of ``config``.

    Without ``settings`` the ``unsupseg.toml`` and --explain are left to the function. ``without`` names common
    options that say nothing here.
    """

    def register(function: Callable[[Invocation], None]) -> Callable[[Invocation], None]:
        def command(**values: Any) -> None:
            def action() -> None:
                prepare_threads(values.get("threads"))
                function(_parse(name, config, values, extra or {}, settings))

            run_guarded(action, values["verbose"], values.get("log"))

        parameters = [
            *[_parameter(key, annotation, default) for key, (annotation, default) in (extra or {}).items()],
            *_options(config, bool(extra)),
            *([_parameter("set_", _SET, [])] if methods else []),
            *[
                _parameter(key, kind, False if key in _FLAGS else None)
                for key, kind in _COMMON.items()
                if key not in without
            ],
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = function.__doc__
        app.command(name, cls=MethodCommand if methods else None)(command)
        return function

    return register


def one_of(**given: Any) -> Any:
    """Return the value of the one option that was given, None if none was; raises UsageError for two."""
    options = {name: value for name, value in given.items() if value is not None}
    if len(options) > 1:
        raise UsageError(
            f"{' and '.join(map(repr, options.values()))} are named, and one is taken; give one of them."
        )
    return next(iter(options.values()), None)


_LONGEST_NAME = 255  # bytes, of the usual file systems
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


def run_guarded(action: Callable[[], None], verbose: bool | None = None, log: Path | None = None) -> None:
    """Run an action; an error becomes one sentence and an exit code (1 failed, 2 wrong call, 130 Ctrl-C).

    ``verbose`` is whether errors have their traceback; None, of a command without -v: those that were not foreseen.
    ``log`` is the file of --log.
    """
    try:
        if log is not None and is_first_process():
            LOG.open(log)
        action()
    except UnsupsegError as error:
        if verbose:
            traceback.print_exc()
        _err.print(f"[red]error:[/red] {escape(visible(str(error)))}", soft_wrap=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        _err.print("stopped; the same command goes on where it was")
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if verbose:
            traceback.print_exc()
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            name = f"'{error.filename}'" if error.filename else "A file, or what stdout leads to,"
            text = escape(visible(f"{name} cannot be written ({reason_of(error)})"))
            _err.print(
                f"[red]error:[/red] {text}: free some space, or write elsewhere, and make the same call again",
                soft_wrap=True,
            )
            raise typer.Exit(1) from None
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            path = Path(str(error.filename or "A file"))
            name = max(path.parts, key=lambda part: len(os.fsencode(part)))
            if len(os.fsencode(name)) <= _LONGEST_NAME:
                name = str(path)  # whose folders are too many
            text = (
                f"'{name[:40]}...' is a name of {len(os.fsencode(name))} bytes, longer than this disk takes"
            )
            _err.print(f"[red]error:[/red] {escape(visible(text))}; give a shorter one", soft_wrap=True)
            raise typer.Exit(2) from None
        if isinstance(error, UnicodeEncodeError) and (reads := sys.getfilesystemencoding()) != "utf-8":
            _err.print(
                f"[red]error:[/red] {escape(ascii(error.object))} is no name of a file in {reads}, the encoding "
                "that this environment asks for: set PYTHONUTF8=1, or LC_ALL=C.UTF-8",
                soft_wrap=True,
            )
            raise typer.Exit(2) from None
        if verbose is None:
            traceback.print_exc()
        text = escape(visible(f"{type(error).__name__}: {error}"))
        found = "that -v prints" if verbose is False else "above"
        _err.print(
            f"[red]error:[/red] {text} (not foreseen: please report it with the traceback {found})",
            soft_wrap=True,
        )
        raise typer.Exit(1) from None
    finally:
        LOG.close()


def print_origins(rows: list[tuple[str, str, str]], prefix: str = "") -> None:
    """Print options with their value and where it came from."""
    for option, value, source in rows:
        _err.print(f"{prefix}{option} = {value} ({source})", markup=False, soft_wrap=True)


def _parse(
    name: str, cls: type[Config], values: dict[str, Any], extra: dict[str, Any], with_settings: bool
) -> Invocation:
    settings, values = find_settings(Path.cwd()), _merge_alone(name, values)
    parsed = {
        field_name: _split(cls, field_name, value)
        for field_name, value in values.items()
        if field_name in cls.model_fields and value not in (None, [])
    }
    layers, file = {"command line": parsed}, str(settings.path or "unsupseg.toml")
    if with_settings:
        layers[file] = settings.for_command(name, set(cls.model_fields))
    config = build_config(cls, layers, shared=(file,))
    invocation = Invocation(
        command=name,
        config=config,
        settings=settings,
        workspace=find_workspace(values["workspace"], settings),
        cache=(values["cache"], values["cache_size"]),
        reporter=TerminalReporter(values["quiet"] or not is_first_process()),
        force=values["force"],
        json=values["json_"],
        explain=values.get("explain_", False),
        assignments=parse_assignments(values.get("set_") or []),
        extra={key: values[key] for key in extra},
    )
    if values.get("explain_") and with_settings:
        print_origins(explain(config, layers))
    return invocation


def _rank(config: type[Config], name: str) -> int:
    """Return the place of an option in the help: the data, what is the command's own, what it shares, the machine."""
    if name in DataConfig.model_fields or name in BatchConfig.model_fields:
        return 0 if name in DataConfig.model_fields else 3
    return 1 if name in config.__annotations__ else 2


def _split(cls: type[Config], name: str, value: Any) -> Any:
    """Split the text ``a,b`` of a field that takes several values."""
    several = typing.get_origin(cls.model_fields[name].annotation) is tuple
    return [part.strip() for part in value.split(",")] if several and isinstance(value, str) else value


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _options(config: type[Config], has_argument: bool) -> list[inspect.Parameter]:
    """Return the arguments and options of the fields; what may stand alone does so where nothing else stands there."""
    names = sorted(config.model_fields, key=partial(_rank, config))
    arguments = [name for name in names if config.note(name, "argument")]
    alone = [] if arguments or has_argument else [name for name in names if config.note(name, "alone")]
    parameters = [_argument(config, name, name) for name in arguments]
    parameters += [_argument(config, name, f"{name}{_ALONE}") for name in alone]
    parameters += [
        _option(config, name, name, f"--{name.replace('_', '-')}") for name in names if name not in arguments
    ]
    named = [name for name in arguments if config.note(name, "also")]
    return parameters + [_option(config, name, f"{name}{_ALONE}", "") for name in named]


_ALONE = "_alone"  # the other of the two ways, by place and by name, in which a field may be given


def _argument(config: type[Config], name: str, key: str) -> inspect.Parameter:
    info, several = config.model_fields[name], config.model_fields[name].annotation == tuple[Path, ...]
    metavar = "images" if name == "dataset" else name
    help_ = info.description if key == name else f"The same as --{name}."
    complete = completer(name, info.annotation)
    argument = typer.Argument(
        help=help_, metavar=metavar.upper(), show_default=False, autocompletion=complete
    )
    kind: Any = list[str] if several or key != name else str
    return _parameter(key, Annotated[kind | None, argument], None)


def _option(config: type[Config], name: str, key: str, flag: str) -> inspect.Parameter:
    """Return the option of one field: text that pydantic parses, or a flag; paths may be repeated."""
    info = config.model_fields[name]
    is_flag = info.annotation is bool or info.annotation == (bool | None)
    kind: Any = bool if is_flag else str
    if info.annotation == tuple[Path, ...]:
        kind = list[str]
    names = [f"{flag}/--no-{flag[2:]}" if is_flag else flag] if flag else []
    option = typer.Option(
        *names,
        *config.note(name, "also") or (),
        help=f"{info.description} {_default_text(info.default)}".strip(),
        metavar=None if is_flag else _metavar(info.annotation),
        show_default=False,
        autocompletion=completer(name, info.annotation),
    )
    return _parameter(key, Annotated[kind | None, option], None)


def _merge_alone(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Put what was given by place under the name of its field; raises UsageError where it was given in both ways."""
    merged = {key: value for key, value in values.items() if not key.endswith(_ALONE)}
    for key in values.keys() - merged.keys():
        field_name, value = key.removesuffix(_ALONE), values[key]
        if value in (None, []):
            continue
        if merged.get(field_name) not in (None, []):
            first = value if isinstance(value, str) else value[0]
            raise UsageError(f"'{first}' and --{field_name} name the same thing; give one of them.")
        if field_name == "dataset":
            if len(value) > 1:
                raise UsageError(
                    f"`{name}` takes one folder of images, or the name of a data set; {len(value)} were given: "
                    f"'{value[0]}', '{value[1]}'{', ...' if len(value) > 2 else ''}."
                )
            value = value[0]
        merged[field_name] = value
    return merged


def _default_text(default: Any) -> str:
    if default is None or default is False or default == ():
        return ""
    if default is PydanticUndefined:
        return "(required)"
    value = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"(default: {value})"


def _metavar(annotation: Any) -> str:
    """Return what stands for the value in the help: the choices of a Literal, else the type."""
    options = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
    first = options[0]
    if any(typing.get_origin(option) is typing.Literal for option in options[1:]):
        words = [typing.get_args(option) for option in options if typing.get_origin(option) is typing.Literal]
        return "|".join(["INT", *(str(word) for group in words for word in group)])  # a number of classes
    if typing.get_origin(first) is typing.Literal:
        return "|".join(map(str, typing.get_args(first)))
    if first == tuple[Path, ...]:
        return "<path>"
    if len(options) > 1 and typing.get_origin(options[1]) is tuple:
        return "A,B,..."
    if typing.get_origin(first) is tuple:
        items = typing.get_args(first)
        return "A,B,..." if Ellipsis in items else "HEIGHTxWIDTH"  # the only pairs are sizes of images
    return {int: "<int>", float: "<float>", Path: "<path>"}.get(first, "<str>")
