"""The entry point of the ``unsupseg`` command: a table of commands, each imported when it is called."""

from __future__ import annotations

import os
import re
import signal
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from unsupseg_cli.core.errors import did_you_mean
from unsupseg_cli.core.headlines import headlines

_ORDER = [
    "segment",
    "demo",
    "run",
    "tune",
    "extract",
    "import-masks",
    "graph",
    "pseudolabel",
    "train",
    "predict",
    "refine",
    "eval",
    "eval-masks",
    "classes",
    "export",
    "export-masks",
    "export-labels",
    "pretrain",
]
_PANELS = {
    "Workspace": ("list", "show", "compare", "verify", "gc"),
    "Look up": ("methods", "recipes", "datasets", "protocols", "backbones", "doctor"),
}


@cache
def commands() -> dict[str, tuple[str, str]]:
    """Return the commands: by name, the module and what the help says of it.

    A file of ``stages``, or of this folder, that begins with the line ``NAME: what it does`` is a command; one of
    this folder stands in front of a stage of the same name.
    """
    package = Path(__file__).parents[1]
    modules = {
        name: (f"unsupseg_cli.{room}.{line.module}", line.summary)
        for room in ("stages", "cli")
        for name, line in headlines(package / room).items()
    }
    return {name: modules[name] for name in sorted(modules, key=_rank)}


def _rank(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)


_HELP = "NoArgsIsHelpError"  # a group without a command: its help is the message
_CallError: Any = typer.BadParameter.__mro__[2]  # the base of all errors that parsing a call raises
_SYNONYMS = {
    "--k": "--classes",
    "--num-classes": "--classes",
    "--clusters": "--classes",
    "--n-clusters": "--classes",
    "--num-clusters": "--classes",
    "--data": "--dataset",
    "--images": "--dataset",
    "--input": "--dataset",
    "--out-dir": "--out",
    "--output": "--out",
    "--output-dir": "--out",
    "--checkpoint": "--model",
    "--gpu": "--device",
}
"""Names of other tools, and what the option is called here."""
os.environ.setdefault(
    "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1"
)  # --show-completion takes the shell's name


def _tell(error: Any, message: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    from unsupseg_cli.core.names import visible

    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    known = [name for parameter in context.command.params for name in parameter.opts] if context else []
    if (meant := _SYNONYMS.get(str(option).lower())) is not None:
        place = "here" if meant in known else "in other commands, and this one has none"
        message = f"No such option: {option}; it is called {meant} {place}"
    elif option and "--set" in known and (setting := _setting_of_method(option)):
        message = f"No such option: {option}; what a method reads is given by --set {setting}=VALUE"
    elif (wrong := re.match("No such command '(.+)'", message)) and context:
        message = f"{wrong[0]}{did_you_mean(wrong[1], context.command.list_commands(context))}"
    hint = f" `{context.command_path} --help` says more." if context else ""
    text = f"{visible(message).replace('Value error, ', '').rstrip('.')}.{hint}"
    Console(stderr=True, highlight=False).print(f"[red]error:[/red] {escape(text)}", soft_wrap=True)


def _setting_of_method(option: str) -> str | None:
    """Return the option of some method that is meant by an option of a command that there is not."""
    from unsupseg_cli.methods.registry import usable_methods

    name = option.lstrip("-").replace("-", "_")
    parts = [part for method in usable_methods() for part in method.parts]
    return name if any(name in part.options.model_fields for part in parts) else None


def _tidy(command: Any) -> None:
    """Let the help of a command be lines of text: tables leave 19 of 80 columns for what is said of an option."""
    command.rich_markup_mode = None
    command.params = [option for option in command.params if not option.name.endswith("_completion")]


class _Commands(TyperGroup):
    """The commands, of which the help reads one line each."""

    _listing = False

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; a call that cannot be parsed is told in the way of every other error."""
        if not extra.get("standalone_mode", True):
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except _CallError as error:
            message = error.format_message()
            if not message or type(error).__name__ == _HELP:
                error.show()
            else:
                _tell(error, message)
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names."""
        return list(commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; for the help of all commands, only its line."""
        if cmd_name not in commands():
            return None
        module, summary = commands()[cmd_name]
        if self._listing:
            line = TyperCommand(cmd_name, help=f"{summary}.")
            line.rich_help_panel = next(
                (panel for panel, names in _PANELS.items() if cmd_name in names), "Pipeline"
            )
            return line
        if ".stages." in module:
            from unsupseg_cli.cli.stage import stage_app

            command = typer.main.get_command(stage_app(cmd_name))
        else:
            command = typer.main.get_command(import_module(module).app)
        command.name = cmd_name
        for shown in (command, *getattr(command, "commands", {}).values()):
            _tidy(shown)
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help of all commands."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


app = typer.Typer(
    name="unsupseg",
    cls=_Commands,
    help="Discover the classes of your images and segment them, without labels.\n\n"
    "Every command reads artifacts, writes one artifact and prints its path. An input that is not named is "
    "the last one written. Start with: unsupseg demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"unsupseg {version('unsupseg')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Discover the classes of your images and segment them, without labels."""


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _prepare_streams() -> None:
    """Make up for closed standard streams, and write characters that an encoding lacks as escapes."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - lives as long as we do
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command line."""
    _prepare_streams()
    signal.signal(signal.SIGTERM, _stop)  # a batch system's stop is as gentle as Ctrl-C
    app(prog_name="unsupseg")
