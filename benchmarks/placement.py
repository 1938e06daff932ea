"""What place tells of the colours and of the tokens of images; by the latter `extract --debias auto` decides.

python benchmarks/placement.py NAME[:SPLIT[:ROOT]]... [--backbone NAME --weights FILE]

NAME is a data set, or a folder with a slash at its end. Of the tokens 64 images tell, twice those of the command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from unsupseg_cli.core.progress import Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.placement import place_in_colors
from unsupseg_cli.inference.placement import DIRECTIONS, LEAST_SHARE, place_in_tokens
from unsupseg_cli.models.backbone import load_backbone


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="NAME[:SPLIT[:ROOT]]")
    parser.add_argument("--backbone", default="dinov2_vits14")
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [
        load_backbone(options.backbone, options.weights, debias=count).prepare("fp32", device)
        for count in (0, DIRECTIONS)
    ]
    heading = ("images", "number", "colours", "tokens", f"without {DIRECTIONS} directions", "taken out")
    print(f"| {' | '.join(heading)} |\n{'|---' * len(heading)}|")
    for text in options.datasets:
        name, split, root = (*text.split(":"), "", "")[:3]
        items = open_dataset(name, root=Path(root) if root else None, split=split or None).items
        shares = [place_in_colors(items, Silent())]
        shares += [place_in_tokens(network, items, device, Silent(), 64) for network in networks]
        told = ["too few images" if share is None else f"{100 * share:.1f} %" for share in shares]
        chosen = "yes" if shares[-1] is not None and shares[-1] < LEAST_SHARE else "no"
        print(
            f"| {Path(name).name} {split} | {len(items)} | {' | '.join(told)} | {chosen} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
