"""What `segment` leaves on disk, and how long it takes, as both grow with the photos.

    python benchmarks/disk.py PHOTOS [--counts 50,100] [--of 10000] [any options of `segment`]

Each count of the photos, evenly chosen, is segmented in a new process into a workspace and a folder of its own. The
difference between the first and the last count is what a photo adds; the model, sheets, report and manifests are there
once. From these the bytes of `--of` photos are reckoned, by kind of artifact and by part of the folder of results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MB = 1e6
ONCE = "model, sheets, report, manifests"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("--counts", default="50,100")
    parser.add_argument("--of", type=int, default=10_000)
    options, others = parser.parse_known_args()
    photos = sorted(path for path in options.photos.rglob("*") if path.is_file())
    counts = [int(count) for count in options.counts.split(",")]
    if len(counts) < 2 or max(counts) > len(photos):
        parser.error(
            f"--counts: expected two or more numbers up to {len(photos)}, as many photos as there are"
        )
    measured = []
    for count in counts:
        places = np.linspace(0, len(photos) - 1, count).round().astype(int)
        measured.append(segment([photos[place] for place in places], others))
    print_table(counts, measured, options.of)


def segment(photos: Sequence[Path], options: Sequence[str]) -> dict[str, float]:
    """Segment some photos; return the bytes of each part that is left, of the photos, and the seconds."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "photos").mkdir()
        for photo in photos:
            (place / "photos" / photo.name).symlink_to(photo.resolve())
        command = [sys.executable, "-m", "unsupseg_cli", "segment", "photos", "--out", "out", "-w", "work"]
        here = os.fspath(Path(__file__).parents[1])
        start = time.perf_counter()
        subprocess.run([*command, *options], cwd=place, check=True, env={**os.environ, "PYTHONPATH": here})
        seconds = time.perf_counter() - start
        parts = Counter({ONCE: 0})
        files = [file for folder in ("work", "out") for file in (place / folder).rglob("*") if file.is_file()]
        for file in files:
            parts[part(file.relative_to(place))] += file.stat().st_size
        return {**parts, "photos": sum(photo.stat().st_size for photo in photos), "s": seconds}


def part(path: Path) -> str:
    """Return what a file below ``work`` or ``out`` is a part of: what is there once, a kind, or a folder of results."""
    place, *folders, name = path.parts
    if place == "out":
        return f"out/{folders[0]}" if folders else ONCE
    picture = len(folders) == 2 and name.endswith((".png", ".json"))
    return ONCE if picture or len(folders) < 2 or folders[0] == "model" else folders[0]


def print_table(counts: Sequence[int], measured: Sequence[dict[str, float]], of: int) -> None:
    """Print a row for each part: MB of every count, kB that a photo adds, and GB of ``of`` photos; seconds likewise."""
    print(f"| | {' | '.join(f'{count} photos, MB' for count in counts)} | a photo, kB | {of:,} photos, GB |")
    print("|---" * (len(counts) + 3) + "|")
    names = sorted({name for parts in measured for name in parts} - {"photos", "s"})
    rows = {name: reckon(name, counts, measured, of) for name in [*names, "photos"]}
    left = [sum(column) for column in zip(*(rows[name] for name in names), strict=True)]
    for name, (*there, each, whole) in [*rows.items(), ("all that is left", left)]:
        columns = " | ".join(f"{value / MB:.2f}" for value in there)
        print(f"| {name} | {columns} | {each / 1e3:.1f} | {whole / 1e9:.2f} |")
    seconds = [parts["s"] for parts in measured]
    each = (seconds[-1] - seconds[0]) / (counts[-1] - counts[0])
    print(
        f"\n{', '.join(f'{value:.0f} s' for value in seconds)}: {each:.2f} s a photo, {3600 / each:,.0f} an hour"
    )


def reckon(name: str, counts: Sequence[int], measured: Sequence[dict[str, float]], of: int) -> list[float]:
    """Return the bytes of a part with each count, those that a photo adds, and those of ``of`` photos."""
    there = [parts.get(name, 0) for parts in measured]
    each = 0.0 if name == ONCE else (there[-1] - there[0]) / (counts[-1] - counts[0])
    return [*there, each, there[-1] + each * (of - counts[-1])]


if __name__ == "__main__":
    main()
