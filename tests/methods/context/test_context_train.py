"""The embedding, the centroids, and what training does to them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from unsupseg_cli.clustering.online import OnlineCentroids, sums_of
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.context.config import TrainOptions
from unsupseg_cli.methods.context.guidance import pack
from unsupseg_cli.methods.context.network import ContextNetwork
from unsupseg_cli.methods.context.objective import balance_loss, guidance_loss
from unsupseg_cli.methods.context.train import ContextTrainer
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.models.cues import appearance, enlarge, to_lab
from unsupseg_cli.models.heads import build_network
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.crops import CellCrop
from unsupseg_cli.training.loop import Schedule, fit
from unsupseg_cli.training.tokens import MemorySource

PATCH, DIM = 4, 16
COLOURS = torch.tensor([[200, 40, 40], [40, 60, 200]], dtype=torch.uint8)


class Mirrorable:
    """A network in the loop whose tokens follow colours, and a wave that runs from left to right."""

    def __init__(self, images, kinds):
        self.images, self.kinds = images, kinds

    def pixels(self, views):
        return [torch.from_numpy(self.images[view].copy()).movedim(-1, 0).float() / 255 for view in views]

    def encode(self, images, augment=None):
        found = []
        for image in images:
            share = F.avg_pool2d(image[None, 2:] - image[None, :1], PATCH)[0, 0].clamp(-0.5, 0.5) + 0.5
            tokens = self.kinds[0] * (1 - share[..., None]) + self.kinds[1] * share[..., None]
            wave = torch.linspace(-1, 1, share.shape[1])[None, :, None] * (self.kinds[1] - self.kinds[0])
            found.append(F.normalize(tokens + 0.6 * wave, dim=-1))
        return found


def make_inputs(views=6, live=False, classes=2, **given):
    """Images of a red and a blue part, and tokens that follow the colours."""
    kinds = F.normalize(torch.randn(3, DIM, generator=torch.Generator().manual_seed(0)), dim=-1)
    images, arrays = [], []
    for view in range(views):
        height, width = (6, 8) if view % 2 else (8, 8)
        blue = torch.zeros(height * PATCH, width * PATCH, dtype=torch.long)
        blue[:, 6 + 4 * (view % 4) :] = 1
        images.append(COLOURS[blue].numpy())
        fine = F.avg_pool2d(blue[None, None].float(), PATCH // 2)[0]
        arrays.append(pack(torch.cat([1 - fine, fine]).clamp(0.01, 0.99), 2))
    network = Mirrorable(images, kinds)
    tokens = network.encode(network.pixels(range(views)))
    state = {"centroids": kinds[:2], "temperature": torch.tensor([0.1])}
    labels = [np.zeros(view.shape[:2], np.int16) for view in tokens]
    masks = MaskSet(labels, [np.zeros(1, np.int64)] * views, state, arrays=lambda view: arrays[view])
    cls = [view.mean((0, 1)) for view in tokens]
    source = MemorySource(tokens, {"cls": cls})
    given = {"network": network if live else None, "seed": 0, "classes": classes, "masks": masks, **given}
    return Inputs(source, images=lambda views: [images[view] for view in views], **given)


def options(**values):
    return TrainOptions(**{"steps": 4, "batch": 3, "width": 16, "lr": 3e-3, **values})


def train(trainer, steps=None, checkpoint=None):
    fabric = Fabric(accelerator="cpu", devices=1)
    fit(trainer, Schedule(steps or trainer.steps, trainer.batch, 6, 0), fabric, checkpoint=checkpoint)
    return trainer


def test_an_untrained_network_gives_the_nearest_centroid_at_half_the_patch():
    trainer = ContextTrainer(options(), make_inputs())
    (shown,) = trainer._read([0])
    scores = trainer.network.scores(trainer._embed([shown], [[8, 8]], None, [])[0][None])
    nearest = (F.normalize(shown.arrays["patch"], dim=0).movedim(0, -1) @ trainer.network.centroids.T).argmax(
        -1
    )
    assert scores.shape == (1, 2, 16, 16)
    whole = scores.argmax(1)[0].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    alike = (whole == nearest[..., None]).all(-1)
    assert float(alike.float().mean()) > 0.8  # but where a boundary runs through a patch


def test_tokens_come_to_the_side_of_an_edge_that_looks_like_them():
    tokens = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3)  # the patch in the middle is of both sides
    colours = torch.tensor([0.0, 0, 0, 1, 1, 1]).view(1, 1, 1, 6).expand(1, 3, 2, 6)
    plain = enlarge(tokens, colours, 2, (3.0, 0.0))[0, 0, 0]
    edge = enlarge(tokens, colours, 2, (3.0, 50.0))[0, 0, 0]
    smooth = F.interpolate(tokens, scale_factor=2, mode="bilinear", align_corners=False)[0, 0, 0]
    torch.testing.assert_close(plain, smooth, atol=0.1, rtol=0)
    assert float(edge[3] - edge[2]) > 2 * float(plain[3] - plain[2])
    torch.testing.assert_close(edge.sum(), torch.tensor(3.0))


def test_lab_of_known_colours():
    colours = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]).T[None, :, :, None]
    known = torch.tensor([[100, 0, 0], [53.2, 80.1, 67.2], [32.3, 79.2, -107.9], [0, 0, 0]]) / 100
    torch.testing.assert_close(to_lab(colours)[0, :, :, 0].T, known, atol=2e-3, rtol=0)


def test_appearance_tells_an_edge_from_a_plain():
    image = torch.zeros(1, 3, 8, 16)
    image[..., 10:] = 1
    looks = appearance(image, 4)
    assert looks.shape == (1, 7, 2, 4)
    assert float(looks[0, 6, 0, 2]) > 0.05 > float(looks[0, 6, 0, 0])  # the gradient
    assert float(looks[0, 3, 0, 2]) > 0.3 > float(looks[0, 3, 0, 0])  # the deviation of L


@pytest.mark.parametrize("stride", [None, 2])
def test_a_network_is_built_from_its_description(stride):
    trainer = ContextTrainer(options(cae=stride is not None), make_inputs())
    trained = train(trainer).finish()
    network = build_network(trained.network)
    network.load_state_dict(trained.tensors)
    assert network.reads == (("patch", "cls", "pixels", "place") if stride else ("patch",))
    assert network.stride == stride


def test_guidance_loss_is_zero_where_scores_say_the_same():
    guidance = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    torch.testing.assert_close(guidance_loss(guidance.log(), guidance), torch.zeros(2), atol=1e-6, rtol=0)
    assert float(guidance_loss(torch.zeros(2, 3, 4, 4), guidance).min()) > 0


def test_a_cluster_that_swallows_the_rest_is_damped_until_it_is_below_its_limit():
    centroids, shares = OnlineCentroids(torch.eye(4), 0.9, 0.4), []
    scores = torch.randn(1, 4, 30, 30, generator=torch.Generator().manual_seed(0))
    scores[:, 0] += 4  # nearly every cell is nearest to the first
    for _ in range(80):
        classes = centroids.assign(scores)
        sums, counts = sums_of(torch.ones(1, 4, 30, 30), classes, 4)
        shares.append(float(counts[0] / counts.sum()))
        centroids.update(sums, counts, torch.Generator().manual_seed(0))
    assert shares[0] > 0.95
    assert max(shares[-10:]) < 0.5
    assert 0 < centroids.swallowing < 80


def test_centroids_follow_the_mean_of_their_cells_and_an_empty_one_stays():
    centroids = OnlineCentroids(torch.eye(2), 0.5)
    embeddings = F.normalize(torch.tensor([1.0, 1.0]), dim=0).view(1, 2, 1, 1)
    sums, counts = sums_of(embeddings, torch.zeros(1, 1, 1, dtype=torch.long), 2)
    centroids.update(sums, counts, torch.Generator())
    expected = F.normalize(torch.tensor([1.0, 0.0]) + embeddings.flatten(), dim=0)
    torch.testing.assert_close(centroids.weight, torch.stack([expected, torch.tensor([0.0, 1.0])]))


def test_a_dead_cluster_takes_half_of_the_largest_and_is_counted():
    centroids = OnlineCentroids(torch.eye(3), 0.9)
    sums, counts = torch.diag(torch.tensor([6.0, 4.0, 0.0])), torch.tensor([6.0, 4.0, 0.0])
    for _ in range(60):
        centroids.update(sums, counts, torch.Generator().manual_seed(0))
    assert centroids.reseeded >= 1
    assert float(centroids.weight[2] @ centroids.weight[0]) > 0.98
    assert float(centroids.shares.min()) > 0
    torch.testing.assert_close(centroids.weight.norm(dim=1), torch.ones(3))


def test_dead_and_swallowing_clusters_are_reported():
    trainer = ContextTrainer(options(largest=0.1, psg=False), make_inputs())
    trainer.network.centroids[1] = -trainer.network.centroids.sum(0) / 2
    trainer.centroids.shares = torch.tensor([1.0, 0.0])
    trained = train(trainer).finish()
    assert trained.figures["reseeded_clusters"] >= 1
    assert any("a cluster died" in warning for warning in trained.warnings)
    assert any("more than 75% of all cells" in warning for warning in trained.warnings)


@pytest.mark.parametrize("cae", [True, False])
@pytest.mark.parametrize("psg", [True, False])
def test_each_part_trains_alone(cae, psg):
    trainer = ContextTrainer(options(cae=cae, psg=psg), make_inputs())
    batch = Batch.alone(0, [0, 1, 2])
    losses = trainer.losses(batch, trainer.read(batch))
    assert ("guidance" in losses) == psg
    losses["loss"].backward()
    assert float(trainer.network.out.weight.grad.abs().sum()) > 0


def test_guidance_is_learnt():
    trainer = ContextTrainer(options(steps=40, lr=1e-2), make_inputs())
    batch = Batch.alone(0, list(range(6)))
    before = trainer.losses(batch, trainer.read(batch))["guidance"].item()
    train(trainer)
    assert trainer.losses(batch, trainer.read(batch))["guidance"].item() < 0.5 * before


def test_mirror_images_are_seen_alike_after_training():
    """The tokens of the network change with a wave that a mirror image turns round; training undoes it."""
    trainer = ContextTrainer(options(steps=60, lr=1e-2, mirror=0.5), make_inputs(live=True))
    trained = train(trainer).finish()
    assert trained.figures["equivariance_before"] < 0.9
    assert trained.figures["equivariance"] > trained.figures["equivariance_before"] + 0.05


def test_a_look_is_the_same_of_tokens_pixels_and_guidance():
    look, place = CellCrop(1, 2, 3, 4, mirrored=True), torch.arange(64.0).view(8, 8)
    fine = F.interpolate(place[None, None], scale_factor=2)[0, 0]
    assert torch.equal(F.interpolate(look.of(place)[None, None], scale_factor=2)[0, 0], look.of(fine, 2))
    assert look.box((8, 8)) == (2 / 8, 1 / 8, 6 / 8, 4 / 8)
    assert CellCrop(1, 0, 3, 4, mirrored=True).box((8, 8)) == (
        4 / 8,
        1 / 8,
        8 / 8,
        4 / 8,
    )  # of the mirror image


class Memory:
    def __init__(self):
        self.kept = None

    def load(self):
        return copy.deepcopy(self.kept)

    def save(self, state):
        self.kept = copy.deepcopy(state)


def test_a_resumed_run_ends_as_an_uninterrupted_one():
    memory, steady = Memory(), {"largest": 0.3}
    whole = ContextTrainer(options(**steady), make_inputs())
    whole.rate = lambda progress: None
    train(whole)
    for steps in (2, 4):
        resumed = ContextTrainer(options(**steady), make_inputs())
        resumed.rate = lambda progress: None  # a cosine depends on how long the run is
        train(resumed, steps, memory)
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value)
    torch.testing.assert_close(resumed.centroids.shares, whole.centroids.shares)


def test_one_image_trains():
    trainer = ContextTrainer(options(batch=8), make_inputs(views=1))
    fit(trainer, Schedule(2, trainer.batch, 1, 0), Fabric(accelerator="cpu", devices=1))
    assert trainer.finish().classes == 2


def test_what_has_no_guidance_is_refused():
    inputs = make_inputs()
    masks = MaskSet(inputs.masks.labels, inputs.masks.groups, {})
    with pytest.raises(UsageError, match="have not"):
        ContextTrainer(options(), make_inputs(masks=masks))


def test_another_number_of_classes_is_refused():
    with pytest.raises(UsageError, match="--classes 3 does not fit the pseudo-labels, of 2"):
        ContextTrainer(options(), make_inputs(classes=3))


def test_a_patch_without_a_half_is_refused_and_cae_off_helps():
    images = [np.zeros((40, 40, 3), np.uint8)] * 6  # of 8 x 8 patches
    inputs = make_inputs()
    inputs._given["images"] = lambda views: [images[view] for view in views]
    with pytest.raises(UsageError, match="Patches of 5 pixels have no half"):
        ContextTrainer(options(), inputs)
    ContextTrainer(options(cae=False), inputs)


def test_network_without_cae_needs_no_pixels():
    network = ContextNetwork(3, DIM, width=8)
    assert network({"patch": torch.randn(1, 2, 3, DIM)}).shape == (1, 3, 2, 3)


def test_the_balance_has_the_gradient_of_the_divergence_from_the_start():
    scores = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    shares, start = scores.softmax(1).mean(0), torch.tensor([0.5, 0.3, 0.2])
    loss = balance_loss(shares, shares.detach(), start)
    divergence = F.kl_div(start.log(), shares, reduction="sum")
    torch.testing.assert_close(loss, divergence)
    (given,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (expected,) = torch.autograd.grad(divergence, scores)
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(balance_loss(start, start, start), torch.tensor(0.0))


def test_clusters_without_guidance_stay_apart_by_the_balance():
    """Tokens that nearly agree, as a ViT's do: what clusters teach themselves would make them one."""
    draw, classes = torch.Generator().manual_seed(0), 6
    kinds = F.normalize(torch.randn(classes, DIM, generator=draw) + 3, dim=-1)
    tokens = []
    for _ in range(8):
        kind = torch.randint(classes, (8, 8), generator=draw)
        tokens.append(F.normalize(kinds[kind] + 0.2 * torch.randn(8, 8, DIM, generator=draw), dim=-1))
    scores = [(view @ kinds.T / 0.05).movedim(-1, 0) for view in tokens]
    arrays = [pack(F.interpolate(view[None], scale_factor=2)[0].softmax(0), classes) for view in scores]
    state = {"centroids": kinds, "temperature": torch.tensor([0.05])}
    labels = [np.zeros((8, 8), np.int16)] * 8
    masks = MaskSet(labels, [np.zeros(1, np.int64)] * 8, state, arrays=lambda view: arrays[view])
    inputs = Inputs(MemorySource(tokens, {}), seed=0, classes=classes, masks=masks, network=None)
    largest = []
    for balance in (0.0, 1.0):
        part = options(psg=False, cae=False, steps=100, batch=4, lr=3e-2, balance=balance)
        largest.append(float(train(ContextTrainer(part, inputs)).centroids.shares.max()))
    without, with_balance = largest
    assert with_balance < 0.25  # a sixth of the cells is of each kind
    assert without > 0.3
