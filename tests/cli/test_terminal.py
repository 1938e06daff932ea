"""What one sees while and after a command works."""

from pathlib import Path

import click
import numpy as np
import pytest
import typer
from fixtures.pictures import save
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, extract
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.console import print_columns, rate
from unsupseg_cli.cli.main import app
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.inference import extraction

SMALL = ("--size", 48, "--backbone", "untrained", "--workers", 0)


class Counting(Silent):
    """Notes how many images were computed whenever one more is counted."""

    def __init__(self, computed):
        self.computed, self.seen = computed, []

    def track(self, items, description, total=None, done=0):
        for count, item in enumerate(items, 1):
            if description == "extract":
                self.seen.append((count, self.computed[0]))
            yield item


def test_progress_counts_what_was_computed_not_what_was_decoded(blocks, tmp_path, monkeypatch):
    computed, embed = [0], extraction.Extraction._embed_group

    def counting(self, embedded, members, images):
        for place in embed(self, embedded, members, images):
            computed[0] += 1
            yield place

    monkeypatch.setattr(extraction.Extraction, "_embed_group", counting)
    reporter = Counting(computed)
    config = ExtractConfig(dataset=f"{blocks}/", size=48, workers=0, backbone="untrained", batch_size=1)
    extract(config, Context(Workspace(tmp_path), reporter))
    assert reporter.seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize(("speed", "text"), [(12.34, "12.3/s"), (1.0, "1.0/s"), (0.04, "25.0 s each")])
def test_slow_work_is_told_by_the_seconds_that_one_takes(speed, text):
    assert rate(speed) == text


def test_columns_are_never_cut_and_no_name_is_an_instruction(capsys):
    print_columns(("id", "K"), [("x" * 300, "5"), ("[red]a\x1b[0m", "12")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "x" * 300 + "  5"
    assert lines[2].split() == ["[red]a\\x1b[0m", "12"]


@pytest.fixture
def trained(call, blocks):
    call("extract", "--dataset", f"{blocks}/", *SMALL)
    call("pseudolabel", "--classes", 4, "--sheet", 0)
    return call("train", "--set", "steps=20")[0]


def test_list_shows_backbone_classes_and_what_an_artifact_was_made_from(call, trained):
    lines = {line.split()[0]: line.split() for line in call("list")[0].splitlines()}
    features, masks = lines["features"][1], lines["pseudolabels"][1]
    assert lines["features"][2] == "untrained"
    assert lines["pseudolabels"][2:5] == ["untrained", "4", features]
    assert masks in lines["model"]
    assert "no kind of artifacts 'models'; did you mean 'model'?" in call("list", "models", code=2)[1]
    for kind in ("tuning", "scan", "regions"):  # none is there
        call("list", kind)


def test_merging_says_which_ids_are_gone(call, trained):
    _, said = call("classes", "merge", "0,2")
    assert "2 into 0 ('class 0'); label maps made before still tell them apart" in said
    _, said = call("classes", "merge", "3,1,0")
    assert "0-1 into 3 ('class 3');" in said
    assert "classes apply PREDICTIONS" in said


def test_merging_names_all_label_maps_that_hold_a_class_that_is_gone(call, trained):
    made = [Path(call("predict", "--workers", 0)[0]).name]
    call("classes", "name", "0=sky", "2=sea")
    made.append(Path(call("classes", "apply")[0]).name)
    _, said = call("classes", "merge", "sky,sea")
    assert all(name in said for name in made)
    made.append(Path(call("classes", "apply")[0]).name)
    _, said = call("classes", "merge", "3,1")
    assert all(name in said for name in made)
    _, said = call("classes", "merge", "3,sky")
    assert all(name in said for name in made)
    call("classes", "apply")
    call("classes", "name", "3=all")


def test_labels_beside_images_that_were_named_as_a_folder_are_found(call):
    rng = np.random.default_rng(0)
    for number in range(3):
        label = np.repeat(np.array([0, 1], np.uint8), 24)[:, None].repeat(64, 1)
        noise = rng.integers(0, 60, (48, 64, 3)) + 150 * label[..., None]
        save(Path(f"photos/images/{number}.png"), noise.astype(np.uint8))
        save(Path(f"photos/labels/{number}.png"), label)
    Path("photos/classes.json").write_text('{"classes": ["low", "high"]}')
    call("extract", "photos", *SMALL)
    call("pseudolabel", "--classes", 2, "--sheet", 0)
    assert "objects" in call("eval-masks")[1]
    call("train", "--set", "steps=20")
    assert "3 images" in call("eval", "--workers", 0, "--sheet", 0)[1]


def test_an_evaluation_says_what_labels_were_read_for(call, trained, blocks, tmp_path):
    (tmp_path / "labels").mkdir()
    for path in blocks.glob("*.png"):
        width, height = Image.open(path).size
        Image.fromarray(np.zeros((height, width), np.uint8)).save(tmp_path / "labels" / path.name)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    labels = ("--labels", tmp_path / "labels", "--class-file", tmp_path / "classes.txt")
    path, _ = call("eval", "--dataset", f"{blocks}/", *labels, "--workers", 0, "--sheet", 0)
    assert "read for the scores only" in " ".join(call("show", path)[0].split())


@pytest.mark.parametrize(
    ("command", "words"),
    [("eval", "default: val"), ("predict", "default: val where"), ("export", "HEIGHTxWIDTH")],
)
def test_the_help_says_what_is_done(call, command, words):
    text = call(command, "--help")[0].replace("│", " ")
    assert words in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("extract", "--nothing"), "error: No such option: --nothing (Possible options: --no-strict). `"),
        (("extract", "--k", 5), "it is called --classes in other commands, and this one has none."),
        (("pseudolabel", "--k", 5), "error: No such option: --k; it is called --classes here."),
        (("extract", "--size"), "error: Option '--size' requires an argument."),
        (("nothing",), "error: No such command 'nothing'"),
        (("evall",), "error: No such command 'evall'; did you mean 'eval'?"),
        (("train", "--steps", 3), "what a method reads is given by --set steps=VALUE. `"),
        (("predict", "--Images", "x"), "it is called --dataset here."),
        (
            ("export", "--out", "m.onnx", "--frame", "A,B"),
            "--frame 'A,B' (command line) does not fit: expected HEIGHTx",
        ),
        (("extract", "hdfs://bucket/"), "error: IMAGES 'hdfs://bucket/' (command line) does not fit"),
        (("extract", "--size", "x"), "error: --size 'x' (command line) does not fit"),
    ],
)
def test_errors_of_a_call_are_told_in_one_style(call, arguments, words):
    out, said = call(*arguments, code=2)
    assert out == ""
    assert words in said
    assert "\u2502" not in said


@pytest.mark.parametrize("group", [(), ("classes",), ("methods",), ("recipes",)])
def test_without_a_command_the_help_is_shown(call, group):
    said = "".join(call(*group, code=2))
    assert "Usage:" in said
    assert "\\n" not in said
    assert "error:" not in said


def test_one_thing_has_one_name_in_every_command(call, blocks, trained):
    """Images go by --dataset, a model by --model, what is written by --out; and alone where nothing else stands."""
    named, _ = call("extract", "--dataset", f"{blocks}/", *SMALL)
    for arguments in ((f"{blocks}/", *SMALL, "--batch", 1), (f"{blocks}/", *SMALL, "--batch-size", 1)):
        assert call("extract", *arguments)[0] == named
    _, said = call("extract", f"{blocks}/", "--dataset", f"{blocks}/", code=2)
    assert "--dataset (command line) has no effect: images or folders are named" in said
    _, said = call("extract", f"{blocks}/", "more/", code=2)
    assert "'more' does not exist; give images or folders of images" in said
    for number, name in enumerate(((trained,), ("--model", trained))):
        call("export", *name, "--out", f"m{number}.safetensors")
        call("classes", "show", *name)
    assert (
        "are named, and one is taken"
        in call("export", trained, "--model", trained, "--out", "x.onnx", "--frame", "64x64", code=2)[1]
    )
    for name in (("nowhere/",), ("--dataset", "nowhere/")):
        assert "'nowhere' does not exist" in call("pretrain", *name, code=2)[1]


def options(command, path=()):
    """Return (command, parameter) of every command below one."""
    if not hasattr(command, "list_commands"):
        return [(" ".join(path), parameter) for parameter in command.params]
    context = click.Context(command)
    names = command.list_commands(context)
    return [pair for name in names for pair in options(command.get_command(context, name), (*path, name))]


_OWN_VALUES = {
    "--keep": "what is stored: kinds of tokens, or labels",
    "--engine": "of neighbours, or of the CRF",
    "--format": "of masks, or of labels",
    "--regions": "which to make, or those that were made",
    "--precision": "training has no automatic one",
}
"""Options of one name and sense whose values differ, since commands make different things."""


def test_an_option_is_the_same_thing_in_all_commands():
    """One name has one form of value; what may stand alone has the option's name too; --out is -o."""
    forms, several = {}, {}
    table = options(typer.main.get_command(app))
    for command, option in table:
        if option.param_type_name != "option":
            continue
        for name in option.opts:
            form = (option.metavar or "", option.is_flag) if name in _OWN_VALUES else option.is_flag
            forms.setdefault(name, {}).setdefault(form, []).append(command)
            if option.metavar and option.metavar[0] != "<" and name not in _OWN_VALUES:
                several.setdefault(name, set()).add(option.metavar)
        if "--out" in option.opts:
            assert "-o" in option.opts, command
    for name, found in forms.items():
        assert len(found) == 1 or name in _OWN_VALUES, f"{name} is two things: {found}"
    assert {name: values for name, values in several.items() if len(values) > 1} == {}
    assert {name for name, found in forms.items() if name in _OWN_VALUES and len(found) > 1} == set(
        _OWN_VALUES
    )
    named = {(command, name) for command, option in table for name in option.opts}
    kinds = ("model", "features", "predictions", "masks", "dataset_alone", "images")
    for command, argument in table:
        if argument.param_type_name == "argument" and argument.name in kinds and command != "segment":
            flag = {"dataset_alone": "--dataset", "images": "--dataset"}.get(
                argument.name, f"--{argument.name}"
            )
            assert (command, flag) in named, f"{command} takes {argument.name} alone, but not as {flag}"


_SCRIPTS = [
    ("bash", "complete -o"),
    ("zsh", "#compdef"),
    ("fish", "complete --command"),
    ("pwsh", "PSReadLine"),
]


@pytest.mark.parametrize(("shell", "mark"), _SCRIPTS)
def test_the_script_that_completes_commands_is_that_of_the_shell_named(call, shell, mark):
    script, _ = call("--show-completion", shell)
    assert mark in script
    assert "unsupseg" in script
    assert "'tcsh' is not one of" in call("--show-completion", "tcsh", code=2)[1]


@pytest.mark.parametrize(
    ("arguments", "advice", "told"),
    [
        (("list",), "traceback above", True),
        (("gc",), "traceback above", True),
        (("graph",), "traceback that -v prints", False),
        (("graph", "-v"), "traceback above", True),
    ],
)
def test_an_error_that_was_not_foreseen_leads_to_its_traceback(arguments, advice, told, call, monkeypatch):
    def fail(self, *arguments):
        raise RuntimeError("the moon is full")

    Path("unsupseg-workspace").mkdir()
    monkeypatch.setattr(Workspace, "listed", fail)
    monkeypatch.setattr(Workspace, "current", fail)
    _, said = call(*arguments, code=1)
    assert f"RuntimeError: the moon is full (not foreseen: please report it with the {advice})" in said
    assert ("Traceback" in said) == told
