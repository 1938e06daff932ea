import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as VF

from unsupseg_cli.clustering.principal import principal_directions
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.methods.primaps.config import TrainOptions
from unsupseg_cli.methods.primaps.network import (
    PrototypeHead,
    draw_change,
    ema_update,
)
from unsupseg_cli.methods.primaps.objective import (
    class_weights,
    cosine_kmeans_loss,
    focal_loss,
    mode_assignment,
)
from unsupseg_cli.methods.primaps.train import (
    PrimapsEM,
    PrimapsTrainer,
    initialise,
    sharpening,
)
from unsupseg_cli.models.vit import MEAN, STD
from unsupseg_cli.training.colours import adjust, blur, change_colours
from unsupseg_cli.training.live import LiveSource
from unsupseg_cli.training.tokens import MemorySource, shuffled_batches


def test_mode_assignment_equals_a_loop_over_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, 6, (3, 8, 9), generator=generator)
    classes = torch.randint(0, 5, (3, 8, 9), generator=generator)
    expected = torch.full_like(ids, -1)
    for image in range(3):
        for mask in range(6):
            inside = ids[image] == mask
            if inside.any():
                votes = Counter(sorted(classes[image][inside].tolist()))
                expected[image][inside] = votes.most_common(1)[0][0]
    assert torch.equal(mode_assignment(ids, classes, 5), expected)


def test_mode_assignment_without_masks_is_void() -> None:
    assert (mode_assignment(torch.full((1, 2, 2), -1), torch.zeros(1, 2, 2).long(), 3) == -1).all()


def test_focal_loss_by_hand() -> None:
    # Two pixels, p = (0.8, 0.2) and (0.4, 0.6): mean confidences 0.6 and 0.4, weights 0.16 and 0.36.
    logits = torch.tensor([[0.8, 0.4], [0.2, 0.6]]).log().view(1, 2, 1, 2)
    torch.testing.assert_close(class_weights(logits, 2.0), torch.tensor([0.16, 0.36]))
    labels = torch.tensor([[[0, 1]]])
    expected = -(0.16 * torch.tensor(0.8).log() + 0.36 * torch.tensor(0.6).log()) / 2
    torch.testing.assert_close(focal_loss(logits, labels, 2.0), expected)
    half = -0.16 * torch.tensor(0.8).log() / 2
    torch.testing.assert_close(focal_loss(logits, torch.tensor([[[0, -1]]]), 2.0), half)


def test_the_clustering_loss_is_minus_one_on_the_prototypes() -> None:
    prototypes = torch.randn(3, 5)
    assert float(cosine_kmeans_loss(4 * prototypes, prototypes)) == pytest.approx(-1, abs=1e-5)


def test_the_momenta_are_the_published_ones() -> None:
    """None at step 0, copies at steps 10 and 20, then n / (n + 1) by the number of the update, at most the decay."""
    model = PrimapsEM(torch.eye(2), TrainOptions(ema_count="updates", ema_every=10, ema_decay=0.98))
    found = {}
    for step in range(701):
        with torch.no_grad():
            model.running.length.fill_(1.0)
            model.momentum.length.fill_(0.0)
        model.after_step(step)
        found[step] = 1 - float(model.momentum.length[0])  # what is kept of the momentum prototypes
    untouched = {step for step, kept in found.items() if kept == 1}
    assert untouched == {0} | {step for step in found if step % 10}
    momenta = [found[step] for step in range(10, 701, 10)]
    published = [0.0, 0.0, 2 / 3, 3 / 4, 4 / 5, *(n / (n + 1) for n in range(5, 49)), *[0.98] * 21]
    assert momenta == pytest.approx(published, abs=1e-6)


def test_what_is_left_of_the_first_step_s_prototypes() -> None:
    """Nothing as published; much of them with the count of steps, so that EM does not lose its start."""
    kept = {}
    for count in ("updates", "steps"):
        model = PrimapsEM(torch.eye(2), TrainOptions(ema_count=count))
        model.after_step(0)
        with torch.no_grad():
            model.running.length.fill_(0.0)
        for step in range(1, 501):
            model.after_step(step)
        kept[count] = float(model.prototypes()[0, 0])
    assert kept["updates"] == 0
    assert 0.2 < kept["steps"] < 0.5


def test_the_moving_average_is_of_directions_and_lengths() -> None:
    slow, fast = PrototypeHead(torch.eye(2)), PrototypeHead(torch.eye(2))
    with torch.no_grad():
        fast.length.fill_(3.0)
    ema_update(slow, fast, 0.75)
    torch.testing.assert_close(slow.matrix(), 1.5 * torch.eye(2))


def test_principal_directions_are_the_principal_axes() -> None:
    rows = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 0.1, 3])
    found = principal_directions((rows + 7).split(512), 2)
    torch.testing.assert_close(found, torch.eye(4)[[1, 3]], atol=0.05, rtol=0)
    with pytest.raises(UsageError, match="5 classes"):
        principal_directions([rows], 5)
    with pytest.raises(UsageError, match="no features"):
        principal_directions([], 2)


def scene(seed: int, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four classes in quarters of an image at random, features, truth, and one mask per quarter."""
    generator = torch.Generator().manual_seed(seed)
    means = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(9)), dim=1)
    quarters = torch.stack([torch.randperm(4, generator=generator) for _ in range(8)]).view(8, 2, 2)
    truth = quarters.repeat_interleave(4, 1).repeat_interleave(4, 2)
    ids = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(8, 8, 8)
    features = means[truth] + noise * torch.randn(8, 8, 8, 16, generator=generator)
    return features, truth, ids


def accuracy(prototypes: torch.Tensor, features: torch.Tensor, truth: torch.Tensor) -> float:
    predicted = (features @ prototypes.T).argmax(-1)
    return max(
        float((torch.tensor(order)[predicted] == truth).float().mean())
        for order in itertools.permutations(range(len(prototypes)))
    )


def test_longer_prototypes_turn_less() -> None:
    """The first prototypes keep their length, as published: a step of Adam turns one of length 8 an eighth as much."""
    features, _, ids = scene(0, 0.25)
    start = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    turned = []
    for length in (1.0, 8.0):
        model = PrimapsEM(length * start, TrainOptions(lr=1e-3))
        torch.testing.assert_close(model.prototypes(), start)
        optimizer = torch.optim.Adam([model.running.direction], lr=1e-3)
        model.losses(features, features, ids)["loss"].backward()
        optimizer.step()
        turned.append(float((model.prototypes("running") - start).norm()))
    assert turned[0] == pytest.approx(8 * turned[1], rel=0.05)


def test_the_first_prototypes_of_pca_follow_the_published_steps() -> None:
    """A loop written down again: PCA of shuffled full batches, then Adam on the mean cosine, without renormalising."""
    features, _, _ = scene(0, 0.25)
    source = MemorySource([*features, features[0]])  # nine views: the ninth is left out of each epoch
    config = TrainOptions(init="pca", batch=4, init_epochs=2)
    batches = {epoch: list(shuffled_batches(source, 4, 50 + epoch)) for epoch in range(3)}
    assert [len(batch) for batch in batches[0]] == [256, 256]
    assert not torch.equal(batches[0][0], batches[1][0])
    found = initialise(lambda epoch: batches[epoch], 4, config)
    rows = torch.cat(batches[0]).double()
    axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:4]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    expected = axes.float().requires_grad_()
    optimizer = torch.optim.Adam([expected], lr=config.lr)
    for batch in batches[1] + batches[2]:
        cosine = F.normalize(batch, dim=1) @ F.normalize(expected, dim=1).T
        optimizer.zero_grad()
        (-cosine.max(1).values.mean()).backward()
        optimizer.step()
    torch.testing.assert_close(found, expected.detach(), atol=1e-4, rtol=0)
    assert float((found.norm(dim=1) - 1).abs().max()) > 1e-3


def test_em_is_better_than_its_start() -> None:
    features, _, ids = scene(0, 0.25)
    config = TrainOptions(resolution=0, lr=0.02)
    start = initialise(lambda epoch: [features], 4, config)
    torch.manual_seed(0)
    model = PrimapsEM(start, config)
    optimizer = torch.optim.Adam(model.running.parameters(), lr=config.lr)
    for step in range(300):
        augmented = features + 0.05 * torch.randn_like(features)
        losses = model.losses(features, augmented, ids)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        model.after_step(step)
    fresh, fresh_truth, _ = scene(1, 0.25)
    before, after = accuracy(start, fresh, fresh_truth), accuracy(model.prototypes(), fresh, fresh_truth)
    assert after > before + 0.05, (before, after)
    assert float(losses["covered"]) == 1
    assert all(one.grad is None for one in model.momentum.parameters())


def test_enlarging_logits_is_enlarging_features() -> None:
    features = torch.randn(2, 5, 4, 6)
    head = PrototypeHead(torch.randn(3, 6))
    options = {"size": (11, 9), "mode": "bilinear", "align_corners": False}
    logits = F.interpolate(head(features), **options)
    enlarged = F.interpolate(features.movedim(-1, 1), **options).movedim(1, -1)
    torch.testing.assert_close(head(enlarged), logits, atol=1e-5, rtol=1e-5)


def test_masks_of_other_images_are_refused() -> None:
    model = PrimapsEM(torch.eye(3), TrainOptions(resolution=8))
    with pytest.raises(UsageError, match="same images"):
        model.losses(torch.zeros(2, 4, 4, 3), torch.zeros(2, 4, 4, 3), torch.zeros(1, 8, 8).long())


def test_photometric_augmentation_follows_its_generator_and_keeps_the_range() -> None:
    images = torch.rand(6, 3, 32, 24)
    config = TrainOptions()

    def changed(config: TrainOptions, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        changes = [draw_change(config, generator) for _ in images]
        return torch.stack(list(map(change_colours, images, changes)))

    one, two, other = (changed(config, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.shape == images.shape
    assert float(one.min()) >= -1e-6
    assert float(one.max()) <= 1 + 1e-6
    grey = TrainOptions(color_choice=0, grey_probability=1)
    result = changed(grey, 0)
    torch.testing.assert_close(result[:, 0], result[:, 2])


def test_sharpening_spreads_logits_as_cosines_and_moves_no_token() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = 7 * torch.randn(200, 6, generator=generator)
    weight = torch.rand(4, 1, generator=generator) * torch.randn(4, 6, generator=generator)
    factor = sharpening(tokens.split(60), weight, alpha=3.0)
    sharpened = tokens @ (factor * weight).T
    cosines = F.normalize(tokens, dim=1) @ F.normalize(weight, dim=1).T
    spread = [one.std(1, correction=0).mean() for one in (sharpened, 3 * cosines)]
    torch.testing.assert_close(spread[0], spread[1])
    assert torch.equal(sharpened.argmax(1), (tokens @ weight.T).argmax(1))
    assert sharpening([F.normalize(tokens, dim=1)], F.normalize(weight, dim=1), 2.0) == pytest.approx(2.0)
    assert sharpening([tokens], torch.zeros(1, 6), 2.0) == 1.0


def augmented_by(option: str, images: torch.Tensor) -> torch.Tensor:
    """Return what the network is given of augmented images, after its normalisation, jitter in every one."""
    seen: list[torch.Tensor] = []
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    backbone = SimpleNamespace(mean=mean * 255, std=deviation * 255)

    def encode(batch: torch.Tensor) -> torch.Tensor:
        seen.append((batch - mean) / deviation)
        return torch.zeros(len(batch), 2, 2, 4)

    grids = np.full((len(images), 2), 2)
    source = LiveSource(lambda views: [], encode, grids, 4, torch.device("cpu"), backbone)
    trainer = PrimapsTrainer.__new__(PrimapsTrainer)
    trainer.options = TrainOptions(augment=option)
    changes = [[blur(21, 1.5), adjust("brightness", 1.08), adjust("contrast", 0.93)] for _ in images]
    trainer._live_tokens(source, list(images), changes)
    return seen[-1]


def test_augmentation_acts_on_the_image_or_after_the_normalisation() -> None:
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    normalised = VF.normalize(images, list(MEAN), list(STD))

    def published(image: torch.Tensor) -> torch.Tensor:
        return VF.adjust_contrast(
            VF.adjust_brightness(VF.gaussian_blur(image, [21, 21], [1.5, 1.5]), 1.08), 0.93
        )

    torch.testing.assert_close(augmented_by("normalised", images), published(normalised), atol=1e-4, rtol=0)
    ours = VF.normalize(published(images), list(MEAN), list(STD))
    torch.testing.assert_close(augmented_by("image", images), ours, atol=1e-4, rtol=0)
    assert float(published(normalised).min()) >= 0  # what is darker than the mean is cut off
