"""import-masks: Masks that you have (COCO files, label maps) -> masks of the images of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import DataConfig
from unsupseg_cli.core.words import are, counted
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage, once
from unsupseg_cli.pipeline.stage import produce as make

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.data.datasets import Dataset
    from unsupseg_cli.data.mask_files import Findings, MaskSource


class ImportMasksConfig(DataConfig):
    """Bring masks of a data set's images into the workspace.

    The masks of an image are views of the whole image at its own size. A file of masks is told by its name: what ends
    in ``.json`` is COCO (annotations, or a list of results), a folder holds label maps.
    """

    masks_from: Path = execution(..., "COCO file (.json), or folder of label maps.", argument=True)
    images_file: Path | None = execution(
        None, "COCO file that says which images the numbers in a list of results are."
    )
    crowd: bool = setting(False, "Also take COCO regions marked iscrowd: groups, not single objects.")
    values: Literal["masks", "classes"] = setting(
        "masks",
        "What a value of a label map is: one mask without a class, or a class whose connected regions are a mask each.",
    )
    background: tuple[int, ...] = setting(
        (0,), "Values of label maps that are no mask, such as 0,255; or `none`."
    )
    min_area: int = setting(1, "Masks of fewer pixels are left out.", ge=1)
    from_labels: bool = setting(
        False, "The masks were made with ground truth: what is made from them carries `used_labels`."
    )
    skip_unknown: bool = execution(
        False, "Leave out masks of images that the data set does not have, instead of refusing them."
    )
    sheet: int = execution(12, "Images on the picture sheet.", ge=0)

    @field_validator("background", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if value in ("none", ("none",), ["none"]):
            return ()
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @property
    def is_coco(self) -> bool:
        """Whether the masks come from a COCO file."""
        return self.masks_from.suffix.lower() == ".json"

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of the other form of masks."""
        if self.is_coco:
            return dict.fromkeys(("values", "background"), f"'{self.masks_from}' is no folder of label maps")
        return dict.fromkeys(("crowd", "images_file"), f"'{self.masks_from}' is no COCO file")


def identify(call: Call) -> Identity:
    """Return what decides the masks: the images, the files of the masks, and how they are read."""
    from unsupseg_cli.contents.digests import fingerprint
    from unsupseg_cli.contents.images import identify_images

    config, data = call.config, identify_images(_dataset(call), call.context)
    unread = config.unread()
    options = {name: value for name, value in config.result().items() if name not in unread}
    return Identity(
        kind="masks",
        stage="import-masks",
        stage_version=STAGE.version,
        slug=f"{data.dataset}-{data.split}-{config.masks_from.resolve().stem}",
        config={
            "form": "coco" if config.is_coco else "label maps",
            **options,
            "masks": fingerprint(_source(call).files().items(), call.context),
        },
        data=data,
        execution={"masks_from": str(config.masks_from.absolute())},
        used_labels=config.from_labels,
    )


def produce(call: Call, identity: Identity) -> tuple[Artifact, bool]:
    """Look everything over before anything is written, unless the masks are there."""
    if call.context.force or not (_source(call).fits and call.context.workspace.has(identity)):
        _findings(call)
    return make(call, identity)


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Write the masks image by image; finished blocks survive a kill."""
    import numpy as np

    from unsupseg_cli.contents.features import write_views
    from unsupseg_cli.contents.mask_writer import MaskWriter, draw_masks
    from unsupseg_cli.data.geometry import View
    from unsupseg_cli.data.images import read_image
    from unsupseg_cli.data.views import table_of_views
    from unsupseg_cli.methods.interface import Masks

    findings, source = _findings(call), _source(call)
    keys = [item.key for item in source.items]
    whole = [(i, View(0, (0.0, 0.0, w, h), h, w)) for i, (h, w) in enumerate(source.sizes)]
    write_views(draft.folder, keys, table_of_views(whole))
    writer = MaskWriter(draft, keys, np.array(source.sizes, np.int64), soft=False)
    names: dict[int, tuple[str, ...]] = {}

    def make(views: list[int]) -> list[Masks]:
        of_views = [source.masks(view) for view in views]
        names.update({view: masks.source for view, masks in zip(views, of_views, strict=True)})
        return [Masks(masks.layers, masks.area, masks.score, masks.group) for masks in of_views]

    writer.fill(make, call.context, "import-masks", sources=names.pop)
    summary = writer.close()
    draft.warnings += findings.remarks
    draft.warnings += [f"left out: {line}" for line in findings.lines()]
    skipped = _readable(call)[2]
    if skipped:
        first, reason = next(iter(skipped.items()))
        draft.warnings.append(
            f"{counted(len(skipped), 'image')} {are(len(skipped))} unreadable: no view ('{first}': {reason})"
        )
    items = source.items
    draw_masks(
        draft.folder,
        lambda: lambda views: [read_image(items[view].image, items[view].reading) for view in views],
        call.config.sheet,
        call.context,
    )
    return {
        **summary,
        "class_names": list(findings.class_names),
        "left_out": findings.left_out,
        "skipped": skipped,
    }


@once
def _dataset(call: Call) -> Dataset:
    from unsupseg_cli.contents.images import open_data, settle_pixels

    return settle_pixels(open_data(call.config, call.context), call.context)


@once
def _readable(call: Call) -> tuple[list[Any], list[tuple[int, int]], dict[str, str]]:
    """Return the images whose size can be read, their heights and widths, and why others cannot."""
    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.inference.extraction import readable_items

    skipped = Skipped(call.context, call.config.strict)
    return *readable_items(_dataset(call).items, skipped), skipped


@once
def _source(call: Call) -> MaskSource:
    """Open the masks; nothing but their names is read yet."""
    from unsupseg_cli.data.mask_files import CocoSource, LabelMapSource

    config, path, split = call.config, call.config.masks_from, _dataset(call).split
    items, sizes, _ = _readable(call)
    common = {"least": config.min_area, "skip_unknown": config.skip_unknown}
    if config.is_coco:
        for file in filter(None, (path, config.images_file)):
            if not file.is_file():
                problem = "is a folder, expected a file" if file.exists() else "does not exist"
                raise UsageError(f"'{file}' {problem}.")
        coco = {"crowd": config.crowd, "from_labels": config.from_labels}
        return CocoSource(path, items, sizes, images_of=config.images_file, **coco, **common)
    if not path.is_dir():
        problem = "is no COCO file, which ends in .json" if path.exists() else "does not exist"
        raise UsageError(f"'{path}' {problem}; expected a COCO file or a folder of label maps.")
    folder = path / split if (path / split).is_dir() else path
    source = LabelMapSource(
        folder, items, sizes, values=config.values, background=config.background, **common
    )
    if not config.from_labels:
        _refuse_labels(source.maps, items)
    return source


def _refuse_labels(maps: dict[int, Path], items: list[Any]) -> None:
    """Raise UsageError where label maps are the label files of the data set itself."""
    for index, path in maps.items():
        label = items[index].label
        if label is not None and label.resolve() == path.resolve():
            raise UsageError(
                f"'{path}' is a label of the data set: masks made from labels must be marked as such, with "
                "--from-labels."
            )


@once
def _findings(call: Call) -> Findings:
    return _source(call).check(call.context.reporter)


def foresee(call: Call) -> Foreseen:
    """Return about the bytes of the masks, at the images' own size."""
    import numpy as np

    from unsupseg_cli.contents.mask_writer import label_bytes

    sizes = np.array(_readable(call)[1], np.int64)
    return Foreseen({"views": len(sizes), "overlapping": 0, "masks": len(sizes)}, label_bytes(sizes))


STAGE = Stage(
    name="import-masks",
    config=ImportMasksConfig,
    makes="masks",
    version=1,
    identify=identify,
    work=work,
    foresee=foresee,
    produce=produce,
)
