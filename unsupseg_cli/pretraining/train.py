"""The training loop as an object that is driven step by step, so that a stage can checkpoint and resume."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.seeds import stream
from unsupseg_cli.pretraining.config import PretrainConfig, architecture
from unsupseg_cli.pretraining.encoder import build_encoder, tokens
from unsupseg_cli.pretraining.objectives import Contrastive
from unsupseg_cli.pretraining.views import corresponding_points, make_crops, tokens_at


def batch_indices(count: int, batch: int, step: int, seed: int) -> Tensor:
    """Return the images (batch,) of a step: every epoch is a new permutation without its incomplete end."""
    per_epoch = count // batch
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(stream(seed, "epoch", epoch))
    return torch.randperm(count, generator=generator)[place * batch : (place + 1) * batch]


class Pretrainer:
    """Encoder, heads, averaged encoder and optimiser of one run."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.device = torch.device(config.device)
        arch = architecture(config.arch)
        self.encoder = build_encoder(arch, config.final_size, stream(config.seed, "encoder")).to(self.device)
        self.encoder.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.seed, "heads"))
            self.objective = Contrastive(
                int(arch["embed_dim"]),  # type: ignore[call-overload]
                hidden=config.head_hidden,
                out=config.head_dim,
                temperature=config.temperature,
                weights=(config.global_weight, config.dense_weight),
            ).to(self.device)
        modules = nn.ModuleList([self.encoder, self.objective])
        decayed = [p for p in modules.parameters() if p.ndim > 1]
        plain = [p for p in modules.parameters() if p.ndim <= 1]
        self.parameters = decayed + plain
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.step_number = 0

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate at a fraction of the run: linear warm-up, then a half cosine."""
        config = self.config
        if progress < config.warmup:
            return config.learning_rate * max(progress / config.warmup, 0.01)
        rest = (progress - config.warmup) / (1 - config.warmup)
        swing = 0.5 * (1 + math.cos(math.pi * min(rest, 1.0)))
        return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * swing

    def step(self, images: Tensor, aspect: Tensor, progress: float) -> dict[str, float]:
        """Train on one batch (B,3,S,S) uint8 with aspects (B,); returns the losses as numbers."""
        config = self.config
        generator = torch.Generator().manual_seed(stream(config.seed, "views", self.step_number))
        size = config.final_size if progress >= config.final_from else config.size
        looks = dict(jitter=config.jitter, grayscale=config.grayscale, blur=config.blur)
        images = images.to(self.device)
        a = make_crops(images, aspect, size, config.crop_scale, generator, **looks)
        b = make_crops(images, aspect, size, config.crop_scale, generator, **looks)
        at_a, at_b, valid = corresponding_points(a, b, config.points, generator)
        rate = self.learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.encoder.train()
        bf16 = config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            pixels = torch.cat([a.pixels, b.pixels]).contiguous(memory_format=torch.channels_last)
            cls, patches = tokens(self.encoder, pixels)
            summary = (cls + patches.mean((1, 2))) / 2
            first, second = patches.float().chunk(2)
            points = (tokens_at(first, at_a)[valid], tokens_at(second, at_b)[valid])
            left, right = summary.chunk(2)
            losses = self.objective((left, right), points)
        loss = losses["total"]
        if not torch.isfinite(loss):
            raise UnsupsegError(f"The loss became {loss.item()} at step {self.step_number}.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        self._update_average()
        self.step_number += 1
        return {**{k: float(v) for k, v in losses.items()}, "gradient": float(norm), "rate": rate}

    @torch.no_grad()
    def _update_average(self) -> None:
        momentum = min(self.config.ema, (1 + self.step_number) / (10 + self.step_number))
        for mean, value in zip(self.average.parameters(), self.encoder.parameters(), strict=True):
            mean.lerp_(value, 1 - momentum)
        for mean, value in zip(self.average.buffers(), self.encoder.buffers(), strict=True):
            mean.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        return {
            "step": self.step_number,
            "encoder": self.encoder.state_dict(),
            "average": self.average.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.step_number = state["step"]
        self.encoder.load_state_dict(state["encoder"])
        self.average.load_state_dict(state["average"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
