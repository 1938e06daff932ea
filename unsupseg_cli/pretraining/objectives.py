"""What the encoder learns from: agreement of views, of the whole crop and of corresponding places.

Both objectives have a projection head for whole crops and one for places, and a loss over what the heads
give. ``Student`` is encoder plus heads; its moving average is the teacher (and what is exported).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unsupseg_cli.pretraining.config import PretrainConfig
from unsupseg_cli.pretraining.encoder import tokens
from unsupseg_cli.pretraining.views import tokens_at
from unsupseg_cli.training.batch import Batch

Losses = dict[str, Tensor]


@dataclass
class Projected:
    """What the heads give: (B,D) of each crop, the two global ones first, and of their places (B',P,D).

    ``cluster`` are the cosines (B'P,K) of the places' tokens themselves with the cluster prototypes, if their
    loss counts.
    """

    whole: list[Tensor]
    dense: tuple[Tensor, Tensor]
    cluster: tuple[Tensor, Tensor] | None = None

    def float(self) -> Projected:
        """Return the same in single precision."""
        left, right = (places.float() for places in self.dense)
        cluster = self.cluster and (self.cluster[0].float(), self.cluster[1].float())
        return Projected([crop.float() for crop in self.whole], (left, right), cluster)

    def gather(self, batch: Batch, valid: Tensor) -> Projected:
        """Return what the heads of all processes give, in the order of the batch; gradients go back to each.

        Args:
            batch: of which this is one process's share.
            valid: (B,) bool, which images of the whole batch have places.
        """
        if batch.processes == 1:
            return self
        everywhere = torch.ones_like(valid)
        whole = list(_gather(batch, torch.stack(self.whole, 1), everywhere).unbind(1))
        if not valid.any():
            return Projected(whole, self.dense, self.cluster)

        def pair(sides: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            left, right = _gather(batch, torch.cat(sides, 1), valid).chunk(2, 1)
            return left, right

        if self.cluster is None:
            return Projected(whole, pair(self.dense))
        images, points = self.dense[0].shape[:2]
        first, second = (cosine.reshape(images, points, cosine.shape[1]) for cosine in self.cluster)
        first, second = pair((first, second))
        return Projected(whole, pair(self.dense), (first.flatten(0, 1), second.flatten(0, 1)))


def _gather(batch: Batch, values: Tensor, present: Tensor) -> Tensor:
    """Return the values (N,P,D) of all images that are ``present`` (B,), of this process's (n,P,D)."""
    grids = [(int(one), values.shape[1]) for one in present]
    own = torch.split(values, [grids[place][0] for place in batch.places])
    return torch.cat(batch.gather(own, grids))


class ContrastiveHead(nn.Sequential):
    """Two layers with batch norm (SimCLR, Sec. 2.1)."""

    def __init__(self, dim: int, config: PretrainConfig) -> None:
        hidden = config.head_hidden
        super().__init__(
            nn.Linear(dim, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, config.head_dim),
        )


class DinoHead(nn.Module):
    """Three layers, an l2-normalised bottleneck and unit-norm prototypes (DINO, App. C)."""

    def __init__(self, dim: int, config: PretrainConfig) -> None:
        super().__init__()
        hidden = config.head_hidden
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.bottleneck),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):  # else the biases make the first outputs all alike
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(config.prototypes, config.bottleneck))

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines with the prototypes (N,K) of tokens (N,C)."""
        cosine: Tensor = F.normalize(self.layers(x), dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        return cosine


class Student(nn.Module):
    """The encoder with one head for whole crops and one for places."""

    def __init__(self, encoder: nn.Module, dim: int, config: PretrainConfig) -> None:
        super().__init__()
        head = ContrastiveHead if config.objective == "contrastive" else DinoHead
        self.encoder = encoder
        self.whole_head = head(dim, config)
        self.dense_head = head(dim, config)
        self.clusters = config.cluster_weight > 0
        self.prototypes = nn.Parameter(F.normalize(torch.randn(config.clusters, dim), dim=-1))

    def forward(
        self, crops: list[Tensor], points: tuple[Tensor, Tensor], valid: Tensor, *, any_valid: bool
    ) -> Projected:
        """Encode crops and project them.

        Args:
            crops: each (B,3,s,s), normalised; the first two are the global ones and share their size.
            points: (B,P,2) in each global crop, showing the same places, in [-1,1].
            valid: (B,) bool, whether the global crops of an image overlap; the other images have no places.
            any_valid: whether any do, here or in another process.
        """
        cls, patches = tokens(self.encoder, torch.cat(crops[:2]))
        # CLS alone sees few gradients in a short run; the mean of the patches lets the whole-crop loss
        # teach the patches directly.
        summaries = [(cls + patches.mean((1, 2))) / 2]
        if len(crops) > 2:
            cls, local = tokens(self.encoder, torch.cat(crops[2:]))
            summaries.append((cls + local.mean((1, 2))) / 2)
        whole = self.whole_head(torch.cat(summaries))
        places = torch.cat(
            [tokens_at(p, at)[valid] for p, at in zip(patches.float().chunk(2), points, strict=True)]
        )
        if any_valid:
            flat = self.dense_head(places.flatten(0, 1))
            left, right = flat.reshape(*places.shape[:2], flat.shape[1]).chunk(2)
        else:  # batch norm refuses an empty batch, and several processes look for a gradient of every weight
            left = right = places + 0 * sum(weight.sum() for weight in self.dense_head.parameters())
        projected = Projected(list(whole.chunk(len(crops))), (left, right))
        if self.clusters:
            cosine = F.normalize(places.flatten(0, 1), dim=-1) @ F.normalize(self.prototypes, dim=-1).T
            first, second = cosine.chunk(2)
            projected.cluster = (first, second)
        return projected


def info_nce(a: Tensor, b: Tensor, temperature: float, group: Tensor | None = None) -> Tensor:
    """Return the symmetric InfoNCE loss of (N,D) and (N,D), where rows i show the same thing.

    Source: MoCo v3, Eq. 1 (SimCLR's Eq. 1 without negatives from the same view). Rows of the same ``group``
    (N,), the places of one image, are no negatives of each other: they often show the same stuff.
    """
    a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
    logits = a @ b.T / temperature
    if group is not None:
        same = group[:, None] == group[None]
        logits = logits.masked_fill(same.fill_diagonal_(False), float("-inf"))
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ContrastiveLoss(nn.Module):
    """InfoNCE between whole crops and between corresponding places; negatives come from other images."""

    needs_teacher = False

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, student: Projected, teacher: Projected | None = None) -> Losses:
        """Return ``whole``, ``dense`` and ``loss``."""
        temperature = self.config.temperature
        first, second, *local = student.whole
        terms = [info_nce(first, second, temperature)]
        terms += [info_nce(crop, (first, second)[i % 2], temperature) for i, crop in enumerate(local)]
        left, right = student.dense
        group = torch.arange(len(left), device=left.device).repeat_interleave(left.shape[1])
        dense = (
            info_nce(left.flatten(0, 1), right.flatten(0, 1), temperature, group)
            if len(left)
            else left.sum() * 0
        )
        return _weighted_losses(self.config, torch.stack(terms).mean(), dense)


def sinkhorn(logits: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """Return soft assignments (N,K) that use every prototype equally often; rows sum to 1.

    Source: SwAV, Sec. 3.1 and App. (3 rounds). ``logits`` (N,K) are cosines.
    """
    q = torch.exp((logits.float() - logits.max()) / temperature)
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True).clamp(min=1e-12)
        q = q / q.sum(1, keepdim=True).clamp(min=1e-12)
    return q


class DinoLoss(nn.Module):
    """Cross-entropy of the student's assignments to the teacher's, in another crop (DINO, Eq. 3).

    Whole crops as in DINO; places as in iBOT's patch term, but at corresponding places of the other crop.
    """

    needs_teacher = True
    whole_center: Tensor
    dense_center: Tensor

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("whole_center", torch.zeros(config.prototypes))
        self.register_buffer("dense_center", torch.zeros(config.prototypes))

    def forward(self, student: Projected, teacher: Projected | None) -> Losses:
        """Return ``whole``, ``dense``, ``loss`` and ``entropy`` of the mean target, in [0,1]."""
        assert teacher is not None
        targets = self._targets(torch.cat(teacher.whole[:2]), self.whole_center).chunk(2)
        terms = [
            self._cross_entropy(target, guess)
            for i, target in enumerate(targets)
            for j, guess in enumerate(student.whole)
            if i != j
        ]
        left, right = (side.flatten(0, 1) for side in student.dense)
        if len(left):
            dense_targets = self._targets(
                torch.cat([side.flatten(0, 1) for side in teacher.dense]), self.dense_center
            )
            first, second = dense_targets.chunk(2)
            dense = (self._cross_entropy(first, right) + self._cross_entropy(second, left)) / 2
        else:
            dense = left.sum() * 0
        mean = torch.cat(targets).mean(0)
        entropy = torch.special.entr(mean).sum() / torch.tensor(float(len(mean))).log()
        return {**_weighted_losses(self.config, torch.stack(terms).mean(), dense), "entropy": entropy}

    def _cross_entropy(self, target: Tensor, guess: Tensor) -> Tensor:
        return -(target * F.log_softmax(guess.float() / self.config.student_temperature, -1)).sum(-1).mean()

    @torch.no_grad()
    def _targets(self, logits: Tensor, center: Tensor) -> Tensor:
        config = self.config
        if config.centering == "sinkhorn":
            return sinkhorn(logits, config.teacher_temperature)
        target = F.softmax((logits.float() - center) / config.teacher_temperature, -1)
        center.lerp_(logits.float().mean(0), 1 - config.center_momentum)
        return target


def cluster_loss(left: Tensor, right: Tensor, temperature: float, target_temperature: float) -> Tensor:
    """Return the loss of guessing the Sinkhorn assignment (N,K) of a place from its other view.

    ``left`` and ``right`` are cosines with the prototypes. Source: SwAV, Eq. 2, with places for images and
    without a head: the tokens themselves gather around the prototypes, which is what k-means asks of them.
    """
    if not len(left):
        return left.sum() * 0
    with torch.no_grad():
        first, second = sinkhorn(torch.cat([left, right]), target_temperature).chunk(2)
    guess_left = F.log_softmax(left.float() / temperature, -1)
    guess_right = F.log_softmax(right.float() / temperature, -1)
    return -((first * guess_right).sum(-1).mean() + (second * guess_left).sum(-1).mean()) / 2


def _weighted_losses(config: PretrainConfig, whole: Tensor, dense: Tensor) -> Losses:
    return {
        "loss": config.global_weight * whole + config.dense_weight * dense,
        "whole": whole,
        "dense": dense,
    }


def build_loss(config: PretrainConfig) -> ContrastiveLoss | DinoLoss:
    """Return the loss of ``config.objective``."""
    return ContrastiveLoss(config) if config.objective == "contrastive" else DinoLoss(config)
