"""The linear model is the fast case of a dense network, with the same results."""

import numpy as np
import pytest
import torch
from torch import nn

from unsupseg_cli.models.dense import Look
from unsupseg_cli.models.heads import DenseNetwork, register_head
from unsupseg_cli.models.linear_model import LinearModel
from unsupseg_cli.models.network_model import NetworkModel

CLASSES, DIM, PATCH = 5, 7, 8


@register_head("toy-linear")
class LinearNetwork(DenseNetwork):
    """One linear map of each token, as a network."""

    reads = ("patch",)

    def __init__(self, classes, dim):
        super().__init__()
        self.linear = nn.Linear(dim, classes)

    def forward(self, arrays):
        return self.linear(arrays["patch"]).movedim(-1, 1)


@pytest.fixture
def both():
    """A class head, and a network that is the same linear map."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, DIM, generator=generator)
    bias = torch.randn(CLASSES, generator=generator)
    head = {"type": "linear", "classes": CLASSES, "dim": DIM}
    own = {"class_head.weight": weight, "class_head.bias": bias}
    network = {"type": "toy-linear", "classes": CLASSES, "dim": DIM}
    tensors = {"network.linear.weight": weight, "network.linear.bias": bias}
    return LinearModel(None, [], head, own, patch=PATCH), NetworkModel(network, tensors, patch=PATCH)


@pytest.mark.parametrize("size", [(48, 72), (50, 77), (20, 30), (300, 431)])
def test_a_network_that_is_a_linear_head_finds_what_the_linear_model_finds(both, size):
    tokens = torch.randn(2, 6, 9, DIM, generator=torch.Generator().manual_seed(1))
    look = Look({"patch": tokens}, 6 * PATCH, 9 * PATCH)
    linear, network = both
    for one, other in zip(linear.score_look(look), network.score_look(look), strict=True):
        np.testing.assert_array_equal(linear.labels(one, *size), network.labels(other, *size))
        torch.testing.assert_close(linear.log_probs(one, 6, 9), network.log_probs(other, 6, 9))
