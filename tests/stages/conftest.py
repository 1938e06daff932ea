"""What tests of several stages begin with."""

import pytest

from unsupseg_cli import ExtractConfig, PseudolabelConfig, TrainConfig, extract, pseudolabel, train
from unsupseg_cli.methods.kmeans.config import TrainOptions as KMeansTrain


@pytest.fixture
def model(blocks, context):
    """A k-means model of five classes of the blocks."""
    features = extract(
        ExtractConfig(dataset=f"{blocks}/", size=72, workers=0, device="cpu", backbone="untrained"), context
    )
    masks = pseudolabel(PseudolabelConfig(features=features.id, classes=5), context)
    return train(TrainConfig(pseudolabels=masks.id), context, options=KMeansTrain(steps=20))
