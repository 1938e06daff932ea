"""What every test shares."""

import numpy as np
import pytest
from PIL import Image

import unsupseg_cli.models.torchvision_ops  # noqa: F401 - lets timm import beside a CPU build of torch


@pytest.fixture(scope="session")
def blocks(tmp_path_factory):
    """A folder of four pictures of coloured blocks, to be read only."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        rng = np.random.default_rng(number)
        colors = rng.integers(0, 256, (3, 4, 3)).repeat(24, 0).repeat(24, 1)
        Image.fromarray(colors.astype(np.uint8)).save(folder / f"{number}.png")
    return folder
