"""pretrain: Unlabelled images -> a small backbone of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.stage import Call, Stage, once
from unsupseg_cli.pipeline.together import Processes, produce_together, train_together
from unsupseg_cli.pretraining.config import PretrainConfig, architecture

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from unsupseg_cli.artifacts.draft import Draft
    from unsupseg_cli.artifacts.workspace import Artifact
    from unsupseg_cli.data.datasets import Dataset
    from unsupseg_cli.models.backbone import Backbone
    from unsupseg_cli.pretraining.train import Pretrainer

_PACK_RATIO = 1.5  # packed side over crop side: a crop of two thirds of the side is still not enlarged


def identify(call: Call) -> Identity:
    """Return what decides the backbone.

    Raises:
        UsageError: no image is named, or the weights to start from do not fit.
    """
    from unsupseg_cli.contents.images import identify_images

    config, start = _config(call), _start(call)
    if not config.images:
        raise UsageError("No images were named: give folders of them, such as `unsupseg pretrain photos/`.")
    data = identify_images(_dataset(call), call.context)
    return Identity(
        kind="backbone",
        stage="pretrain",
        stage_version=STAGE.version,
        slug=f"{config.arch}-{config.objective}-seed{config.seed}",
        config={
            **config.result(),
            "start_weights": start and start.weights_digest,
            **({"probe_digest": _probe_digest(call)} if config.probe is not None else {}),
        },
        data=DataSource(**{**data.model_dump(), "dataset": config.images[0].name or "images"}),
        execution={"device": config.device, "devices": config.devices},
        used_labels=config.probe is not None,
    )


def _probe_digest(call: Call) -> str:
    """Return the digest of the images, labels and classes of the probe, whose scores are in the summary."""
    from unsupseg_cli.artifacts.canonical import digest_json
    from unsupseg_cli.contents.digests import fingerprint, label_fingerprint, space_digest
    from unsupseg_cli.pretraining.run import probe_data

    space, *parts = probe_data(_config(call))
    items = [item for part in parts for item in part]
    images = fingerprint(((item.key, item.image) for item in items), call.context)
    return digest_json([images, label_fingerprint(items, call.context), space_digest(space)])


def work(call: Call, draft: Draft) -> dict[str, Any]:
    """Pack the images once, train with checkpoints, write the averaged encoder.

    Raises:
        UsageError: there are fewer images than a batch.
        UnsupsegError: the loss is not finite; the last checkpoint is kept.
    """
    from safetensors.torch import save_file

    from unsupseg_cli.pretraining.run import PACK, START

    config, start = _config(call), _start(call)
    draft.deterministic = config.device == "cpu" and config.hours is None
    if start is not None:
        (draft.folder / PACK).mkdir(exist_ok=True)
        save_file(start.model.state_dict(), draft.folder / START)
    _pack(call, draft)
    return train_together(call, draft, _train, _processes(call))


def produce(call: Call, identity: Identity) -> tuple[Artifact | None, bool]:
    """Make or reuse the backbone, or help the process that does."""
    return produce_together(call, identity, _train, _processes)


def _processes(call: Call) -> Processes:
    import torch

    from unsupseg_cli.pretraining.train import fabric_precision

    config = _config(call)
    unused = not config.cluster_weight  # the prototypes, then
    return Processes(torch.device(config.device), config.devices, fabric_precision(config), unused)


def _train(fabric: Fabric, call: Call, draft: Draft) -> dict[str, Any]:
    """Train in one of the processes that do; the first one writes the encoder and returns the summary."""
    from unsupseg_cli.pretraining.collapse import warnings
    from unsupseg_cli.pretraining.run import diagnose, open_pretrainer, train
    from unsupseg_cli.report.plots import progress_figure, save
    from unsupseg_cli.training.checkpoint import DiskCheckpoint
    from unsupseg_cli.training.loop import EXPLAINED

    config = _config(call)
    pretrainer = open_pretrainer(config, draft.folder, fabric.device)
    records = train(pretrainer, fabric, draft.folder, call.context.reporter)
    if not fabric.is_global_zero:
        return {}
    health = pretrainer.health()
    draft.warnings += warnings(health)
    _write(pretrainer, config, draft)
    save(
        progress_figure(records, explained={**EXPLAINED, **pretrainer.explained}),
        draft.folder / "progress.png",
    )
    steps = DiskCheckpoint(draft.folder).step()
    summary = {
        "steps": steps,
        "pairs": steps * config.images_per_step,
        "images": len(pretrainer.pixels),
        **health.as_record(),
    }
    return summary | (diagnose(pretrainer).as_record() if config.probe is not None else {})


@once
def _config(call: Call) -> PretrainConfig:
    """Return the options with the device settled."""
    from unsupseg_cli.models.device import resolve_device

    config: PretrainConfig = call.config
    return config.model_copy(update={"device": str(resolve_device(config.device))})


@once
def _dataset(call: Call) -> Dataset:
    from unsupseg_cli.contents.images import open_paths, settle_pixels

    return settle_pixels(open_paths(call.config.images, call.context), call.context)


@once
def _start(call: Call) -> Backbone | None:
    """Return the backbone to go on from."""
    import numpy as np
    import torch

    from unsupseg_cli.contents.backbone import load_frozen
    from unsupseg_cli.pretraining.train import Pretrainer

    config = _config(call)
    if config.start is None:
        return None
    start = load_frozen(config.start, None, {}, call.context, torch.device("cpu"), "fp32")
    empty = np.empty((0, 3, 1, 1), np.uint8)  # if the weights do not fit, say so at once
    Pretrainer(config, empty, torch.empty(0)).start_from(start.model.state_dict())
    return start


def _pack(call: Call, draft: Draft) -> None:
    """Decode every image once into squares (N, 3, S, S) uint8, with the aspect ratios (N,)."""
    import numpy as np
    import torch
    from PIL import Image

    from unsupseg_cli.contents.skipped import Skipped
    from unsupseg_cli.data.images import UnreadableImage, read_image
    from unsupseg_cli.pretraining.run import PACK
    from unsupseg_cli.pretraining.train import check_images

    folder, config = draft.folder / PACK, _config(call)
    if not draft.is_done("pack"):
        folder.mkdir(exist_ok=True)
        side = int(_PACK_RATIO * max(config.size, config.final_size))
        squares, aspects, sides, skipped = [], [], [], Skipped(call.context)
        items = _dataset(call).items
        for item in call.context.reporter.track(items, "decode", total=len(items)):
            try:
                image = read_image(item.image, item.reading)
            except UnreadableImage as error:
                skipped.add(item, str(error))
                continue
            height, width = image.shape[:2]
            square = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
            squares.append(np.asarray(square).transpose(2, 0, 1))
            aspects.append(width / height)
            sides.append(min(height, width))
        warnings = check_images(torch.tensor(sides), config)
        if skipped:
            warnings.append(f"unreadable images skipped: {len(skipped)} (first: {next(iter(skipped))})")
        np.save(folder / "pixels.npy", np.stack(squares))
        np.save(folder / "aspect.npy", np.array(aspects, np.float32))
        draft.finish("pack", warnings, [folder / "pixels.npy", folder / "aspect.npy"])
    draft.warnings += draft.note("pack")


def _write(trainer: Pretrainer, config: PretrainConfig, draft: Draft) -> None:
    from unsupseg_cli.models.backbone import save_backbone
    from unsupseg_cli.models.vit import MEAN, STD

    arch = architecture(config.arch)
    meta = {
        "name": config.arch,
        "arch": arch,
        "size": config.size,
        "patch_size": arch["patch_size"],
        "mean": MEAN,
        "std": STD,
    }
    save_backbone(draft.folder, trainer.encoder, meta)


STAGE = Stage(
    name="pretrain",
    config=PretrainConfig,
    makes="backbone",
    version=1,
    identify=identify,
    work=work,
    produce=produce,
)
