"""Seconds of a recipe with its workspace in object storage, beside a folder on this machine.

    python benchmarks/cloud.py --workspace s3://BUCKET/PREFIX [--recipe scenes-kmeans] [--rounds 3]

Local and remote runs alternate, each in an empty workspace; then both are called again where everything is there
already, the remote one with an empty cache and with a full one. The digests of both must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_AGAIN = ("local again", "remote again, empty cache", "remote again, full cache")


def unsupseg(words: Sequence[str], cache: Path) -> tuple[float, str]:
    """Return the seconds of a call and what it printed."""
    environment = {**os.environ, "UNSUPSEG_CACHE": str(cache)}
    begun = time.perf_counter()
    command = [sys.executable, "-m", "unsupseg_cli", *words]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begun, done.stdout


def digests(workspace: str, cache: Path) -> dict[str, str]:
    rows = json.loads(unsupseg(["list", "--json", "--workspace", workspace], cache)[1])
    return {row["id"]: row["digest"] for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--recipe", default="scenes-kmeans")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in ("local", "remote", *_AGAIN)}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            folder = Path(name) / str(number)
            local, remote = str(folder / "local"), f"{options.workspace}/{os.getpid()}-{number}"
            call = ["run", options.recipe, "--quiet", "--workspace"]
            seconds["local"].append(unsupseg([*call, local], folder / "unused")[0])
            seconds["remote"].append(unsupseg([*call, remote], folder / "one")[0])
            again = ((local, "unused"), (remote, "two"), (remote, "one"))
            for what, (place, cache) in zip(_AGAIN, again, strict=True):
                seconds[what].append(unsupseg([*call, place], folder / cache)[0])
            assert digests(local, folder / "one") == digests(remote, folder / "one")
    for what, measured in seconds.items():
        print(f"{what}: median {statistics.median(measured):.1f} s of {[round(one, 1) for one in measured]}")


if __name__ == "__main__":
    main()
