"""pretrain: unlabelled images -> a backbone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Artifact, Draft, Recipe
from unsupseg_cli.contents.backbone import load_frozen
from unsupseg_cli.contents.images import Context, describe_images, open_paths, resolve_device
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.data.images import UnreadableImage, read_image
from unsupseg_cli.diagnosis.patch_probe import PatchScores, probe_patches, some_labelled
from unsupseg_cli.models.backbone import save_backbone
from unsupseg_cli.models.vit import MEAN, STD
from unsupseg_cli.pretraining.collapse import Health, warnings
from unsupseg_cli.pretraining.config import PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import tokens
from unsupseg_cli.pretraining.train import Pretrainer, batch_indices, check_images, fabric_precision
from unsupseg_cli.report.plots import progress_figure, save
from unsupseg_cli.training.launch import launch

STAGE_VERSION = 1
METRICS = "metrics.jsonl"
_PACK_RATIO = 1.5  # packed side over crop side: a crop of two thirds of the side is still not enlarged
_LOG_EVERY, _PROBE_EVERY, _PROBE_IMAGES = 20, 200, 64
_PROBE_LABELLED, _PROBE_SIZE = 32, 176  # images of each split, and their shorter side in pixels
_SAVE_SECONDS = 60.0
_CHECKPOINT = Path("checkpoint", "state.pt")
_PACK = ".pack"  # hidden: scratch, which outlives a kill until the artifact is there
_START = Path(_PACK, "start.safetensors")


def pretrain(
    config: PretrainConfig, context: Context | None = None, *, images: Sequence[Path] = ()
) -> Artifact:
    """Train a small vision transformer on folders of images without labels.

    Raises:
        UsageError: no image is named, there are fewer than a batch, or the weights to start from do not fit.
        UnsupsegError: the loss is not finite; the last checkpoint is kept.
    """
    context = context or Context()
    if not images:
        raise UsageError("No images were named: give --images DIR (repeat it for more folders).")
    config = config.model_copy(update={"device": resolve_device(config.device).type})
    start = None
    if config.start is not None:
        start = load_frozen(config.start, None, {}, context, torch.device("cpu"), "fp32")
        Pretrainer(config).start_from(start.model.state_dict())  # if they do not fit, say so at once
    dataset = open_paths(images)
    data = describe_images(dataset, context)
    recipe = Recipe(
        kind="backbone",
        stage="pretrain",
        stage_version=STAGE_VERSION,
        slug=f"{config.arch}-{config.objective}-seed{config.seed}",
        config={**config.result(), "start_weights": start and start.weights_digest},
        data=DataSource(**{**data.model_dump(), "dataset": images[0].name or "images"}),
        execution={"device": config.device},
        used_labels=config.probe is not None,
    )

    def work(draft: Draft) -> dict[str, Any]:
        draft.deterministic = config.device == "cpu" and config.hours is None
        if start is not None:
            (draft.folder / _PACK).mkdir(exist_ok=True)
            save_file(start.model.state_dict(), draft.folder / _START)
        return _Run(config, context, draft, [item.image for item in dataset.items]).go()

    result, reused = context.workspace.produce(recipe, work, force=context.force)
    return context.say(result, reused)


class _Run:
    """One run of the stage: pack the images once, train with checkpoints, write the averaged encoder."""

    def __init__(self, config: PretrainConfig, context: Context, draft: Draft, paths: list[Path]) -> None:
        self.config, self.context, self.draft, self.paths = config, context, draft, paths
        (draft.folder / _CHECKPOINT).parent.mkdir(exist_ok=True)

    def go(self) -> dict[str, Any]:
        """Train to the end and return the summary."""
        self._pack()
        given = (self.config, self.draft.folder, self.context.reporter)
        if self.config.devices == 1:
            train(None, *given)
        else:
            launch(
                train,
                *given,
                accelerator=self.config.device,
                devices=self.config.devices,
                precision=fabric_precision(self.config),
                unused_parameters=not self.config.cluster_weight,  # the prototypes, then
            )
        training = _Training(None, *given)
        health = training.health()
        self.draft.warnings += warnings(health)
        self._write(training.trainer)
        save(progress_figure(training.records), self.draft.folder / "progress.png")
        steps = training.trainer.step_number
        images = len(training.pixels)
        summary = {
            "steps": steps,
            "pairs": steps * self.config.images_per_step,
            "images": images,
            **health.as_record(),
        }
        return summary | (training.diagnose().as_record() if self.config.probe is not None else {})

    def _pack(self) -> None:
        """Decode every image once into squares (N, 3, S, S) uint8, with the aspect ratios (N,)."""
        folder = self.draft.folder / _PACK
        if not self.draft.is_done("pack"):
            folder.mkdir(exist_ok=True)
            side = int(_PACK_RATIO * max(self.config.size, self.config.final_size))
            squares, aspects, sides, skipped = [], [], [], {}
            for path in self.context.reporter.track(self.paths, "decode", total=len(self.paths)):
                try:
                    image = read_image(path)
                except UnreadableImage as error:
                    skipped[str(path)] = str(error)
                    continue
                height, width = image.shape[:2]
                square = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
                squares.append(np.asarray(square).transpose(2, 0, 1))
                aspects.append(width / height)
                sides.append(min(height, width))
            found = check_images(torch.tensor(sides), self.config)
            if skipped:
                found.append(f"{len(skipped)} unreadable images were skipped (first: {next(iter(skipped))})")
            np.save(folder / "pixels.npy", np.stack(squares))
            np.save(folder / "aspect.npy", np.array(aspects, np.float32))
            self.draft.finish("pack", found)
        self.draft.warnings += self.draft.note("pack")

    def _write(self, trainer: Pretrainer) -> None:
        arch = architecture(self.config.arch)
        meta = {
            "name": self.config.arch,
            "arch": arch,
            "size": self.config.size,
            "patch_size": arch["patch_size"],
            "mean": MEAN,
            "std": STD,
        }
        save_backbone(self.draft.folder, trainer.encoder, meta)


class _Training:
    """The steps of a run and its checkpoint, in this process or in one of several that share the work.

    Args:
        fabric: of a launched process; None where this process trains alone.
        config: of the run.
        folder: of the draft; holds the pack of images.
        reporter: told about the progress by the first process.
    """

    def __init__(
        self, fabric: Fabric | None, config: PretrainConfig, folder: Path, reporter: Reporter
    ) -> None:
        self.config, self.folder = config, folder
        self.trainer = Pretrainer(config, fabric)
        self.fabric = self.trainer.fabric
        self.first = self.fabric.is_global_zero
        self.reporter = reporter if self.first else Silent()
        self.pixels: NDArray[np.uint8] = np.load(
            folder / _PACK / "pixels.npy", mmap_mode="r", allow_pickle=False
        )
        self.aspect = torch.from_numpy(np.load(folder / _PACK / "aspect.npy", allow_pickle=False))
        self.seconds = 0.0
        self.records = self._resume()

    def run(self) -> None:
        """Take all steps that are left; the last checkpoint holds the result."""
        last_save = clock = time.monotonic()
        start = self.seconds
        for step in self._steps(self.trainer.step_number):
            self.seconds = start + time.monotonic() - clock
            record = self._step(step)
            if self.first and (step % _LOG_EVERY == 0 or "rank" in record):
                with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": float(step), **record}) + "\n")
            if self.first and time.monotonic() - last_save > _SAVE_SECONDS:
                self._save()
                last_save = time.monotonic()
        if self.first:
            self._save()

    def _step(self, step: int) -> dict[str, float]:
        config = self.config
        chosen = batch_indices(len(self.pixels), config.images_per_step, step, config.seed)
        chosen = chosen[self.fabric.global_rank :: config.devices].sort().values
        images = torch.from_numpy(self.pixels[chosen.numpy()])
        record = self.trainer.step(images, self.aspect[chosen], self._progress())
        if self.first and step % _PROBE_EVERY == 0:
            health = self.health()
            for warning in warnings(health):
                self.reporter.warn(f"step {step}: {warning}")
            record |= health.as_record()
            if config.probe is not None:
                record |= self.diagnose().as_record()
        return record

    def health(self) -> Health:
        """Return the label-free measures on some fixed images."""
        count = len(self.pixels)
        chosen = np.linspace(0, count - 1, min(_PROBE_IMAGES, count)).astype(int)
        return self.trainer.probe(
            torch.from_numpy(self.pixels[chosen]), self.aspect[torch.from_numpy(chosen)]
        )

    def diagnose(self) -> PatchScores:
        """Score the averaged encoder's patches on some labelled images of another data set."""
        root = Path(self.config.probe_root) if self.config.probe_root else None
        name = str(self.config.probe)
        train, test = (open_dataset(name, root=root, split=split) for split in ("train", "val"))
        assert train.space is not None
        encoder = self.trainer.encoder

        def encode(image: NDArray[np.uint8]) -> Tensor:
            pixels = torch.from_numpy(image.copy()).movedim(-1, 0)[None].float() / 255
            pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
            with torch.inference_mode():
                return tokens(encoder, pixels)[1][0].clone()

        return probe_patches(
            encode,
            some_labelled(train, _PROBE_LABELLED),
            some_labelled(test, _PROBE_LABELLED),
            train.space,
            size=_PROBE_SIZE,
            patch=architecture(self.config.arch)["patch_size"],
            seeds=(0,),
            steps=200,
        )

    def _progress(self) -> float | None:
        return None if self.config.hours is None else min(1.0, self.seconds / (3600 * self.config.hours))

    def _steps(self, first: int) -> Iterator[int]:
        """Yield step numbers until the steps are done, or the hours are over."""
        if self.config.hours is None:
            steps = range(first, self.config.steps)
            yield from self.reporter.track(steps, "pretrain", total=self.config.steps, done=first)
            return
        limit = 3600 * self.config.hours

        def until() -> Iterator[int]:
            step = first
            # One clock for all processes, or one would stop a step before the others and leave them waiting.
            while (now := float(self.fabric.broadcast(self.seconds))) < limit:
                self.seconds = now
                yield step
                step += 1

        yield from self.reporter.track(until(), "pretrain", done=first)

    def _resume(self) -> list[dict[str, float]]:
        path, checkpoint = self.folder / METRICS, self.folder / _CHECKPOINT
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True)
            self.trainer.load_state_dict(state["trainer"])
            self.seconds = float(state["seconds"])
        elif self.config.start is not None:
            self.trainer.start_from(load_file(self.folder / _START))
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("}")]
        records = [record for record in records if record["step"] < self.trainer.step_number]
        if self.first:
            path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return records

    def _save(self) -> None:
        checkpoint = self.folder / _CHECKPOINT
        partial = checkpoint.with_suffix(".tmp")
        torch.save({"trainer": self.trainer.state_dict(), "seconds": self.seconds}, partial)
        partial.replace(checkpoint)


def train(fabric: Fabric | None, config: PretrainConfig, folder: Path, reporter: Reporter) -> None:
    """Train to the end in this process; what it gives is in the checkpoint."""
    training = _Training(fabric, config, folder, reporter)
    if training.trainer.step_number:
        training.reporter.info(f"going on after step {training.trainer.step_number}")
    training.run()
