"""A stand-in for `docker` that reads the Dockerfile and runs the program that it names on this machine.

It knows what docs/getting-started.md asks for: an image is a tag whose Dockerfile declares what `--build-arg` gives; a
run has the mounted folder for its working folder.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

IMAGES = Path(os.environ["STAND_IN_DOCKER"])


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", allow_abbrev=False)
    build.add_argument("-t", dest="tag", required=True)
    build.add_argument("--build-arg", default=[], action="append")
    build.add_argument("context", type=Path)
    run = commands.add_parser("run", allow_abbrev=False)
    run.add_argument("--rm", action="store_true", required=True)
    run.add_argument("--user", required=True)
    run.add_argument("--gpus", choices=["all"])
    run.add_argument("-v", dest="mount", required=True)
    run.add_argument("image")
    run.add_argument("words", nargs=argparse.REMAINDER)
    call = parser.parse_args()
    return make(call) if call.command == "build" else start(call)


def make(call):
    text = (call.context / "Dockerfile").read_text()
    declared = re.findall(r"^ARG (\w+)", text, re.MULTILINE)
    assert all(given.split("=")[0] in declared for given in call.build_arg), call.build_arg
    (IMAGES / call.tag).write_text(text)


def start(call):
    text = (IMAGES / call.image).read_text()
    here, there = call.mount.split(":")
    assert there == re.findall(r"^WORKDIR (\S+)$", text, re.MULTILINE)[-1]
    assert call.user == f"{os.getuid()}:{os.getgid()}"
    program = json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.MULTILINE)[-1])
    return subprocess.run([*program, *call.words], cwd=here, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
