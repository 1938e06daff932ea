"""Training of the head by feature correspondences, with the cluster probe beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unsupseg_cli.clustering.prototypes import Prototypes
from unsupseg_cli.clustering.spectral import share_in_own_group
from unsupseg_cli.clustering.spherical import spherical_kmeans
from unsupseg_cli.core import seeds
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.methods.interface import Inputs, TrainedHead, Trainer
from unsupseg_cli.methods.stego.config import TrainOptions
from unsupseg_cli.methods.stego.network import StegoHead
from unsupseg_cli.methods.stego.objective import centre, correspondence_loss
from unsupseg_cli.methods.stego.pairs import KINDS, Pairs
from unsupseg_cli.methods.stego.shifts import attracted, automatic_shifts
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.grids import CodeSource, apply_to_share
from unsupseg_cli.training.tokens import TokenSource, draw_tokens, flat_batches, sample_tokens

_COMPARED = 8000  # tokens of which the share in the own image is told
_MEASURED_BATCHES = 8  # with 16 images of 121 points, two million pairs of each kind
_OWN_IMAGE = (
    0.45  # between street scenes (34 and 38 %), where STEGO gains, and clothes (50 %), where it loses
)
_COLLAPSED = 0.95  # mean cosine between the codes of all tokens; opposite codes with 97 % in one reach 0.94


@dataclass(frozen=True)
class Step:
    """What a step compares: the pairs, and the neighbour of each view of the whole batch.

    ``shown`` and ``near``, this process's views and their neighbours, are tokens (h, w, C), or pixels (3, H, W) where
    the network is in the loop.
    """

    pairs: Pairs
    positives: list[int]
    shown: list[Tensor]
    near: list[Tensor]


class StegoTrainer(Trainer):
    """Training of STEGO.

    Raises:
        UsageError: the graph does not fit the views, or there are too few views or classes.
    """

    options: TrainOptions
    explained = MappingProxyType(
        {
            "self": "loss of an image with itself: good if it falls",
            "knn": "loss of an image with its neighbours: good if it falls",
            "rand": "loss of an image with others: good if it falls",
            "similarity_self": "mean cosine of codes in an image: good between 0 and 1, at 1 all codes are alike",
            "similarity_knn": "mean cosine of codes with those of neighbours: good if above that with others",
            "similarity_rand": "mean cosine of codes with those of others: good if near 0",
            "probe": "best cluster probe: minus the mean cosine of codes and their centres, -1 at best",
        }
    )

    def __init__(self, options: TrainOptions, inputs: Inputs) -> None:
        super().__init__(options, inputs)
        features, classes = inputs.features, inputs.classes
        views = len(features.grids)
        if classes < 2:
            raise UsageError(
                "STEGO with one class would give it to every pixel; ask for --classes 2 or more."
            )
        if views < 2:
            raise UsageError(
                f"STEGO compares images with each other and found {views}; extract more of them."
            )
        tokens = int(features.grids.prod(1).sum())
        tokens = min(options.sample, tokens) if options.refit else tokens
        if classes > tokens:
            raise UsageError(
                f"--classes {classes} is more than the {tokens} patches that classes are fitted on."
            )
        self.neighbours, self.warnings = _usable_neighbours(inputs.graph, views, options)
        self.steps, self.batch = options.steps, min(options.batch, views)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.stream(inputs.seed, "stego"))
            self.head = StegoHead(features.dim, options.codes, options.dropout)
            self.probe = Prototypes(torch.randn(options.restarts, classes, options.codes))
        self.module: nn.Module = nn.ModuleDict({"head": self.head, "probe": self.probe}).to(inputs.device)
        self.weights = dict(zip(KINDS, options.weights, strict=True))
        measured = self._measure()
        if options.shifts == "auto":
            self.shifts = automatic_shifts(measured, classes)
        else:
            self.shifts = dict(zip(KINDS, options.shifts, strict=True))
        self.attracted = attracted(measured, self.shifts)
        self.same_image = self._own_neighbours()

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam; the head and the probe have their own learning rates."""
        return torch.optim.Adam(
            [
                {"params": list(self.head.parameters()), "lr": self.options.lr},
                {"params": list(self.probe.parameters()), "lr": self.options.probe_lr},
            ]
        )

    def read(self, batch: Batch) -> Step:
        """Draw what the batch compares, and read tokens, or pixels where the network is in the loop."""
        draw = torch.Generator().manual_seed(seeds.stream(self.inputs.seed, "pairs", batch.step))
        positives = self._positives(batch.whole, draw)
        pairs = Pairs.draw(len(batch.whole), self.options, draw)
        network = self.inputs.network
        show = self.inputs.features.tokens if network is None else network.pixels
        return Step(pairs, positives, show(batch.views), show([positives[place] for place in batch.places]))

    def losses(self, batch: Batch, read: Step) -> dict[str, Tensor]:
        """Return the loss, its three terms, the mean code similarity of each, and the probe's loss.

        An image is compared with others of the whole batch: their codes are gathered from the other processes.
        """
        pairs, network, all_grids = read.pairs, self.inputs.network, self.inputs.features.grids
        encode = network.encode if network else list
        tokens, near = encode(read.shown), encode(read.near)
        grids, near_grids = all_grids[batch.whole].tolist(), all_grids[read.positives].tolist()
        codes = apply_to_share(self.head, tokens, batch.places, grids)
        with torch.no_grad():  # features lose channels like the head's inputs
            features, near_features = (
                apply_to_share(self.head.drop, *maps)
                for maps in ((tokens, batch.places, grids), (near, batch.places, near_grids))
            )
            features = batch.gather(features, grids)
            feature_correspondences = self._centred(
                pairs.correspondences(features, near_features, batch.places), batch
            )
        near_codes = apply_to_share(self.head, near, batch.places, near_grids)
        compared = zip(
            feature_correspondences,
            pairs.correspondences(batch.gather(codes, grids), near_codes, batch.places),
            strict=True,
        )
        terms: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        similarity: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        clamps = {"zero_clamp": self.options.zero_clamp, "stabilize": self.options.stabilize}
        for (kind, feature_cosines), (_, code_cosines) in compared:
            terms[kind].append(
                correspondence_loss(feature_cosines, code_cosines, self.shifts[kind], **clamps)
            )
            similarity[kind].append(code_cosines.detach().mean())
        probes = self.probe.losses(_unit(torch.cat([code.detach().flatten(0, 1) for code in codes])))
        probes = probes * self._token_weight(batch)
        means = {kind: torch.stack(parts).mean() for kind, parts in terms.items()}
        loss = torch.stack([self.weights[kind] * mean for kind, mean in means.items()]).sum() + probes.sum()
        live = {f"similarity_{kind}": torch.stack(parts).mean() for kind, parts in similarity.items()}
        return {"loss": loss, **means, **live, "probe": probes.min()}

    def finish(self) -> TrainedHead:
        """Return the head with the cluster probe of the lowest loss, of those trained beside it and those fitted anew.

        A trained probe keeps its length, of which no score but the turning of PriMaPs-EM's prototypes depends.
        """
        self.module.eval()
        codes = CodeSource(self.inputs.features, self.head, self.options.codes)
        trained = self.probe.weight.detach().cpu()
        refitted = self._refit(codes) if self.options.refit else trained[:0]
        probes = torch.cat([refitted, trained])
        losses, sizes, similarity = _score_probes(codes, _unit(probes), self.inputs.reporter)
        best = min(range(len(losses)), key=losses.__getitem__)
        refitted_losses = losses[: len(refitted)]
        figures: dict[str, Any] = {
            "shifts": self.shifts,
            "attracted": self.attracted,
            "same_image": self.same_image,
            "probe_losses": refitted_losses,
            "probe_spread": max(refitted_losses, default=0.0) - min(refitted_losses, default=0.0),
            "probe_losses_trained": losses[len(refitted) :],
            "best_restart": best,
            "code_similarity": similarity,
            "class_shares": sizes[best],
        }
        weight = probes[best].clone()
        tensors = {
            f"feature_heads.0.{name}": value.detach().cpu() for name, value in self.head.state_dict().items()
        }
        classes, dim = weight.shape
        return TrainedHead(
            {"type": "cosine", "classes": classes, "dim": dim, "alpha": self.options.alpha},
            {**tensors, "class_head.weight": weight},
            feature_heads=[{"type": "stego", "dim": self.inputs.features.dim, "codes": dim}],
            figures=figures,
            warnings=[*self.warnings, *_collapse_warnings(similarity, sizes[best], self.shifts)],
        )

    def _token_weight(self, batch: Batch) -> float:
        """Return how much a token here counts more than an image does: every token of the batch counts alike."""
        tokens = self.inputs.features.grids.prod(1)
        share = tokens[batch.views].sum() / tokens[batch.whole].sum()
        return float(share * len(batch.whole) / len(batch.views))

    def _centred(
        self, correspondences: Iterable[tuple[str, Tensor]], batch: Batch | None = None
    ) -> list[tuple[str, Tensor]]:
        """Return the feature correspondences of a batch, or of a share of it, centred if the options say so."""
        kinds, cosines = zip(*correspondences, strict=True)
        if self.options.pointwise:
            means = torch.stack([values.mean() for values in cosines])
            means = batch.average(means) if batch else means
            cosines = tuple(map(centre, cosines, means))
        return list(zip(kinds, cosines, strict=True))

    def _positives(self, views: Sequence[int], draw: torch.Generator) -> list[int]:
        """Draw one of the nearest neighbours of each view."""
        choice = torch.randint(self.neighbours.shape[1], (len(views),), generator=draw)
        return [int(neighbour) for neighbour in self.neighbours[views, choice.numpy()]]

    @torch.no_grad()
    def _measure(self) -> dict[str, Tensor]:
        """Return samples of the centred feature correspondences of the collection, without dropout."""
        draw = torch.Generator().manual_seed(seeds.stream(self.inputs.seed, "shifts"))
        samples: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
        order = torch.randperm(len(self.inputs.features.grids), generator=draw).tolist()
        for start in range(0, len(order) - self.batch + 1, self.batch)[:_MEASURED_BATCHES]:
            views = order[start : start + self.batch]
            pairs = Pairs.draw(self.batch, self.options, draw)
            tokens, near = (
                self.inputs.features.tokens(members) for members in (views, self._positives(views, draw))
            )
            for kind, cosines in self._centred(pairs.correspondences(tokens, near)):
                samples[kind].append(cosines)
        return {kind: torch.stack(parts) for kind, parts in samples.items()}

    def _own_neighbours(self) -> float:
        """Return the share of tokens whose nearest one is of their own image, and warn where it is high."""
        inputs = self.inputs
        draw = seeds.stream(inputs.seed, "own neighbours")
        tokens, views = draw_tokens(inputs.features, _COMPARED, draw, inputs.reporter)
        same = share_in_own_group(_unit(tokens), views, draw)
        if same > _OWN_IMAGE:
            inputs.reporter.warn(
                f"the nearest token is of the same image for {100 * same:.0f} % of the tokens: where it was for more "
                f"than {100 * _OWN_IMAGE:.0f} %, STEGO was below k-means on the same features, or level with it"
            )
        return same

    def _refit(self, codes: CodeSource) -> Tensor:
        """Return the probes (R, K, D) of spherical k-means on a sample of the final codes, R starts."""
        draw = seeds.stream(self.inputs.seed, "codes")
        sample = _unit(sample_tokens(codes, self.options.sample, draw, self.inputs.reporter))
        if not bool(torch.isfinite(sample).all()):
            raise UnsupsegError(
                "The head gives codes that are not numbers; lower the learning rate (--set lr=)."
            )
        classes = self.probe.weight.shape[1]
        return torch.stack(
            [
                spherical_kmeans(
                    sample, classes, restarts=1, seed=seeds.stream(self.inputs.seed, "refit", start)
                ).centroids
                for start in self.inputs.reporter.track(
                    range(self.options.restarts), "clusters of codes", total=self.options.restarts
                )
            ]
        )


def _usable_neighbours(
    neighbours: NDArray[np.int32] | None, views: int, options: TrainOptions
) -> tuple[NDArray[np.int32], list[str]]:
    """Return the neighbours that positives are drawn from, and what is smaller than asked for."""
    if neighbours is None:
        raise UsageError("STEGO needs the neighbours of every image: run `unsupseg graph` first.")
    if neighbours.ndim != 2 or len(neighbours) != views or not neighbours.shape[1]:
        raise UsageError(
            f"The graph {neighbours.shape} does not belong to these features of {views} views; run `unsupseg graph` "
            "on them."
        )
    if neighbours.min() < 0 or neighbours.max() >= views:
        raise UnsupsegError(
            f"The graph names views from {neighbours.min()} to {neighbours.max()}, but there are {views}; run "
            "`unsupseg verify`, then `unsupseg graph --force`."
        )
    warnings = []
    if views < options.batch:
        warnings.append(f"a batch holds all {views} views: fewer than the {options.batch} asked for")
    if neighbours.shape[1] < options.num_neighbors:
        warnings.append(
            f"the graph holds {neighbours.shape[1]} neighbours of a view, fewer than the {options.num_neighbors} to "
            "draw from; run `unsupseg graph` with more --neighbors"
        )
    return neighbours[:, : options.num_neighbors], warnings


def _unit(codes: Tensor) -> Tensor:
    return F.normalize(codes, dim=-1)


@torch.no_grad()
def _score_probes(
    codes: TokenSource, probes: Tensor, reporter: Reporter
) -> tuple[list[float], list[list[float]], float]:
    """Return the loss of each probe over all tokens, its class shares, and the mean cosine between codes."""
    total = torch.zeros(len(probes), dtype=torch.float64)
    counts = torch.zeros(probes.shape[:2], dtype=torch.float64)
    direction, number = torch.zeros(codes.dim, dtype=torch.float64), 0
    for batch in flat_batches(codes, reporter=reporter, description="judge probes"):
        unit = _unit(batch)
        for index, probe in enumerate(probes):
            cosine, nearest = (unit @ probe.T).max(-1)
            total[index] -= cosine.double().sum()
            counts[index] += torch.bincount(nearest, minlength=probes.shape[1])
        direction += unit.double().sum(0)
        number += len(unit)
    similarity = float((direction / number).square().sum())  # |mean|^2 is the mean over all pairs
    return (total / number).tolist(), (counts / number).tolist(), similarity


def _collapse_warnings(similarity: float, shares: list[float], shifts: dict[str, float]) -> list[str]:
    """Return a warning where the codes, or the classes, became all the same."""
    if similarity > _COLLAPSED or max(shares) > 0.99:
        now = ",".join(f"{shifts[kind]:.2f}" for kind in KINDS)
        return [
            f"the head collapsed: codes have a mean cosine of {similarity:.2f} and one class takes "
            f"{max(shares):.0%} of all patches. Too many pairs attract: raise the shifts (now --set shifts={now}), "
            "or go back to shifts=auto"
        ]
    empty = sum(share == 0 for share in shares)
    return [f"{empty} of {len(shares)} classes are given to no patch: try fewer --classes"] if empty else []
