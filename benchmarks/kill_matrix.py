"""Every stage killed (SIGKILL) and called again: are the outputs those of an undisturbed run?

    python benchmarks/kill_matrix.py [--moments 10] [--seed 0] [--every-change [--stride 1]] [--stages extract,...]

On a handful of tiny pictures each stage is killed at random moments of its run, after which the workspace must
list nothing that is half-written and hold no lock; the same call then must give the digest of the undisturbed
run and leave no draft. Prints a row for each stage.

The stages run in children of one process that has loaded the libraries (`Driver`). Besides by the clock, a child
can be killed just before the n-th change that it makes to the workspace (Python's audit events: files opened for
writing, renamed, removed, folders made), which is the same moment in every run: --every-change does that for all
of them (or, with a --stride, for every so-manieth), tests/end_to_end/test_kill.py for three.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


SMALL = {
    "steps": 110,
    "epochs": 40,
    "cycles": 2,
    "cycle_steps": 55,
    "batch": 2,
    "restarts": 1,
    "init_restarts": 1,
}
"""Options of methods that make their work short, for those that have them."""
FIELDS = {
    "classes": "3",
    "neighbors": "3",
    "size": "32",
    "iterations": "1",
    "backbone": "untrained",
    "workers": "0",
    "device": "cpu",
}
"""Options of commands, for those that have them."""
SPECIAL: dict[str, dict[str, list[str]]] = {
    "extract": {
        "extract": ["--geometry", "squash", "--keep", "patch,cls,pooled,key,cls_query"],
        "extract-ragged": [],
        "extract-regions": ["--regions", "pyramid", "--levels", "1", "--keep", "cls,pooled,patch"],
        "extract-crops": ["--regions", "masks", "--pseudolabels", "@pseudolabel-kmeans"],
        "extract-regions-masked": ["--regions", "pyramid", "--levels", "1", "--embed", "masked"],
        "extract-hdf5": ["--geometry", "squash", "--store", "hdf5", "--keep", "patch,pooled,attention"],
    },
    "predict": {"predict": ["--keep", "scores"]},
    "pretrain": {"pretrain": ["--steps", "3", "--batch", "2"]},
    "classes": {"classes": []},
    "import-masks": {"import-masks": ["--values", "classes", "--from-labels"]},
}
"""Calls of a stage that are more than one, or more than its ports and small options; @ names what a call made."""


@cache
def stages() -> dict[str, tuple[str, str]]:
    """Return all calls: by name the command and, for a part of a method, ``METHOD`` or ``METHOD PART``.

    They come from the table of stages and the registry of methods, what is read before what reads it.
    """
    from unsupseg_cli.methods.registry import usable_methods
    from unsupseg_cli.pipeline import table

    depth = {"backbone": 0}

    def level(name: str) -> int:
        stage = table.get_stage(name)
        kinds = {port.kind for port in stage.ports}
        if stage.uses:
            kinds = {"features", "graph"} | ({"pseudolabels"} if stage.uses == "trainer" else set())
        if name == "extract":
            return 0
        makers = [maker for kind in kinds for maker in table.makers(kind) if maker != name]
        depth.setdefault(name, 1 + max((level(maker) for maker in makers), default=0))
        return depth[name]

    calls: dict[str, tuple[str, str]] = {}
    for name in sorted(table.entries(), key=level):
        stage = table.get_stage(name)
        for method in usable_methods() if stage.uses else ():
            parts = method.labellers if stage.uses == "labeller" else tuple(filter(None, [method.trainer]))
            for part in parts:
                suffix = f"-{part.name}" if part.name else ""
                calls[f"{name}-{method.name}{suffix}"] = (name, f"{method.name} {part.name}".strip())
        for call in SPECIAL.get(name, {name: []}) if not stage.uses else ():
            calls[call] = (name, "")
    calls["scan"] = ("scan", "")
    return calls


def command(call: str, images: Path, made: dict[str, str]) -> list[str]:
    """Return the arguments of a call; ``made`` gives the ids of the artifacts before it."""
    from unsupseg_cli.pipeline.stage import ports_of
    from unsupseg_cli.pipeline.table import get_stage

    name, part_name = stages()[call]
    if name == "scan":  # a stage without a command of its own
        return ["classes", "scan", made.get("extract", ""), "--range", "2-2", "--device", "cpu"]
    stage, options, arguments = get_stage(name), None, [name]
    values = {key: value for key, value in FIELDS.items() if key in stage.config.model_fields}
    if part_name:
        method, part = _part(name, part_name)
        small = {key: value for key, value in SMALL.items() if key in part.options.model_fields}
        options = part.options(**small)
        arguments += ["--method", method, *(["--part", part.name] if part.name else [])]
        arguments += [text for key, value in small.items() for text in ("--set", f"{key}={value}")]
        if "classes" not in options.needs().identity:
            del values["classes"]
    ports = [port for port in ports_of(stage, {}, options) if not port.optional or port.method]
    for port in {port.choice or port.role: port for port in reversed(ports)}.values():
        crops = port.kind == "regions" and any(other.kind == "pseudolabels" for other in ports)
        source = "extract-crops" if crops else _source(port.kind, part_name)
        arguments += [f"--{port.role}", made.get(source, "")]
    if name == "classes":
        arguments = ["classes", "merge", "0,1", *arguments[1:]]
        values = {}
    if "dataset" in stage.config.model_fields:
        split = "val" if "model" in stage.roles and name != "extract" else "train"
        place = {"extract-ragged": images / "ragged"}.get(call, images)
        arguments += ["--dataset", f"{place}/", *(["--split", split] if place == images else [])]
        if split == "val":
            values.pop("size", None)
    if name == "pretrain":
        arguments += ["--dataset", str(images / "images" / "train")]
    if name == "import-masks":
        arguments.insert(1, str(images / "labels" / "train"))
    for key, value in values.items():
        arguments += [f"--{key}", value]
    special = SPECIAL.get(name, {}).get(call, [])
    return arguments + [made.get(text[1:], "") if text.startswith("@") else text for text in special]


def _part(name: str, part_name: str) -> tuple[str, Any]:
    from unsupseg_cli.methods.registry import get_method

    method, _, part = part_name.partition(" ")
    found = get_method(method)
    return method, found.labeller(part or None) if name == "pseudolabel" else found.require_trainer()


def _source(kind: str, part_name: str) -> str:
    """Return the call that makes what is read of a kind: of the same method, else of k-means, where they make it."""
    from unsupseg_cli.pipeline import table

    if kind == "regions":  # extract's other kind
        return "extract-regions"
    method = part_name.partition(" ")[0]
    makers = [call for call, (name, _) in stages().items() if name in table.makers(kind)]
    of_method = {stages()[call][1]: call for call in makers}
    return (of_method.get(method) if method else None) or of_method.get("kmeans") or makers[0]


def pictures(folder: Path) -> None:
    """Write labelled pictures of coloured halves, some of them of other shapes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("ragged", 5)):
        for number in range(count):
            height, width = (32, 48) if split != "ragged" else (32 + 16 * (number % 2), 48)
            label = np.zeros((height, width), np.uint8)
            label[height // 2 :], label[:, : 8 + 4 * number] = 1, 2
            color = np.array([[40, 90, 220], [60, 160, 60], [220, 60, 40]])[label]
            image = (color + rng.normal(0, 12, color.shape)).clip(0, 255).astype(np.uint8)
            target = folder / ("ragged" if split == "ragged" else f"images/{split}") / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(target)
            if split != "ragged":
                target = folder / "labels" / split / f"{number}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(label).save(target)
    (folder / "classes.json").write_text(json.dumps({"classes": ["sky", "grass", "box"], "void": [255]}))


class Driver:
    """A process with the libraries loaded that runs calls of the command in children, one at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = [sys.executable, str(Path(__file__).resolve()), "--serve"]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self,
        arguments: list[str],
        space: Path,
        *,
        point: int | None = None,
        action: str = "kill",
        seconds: float | None = None,
        file_limit: int | None = None,
        powerless: bool = False,
    ) -> dict[str, Any]:
        """Run a call in a child process.

        Args:
            arguments: of the command, without the workspace.
            space: the workspace.
            point: do ``action`` just before the change of this number.
            action: kill, int, term (signals), move (the workspace away), lock (make its folders read-only).
            seconds: kill after this time.
            file_limit: bytes that no file may grow beyond, as on a disk without space.
            powerless: give up root's power to write what is read-only.

        Returns:
            ``code`` (exit status, -9 when killed), ``changes`` made to the workspace, ``seconds``, ``said``.
        """
        job = {
            "arguments": [*arguments, "-w", str(space)],
            "space": str(space),
            "point": point,
            "action": action,
            "seconds": seconds,
            "file_limit": file_limit,
            "powerless": powerless,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Answer the jobs of a `Driver`: one line of JSON in, one out."""
    import unsupseg_cli
    from unsupseg_cli.cli.main import main

    for module in pkgutil.walk_packages(unsupseg_cli.__path__, "unsupseg_cli."):
        importlib.import_module(module.name)  # the libraries too: a child loads nothing
    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line), main)), flush=True)


def _fork(job: dict[str, Any], main: Callable[[], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        said, count = Path(folder) / "said", Path(folder) / "count"
        said.touch()  # the child may be killed before it can
        clock = time.monotonic()
        child = os.fork()
        if child == 0:
            _child(job, main, said, count)
        deadline = clock + (120.0 if job["seconds"] is None else job["seconds"])
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                found = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        return {
            "code": os.waitstatus_to_exitcode(found[1]),
            "seconds": time.monotonic() - clock,
            "changes": int(count.read_text() or 0) if count.exists() else None,
            "said": said.read_text(encoding="utf-8"),
        }


def _child(job: dict[str, Any], main: Callable[[], None], said: Path, count: Path) -> None:
    handle = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    written = os.open(count, os.O_WRONLY | os.O_CREAT, 0o600)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv, code, changes = ["unsupseg", *job["arguments"]], 1, 0
    if job["powerless"]:
        _drop_capabilities()
    if job["file_limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_limit"], job["file_limit"]))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in _CHANGES:
            return
        if str(arguments[0]).startswith(job["space"]):
            changes += 1
            if changes == job["point"]:
                _act(job["action"], job["space"])

    sys.addaudithook(watch)
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException as error:
        print(repr(error))
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(written, str(changes).encode())
    os._exit(code)


def _act(action: str, space: str) -> None:
    if action == "move":
        Path(space).rename(f"{space}.away")
    elif action == "lock":
        for folder in [Path(space), *Path(space).rglob("*")]:
            if folder.is_dir():
                folder.chmod(0o555)
    else:
        number = {"kill": signal.SIGKILL, "int": signal.SIGINT, "term": signal.SIGTERM}[action]
        os.kill(os.getpid(), number)


def _drop_capabilities() -> None:
    """Drop this process's capabilities (capset, version 3): root then obeys the permissions of files."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def unclean(space: Path) -> list[str]:
    """Return what a killed call left that nobody should see: damaged artifacts and locks that are held."""
    from unsupseg_cli.artifacts.files import exclusive
    from unsupseg_cli.artifacts.workspace import Workspace
    from unsupseg_cli.core.errors import UnsupsegError

    workspace = Workspace(space)
    found = [problem for artifact in workspace.artifacts() for problem in workspace.verify(artifact)]
    found += workspace.damaged()
    for lock in sorted(space.glob(".locks/*.lock")):
        try:
            with exclusive(lock, f"'{lock.name}'", wait=0):
                pass
        except UnsupsegError as error:
            found.append(str(error))
    return found


class Matrix:
    """The undisturbed artifacts of every stage, and workspaces in which one stage is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.images, self.space = folder, folder / "images", folder / "whole"
        pictures(self.images)
        self.driver = Driver()
        self.made: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}

    def make(self, stage: str) -> dict[str, Any]:
        """Run a stage, and those before it, undisturbed; return the driver's answer."""
        if stage in self.runs:
            return self.runs[stage]
        for before in stages():
            if _needs(stage, before):
                self.make(before)
        answer = self.driver.run(command(stage, self.images, self.made), self.space)
        if answer["code"]:
            raise RuntimeError(f"{stage}: {answer['said']}")
        path = Path(answer["said"].split("\n")[-2])
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        self.made[stage], self.digests[stage], self.runs[stage] = path.name, manifest["digest"], answer
        return answer

    def kill(self, stage: str, **moment: Any) -> str | None:
        """Kill a stage in a workspace without its artifact and call it again; return what was wrong."""
        self.make(stage)
        space = self.folder / "killed"
        shutil.rmtree(space, ignore_errors=True)
        shutil.copytree(self.space, space, copy_function=os.link)  # artifacts are never changed in place
        for name in ("current.json", "digests.json"):  # files that are replaced, not changed
            (space / name).unlink(missing_ok=True)
        target = next(space.glob(f"*/{self.made[stage]}"))
        shutil.rmtree(target)
        arguments = command(stage, self.images, self.made)
        answer = self.driver.run(arguments, space, **moment)
        if answer["code"] not in (-signal.SIGKILL, 0):
            return f"the killed call ended by itself: {answer['said']}"
        if problems := unclean(space):
            return f"left behind: {problems}"
        again = self.driver.run(arguments, space)
        if again["code"]:
            return f"the second call failed: {again['said']}"
        manifest = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
        if manifest["digest"] != self.digests[stage]:
            return "other digest"
        if problems := unclean(space) + list(map(str, space.glob("*/.partial*"))):
            return f"left behind after the second call: {problems}"
        return None


def _needs(stage: str, before: str) -> bool:
    marked = command(stage, Path(), {before: "<wanted>"})
    return "<wanted>" in marked


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--every-change", action="store_true", help="kill before every change, not by the clock"
    )
    parser.add_argument("--stride", type=int, default=1, help="with --every-change: every so-manieth")
    parser.add_argument("--stages", help="default: all of them")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    failures = 0
    print(
        "| stage | seconds undisturbed | changes to the workspace | killed | same digest, nothing left |\n|"
        + "---|" * 5
    )
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        for stage in options.stages.split(",") if options.stages else stages():
            whole, wrong = matrix.make(stage), []
            chance = random.Random(f"{options.seed} {stage}")
            moments: list[dict[str, Any]] = (
                [{"point": point} for point in range(1, whole["changes"] + 1, options.stride)]
                if options.every_change
                else [{"seconds": chance.uniform(0, whole["seconds"])} for _ in range(options.moments)]
            )
            for moment in moments:
                if problem := matrix.kill(stage, **moment):
                    wrong.append(f"{moment}: {problem}")
            good = len(moments) - len(wrong)
            times = f"{whole['seconds']:.2f} | {whole['changes']} | {len(moments)} | {good}"
            print(f"| {stage} | {times} |", flush=True)
            for problem in wrong:
                print(f"  {stage} at {problem}", file=sys.stderr, flush=True)
            failures += len(wrong)
        matrix.driver.close()
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
