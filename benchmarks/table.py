"""Print evaluations of one setting with several seeds as a Markdown table, with time and memory by stage.

python benchmarks/table.py EVALUATION_FOLDER...
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from unsupseg_cli.artifacts.manifest import Manifest, read_manifest

ROWS = (("accuracy", "pixel accuracy"), ("miou", "mIoU"), ("miou_gt", "mIoU, classes in truth"))


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def ancestors(folder: Path, manifest: Manifest, seen: dict[str, Manifest]) -> dict[str, Manifest]:
    """Collect an artifact and everything it was made from, by id."""
    for item in manifest.inputs:
        path = folder.parents[1] / item.kind / item.id
        if item.id not in seen and path.exists():
            ancestors(path, read_manifest(path), seen)
    seen[manifest.id] = manifest
    return seen


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    manifests = [read_manifest(folder) for folder in folders]
    protocols = {str(manifest.summary["protocol"]) for manifest in manifests}
    if len(protocols) != 1:
        raise SystemExit("The evaluations follow different protocols; a table must not mix them.")
    first: dict[str, Any] = manifests[0].summary
    data = manifests[0].data
    protocol = first["protocol"]
    print(
        f"{data.dataset if data else '?'}/{data.split if data else '?'}, {first['images']} images, "
        f"protocol {protocol['name']}, matching {protocol['matching']}, flip {protocol['flip']}, "
        f"{len(folders)} seeds, mean ± deviation\n"
    )
    print("| score | unsupervised | linear probe (supervised diagnosis) |")
    print("|---|---|---|")
    for key, name in ROWS:
        probes = [m.summary["linear_probe"][key] for m in manifests if "linear_probe" in m.summary]
        values = spread([manifest.summary[key] for manifest in manifests])
        print(f"| {name} | {values} | {spread(probes) if probes else '-'} |")
    print("\n| stage | artifact | seconds | peak memory GiB |")
    print("|---|---|---|---|")
    seen: dict[str, Manifest] = {}
    for folder, manifest in zip(folders, manifests, strict=True):
        ancestors(folder, manifest, seen)
    for m in seen.values():
        print(f"| {m.stage} | {m.id} | {m.seconds:.1f} | {m.peak_memory_bytes / 2**30:.2f} |")


if __name__ == "__main__":
    main()
