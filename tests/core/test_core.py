"""Seeds, hints for mistyped names, and the layers that options come from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import model_validator

from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError, did_you_mean, reason_of
from unsupseg_cli.core.layers import build_config, explain
from unsupseg_cli.core.seeds import stream
from unsupseg_cli.core.words import are, counted


class Options(Config):
    size: int = setting(320, ge=1)
    name: str = setting("a")
    device: str = execution("cpu")


class Nameless(Options):
    @model_validator(mode="after")
    def _refuse(self):
        raise ValueError("--size 0 wants a NAME")


def test_streams_stay_as_they_are():
    """A run goes on after an update with the numbers it would have had: another formula would change them."""
    assert stream(0, "encoder") == 7383734732022728942
    assert stream(7, "batch", 3) == 4520047810501114583


@given(st.integers(0, 10**6), st.lists(st.text() | st.integers(), max_size=3), st.integers(0, 10**6))
def test_streams_are_seeds_that_differ_by_run_and_name(seed, names, other):
    one = stream(seed, *names)
    assert one == stream(seed, *names)
    assert 0 <= one < 2**63
    assert (stream(other, *names) == one) == (other == seed)
    assert stream(seed, *names, "more") != one


def test_the_nearest_name_is_suggested_and_none_where_nothing_is_near():
    known = ["dino_vits8", "dino_vitb8", "tiny"]
    assert did_you_mean("dino_vits_8", known).startswith("; did you mean 'dino_vits8'?")
    assert did_you_mean("zzz", known) == ". Known: dino_vitb8, dino_vits8, tiny."
    assert did_you_mean("zzz", []) == ". There is none."


LAYERS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"size": st.integers(1, 9), "device": st.sampled_from(["cuda", "mps"])}
    ),
    max_size=4,
)


@given(LAYERS)
def test_the_first_layer_that_names_an_option_wins_and_is_told(values):
    layers = {f"layer {number}": layer for number, layer in enumerate(values)}
    config = build_config(Options, layers)
    told = {name: (value, source) for name, value, source in explain(config, layers)}
    for name, default in (("size", 320), ("device", "cpu")):
        naming = [(layer[name], source) for source, layer in layers.items() if name in layer]
        value, source = naming[0] if naming else (default, "default")
        assert getattr(config, name) == value
        assert told[name] == (str(value), source)
    assert config.result() == {"size": config.size, "name": "a"}


def test_what_does_not_fit_is_named_with_its_layer():
    with pytest.raises(UsageError, match=r"--size '0' \(file\) does not fit: .*greater than or equal to 1"):
        build_config(Options, {"command line": {}, "file": {"size": 0}})
    with pytest.raises(UsageError, match=r"'sise' \(file\); did you mean 'size'"):
        build_config(Options, {"file": {"sise": 1}})
    with pytest.raises(
        UsageError, match=r"^The options \(file\) do not go together: --size 0 wants a NAME\.$"
    ):
        build_config(Nameless, {"file": {"size": 2}})


@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_numbers(value):
    with pytest.raises(
        UsageError, match=r"--size .* does not fit: .*expected a number or a text, found true or false"
    ):
        build_config(Options, {"file": {"size": value}})


def test_a_list_is_no_value():
    with pytest.raises(UsageError, match=r"--size .* does not fit: expected one value, found a list"):
        build_config(Options, {"file": {"size": [64]}})


def test_a_disk_that_is_full_is_told_in_the_system_s_words():
    of_hdf5 = "Unable to create file (write failed: time = Fri Nov 27\n, errno = 28, error message = 'x', buf = 0x5)"
    for error in (OSError(28, "No space left on device"), OSError(of_hdf5)):
        assert reason_of(error) == "No space left on device"


def test_one_thing_is_told_as_one():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "class") for n in (1, 1204)] == ["1 class", "1,204 classes"]
    assert [are(n) for n in (0, 1, 2)] == ["are", "is", "are"]
