"""export-masks: masks as a COCO file, for other programs and other workspaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.files import whole_file
from unsupseg_cli.artifacts.outside import require_outside
from unsupseg_cli.artifacts.workspace import Artifact
from unsupseg_cli.contents.native_masks import NativeMasks
from unsupseg_cli.core.errors import UsageError, reason_of
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.words import counted
from unsupseg_cli.data.coco import encode
from unsupseg_cli.data.images import image_size
from unsupseg_cli.pipeline.inputs import take_artifact
from unsupseg_cli.pipeline.options import ExportMasksConfig


def export_masks(config: ExportMasksConfig, masks: str | None = None, context: Context | None = None) -> Path:
    """Write the masks of an artifact, at the size of their images, into a COCO file; return its path.

    `import-masks` reads it. The number of a category is that of the class; a mask without a class has no category.

    Raises:
        UsageError: the file exists and ``context.force`` is not set, it cannot be written, or there are no masks.
        UnsupsegError: the images are gone, or are others by now.
    """
    context = context or Context()
    out = config.out
    require_outside(out)
    if out.is_dir():
        raise UsageError(f"--out '{out}' is a folder; give the name of a file.")
    if out.exists() and not context.force:
        raise UsageError(f"'{out}' exists; give another --out, or --force to replace it.")
    artifact = take_masks(masks, context)
    content, remarks = coco_content(artifact, config, context)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as unfinished:
            unfinished.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{out}' cannot be written ({reason_of(error)}); give another --out.") from None
    for remark in remarks:
        context.reporter.warn(remark)
    counts = f"{counted(len(content['annotations']), 'mask')} of {counted(len(content['images']), 'image')}"
    context.reporter.info(f"'{artifact.id}': {counts}, {out.stat().st_size / 1e6:.1f} MB")
    return out


def take_masks(reference: str | None, context: Context) -> Artifact:
    """Return the masks or pseudo-labels of a reference, by default the last pseudo-labels.

    Raises:
        UsageError: there are none, or it is another kind of artifact.
    """
    if reference is None:
        return take_artifact("pseudolabels", None, context)
    artifact = context.workspace.get(reference)
    if artifact.manifest.kind not in ("masks", "pseudolabels"):
        raise UsageError(
            f"'{artifact.id}' is '{artifact.manifest.kind}', which has no masks; give pseudo-labels, or masks of "
            "`import-masks`."
        )
    return artifact


def coco_content(
    artifact: Artifact, config: ExportMasksConfig, context: Context
) -> tuple[dict[str, Any], list[str]]:
    """Return the content of the file, and what was left out."""
    read = NativeMasks(artifact, context)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item in context.reporter.track(read.items, "export-masks", total=len(read.items)):
        size = image_size(item.image, item.reading)
        images.append({"id": len(images) + 1, "file_name": item.key, "height": size[0], "width": size[1]})
        for mask in read(item, size):
            entry = {"id": len(annotations) + 1, "image_id": len(images)}
            entry |= {} if mask.group == VOID else {"category_id": mask.group}
            rows, columns = np.flatnonzero(mask.mask.any(1)), np.flatnonzero(mask.mask.any(0))
            left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            annotations.append(
                {
                    **entry,
                    "segmentation": encode(mask.mask, config.format),
                    "area": int(mask.mask.sum()),
                    "bbox": [int(value) for value in (left, top, right - left, bottom - top)],
                    "iscrowd": 0,
                    "score": mask.score,
                }
            )
    content: dict[str, Any] = {
        "info": {"description": f"masks of {artifact.id}", "used_labels": artifact.manifest.used_labels},
        "images": images,
        "annotations": annotations,
    }
    remarks = read.remarks()
    highest = max((entry.get("category_id", VOID) for entry in annotations), default=VOID)
    if highest != VOID:
        names = dict(enumerate(artifact.manifest.summary.get("class_names", ())))
        count = max(highest + 1, len(names))
        content["categories"] = [{"id": k, "name": names.get(k, str(k))} for k in range(count)]
        without = sum("category_id" not in entry for entry in annotations)
        remarks += (
            [f"without a class, and so without category_id: {counted(without, 'mask')}"] if without else []
        )
    return content, remarks
