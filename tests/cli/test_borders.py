"""Names and streams as systems give them: other encodings, addresses, patterns, ~, closed and full stdout."""

import io
import os
import re
import signal
import subprocess
import sys

import pytest
from PIL import Image

from unsupseg_cli.cli.main import app, main

RUN = "from unsupseg_cli.cli.main import main; main()"


def picture(path):
    Image.new("RGB", (16, 16)).save(os.fsencode(path) if isinstance(path, str) else path, "PNG")


def run(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(
        command, env=environment, capture_output="stdout" not in options, check=False, **options
    )


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--dataset", "https://example.org/photos", "has the unknown scheme 'https'"),
        ("--dataset", "s3://", "names no bucket"),
        ("--labels", "https://example.org/labels", "is an address (https)"),
        ("--root", "file:///data", "without file://"),
        ("--dataset", "photos/*.png", "is a pattern"),
        ("--class-file", "class?.txt", "is a pattern"),
        ("--weights", "s3://bucket/w.pth", "is an address (s3)"),
        ("--workspace", "hdfs://bucket/ws", "'hdfs://bucket/ws' has the unknown scheme 'hdfs'"),
        ("--workspace", "s3://b", "'s3://b' names no bucket: expected s3://BUCKET/PREFIX with a bucket of 3"),
        ("--workspace", "s3://", "'s3://' names no bucket: expected s3://BUCKET/PREFIX with a bucket of 3"),
        ("--workspace", "az://b", "names no container: expected az://CONTAINER/PREFIX with a container of 3"),
        ("--workspace", "file:///data", "'file:///data' is an address (file)"),
        ("--dataset", "file:///data", "'file:///data' is an address (file)"),
        ("--log", "s3://bucket/log", "'s3://bucket/log' is an address (s3)"),
        ("--layer", "5", "negative, counted from the last: -1"),
    ],
)
def test_addresses_and_patterns_are_named(call, option, value, said):
    given = [] if option == "--dataset" else ["--dataset", "photos/"]
    _, error = call("extract", *given, option, value, code=2)
    assert said in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("extract", "s3://b"), "IMAGES 's3://b' (command line) does not fit: 's3://b' names no bucket"),
        (("extract", "http://x/a.png"), "'http://x/a.png' has the unknown scheme"),
        (("extract", "s3://bucket/a b"), "'s3://bucket/a b' has a malformed prefix"),
        (("extract", "@list.txt"), "The list 'list.txt' names the address 's3://bucket/a'"),
        (("segment", "photos", "--out", "s3://bucket/x"), "'s3://bucket/x' is an address"),
        (("classes", "show", "--out", "s3://bucket/x.png"), "'s3://bucket/x.png' is an address"),
        (("classes", "apply", "--out", "s3://bucket/x"), "'s3://bucket/x' is an address"),
        (("report", "--out", "s3://bucket/x.html"), "'s3://bucket/x.html' is an address"),
        (("datasets", "check", "x", "--labels", "s3://bucket/x"), "'s3://bucket/x' is an address"),
    ],
)
def test_an_address_is_shown_as_it_was_given(call, tmp_path, capsys, arguments, said):
    (tmp_path / "here" / "list.txt").write_text("s3://bucket/a")
    with pytest.raises(SystemExit) as ended:
        app(arguments)
    assert ended.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert ":/b" not in error.replace("://", "")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["list.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", "@"),
        ("extract", "--dataset", "@"),
        ("extract", "photos", "--workspace", "@"),
        ("import-masks", "@", "--dataset", "photos"),
        ("segment", "photos", "--out", "@"),
        ("export-labels", "--format", "hdf5", "--out", "@.h5"),
    ],
)
def test_a_name_that_is_too_long_is_told(call, tmp_path, arguments):
    (tmp_path / "here" / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "here" / "photos" / "a.png")
    name = "ä" * 130  # 260 bytes
    _, error = call(*(word.replace("@", name) for word in arguments), code=2)
    assert re.search(
        r"'ä{40}\.\.\.' is a name of 26\d bytes, longer than this disk takes; give a shorter one", error
    )


def test_a_path_of_too_many_folders_is_told(call):
    _, error = call("extract", "/".join(["folder"] * 800), code=2)
    assert re.search(r"is a name of 55\d\d bytes, longer than this disk takes; give a shorter one", error)


def test_options_that_fit_no_rule_and_a_workspace_that_is_a_file_are_wrong_calls(call, tmp_path, monkeypatch):
    (tmp_path / "here" / "file").touch()
    kernel = call("train", "--method", "primaps", "--tokens", "live", "--set", "blur_kernel=20", code=2)[1]
    assert "blur_kernel '20' (--set) does not fit: expected an odd number" in kernel
    shifts = call("train", "--method", "stego", "--set", "shifts=nan,1,2", code=2)[1]
    assert "expected three numbers (itself, kNN, random)" in shifts
    monkeypatch.setenv("UNSUPSEG_WORKSPACE", "file")
    for command in (("list",), ("extract", "--dataset", "scenes")):
        assert "The workspace 'file' is a file; name a folder" in call(*command, code=2)[1]


def test_a_list_says_which_line_is_wrong(call, tmp_path):
    here = tmp_path / "here"
    (here / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(here / "photos" / "a\u2028.png")
    (here / "list.txt").write_text(
        "# a remark\r\n  # one that is indented\n\nphotos/a\u2028.png\nphotos/b.png\n"
    )
    _, error = call("extract", "@list.txt", code=2)
    assert "Line 5 of the list 'list.txt': 'photos/b.png' does not exist" in error


def test_a_folder_whose_name_looks_like_a_pattern_is_taken(call, tmp_path):
    (tmp_path / "here" / "day[1]").mkdir()
    picture(tmp_path / "here" / "day[1]" / "a.png")
    assert "1 image" in call("extract", "--dataset", "day[1]/", "--size", 16, "--workers", 0)[1]


@pytest.mark.parametrize("arguments", [("",), ("--dataset", ""), ("--dataset", "photos/", "--weights", " ")])
def test_an_empty_name_is_not_the_folder_one_works_in(call, arguments):
    assert "it is empty, perhaps a variable of the shell" in call("extract", *arguments, code=2)[1]


def test_home_is_known_in_options_and_files(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    picture(tmp_path / "photos" / "a.png")
    assert "1 image" in call("extract", "--dataset=~/photos", "--size", 16, "--workers", 0)[1]
    text = 'dataset = "~/photos"\nworkspace = "~/ws"\n'
    (tmp_path / "here" / "unsupseg.toml").write_text(text, encoding="utf-8-sig")  # with a byte order mark
    path, _ = call("extract", "--size", 16, "--workers", 0)
    assert path.startswith(str(tmp_path / "ws"))
    assert not (tmp_path / "here" / "~").exists()


def test_names_in_other_encodings_are_kept_as_escapes(call, tmp_path):
    folder = tmp_path / "here" / "p"
    folder.mkdir()
    picture(folder / "n\u00fc.png")
    picture(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))
    assert "2 images" in call("extract", "--dataset", "p/", "--size", 16, "--workers", 0)[1]
    call("pseudolabel", "--method", "kmeans", "--classes", 2)
    call("train", "--method", "kmeans", "--classes", 2)
    call("predict", "p", "--out", "out", "--workers", 0)
    assert sorted(path.name for path in (tmp_path / "here/out/ids").iterdir()) == [
        "caf_xe9.png.png",
        "n\u00fc.png.png",
    ]


@pytest.mark.parametrize("length", [230, 252])
def test_files_named_after_long_names_are_cut(call, tmp_path, length):
    folder = tmp_path / "here" / "p"
    folder.mkdir()
    picture(folder / f"{'x' * (length - 4)}.png")
    picture(folder / f"{'x' * (length - 5)}y.png")
    call("extract", "--dataset", "p/", "--size", 16, "--workers", 0)
    call("pseudolabel", "--method", "kmeans", "--classes", 2)
    call("train", "--method", "kmeans", "--classes", 2)
    call("predict", "p", "--out", "out", "--workers", 0)
    names = [path.name for path in (tmp_path / "here/out/ids").iterdir()]
    assert len(names) == 2
    assert all(name.startswith("xxx") and name.endswith(".png") for name in names)


def test_stdout_that_is_ascii_closed_or_full(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "\u00fc"
    folder.mkdir()
    picture(folder / "a.png")
    arguments = ("extract", "--dataset", f"{folder}/", "--size", 16, "--workers", 0, "-w", folder / "ws")
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = run(*arguments, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert b"cannot be written to stdout (No space left on device)" in done.stderr
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = run("list", "--json", "-w", folder / "ws", stdout=full, stderr=subprocess.PIPE)
    assert done.stderr.strip() == b"error: The result cannot be written to stdout (No space left on device)"
    monkeypatch.setattr(sys, "argv", ["unsupseg", *map(str, arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the stop of a batch system is not the tests'
    printed = io.BytesIO()
    # What Python makes of a stdout that is ASCII, and of one that is closed.
    for stdout in (io.TextIOWrapper(printed, encoding="ascii", write_through=True), None):
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert "not foreseen" not in capfd.readouterr().err
    assert printed.getvalue().startswith(os.fsencode(folder))  # a path that the next command can take


@pytest.mark.parametrize("command", [("list",), ("gc",), ("verify",), ("report",)])
def test_a_workspace_that_is_a_file_is_told(call, tmp_path, command):
    (tmp_path / "file").write_text("")
    said = call(*command, "--workspace", tmp_path / "file", code=2)[1]
    assert "is a file; name a folder with --workspace" in said
