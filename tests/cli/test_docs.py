"""What the documents name is there: files, commands, options of commands and of benchmarks."""

import re
from pathlib import Path

import pytest
import typer

from unsupseg_cli.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("README.md", "docs/*.md", "samples/**/*.md", "unsupseg_cli/methods/*/README.md")
    for path in ROOT.glob(pattern)
)
CODE = re.compile(r"```.*?```|`[^`]+`|^    \S.*?$", re.DOTALL | re.MULTILINE)
"""Fenced blocks, spans and indented lines."""


def calls(text, program):
    """Return the calls of a program in the code of a page: what follows its name, up to the end of the command."""
    code = "\n".join(found.strip("`") for found in CODE.findall(text.replace("\\\n", " ")))
    return re.findall(rf"{program}((?: +[^\s|&)#;`]+)*)", code)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("http") or (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    whole = typer.main.get_command(app)
    context = whole.make_context("unsupseg", [], resilient_parsing=True)
    for call in calls((ROOT / page).read_text(), r"(?<![\w/.-])unsupseg"):
        words, command = call.split(), whole
        while words and hasattr(command, "get_command") and words[0] not in ("COMMAND", "--help"):
            command = command.get_command(context, words.pop(0))
            assert command is not None, f"unsupseg{call}"
        known = {"--help"}.union(*(option.opts + option.secondary_opts for option in command.params))
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in known, f"unsupseg{call}: {option}"


@pytest.mark.parametrize("page", PAGES)
def test_benchmarks_and_their_options_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(r"benchmarks/[\w.]+\w", text):
        assert (ROOT / name).exists(), name
    for name, call in re.findall(r"(benchmarks/\w+\.py)((?:\s+[^\s`|;,)]+)*)", text.replace("\\\n", " ")):
        source = (ROOT / name).read_text()
        for option in re.findall(r"--[\w-]+", call):
            assert f'"{option}"' in source, f"{name}{call}: {option}"
