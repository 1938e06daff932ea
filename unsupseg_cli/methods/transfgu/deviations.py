"""What TransFGU does otherwise than its published code."""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Deviation

DEVIATIONS = (
    Deviation(
        "foreground of the crops",
        "attention of the features, at their size (in the recipes 320 pixels)",
        "attention of images at 640 pixels",
        "one extraction instead of two",
        "extract --size 640 for the features that regions are found in",
    ),
    Deviation(
        "k-means of the crops",
        "scikit-learn, the lowest inertia of 10 starts",
        "one start; faiss, or mini-batches on Cityscapes and LIP",
        "one start misses concepts by chance; inertia is a weak guide among ten (README)",
        "pseudolabel --set restarts=1",
    ),
    Deviation(
        "scale of the gradients",
        "an option, the same for each image",
        "1 / images in the batch, so that the last batch differs",
        "the map of an image does not depend on its batch",
        "pseudolabel --set gradient_scale=0.5 for Cityscapes and LIP; a last batch that differs is not offered",
    ),
    Deviation(
        "a patch that all concepts are against",
        "goes to the one least against it (in the recipes too)",
        "goes to the one of the lowest number",
        "the number of a concept means nothing",
    ),
    Deviation(
        "evidence stored at a patch",
        "the 8 highest concepts (in the recipes too)",
        "all concepts",
        "64 kB an image instead of 173 kB",
    ),
    Deviation(
        "length",
        "3 cycles of 200 steps, batches of 16",
        "cycles of 1 to 5 epochs, batches of 256 or 512",
        "what a machine without a large GPU can do; the recipes hold the arithmetic of the published length",
        "cycles, cycle_steps and batch of train, as in the recipes",
    ),
    Deviation(
        "result",
        "the student of the last complete cycle",
        "the best state by labels of the validation images",
        "labels serve evaluation only",
    ),
    Deviation(
        "tokens in training",
        "stored, cropped by whole cells",
        "the backbone in the loop, crops resized to half the side",
        "no forward of the backbone in training",
        "train --tokens live",
    ),
)
