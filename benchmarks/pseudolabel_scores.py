"""Scores of pseudo-labels that have classes, judged by labels: what a training starts from.

    python benchmarks/pseudolabel_scores.py WORKSPACE [PSEUDOLABELS ...]

A row for each artifact, by default for all of the workspace that have classes: clusters are matched to classes by the
Hungarian rule over all views, which must show whole images with labels; cells or pixels without a mask count as
errors, or as --unmasked.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from unsupseg_cli import Context, Workspace
from unsupseg_cli.contents.features import FeatureSet, features_behind
from unsupseg_cli.contents.images import reopen
from unsupseg_cli.contents.masks import MaskTable
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.images import image_size
from unsupseg_cli.data.truth import read_truth
from unsupseg_cli.metrics.confusion import Confusion
from unsupseg_cli.metrics.matching import match


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workspace", type=Path)
    parser.add_argument("artifacts", nargs="*")
    parser.add_argument("--labels", type=Path, help="label images, if the features were made without")
    parser.add_argument("--class-file", type=Path)
    parser.add_argument(
        "--classes", type=int, help="number of clusters, of pseudo-labels that were made without"
    )
    parser.add_argument("--unmasked", type=int, help="class of what has no mask, 0 for a background")
    options = parser.parse_args()
    context = Context(Workspace(options.workspace))
    known = [one for one in context.workspace.artifacts("pseudolabels") if "classes" in one.manifest.config]
    names = options.artifacts or [one.id for one in known]
    print("| pseudo-labels | options | accuracy | mIoU | classes used |")
    print("|---|---|---|---|---|")
    for name in names:
        artifact = context.workspace.get(name, "pseudolabels")
        features = FeatureSet(features_behind(artifact, context))
        data = features.artifact.manifest.data
        assert data is not None
        dataset = reopen(data)
        if options.labels:
            dataset = open_dataset(data.root, labels=options.labels, class_file=options.class_file)
        assert dataset.space is not None
        items = {item.key: item for item in dataset.items}
        table = MaskTable(artifact.path)
        clusters = options.classes or int(artifact.manifest.config["classes"])
        confusion, used = Confusion(clusters + 1, len(dataset.space.names)), set()
        for view in range(len(table)):
            item = items[features.views["key"][view]]
            truth = read_truth(item, dataset.space, image_size(item.image))
            classes = np.append(table.rows(view).group, -1)[table.label_map(view)]
            if options.unmasked is not None:
                classes[classes < 0] = options.unmasked
            used |= set(np.unique(classes[classes >= 0]).tolist())
            rows, columns = (np.arange(n) * m // n for n, m in zip(truth.shape, classes.shape, strict=True))
            masked = np.where(classes < 0, clusters, classes)  # what has no mask stands for no class
            confusion.update(masked[np.ix_(rows, columns)], truth)
        assignment = np.append(match(confusion.matrix[:clusters]), -1)
        scores = confusion.compute(assignment=assignment)
        chosen = artifact.manifest.config.get("options", {})
        shown = ", ".join(f"{key}={value}" for key, value in chosen.items() if key in _SHOWN)
        print(f"| {name} | {shown} | {100 * scores.accuracy:.1f} | {100 * scores.miou:.1f} | {len(used)} |")


_SHOWN = ("things", "stuff", "background", "gradient_scale", "mass", "holistic", "views")


if __name__ == "__main__":
    main()
