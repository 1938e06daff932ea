"""Seconds until a command has begun its work: the processor time of whole calls that find their artifact made.

    python benchmarks/startup.py [--rounds 5]

Two bundled scenes are taken through `extract`, `pseudolabel`, `train` and `eval` in a folder of their own; called again
each command reuses its artifact, so that what it takes is imports, options, inputs and digests. Beside them `--help`
and `import torch` alone. The least of the rounds counts: other work on the machine only adds.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile

TOOL = [sys.executable, "-m", "unsupseg_cli"]
SCENES = [
    "--dataset",
    "scenes",
    "--split",
    "val",
    "--size",
    "64",
    "--backbone",
    "untrained",
    "--workers",
    "0",
]
CALLS = {
    "--help": [*TOOL, "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "extract": [*TOOL, "extract", *SCENES],
    "pseudolabel": [*TOOL, "pseudolabel", "--method", "kmeans", "--classes", "10"],
    "train": [*TOOL, "train", "--set", "steps=5"],
    "eval": [*TOOL, "eval", "--dataset", "scenes", "--split", "val", "--workers", "0"],
}


def seconds(call: list[str], folder: str) -> float:
    """Return the processor time of a call."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(call, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for call in CALLS.values():
            seconds(call, folder)
        for name, call in CALLS.items():
            print(f"{name}: {min(seconds(call, folder) for _ in range(options.rounds)):.2f} s", flush=True)


if __name__ == "__main__":
    main()
