"""The training loop as an object driven step by step, so that a stage can checkpoint, probe and resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.seeds import stream
from unsupseg_cli.pretraining.collapse import Health, effective_rank, neighbour_agreement, spread
from unsupseg_cli.pretraining.config import PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import build_encoder, tokens
from unsupseg_cli.pretraining.objectives import Projected, Student, build_loss, cluster_loss
from unsupseg_cli.pretraining.views import Crops, corresponding_points, make_crops, tokens_at, whole_crops
from unsupseg_cli.training.launch import Precision

PROBE_POINTS = 4  # places per image in the label-free probe


def check_images(sides: Tensor, config: PretrainConfig) -> list[str]:
    """Return warnings about a collection with shorter ``sides`` (N,) in pixels.

    Raises:
        UsageError: there are fewer images than one step needs.
    """
    if len(sides) < config.images_per_step:
        raise UsageError(
            f"There are {len(sides)} images, but one step needs {config.images_per_step} (batch {config.batch} x "
            f"accumulate {config.accumulate} x devices {config.devices}); add images or lower --batch."
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


class Pretrainer:
    """One run: student, teacher (its moving average), loss and optimiser.

    A caller gives batches to ``step``, saves ``state_dict`` now and then, and takes ``encoder`` at the end.
    All random numbers come from (seed, step), so a run continued from a saved state gives the same numbers.
    Over several processes (a launched Fabric) each gives its own batch; gradients are averaged, contrastive
    negatives stay within a process.
    """

    def __init__(self, config: PretrainConfig, fabric: Fabric | None = None) -> None:
        self.config = config
        self.fabric = fabric or Fabric(
            accelerator=config.device, devices=1, precision=fabric_precision(config)
        )
        arch = architecture(config.arch)
        encoder = build_encoder(arch, config.final_size, stream(config.seed, "encoder"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, "heads"))
            student = Student(encoder, arch["embed_dim"], config)
        student.to(self.fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.loss = build_loss(config).to(self.fabric.device)
        # Norms and biases are not decayed, as usual for transformers.
        decayed = [p for p in student.parameters() if p.ndim > 1]
        plain = [p for p in student.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.98),
        )
        self._bare = student
        self.student, self.optimizer = self.fabric.setup(student, optimizer)
        self.step_number = 0

    @property
    def encoder(self) -> nn.Module:
        """The averaged encoder: what a run is for."""
        encoder: nn.Module = self.teacher.encoder
        return encoder

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take the encoder's first weights; UsageError if they are those of another architecture."""
        expected = {name: value.shape for name, value in self._bare.encoder.state_dict().items()}
        if expected != {name: value.shape for name, value in weights.items()}:
            raise UsageError(
                f"--start names weights of another architecture than {self.config.arch}, or of another --final-size "
                "where positions are learned; name the one that they were trained with."
            )
        for student in (self._bare, self.teacher):
            student.encoder.load_state_dict(weights)

    def step(self, images: Tensor, aspect: Tensor, progress: float | None = None) -> dict[str, float]:
        """Take one optimiser step; returns the losses, the gradient norm and the learning rate.

        Args:
            images: (batch * accumulate, 3, S, S) uint8, squashed to a square.
            aspect: (batch * accumulate,) width / height of the originals.
            progress: fraction of the run that is done, in [0,1]; by default the fraction of ``steps``.

        Raises:
            UnsupsegError: the loss or the gradient is not finite; all weights are as before the step.
        """
        config = self.config
        if progress is None:
            progress = min(self.step_number / config.steps, 1.0)
        rate = learning_rate(config, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        before = [buffer.clone() for buffer in (*self._bare.buffers(), *self.loss.buffers())]
        self.student.train()
        self.optimizer.zero_grad(set_to_none=True)
        totals: dict[str, float] = {}
        for part in range(config.accumulate):
            batch = slice(part * config.batch, (part + 1) * config.batch)
            last = part + 1 == config.accumulate
            with self.fabric.no_backward_sync(self.student, enabled=not last):
                losses = self._losses(images[batch], aspect[batch], part, progress)
                self._require_finite(losses["loss"].detach(), "loss", before)
                self.fabric.backward(losses["loss"] / config.accumulate)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / config.accumulate
        norm = self.fabric.clip_gradients(
            self.student, self.optimizer, max_norm=config.clip, error_if_nonfinite=False
        )
        assert norm is not None
        self._require_finite(norm, "gradient", before)
        self.optimizer.step()
        self._update_teacher()
        self.step_number += 1
        return {**totals, "gradient": float(norm), "learning_rate": rate}

    def _losses(self, images: Tensor, aspect: Tensor, part: int, progress: float) -> dict[str, Tensor]:
        config = self.config
        seed = stream(config.seed, "views", self.step_number, part, self.fabric.global_rank)
        generator = torch.Generator().manual_seed(seed)
        size = config.final_size if progress >= config.final_from else config.size
        images = images.to(self.fabric.device)
        crops = [self._crops(images, aspect, size, config.crop_scale, generator) for _ in range(2)]
        at_first, at_second, valid = corresponding_points(crops[0], crops[1], config.points, generator)
        for _ in range(config.local_crops):
            crops.append(self._crops(images, aspect, config.local_size, config.local_scale, generator))
        pixels = [crop.pixels.contiguous(memory_format=torch.channels_last) for crop in crops]
        points = (at_first.to(images.device), at_second.to(images.device))
        valid = valid.to(images.device)
        student: Projected = self.student(pixels, points, valid)
        teacher: Projected | None = None
        if self.loss.needs_teacher:
            with torch.no_grad(), self.fabric.autocast():
                teacher = self.teacher(pixels[:2], points, valid)
        losses: dict[str, Tensor] = self.loss(student, teacher)
        if config.cluster_weight:
            assert student.cluster is not None
            cluster = cluster_loss(
                *student.cluster, config.cluster_temperature, config.cluster_target_temperature
            )
            weight = config.cluster_weight if progress >= config.cluster_from else 0.0
            losses |= {"cluster": cluster, "loss": losses["loss"] + weight * cluster}
        return losses

    def _crops(
        self,
        images: Tensor,
        aspect: Tensor,
        size: int,
        scale: tuple[float, float],
        generator: torch.Generator,
    ) -> Crops:
        config = self.config
        augmentation = {"jitter": config.jitter, "grayscale": config.grayscale, "blur": config.blur}
        return make_crops(images, aspect, size, scale, generator, **augmentation)

    @torch.no_grad()
    def _require_finite(self, value: Tensor, name: str, before: list[Tensor]) -> None:
        if bool(torch.isfinite(value)):
            return
        for buffer, old in zip((*self._bare.buffers(), *self.loss.buffers()), before, strict=True):
            buffer.copy_(old)
        self.optimizer.zero_grad(set_to_none=True)
        raise UnsupsegError(
            f"The {name} became {float(value)} at step {self.step_number}; the weights before that step are "
            "kept. Lower the learning rate (--learning-rate ...), use --precision fp32, or check the "
            "images."
        )

    @torch.no_grad()
    def _update_teacher(self) -> None:
        """Move the teacher towards the student; early on faster, so that it forgets its random start."""
        momentum = min(self.config.ema, (1 + self.step_number) / (10 + self.step_number))
        for mean, value in zip(self.teacher.parameters(), self._bare.parameters(), strict=True):
            mean.lerp_(value, 1 - momentum)
        for old, new in zip(self.teacher.buffers(), self._bare.buffers(), strict=True):
            old.copy_(new)

    @torch.no_grad()
    def probe(self, images: Tensor, aspect: Tensor) -> Health:
        """Return label-free measures of the averaged encoder on fixed images (N,3,S,S) uint8, some 64."""
        config = self.config
        generator = torch.Generator().manual_seed(stream(config.seed, "probe"))
        images = images.to(self.fabric.device)
        a = self._crops(images, aspect, config.size, config.crop_scale, generator)
        b = self._crops(images, aspect, config.size, config.crop_scale, generator)
        at_a, at_b, valid = corresponding_points(a, b, PROBE_POINTS, generator)
        whole_a, patches_a = self._encode(a.pixels)
        whole_b, patches_b = self._encode(b.pixels)
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
        with self.fabric.autocast():
            cls, patches = tokens(self.encoder, pixels)
        return (cls.float() + patches.float().mean((1, 2))) / 2, patches.float()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a continued run needs: tensors, numbers and nested dicts only."""
        return {
            "step": self.step_number,
            "student": self._bare.state_dict(),
            "teacher": self.teacher.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a ``state_dict`` of a run with the same configuration."""
        self.step_number = int(state["step"])
        self._bare.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
