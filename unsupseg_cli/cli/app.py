"""The typer application that the command files register with."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="unsupseg",
    help="Discover the classes of your images and segment them, without labels.\n\n"
    "Every command reads artifacts, writes one artifact and prints its path. An input that is not named is "
    "the last one written. Start with: unsupseg demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)
