"""What methods do otherwise than published: told from one source, and true of the options that it names."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unsupseg_cli.cli.deviations import COMMON, page
from unsupseg_cli.cli.main import app
from unsupseg_cli.methods.registry import BUNDLED, get_method

PAGE = Path(__file__).parents[2] / "docs" / "deviations.md"
METHODS = [get_method(name) for name in BUNDLED]


def test_the_page_is_what_the_methods_declare():
    assert PAGE.read_text(encoding="utf-8") == page(METHODS), (
        "unsupseg methods deviations > docs/deviations.md"
    )
    assert CliRunner().invoke(app, ["methods", "deviations"]).stdout == page(METHODS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_show_names_every_deviation(method):
    shown = CliRunner().invoke(app, ["methods", "show", method.name], env={"COLUMNS": "400"}).stdout
    words = " ".join(shown.split())
    assert method.deviations
    for one in method.deviations:
        assert one.what in words


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_switches_a_deviation_off_is_an_option_whose_default_it_is_not(method):
    """Every ``--set name=value`` is an option of a part, takes the value, and does not have it by default."""
    for one in method.deviations:
        for name, value in re.findall(r"--set (\w+)=([\w.,]+)(?=[ ;:,]|$)", one.off):
            if value in ("FILE", ""):
                continue
            parts = [part for part in method.parts if name in part.options.model_fields]
            assert parts, (one.what, name)
            given = value.rstrip(",")
            for part in parts:
                try:
                    options = part.options(**{name: given})
                except ValueError:
                    continue
                assert getattr(options, name) != part.options.model_fields[name].default, (one.what, name)
                break
            else:
                raise AssertionError(f"{name}={given} fits no part of {method.name}")


def test_no_text_breaks_the_table():
    for one in (*COMMON, *(one for method in METHODS for one in method.deviations)):
        assert all(part.strip() for part in (one.what, one.here, one.published, one.why)), one
        assert not any("|" in part or "\n" in part for part in vars(one).values()), one
