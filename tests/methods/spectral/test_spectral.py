import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from unsupseg_cli.clustering.spectral import OWN_IMAGE
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.progress import Silent
from unsupseg_cli.methods.interface import Inputs, MaskSet
from unsupseg_cli.methods.spectral.config import PseudolabelOptions, TrainOptions
from unsupseg_cli.methods.spectral.pseudolabel import SpectralLabeller
from unsupseg_cli.methods.spectral.train import LinearTrainer
from unsupseg_cli.models.heads import build_class_head, load_part
from unsupseg_cli.training.loop import Schedule, fit
from unsupseg_cli.training.tokens import MemorySource

VIEWS = 8


@pytest.fixture(scope="module")
def world():
    """Images of three things whose tokens carry more of their image than of the thing."""
    generator = torch.Generator().manual_seed(0)
    things = F.normalize(torch.randn(3, 24, generator=generator), dim=-1)
    truth, views = [], []
    for index in range(VIEWS):
        classes = torch.randint(3, (6 + index % 2, 7), generator=generator)
        light = 0.9 * F.normalize(torch.randn(24, generator=generator), dim=-1)
        noise = 0.05 * torch.randn(*classes.shape, 24, generator=generator)
        truth.append(classes)
        views.append(5 * (things[classes] + light + noise))
    return truth, MemorySource(views)


def labelled(source, **options):
    labeller = SpectralLabeller(PseudolabelOptions(**options), Inputs(source, classes=3, seed=0))
    return labeller.fit(), labeller.label(list(range(VIEWS)))


def share_right(predictions, truth):
    """Return the share of cells that are right when each cluster takes its commonest class."""
    table = np.zeros((3, 3), int)
    for prediction, classes in zip(predictions, truth, strict=True):
        np.add.at(table, (np.asarray(prediction), classes.numpy()), 1)
    return table.max(1).sum() / table.sum()


@pytest.mark.parametrize("clusters", ["graph", "diffused"])
def test_things_are_found_across_images_of_different_light(world, clusters):
    truth, source = world
    figures, masks = labelled(source, clusters=clusters)
    assert share_right([mask.group[mask.labels] for mask in masks], truth) > 0.98
    assert 0 <= figures["same_image"] <= 1
    assert figures["tokens"] == sum(view.numel() for view in truth)
    for mask in masks:
        assert mask.area.sum() == mask.labels.size
        assert ((mask.score > 0.3) & (mask.score <= 1)).all()


def test_tokens_outside_the_sample_take_the_classes_of_the_nearest(world):
    truth, source = world
    figures, masks = labelled(source, sample=120)
    assert figures["tokens"] < 140
    assert share_right([mask.group[mask.labels] for mask in masks], truth) > 0.95


def test_tokens_that_tell_images_apart_are_warned_of(world):
    class Heard(Silent):
        def warn(self, message):
            said.append(message)

    _, source = world
    alike = [torch.randn(6, 7, 24, generator=torch.Generator().manual_seed(view)) for view in range(VIEWS)]
    for tokens, expected in ((source.tokens(range(VIEWS)), 1), (alike, 0)):
        said = []
        inputs = Inputs(MemorySource(tokens), classes=3, seed=0, reporter=Heard())
        SpectralLabeller(PseudolabelOptions(draws=1), inputs).fit()
        assert sum("of the same image" in message for message in said) == len(said) == expected


def test_hardly_more_tokens_than_classes_are_refused(world):
    _, source = world
    labeller = SpectralLabeller(PseudolabelOptions(sample=10), Inputs(source, classes=40, seed=0))
    with pytest.raises(UsageError, match="at least 42 tokens"):
        labeller.fit()


def rectangles(truth, top, left, bottom, right):
    """Return masks of one object each, at five pixels a cell."""
    maps = []
    for classes in truth:
        labels = np.full(classes.shape, -1, np.int16)
        labels[top : len(labels) + bottom, left : labels.shape[1] + right] = 0
        maps.append(np.kron(labels, np.ones((5, 5), np.int16)))
    return MaskSet(maps, [np.full(1, -1)] * len(maps), {})


@pytest.fixture
def objects(world):
    """Images of two things in the middle, before a background of many things."""
    truth, source = world
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(*tokens.shape, generator=generator) for tokens in source.tokens(range(VIEWS))]
    for tokens, view in zip(source.tokens(range(VIEWS)), views, strict=True):
        view[1:-1, 1:-1] = tokens[1:-1, 1:-1]
    return [classes[1:-1, 1:-1] for classes in truth], MemorySource(views), rectangles(truth, 1, 1, -1, -1)


def with_masks(source, masks, classes=4, **options):
    inputs = Inputs(source, classes=classes, seed=0, masks=masks)
    labeller = SpectralLabeller(PseudolabelOptions(**options), inputs)
    figures = labeller.fit()
    return figures, [mask.group[mask.labels] for mask in labeller.label(list(range(VIEWS)))]


@pytest.mark.parametrize("clusters", ["graph", "diffused", "tokens"])
@pytest.mark.parametrize("background", ["outside", "auto"])
def test_what_objects_leave_out_is_class_0_and_takes_no_cluster(objects, background, clusters):
    truth, source, masks = objects
    figures, maps = with_masks(source, masks, background=background, clusters=clusters)
    assert figures["background"]
    assert figures["share_at_border"] == 0
    for labels in maps:
        inner = labels[1:-1, 1:-1]
        assert set(np.unique(inner)) <= {1, 2, 3}
        assert (labels > 0).sum() == inner.size
    if clusters == "graph":
        assert share_right([labels[1:-1, 1:-1] - 1 for labels in maps], truth) > 0.95


def test_masks_that_reach_the_border_are_no_objects(world):
    truth, source = world
    masks = rectangles(truth, 0, 0, 0, -3)  # the left side of every image
    figures, maps = with_masks(source, masks, 3, background="auto")
    assert figures["share_at_border"] > 0.5
    assert not figures["background"]
    assert share_right(maps, truth) > 0.98
    figures, maps = with_masks(source, masks, 4, background="outside")
    assert figures["background"]
    assert all((labels[:, -3:] == 0).all() for labels in maps)


def test_a_background_beside_nothing_is_refused(world, objects):
    truth, source = world
    nothing = MaskSet([np.full(classes.shape, -1, np.int16) for classes in truth], [np.empty(0)] * VIEWS, {})
    with pytest.raises(UsageError, match="cover nothing"):
        with_masks(source, nothing, background="outside")
    assert not with_masks(source, nothing, background="auto")[0]["background"]
    _, before, masks = objects
    with pytest.raises(UsageError, match="at least --classes 2"):
        with_masks(before, masks, 1, background="outside")


def test_eigenvectors_or_diffusion_are_chosen_by_the_neighbours_in_other_images(world):
    _, source = world
    alike = [torch.randn(6, 7, 24, generator=torch.Generator().manual_seed(view)) for view in range(VIEWS)]
    for tokens, clusters in ((source.tokens(range(VIEWS)), "diffused"), (alike, "graph")):
        figures, _ = labelled(MemorySource(tokens), clusters="auto")
        assert figures["clusters"] == clusters
        assert (figures["same_image"] > OWN_IMAGE) == (clusters == "diffused")
        assert ("steps" in figures) == (clusters == "diffused")


@pytest.fixture
def whole_objects():
    """Images of one thing each, of many tokens of its own, before a background; and the kind of each thing."""
    generator = torch.Generator().manual_seed(3)
    kinds = F.normalize(torch.randn(3, 24, generator=generator), dim=-1)
    parts = F.normalize(
        torch.randn(2, 24, generator=generator), dim=-1
    )  # upper and lower half, of all things
    truth, views, maps = [], [], []
    for index in range(VIEWS):
        kind = index % 3
        view = torch.randn(6, 7, 24, generator=generator)
        view[1:-1, 1:-1] = kinds[kind] + 0.05 * torch.randn(4, 5, 24, generator=generator)
        view[1:3, 1:-1] += 2 * parts[0]
        view[3:5, 1:-1] += 2 * parts[1]
        labels = np.full((6, 7), -1, np.int16)
        labels[1:-1, 1:-1] = 0
        truth.append(kind)
        views.append(view)
        maps.append(labels)
    return truth, MemorySource(views), MaskSet(maps, [np.full(1, -1)] * VIEWS, {})


def test_each_object_is_one_thing_where_masks_are_clustered(whole_objects):
    truth, source, masks = whole_objects
    figures, maps = with_masks(source, masks, clusters="objects", background="outside", restarts=20)
    assert (figures["clusters"], figures["masks"]) == ("objects", VIEWS)
    of_images = []
    for labels in maps:
        assert (labels[0] == 0).all()
        (group,) = set(np.unique(labels)) - {0}
        assert (labels[1:-1, 1:-1] == group).all()
        of_images.append(group)
    assert len(set(zip(truth, of_images, strict=True))) == 3
    parts, by_tokens = with_masks(source, masks, clusters="tokens", background="outside")
    assert parts["clusters"] == "tokens"
    assert any(len(np.unique(labels)) > 2 for labels in by_tokens)  # of parts of one thing


def test_objects_are_chosen_where_tokens_tell_images_apart_before_a_background(objects):
    _, _, masks = objects
    generator = torch.Generator().manual_seed(5)
    light = [torch.randn(24, generator=generator) for _ in range(VIEWS)]
    views = [
        mean + 0.3 * torch.randn(*labels.shape, 24) for mean, labels in zip(light, masks.labels, strict=True)
    ]
    source = MemorySource([view[::5, ::5] for view in views])
    assert with_masks(source, masks, clusters="auto", background="auto")[0]["clusters"] == "objects"
    assert with_masks(source, masks, clusters="auto", background="none")[0]["clusters"] == "diffused"
    few, _ = with_masks(source, masks, len(masks.labels) + 2, clusters="auto", background="auto")
    assert (few["background"], few["clusters"]) == (True, "diffused")  # as of one photo, with a mask or two


def test_objects_are_asked_for_where_there_are_none_or_too_few(objects, world):
    _, source, masks = objects
    with pytest.raises(UsageError, match="8 masks are fewer than 9 classes"):
        with_masks(source, masks, 10, clusters="objects", background="outside")
    with pytest.raises(UsageError, match="what the masks leave out as the background, and there is none"):
        with_masks(source, masks, clusters="objects", background="none")


def trained(source, labels, groups, classes=3, confidence=0.5):
    masks = MaskSet(labels, groups, {})
    inputs = Inputs(source, classes=classes, seed=0, masks=masks)
    trainer = LinearTrainer(TrainOptions(steps=80, batch=4, confidence=confidence), inputs)
    fit(trainer, Schedule(trainer.steps, trainer.batch, VIEWS, 0), Fabric(accelerator="cpu", devices=1))
    return trainer.finish()


def test_the_head_learns_the_classes_of_masks_of_any_size(world):
    truth, source = world
    large = [np.kron(classes.numpy(), np.ones((5, 3), int)).astype(np.int16) for classes in truth]
    large[0][:] = -1  # a view without masks teaches nothing
    head = trained(source, large, [np.arange(3)] * VIEWS)
    part = build_class_head(head.class_head)
    load_part(part, head.tensors, "class_head.")
    scores = [part.scores(tokens) for tokens in source.tokens(range(VIEWS))]
    assert share_right([score.argmax(-1).numpy() for score in scores], truth) > 0.98


def test_scores_are_softened_to_a_confidence_and_keep_their_classes(world):
    truth, source = world
    labels = [classes.numpy().astype(np.int16) for classes in truth]
    winners = []
    for confidence, wanted in ((0.5, 2 / 3), (0.2, 7 / 15), (1.0, None)):
        head = trained(source, labels, [np.arange(3)] * VIEWS, confidence=confidence)
        part = build_class_head(head.class_head)
        load_part(part, head.tensors, "class_head.")
        scores = torch.cat([part.scores(tokens).flatten(0, 1) for tokens in source.tokens(range(VIEWS))])
        with torch.no_grad():
            mean = float(part.log_probs(scores, scores.norm(dim=-1)).exp().amax(-1).mean())
        assert mean == pytest.approx(wanted, abs=0.01) if wanted else mean > 0.7
        winners.append(scores.argmax(-1))
    assert torch.equal(winners[0], winners[1])
    assert torch.equal(winners[0], winners[2])


def test_masks_without_classes_or_with_too_many_are_refused(world):
    truth, source = world
    labels = [classes.numpy().astype(np.int16) for classes in truth]
    with pytest.raises(UsageError, match="no classes"):
        trained(source, labels, [np.full(3, -1)] * VIEWS)
    with pytest.raises(UsageError, match="class 2, and the model has 2 classes"):
        trained(source, labels, [np.arange(3)] * VIEWS, classes=2)
