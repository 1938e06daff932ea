import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.clustering.linear import fit_linear_probe
from unsupseg_cli.core.errors import UnsupsegError, UsageError


def separable(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (400,), generator=generator)
    features = F.one_hot(labels, 3).float() + 0.1 * torch.randn(400, 3, generator=generator)
    return 1000 + 50 * torch.cat([features, torch.ones(400, 1)], 1), labels


def test_linear_probe_separates_raw_unscaled_features():
    features, labels = separable()
    marked = labels.clone()
    marked[:100] = 255
    probe = fit_linear_probe(lambda: [(features, marked)], 3, 4, steps=300, lr=0.05)
    assert (probe.scores(features).argmax(-1) == labels).float().mean() > 0.99
    assert probe.losses[-1] < 0.1 < probe.losses[0]
    assert len(probe.losses) == 300
    again = fit_linear_probe(lambda: [(features, marked)], 3, 4, steps=300, lr=0.05)
    assert torch.equal(again.weight, probe.weight)


def test_linear_probe_accepts_labels_finer_than_the_features():
    features = torch.zeros(1, 2, 2, 1)
    features[0, :, 1] = 1.0
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[..., 4:] = 1
    probe = fit_linear_probe(lambda: [(features, labels)], 2, 1, steps=200, lr=0.1)
    assert probe.scores(features)[0].argmax(-1).tolist() == [[0, 1], [0, 1]]


def test_linear_probe_errors():
    features = torch.ones(4, 2)
    with pytest.raises(UnsupsegError, match="no labelled pixel"):
        fit_linear_probe(lambda: [(features, torch.full((4,), -1))], 3, 2)
    with pytest.raises(UnsupsegError, match="not a number"):
        fit_linear_probe(lambda: [(features * float("nan"), torch.zeros(4))], 3, 2)
    with pytest.raises(UsageError):
        fit_linear_probe(lambda: [], 3, 2, steps=0)
