"""A run of pretraining: its steps on a pack of images, with checkpoints, in one process or in several."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from unsupseg_cli.core.progress import Reporter, Silent
from unsupseg_cli.data.datasets import open_dataset
from unsupseg_cli.models.vit import MEAN, STD
from unsupseg_cli.pretraining.collapse import Health, warnings
from unsupseg_cli.pretraining.config import PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import tokens
from unsupseg_cli.pretraining.patch_probe import PatchScores, probe_patches, some_labelled
from unsupseg_cli.pretraining.train import Pretrainer, batch_indices
from unsupseg_cli.training.checkpoint import DiskCheckpoint, Journal

PACK = ".pack"  # hidden: scratch, which outlives a kill until the artifact is there
START = Path(PACK, "start.safetensors")
_LOG_EVERY, _PROBE_EVERY, _PROBE_IMAGES = 20, 200, 64
_PROBE_LABELLED, _PROBE_SIZE = 32, 176  # images of each split, and their shorter side in pixels
_SAVE_SECONDS = 60.0


class Training:
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
            folder / PACK / "pixels.npy", mmap_mode="r", allow_pickle=False
        )
        self.aspect = torch.from_numpy(np.load(folder / PACK / "aspect.npy", allow_pickle=False))
        self.seconds = 0.0
        self.checkpoint = DiskCheckpoint(folder)
        self._resume()
        self.journal = Journal(folder, self.trainer.step_number, writes=self.first)

    def run(self) -> None:
        """Take all steps that are left; the last checkpoint holds the result."""
        last_save = clock = time.monotonic()
        start = self.seconds
        for step in self._steps(self.trainer.step_number):
            self.seconds = start + time.monotonic() - clock
            record = self._step(step)
            if self.first and (step % _LOG_EVERY == 0 or "rank" in record):
                self.journal.add({"step": float(step), **record})
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

    def _resume(self) -> None:
        if (state := self.checkpoint.load()) is not None:
            self.trainer.load_state_dict(state["trainer"])
            self.seconds = float(state["seconds"])
        elif self.config.start is not None:
            self.trainer.start_from(load_file(self.folder / START))

    def _save(self) -> None:
        self.checkpoint.save({"trainer": self.trainer.state_dict(), "seconds": self.seconds})


def train(fabric: Fabric | None, config: PretrainConfig, folder: Path, reporter: Reporter) -> None:
    """Train to the end in this process; what it gives is in the checkpoint."""
    training = Training(fabric, config, folder, reporter)
    if training.trainer.step_number:
        training.reporter.info(f"going on after step {training.trainer.step_number}")
    training.run()
