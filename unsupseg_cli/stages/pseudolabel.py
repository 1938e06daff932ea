"""pseudolabel: features (and images) -> pseudo-masks by a method."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save_file

from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.contents.images import Context, resolve_device
from unsupseg_cli.contents.masks import STATE, MaskWriter, draw_masks
from unsupseg_cli.contents.spaces import default_classes
from unsupseg_cli.contents.views import ViewImages
from unsupseg_cli.core.config import Config
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.registry import get_method
from unsupseg_cli.stages.config import PseudolabelConfig
from unsupseg_cli.training.tokens import DeviceSource

STAGE_VERSION = 4


def pseudolabel(
    config: PseudolabelConfig, context: Context | None = None, *, options: Config | None = None
) -> Artifact:
    """Make pseudo-masks of every view; ``options`` is the method's own configuration."""
    context = context or Context()
    method = get_method(config.method)
    options = options or method.pseudolabel_config()()
    artifact = context.take("features", config.features)
    features = FeatureSet(artifact)
    classes = config.classes or default_classes(artifact)
    cells = int(features.grids.prod(1).sum())
    if classes > cells:
        raise UsageError(
            f"--classes {classes} is more than the {cells} patches of the features '{artifact.id}'; ask for fewer."
        )
    recipe = pseudolabel_recipe(config, artifact, options)

    def work(draft: Draft) -> dict[str, Any]:
        device = resolve_device(config.device)
        draft.deterministic = device.type == "cpu"
        source = DeviceSource(features, device)
        labeller = method.pseudolabeller(options, classes, config.seed)
        images = ViewImages(features, context, config.workers) if labeller.needs_images else None
        figures = labeller.fit(source, context.reporter)
        save_file(labeller.state(), draft.folder / STATE)
        writer = MaskWriter(
            draft, features, images.sizes if images else features.grids, config.keep == "soft"
        )
        for block, views in writer.todo(context):
            masks = labeller.label(source.tokens(views), images(views) if images else None)
            writer.write(block, views, masks, labeller.figures())
        summary = writer.close()
        draw_masks(draft.folder, features, config.sheet, context)
        return {**figures, **summary}

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


def pseudolabel_recipe(config: PseudolabelConfig, features: Artifact, options: Config) -> Recipe:
    """Return what decides the pseudo-labels of some features."""
    m = features.manifest
    classes = config.classes or default_classes(features)
    return Recipe(
        kind="pseudolabels",
        stage="pseudolabel",
        stage_version=STAGE_VERSION,
        slug=f"{m.data.dataset if m.data else 'images'}-{config.method}{classes}",
        config={**config.result(), "classes": classes, "options": options.result()},
        inputs=[features.as_input("features")],
        execution={"device": str(resolve_device(config.device))},
        data=m.data,
        used_labels=m.used_labels,
    )
