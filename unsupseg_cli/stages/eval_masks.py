"""eval-masks: Masks, and true objects (labels, or a COCO file) -> AP50, and the class of each cluster of masks.

Labels are read here and in `eval` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.labels import VOID
from unsupseg_cli.core.options import DataConfig, split
from unsupseg_cli.core.ports import ANY_MASKS, Port
from unsupseg_cli.core.words import counted
from unsupseg_cli.pipeline.stage import Call, Stage, once

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.core.progress import Reporter
    from unsupseg_cli.data.datasets import Dataset
    from unsupseg_cli.data.items import Item
    from unsupseg_cli.data.mask_files import CocoSource
    from unsupseg_cli.metrics.objects import Object, ObjectScores

BACKGROUND = "background"
"""What cluster 0 is called where no mask has it, and a COCO file tells the objects."""


class EvalMasksConfig(Config):
    """Score masks against true objects, at the size of the images.

    Average precision is COCO's (pycocotools): without classes, and, of masks with classes, by class. A cluster of masks
    gets its class by a Hungarian match over objects: each mask votes for the class of the object whose box overlaps its
    own most.
    """

    pseudolabels: str | None = execution(None, "Pseudo-labels; default: the last ones.")
    masks: str | None = execution(None, "Masks of `import-masks` instead.")
    naming: str | None = execution(
        None, "Take the classes of clusters from this evaluation of masks instead."
    )
    truth: Path | None = execution(
        None, "COCO file (.json) of the objects; default: regions of the classes of the label images."
    )
    labels: Path | None = execution(None, DataConfig.model_fields["labels"].description or "")
    class_file: Path | None = execution(None, DataConfig.model_fields["class_file"].description or "")
    background: tuple[int, ...] = setting((0,), "Classes of label images that are no objects; or `none`.")
    min_share: float = setting(
        0.01, "Regions of label images on a smaller share of the image are no objects.", ge=0, lt=1
    )

    @field_validator("background", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return () if value in ("none", ("none",), ["none"]) else split(value)

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of label images where a file tells the objects."""
        names = ("labels", "class_file", "background", "min_share")
        return dict.fromkeys(names, f"the objects are those of '{self.truth}'") if self.truth else {}


def identify(call: Call) -> Identity:
    """Return what decides the scores: the masks, and the objects."""
    from unsupseg_cli.contents.digests import fingerprint, label_fingerprint
    from unsupseg_cli.contents.images import describe_images

    config, context, dataset = call.config, call.context, _dataset(call)
    if config.truth is not None:
        if not config.truth.is_file():
            raise UsageError(f"The file '{config.truth}' does not exist.")
        settings, labels = {"objects": "coco"}, fingerprint([("truth", config.truth)], context)
    else:
        _require_labels(dataset)
        assert dataset.space is not None
        settings = {"objects": "labels", "space": dataset.space.name, **config.result()}
        labels = label_fingerprint(dataset.items, context)
    return Identity(
        kind="mask-evaluation",
        stage="eval-masks",
        stage_version=STAGE.version,
        slug=f"{dataset.name}-{dataset.split}-{_masks(call).manifest.config.get('method', 'masks')}",
        config=settings,
        inputs=call.described(),
        data=describe_images(dataset, context),
        label_fingerprint=labels,
        execution={"truth": str(config.truth.absolute())} if config.truth else {},
        used_labels=call.used_labels or "naming" in call.inputs,
    )


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Bring masks and objects together image by image, then score."""
    from unsupseg_cli.artifacts.files import write_json
    from unsupseg_cli.contents.evaluation import SCORES, read_naming, write_naming
    from unsupseg_cli.contents.masks import MaskTable
    from unsupseg_cli.contents.native_masks import NativeMasks
    from unsupseg_cli.data.images import image_size
    from unsupseg_cli.metrics.objects import Object, ObjectScores

    masks = _masks(call)
    names, items, objects_of = _truth(call, draft)
    table = MaskTable(masks.path)
    highest = max((int(table.rows(view).group.max(initial=-1)) for view in range(len(table))), default=-1)
    scores = ObjectScores(highest + 1, len(names))
    read = NativeMasks(masks, call.context)
    judged = [item for item in read.items if item.key in items]
    draft.warnings += _left_out(read.items, judged)
    for item in call.context.reporter.track(judged, "eval-masks", total=len(judged)):
        size = image_size(item.image, item.reading)
        predicted = [Object(mask.mask, mask.group, mask.score) for mask in read(item, size)]
        scores.update(predicted, list(objects_of(items[item.key], size)), size)
    draft.warnings += read.remarks()
    if scores.beyond:
        draft.warnings.append(
            f"not counted: {counted(scores.beyond, 'mask')} beyond the 100 best of an image"
        )
    if scores.unnamed:
        draft.warnings.append(
            f"{scores.unnamed:,} of {scores.objects:,} objects have no class, and count where it does not matter"
        )
    if not scores.objects:
        raise UnsupsegError(
            f"None of the {len(judged)} images has an object, so there is nothing to score; look at --background, "
            "--min-share and --truth."
        )
    naming = None
    if "naming" in call.inputs:
        naming = read_naming(call.input("naming"), scores.clusters, list(dict.fromkeys([*names, BACKGROUND])))
        naming[naming >= len(names)] = VOID
    elif scores.votes.any():
        naming = scores.naming()
        write_naming(draft.folder, _cluster_names(call, scores, naming, names))
    summary = _summary(scores, naming, names)
    write_json(draft.folder / SCORES, summary)
    return summary


def _left_out(items: list[Item], judged: list[Item]) -> list[str]:
    missing = len(items) - len(judged)
    return (
        [f"left out: {counted(missing, 'image')} without a label, or not in the file of objects"]
        if missing
        else []
    )


def _cluster_names(call: Call, scores: ObjectScores, naming: Any, names: list[str]) -> list[str | None]:
    """Return the name of each cluster's class; a first cluster that no mask has is the background."""
    named = [names[group] if group >= 0 else None for group in naming.tolist()]
    if not scores.members[0]:
        background = call.config.background
        if call.config.truth is not None:
            named[0] = BACKGROUND
        else:
            named[0] = names[background[0]] if background else None
    return named


def _summary(scores: ObjectScores, naming: Any, names: list[str]) -> dict[str, Any]:
    whole = scores.precision()
    assert whole is not None
    summary: dict[str, Any] = {
        "images": scores.images,
        "objects": scores.objects,
        "masks": scores.masks,
        "clusters": scores.clusters,
        "class_names": names,
        "ap50": whole.ap50,
        "ap": whole.ap,
    }
    if naming is not None and (by_class := scores.precision(naming)) is not None:
        summary["by_class"] = {
            "ap50": by_class.ap50,
            "ap": by_class.ap,
            "ap50_of_class": list(by_class.classes),
        }
        summary["assignment"] = naming.tolist()
    return summary


def _masks(call: Call) -> Artifact:
    return call.inputs.get("pseudolabels") or call.input("masks")


@once
def _dataset(call: Call) -> Dataset:
    """Return the images that the masks are of."""
    from unsupseg_cli.contents.images import reopen

    data = _masks(call).manifest.data
    assert data is not None
    return reopen(data, call.context, labels=call.config.labels, class_file=call.config.class_file)


def _require_labels(dataset: Dataset) -> None:
    if dataset.space is None or not any(item.label for item in dataset.items):
        raise UsageError(
            f"'{dataset.root}' has no labels to score against: give --truth with a COCO file of objects, or --labels "
            "with a folder of label images and --class-file with the class names."
        )


Objects = Callable[["Item", tuple[int, int]], Iterator["Object"]]


def _truth(call: Call, draft: Draft) -> tuple[list[str], dict[str, Item], Objects]:
    """Return the names of the classes, the images whose objects are known, and what gives the objects of one."""
    from unsupseg_cli.data.truth import read_truth, true_objects
    from unsupseg_cli.metrics.objects import Object

    config, dataset = call.config, _dataset(call)
    if config.truth is not None:
        return _coco_truth(config.truth, dataset, draft, call.context.reporter)
    space = dataset.space
    assert space is not None

    def objects_of(item: Item, size: tuple[int, int]) -> Iterator[Object]:
        for mask, group in true_objects(read_truth(item, space, size), config.background, config.min_share):
            yield Object(mask, group)

    return list(space.names), {item.key: item for item in dataset.items if item.label}, objects_of


def _coco_truth(
    path: Path, dataset: Dataset, draft: Draft, reporter: Reporter
) -> tuple[list[str], dict[str, Item], Objects]:
    from unsupseg_cli.data.images import UnreadableImage, image_size
    from unsupseg_cli.data.mask_files import CocoSource
    from unsupseg_cli.metrics.objects import Object

    items, sizes = [], []
    for item in dataset.items:
        try:
            sizes.append(image_size(item.image, item.reading))
            items.append(item)
        except UnreadableImage:
            continue  # has no masks either
    source: CocoSource = CocoSource(path, items, sizes, crowd=True, from_labels=True, skip_unknown=True)
    findings = source.check(reporter)
    draft.warnings += [f"left out of '{path.name}': {line}" for line in findings.lines()]
    number = {items[index].key: index for index in source.listed}

    def objects_of(item: Item, size: tuple[int, int]) -> Iterator[Object]:
        from unsupseg_cli.data.masks import to_masks

        of_item = source.masks(number[item.key])
        masks = to_masks(of_item.layers, len(of_item.group))
        for mask, group, crowd in zip(masks, of_item.group.tolist(), of_item.crowd, strict=True):
            yield Object(mask, group, crowd=crowd)

    return list(findings.class_names), {items[index].key: items[index] for index in source.listed}, objects_of


STAGE = Stage(
    name="eval-masks",
    config=EvalMasksConfig,
    makes="mask-evaluation",
    version=1,
    identify=identify,
    work=work,
    ports=(*ANY_MASKS, Port("naming", "mask-evaluation", optional=True)),
)
