"""pseudolabel: Features -> pseudo-masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.core.config import Config, execution, setting
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.options import ClassCount, DeviceConfig, DividedConfig
from unsupseg_cli.core.shards import parse_shard
from unsupseg_cli.pipeline.stage import Call, Foreseen, Stage, once, say_unread

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact


class PseudolabelConfig(DeviceConfig, DividedConfig):
    """Make pseudo-masks from features, by a method."""

    features: str | None = execution(None, "Features artifact; default: the last one.")
    graph: str | None = execution(None, "Graph artifact, for a method that reads one; default: the last one.")
    regions: str | None = execution(None, "Regions artifact, for a method that reads one.")
    pseudolabels: str | None = execution(None, "Earlier pseudo-labels, for a method that reads them.")
    masks: str | None = execution(None, "Imported masks, for a method that reads them.")
    model: str | None = execution(None, "Model artifact, for a method that reads one.")
    support: str | None = execution(None, "Regions of further images, for a method that clusters regions.")
    method: str = setting("kmeans", "Method (`unsupseg methods list`).")
    part: str | None = setting(None, "Part of a method that has several.")
    classes: ClassCount | None = setting(
        None, "Number of classes K, or auto: by the features. Default: that of the label space."
    )
    keep: Literal["labels", "scores"] = setting(
        "labels", "What is stored: labels, or soft masks (for `refine`) as well."
    )
    sheet: int = execution(12, "Views on the picture sheet.", ge=0)
    seed: int = setting(0, "Seed of every random choice.", ge=0)

    def unread(self, stage: Config | None = None) -> dict[str, str]:
        """Return the options of an executor where there is none."""
        return self.unread_of_executor()


def identify(call: Call) -> Identity:
    """Return what decides the pseudo-labels: the options, and of classes and seed what the method reads."""
    from unsupseg_cli.contents.option_files import decided_by
    from unsupseg_cli.models.device import resolve_device

    config, data = call.config, call.input("features").manifest.data
    assert call.method is not None
    assert call.options is not None
    identity_values = _classes_and_seed(call)
    return Identity(
        kind="pseudolabels",
        stage="pseudolabel",
        stage_version=STAGE.version,
        slug=f"{data.dataset if data else 'images'}-{config.method}{identity_values.get('classes', '')}",
        config={
            "method": config.method,
            "method_version": call.method.version,
            "part": call.part.name,
            "keep": config.keep,
            "options": decided_by(call.options, call.context),
            **identity_values,
        },
        inputs=call.described(),
        data=data,
        execution={"device": str(resolve_device(config.device))},
        used_labels=call.used_labels,
    )


@once
def _classes_and_seed(call: Call) -> dict[str, Any]:
    """Return the number of classes and the seed, as far as the method reads them."""
    from unsupseg_cli.contents.features import foreseen_grids
    from unsupseg_cli.contents.images import default_classes
    from unsupseg_cli.contents.method_inputs import masks_of
    from unsupseg_cli.stages.scan import auto_classes

    identity_values: dict[str, Any] = {}
    features = call.input("features")
    if "classes" in call.needs.identity:
        classes = call.config.classes or default_classes(features)
        if classes == "auto":
            classes = auto_classes(features, call.context, masks_of(call.inputs), call.needs.background)
        identity_values["classes"] = classes
        cells = int(foreseen_grids(features).prod(1).sum())
        if isinstance(classes, int) and classes > cells:
            raise UsageError(
                f"--classes {classes} is more than the {cells} patches of the features "
                f"'{features.id}'; ask for fewer."
            )
    if "seed" in call.needs.identity:
        identity_values["seed"] = call.config.seed
    return identity_values


def parts(call: Call, draft: Draft) -> _Labelling:
    """Open the work of fitting and of labelling block by block; what is finished survives a kill."""
    return _Labelling(call, draft)


class _Labelling:
    """The masks of all views, of which this process makes some blocks by a labeller that was fitted once.

    It is fitted while others are kept out, unless they fit together.
    """

    def __init__(self, call: Call, draft: Draft) -> None:
        from unsupseg_cli.contents.features import FeatureSet
        from unsupseg_cli.contents.fit import DraftParts
        from unsupseg_cli.contents.mask_writer import MaskWriter
        from unsupseg_cli.contents.method_inputs import open_inputs
        from unsupseg_cli.models.device import resolve_device
        from unsupseg_cli.training.checkpoint import DiskCheckpoint

        config, needs, device = call.config, call.needs, resolve_device(call.config.device)
        draft.deterministic = device.type == "cpu"
        self._call, self._draft = call, draft
        self._features = features = FeatureSet(call.input("features"))
        soft, shard = config.keep == "scores", parse_shard(config.shard)
        inputs = open_inputs(
            call.inputs,
            needs,
            call.context,
            device,
            workers=config.workers,
            parts=DraftParts(draft, shard, call.context.reporter),
            checkpoint=DiskCheckpoint(draft.folder, call.context.reporter.warn),
            **_classes_and_seed(call),
        )
        self._labeller = call.part.load()(call.options, inputs)
        self._figures: dict[str, Any] = {}
        if not self._labeller.fits_together:
            self._fit()
        sizes = self._labeller.sizes()
        if sizes is None:
            sizes = features.sizes if needs.images else features.grids
        self._writer = MaskWriter(draft, features.views["key"], sizes, soft, shard)
        self.missing = self._writer.missing

    def write(self) -> None:
        """Label the views of the shard's blocks."""
        if self._labeller.fits_together:
            self._fit()
        self._writer.fill(self._labeller.label, self._call.context, figures=self._labeller.figures)

    def _fit(self) -> None:
        from unsupseg_cli.contents.fit import fit_once

        self._figures = fit_once(self._labeller, self._draft)

    def close(self) -> dict[str, Any]:
        """Join the blocks, draw sheets, and return the summary."""
        from unsupseg_cli.contents.exemplars import draw_exemplars
        from unsupseg_cli.contents.mask_writer import (
            draw_masks,
            warn_of_single_masks,
            warn_of_unused_classes,
            write_state,
        )
        from unsupseg_cli.contents.views import ViewImages

        call, draft, labeller, figures = self._call, self._draft, self._labeller, self._figures
        write_state(draft.folder, labeller.state())
        summary = self._writer.close()
        warn_of_single_masks(draft, summary)
        classes = _classes_and_seed(call).get("classes", 0)
        warn_of_unused_classes(draft, summary, figures.get("mask_classes", classes))

        def open_images() -> ViewImages:
            return ViewImages(self._features, call.context)

        draw_masks(draft.folder, open_images, call.config.sheet, call.context)
        if call.config.sheet and (exemplars := labeller.exemplars()):
            shown = labeller.exemplar_regions()
            assert shown is not None
            draw_exemplars(draft.folder, exemplars, shown, self._features, open_images, call.context)
        return {**figures, **summary}


def finish(call: Call, labels: Artifact) -> None:
    """Say which options the method did not read, and remember the number of classes for `train`."""
    from unsupseg_cli.artifacts.context import ASKED

    config, context = call.config, call.context
    say_unread(call, labels)
    if "classes" in call.needs.identity or context.by_recipe:
        return
    asked = {name: value for name, value in context.remembered(ASKED).items() if name != labels.id}
    if config.classes is not None:
        asked[labels.id] = {"classes": config.classes}
        context.reporter.info(f"`train` on it makes {config.classes} classes, unless told otherwise")
    if asked != context.remembered(ASKED):
        context.remember(ASKED, asked)


def foresee(call: Call) -> Foreseen:
    """Return about the bytes of the label maps, by cell or by pixel."""
    from unsupseg_cli.contents.features import foreseen_grids
    from unsupseg_cli.contents.mask_writer import label_bytes

    features = call.input("features")
    scale = int(features.manifest.summary["patch_size"]) if call.needs.images else 1
    return Foreseen(bytes=label_bytes(foreseen_grids(features) * scale))


STAGE = Stage(
    name="pseudolabel",
    config=PseudolabelConfig,
    makes="pseudolabels",
    version=5,
    identify=identify,
    parts=parts,
    uses="labeller",
    foresee=foresee,
    room="",
    finish=finish,
)
