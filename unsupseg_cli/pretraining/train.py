"""Pretraining as a task of the training loop."""

from __future__ import annotations

import copy
import math
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.seeds import stream
from unsupseg_cli.pretraining.collapse import Health, effective_rank, neighbour_agreement, spread
from unsupseg_cli.pretraining.config import PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import build_encoder, tokens
from unsupseg_cli.pretraining.objectives import Projected, Student, build_loss, cluster_loss
from unsupseg_cli.pretraining.views import (
    Crops,
    corresponding_points,
    crop_pixels,
    draw_crops,
    tokens_at,
    whole_crops,
)
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.launch import Precision
from unsupseg_cli.training.loop import Schedule, Task

PROBE_POINTS = 4  # places per image in the label-free probe
_PROBE_IMAGES = 64
_PACE: dict[str, Any] = {"log_every": 20, "save_seconds": 60.0}


def check_images(sides: Tensor, config: PretrainConfig) -> list[str]:
    """Return warnings about a collection with shorter ``sides`` (N,) in pixels.

    Raises:
        UsageError: there are fewer images than one step needs.
    """
    if len(sides) < config.images_per_step:
        raise UsageError(
            f"There are {len(sides)} images, but one step needs {config.images_per_step} (batch {config.batch} x "
            f"accumulate {config.accumulate}); add images or lower --batch."
        )
    largest = max(config.size, config.final_size)
    small = int((sides < largest).sum())
    if small:
        return [
            f"{small} of {len(sides)} images are smaller than a crop of {largest} pixels and will be "
            "enlarged; lower --size if that is most of them."
        ]
    return []


def batch_indices(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Return the images (batch,) of a step: each epoch is a new permutation, cut to full batches."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(stream(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)[place * batch : (place + 1) * batch]


def learning_rate(config: PretrainConfig, progress: float) -> float:
    """Return the learning rate at a fraction of the run: linear warm-up, then half a cosine."""
    if progress < config.warmup:
        return config.learning_rate * max(progress / config.warmup, 0.01)
    rest = min((progress - config.warmup) / (1 - config.warmup), 1.0)
    share = 0.5 * (1 + math.cos(math.pi * rest))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def fabric_precision(config: PretrainConfig) -> Precision:
    """Return the precision of a run as Fabric names it."""
    return "bf16-mixed" if config.precision == "bf16" else "32-true"


class Pretrainer(Task):
    """One run: student, teacher (its moving average), loss and optimiser.

    All random numbers come from the seed and the step. Negatives, targets and the statistics of batch norms are those
    of the whole batch, however many processes share it.

    Args:
        config: of the run.
        pixels: (N, 3, S, S) uint8, images squashed to squares.
        aspect: (N,) width / height of the originals.
        device: where to compute.
    """

    explained = MappingProxyType(
        {
            "whole": "loss between crops of an image: good if it falls",
            "dense": "loss between places that two crops share: good if it falls",
            "cluster": "loss of guessing a place's cluster from its other view: good if it falls",
            "entropy": "of the mean target, 0 to 1: good near 1, at 0 all images are one prototype",
            "rank": "effective dimensions of images: good if it grows, below 3 is collapse",
            "spread": "of images, 0 all alike to 1: good above 0.1",
            "patch_rank": "effective dimensions of places: good if it grows",
            "agreement": "share of the images found by their second view: good if it grows to 1",
            "patch_agreement": "share of the places found by their second view: good if it grows to 1",
            "probe_kmeans": "mIoU of k-means on the probe's images, %: good if it grows",
            "probe_linear": "mIoU of a linear probe, %: good if it grows",
        }
    )
    advice = "lower the learning rate (--learning-rate ...), use --precision fp32, or check the images"

    def __init__(
        self,
        config: PretrainConfig,
        pixels: NDArray[np.uint8],
        aspect: Tensor,
        device: torch.device | None = None,
    ) -> None:
        self.config, self.pixels, self.aspect = config, pixels, aspect
        self.device = device or torch.device(config.device)
        self.accumulate, self.clip_norm = config.accumulate, config.clip
        arch = architecture(config.arch)
        encoder = build_encoder(arch, config.final_size, stream(config.seed, "encoder"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, "heads"))
            self.student = Student(encoder, arch["embed_dim"], config)
        # torch's stubs know a memory format or a device, not both.
        self.student.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.loss = build_loss(config).to(self.device)
        self.module: nn.Module = self.student

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW; norms and biases are not decayed, as usual for transformers."""
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.ndim <= 1]
        return torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=1.0,  # times `rate`
            betas=(0.9, 0.98),
        )

    @property
    def encoder(self) -> nn.Module:
        """The averaged encoder: what a run is for."""
        encoder: nn.Module = self.teacher.encoder
        return encoder

    @property
    def schedule(self) -> Schedule:
        """How long the run is."""
        config = self.config
        return Schedule(
            config.steps, config.images_per_step, len(self.pixels), config.seed, hours=config.hours, **_PACE
        )

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take the encoder's first weights; UsageError if they are those of another architecture."""
        expected = {name: value.shape for name, value in self.student.encoder.state_dict().items()}
        if expected != {name: value.shape for name, value in weights.items()}:
            raise UsageError(
                f"--start names weights of another architecture than {self.config.arch}, or of another --final-size "
                "where positions are learned; name the one that they were trained with."
            )
        for student in (self.student, self.teacher):
            student.encoder.load_state_dict(weights)

    def views(self, schedule: Schedule, step: int) -> list[int]:
        """Return the images of a step, those of each forward pass in the order of the pack."""
        chosen = batch_indices(len(self.pixels), self.config.images_per_step, step, self.config.seed)
        views: list[int] = chosen.reshape(self.accumulate, -1).sort().values.flatten().tolist()
        return views

    def rate(self, progress: float) -> float:
        """Return the learning rate."""
        return learning_rate(self.config, progress)

    def read(self, batch: Batch) -> Tensor:
        """Read the images (B, 3, S, S) uint8."""
        return torch.from_numpy(self.pixels[batch.views]).to(self.device)

    def losses(self, batch: Batch, read: Tensor) -> dict[str, Tensor]:
        """Return the loss of the student on crops of some images, and its terms."""
        config, device = self.config, self.device
        crops, all_points, all_valid = self._draw(batch)
        size = config.final_size if batch.progress >= config.final_from else config.size
        sizes = [size, size, *[config.local_size] * config.local_crops]
        own = list(batch.places)
        with torch.autocast(device.type, enabled=False):
            pixels = [
                crop_pixels(read, crop.of(own), side).contiguous(memory_format=torch.channels_last)
                for crop, side in zip(crops, sizes, strict=True)
            ]
        points = (all_points[0][own].to(device), all_points[1][own].to(device))
        valid, any_valid = all_valid[own].to(device), bool(all_valid.any())
        exact = torch.bfloat16 if config.precision == "bf16" else torch.float32
        at = (points[0].to(exact), points[1].to(exact))
        student: Projected = self.student(pixels, at, valid, any_valid=any_valid)
        teacher: Projected | None = None
        if self.loss.needs_teacher:
            with torch.no_grad():
                teacher = self.teacher(pixels[:2], points, valid, any_valid=any_valid)
                teacher = teacher.gather(batch, all_valid)
        with torch.autocast(device.type, enabled=False):
            student = student.float().gather(batch, all_valid)
            losses: dict[str, Tensor] = self.loss(student, teacher)
            if config.cluster_weight:
                assert student.cluster is not None
                cluster = cluster_loss(
                    *student.cluster, config.cluster_temperature, config.cluster_target_temperature
                )
                weight = config.cluster_weight if batch.progress >= config.cluster_from else 0.0
                losses |= {"cluster": cluster, "loss": losses["loss"] + weight * cluster}
        return losses

    def _draw(self, batch: Batch) -> tuple[list[Crops], tuple[Tensor, Tensor], Tensor]:
        """Return crops, points and valid images, as `corresponding_points` does, of the whole batch."""
        config = self.config
        # The 0 is a process: with it the bundled weights can be made from their images.
        generator = torch.Generator().manual_seed(stream(config.seed, "views", batch.step, batch.part, 0))
        aspect = self.aspect[batch.whole]
        crops = [self._draw_crops(aspect, config.crop_scale, generator) for _ in range(2)]
        at_first, at_second, valid = corresponding_points(crops[0], crops[1], config.points, generator)
        crops += [self._draw_crops(aspect, config.local_scale, generator) for _ in range(config.local_crops)]
        return crops, (at_first, at_second), valid

    def _draw_crops(self, aspect: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Crops:
        config = self.config
        colours = {"jitter": config.jitter, "grayscale": config.grayscale, "blur": config.blur}
        return draw_crops(aspect, scale, generator, **colours)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Move the teacher towards the student; early on faster, so that it forgets its random start."""
        momentum = min(self.config.ema, (1 + step) / (10 + step))
        for mean, value in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            mean.lerp_(value, 1 - momentum)
        for old, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            old.copy_(new)

    def state(self) -> dict[str, Any]:
        """Return the teacher, and the centres of the loss."""
        return {"teacher": self.teacher.state_dict(), "loss": self.loss.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what ``state`` returned."""
        self.teacher.load_state_dict(state["teacher"])
        self.loss.load_state_dict(state["loss"])

    @torch.no_grad()
    def health(self) -> Health:
        """Return label-free measures of the averaged encoder on some fixed images."""
        count = len(self.pixels)
        chosen = np.linspace(0, count - 1, min(_PROBE_IMAGES, count)).astype(int)
        images, aspect = torch.from_numpy(self.pixels[chosen]), self.aspect[torch.from_numpy(chosen)]
        config = self.config
        generator = torch.Generator().manual_seed(stream(config.seed, "probe"))
        images = images.to(self.device)
        a = self._draw_crops(aspect, config.crop_scale, generator)
        b = self._draw_crops(aspect, config.crop_scale, generator)
        at_a, at_b, valid = corresponding_points(a, b, PROBE_POINTS, generator)
        whole_a, patches_a = self._encode(crop_pixels(images, a, config.size))
        whole_b, patches_b = self._encode(crop_pixels(images, b, config.size))
        whole, patches = self._encode(whole_crops(images, config.size))
        place_a = tokens_at(patches_a, at_a.to(images.device))[valid].flatten(0, 1)
        place_b = tokens_at(patches_b, at_b.to(images.device))[valid].flatten(0, 1)
        every_patch = patches.flatten(0, 2)
        return Health(
            rank=effective_rank(whole),
            spread=spread(whole),
            patch_rank=effective_rank(every_patch[:: max(1, len(every_patch) // 2048)]),
            agreement=neighbour_agreement(whole_a, whole_b),
            patch_agreement=neighbour_agreement(place_a, place_b) if len(place_a) else 0.0,
        )

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            cls, patches = tokens(self.encoder, pixels)
        return (cls.float() + patches.float().mean((1, 2))) / 2, patches.float()
