"""segment: Photos -> label maps, overlays and a sheet of the classes: one call, no labels, no number of classes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import typer

from unsupseg_cli.cli.command import Invocation, stage_command
from unsupseg_cli.cli.run import explain_steps
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.core.words import counted
from unsupseg_cli.models.backbones import default_backbone
from unsupseg_cli.pipeline.options import RunConfig, SegmentConfig
from unsupseg_cli.pipeline.recipe import Step, resolve
from unsupseg_cli.pipeline.recipe_file import load_recipe

RECIPE = "segment"
app = typer.Typer()


@stage_command(app, SegmentConfig, name="segment", settings=False)
def segment(invocation: Invocation) -> None:
    """Photos -> label maps, overlays and a sheet of the classes: one call, no labels, no number of classes.

    It is the recipe segment: `unsupseg recipes show segment`.
    """
    config, reporter = invocation.config, invocation.reporter
    if not config.images:
        raise UsageError("No images were named: give photos, or folders of photos.")
    out = config.out or default_folder(config.images)
    steps = _steps(invocation)
    if invocation.explain:
        explain_steps(steps)
    context = invocation.context()
    from unsupseg_cli.contents.result_folder import (
        CLASS_SHEET,
        REPORT,
        require_own,
        tell_of_lost_names,
        write_results,
    )
    from unsupseg_cli.pipeline.report import write_report
    from unsupseg_cli.pipeline.run import run

    require_own(out)
    _tell_backbone(steps, reporter)
    artifacts = run(steps, context)
    predictions, model = artifacts["predict"], artifacts["train"]
    tell_of_lost_names(predictions, out, context)
    write_results(predictions, model, out, context)
    write_report([predictions], out / REPORT, context, {model.id: out / CLASS_SHEET})
    _tell_what_next(out, model.manifest.summary["classes"], reporter)
    invocation.done(predictions)


def default_folder(images: tuple[Path, ...]) -> Path:
    """Return the folder of the results where none is named: called like the first input, in the working folder."""
    first = images[0].resolve()
    name = re.sub(r"[^\w. -]+", "", first.name if first.is_dir() else first.stem).strip(". ")
    return Path(f"{name or 'images'}-segmented")


def _steps(invocation: Invocation) -> list[Step]:
    """Return the steps of the recipe with the values of the call."""
    config, settings = invocation.config, invocation.settings
    everywhere = {name: getattr(config, name) for name in RunConfig.model_fields if hasattr(config, name)}
    images = [os.fspath(path) for path in config.images]
    values: dict[str, Any] = {"extract.images": images, "predict.images": images}
    values |= {f"{stage}.strict": True for stage in ("extract", "predict") if config.strict}
    if config.step is not None:
        values |= {"extract.step": config.step, "predict.step": config.step}
    if config.windows is not None:
        values["extract.windows"] = config.windows  # predict cuts as the model was trained
    if config.classes != "auto":
        values["clusters.classes"] = config.classes
    return resolve(
        load_recipe(RECIPE), RunConfig(**everywhere), values, settings.for_command, settings.for_method
    )


def _tell_backbone(steps: list[Step], reporter: Reporter) -> None:
    """Say which backbone looks at the images, and that others see more."""
    name = steps[0].config.backbone
    if name not in ("auto", default_backbone()):
        reporter.info(f"backbone: {name}")
        return
    reporter.info(
        f"backbone: {default_backbone()}, which ships with this tool and needs no network. DINOv2 finds far better "
        "classes, where its weights can be had: --backbone dinov2_vits14 (from the hub, once), or --weights FILE too"
    )


def _tell_what_next(out: Path, classes: int, reporter: Reporter) -> None:
    """Say which picture to look at, and how to go on."""
    from unsupseg_cli.contents.rasters import RASTERS
    from unsupseg_cli.contents.result_folder import CLASS_SHEET, IMAGE_SHEET, REPORT

    reporter.info(
        f"{counted(classes, 'class')}; look at '{out / CLASS_SHEET}' (where each lies) and '{out / IMAGE_SHEET}'; "
        f"'{out / REPORT}' shows all of it in a browser"
    )
    if classes == 1:
        reporter.warn("every pixel is of the one class: ask for more, --classes N")
    else:
        last = classes - 1  # only classes that are there are named
        named, merged = f"0=sky {min(last, 3)}=road", f"{min(last - 1, 3)},{min(last, 5)}"
        merge = f"put parts of one thing together, `unsupseg classes merge {merged}`; " if last > 1 else ""
        reporter.info(
            f"next: name the classes, `unsupseg classes name {named}`; {merge}then `unsupseg classes apply --out "
            f"'{out}'`; more photos, `unsupseg predict MORE/ --crf --out DIR`; other classes, --classes N"
        )
    if (out / RASTERS).exists():
        reporter.info(
            f"for map programs: '{out / RASTERS}'; polygons, `unsupseg export-labels --format gpkg --out classes.gpkg`"
        )
