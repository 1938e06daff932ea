"""How much of the colours' variance within images place tells, by which `extract --debias auto` decides.

python benchmarks/placement.py NAME[:SPLIT[:ROOT]]...

NAME is a data set, or a folder with a slash at its end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.placement import LEAST_SHARE, share_of_place


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME[:SPLIT[:ROOT]]")
    print("| images | number | share of place | directions are taken out |\n|---|---|---|---|")
    for text in parser.parse_args().datasets:
        name, split, root = (*text.split(":"), "", "")[:3]
        dataset = open_dataset(name, root=Path(root) if root else None, split=split or None)
        share = share_of_place(dataset.items, Silent())
        told = "too few images" if share is None else f"{100 * share:.1f} %"
        chosen = "yes" if share is not None and share < LEAST_SHARE else "no"
        print(f"| {Path(name).name} {split} | {len(dataset.items)} | {told} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
