"""What MaskDistill does otherwise than its published code."""

from __future__ import annotations

from unsupseg_cli.methods.declaration import Deviation

DEVIATIONS = (
    Deviation(
        "comparison of keys",
        "less the mean of their image",
        "as they are",
        "where all keys agree every mask is the whole image, as with DINOv2: 90.0 instead of 0.0 of 100 people found "
        "(README)",
        "pseudolabel --part masks --set center=none",
    ),
    Deviation(
        "agreement with the nodes",
        "cosine of at least 0.1",
        "positive",
        "goes with the centred keys, of which half are positive",
        "pseudolabel --part masks --set threshold=0",
    ),
    Deviation(
        "order of the sources",
        "by CLS affinity",
        "the same, after all outside of half of its sum were set to 0",
        "the cut changes no order among those that stay",
        "pseudolabel --part masks --set order=mass",
    ),
    Deviation(
        "patches of the padding",
        "take no part",
        "take part",
        "images are not padded here",
    ),
    Deviation(
        "what stands for a mask",
        "the mean of the tokens under it",
        "the whitened CLS token of its crop, of a ViT of smaller patches",
        "a crop shows what surrounds the mask: 25.0 instead of 17.2 mIoU on CamVid, as good on people (README)",
        "pseudolabel --part clusters --regions CROPS --set token=cls --set whiten=true",
    ),
    Deviation(
        "k-means of masks",
        "all masks, 10 starts",
        "mini-batches of 1000, 3 starts",
        "it fits into memory, and the result depends less on chance",
        "pseudolabel --part clusters --set minibatch=true --set restarts=3",
    ),
    Deviation(
        "names of the clusters",
        "a Hungarian match on the scored images",
        "by objects of labelled training images",
        "no label is read before the evaluation",
        "eval-masks on training images, then eval --naming",
    ),
    Deviation(
        "between the two trainings",
        "the first model chooses among the masks, by the share of a mask's pixels that it agrees on (in the recipes "
        "too)",
        "Mask R-CNN of another framework, scores of at least 0.9",
        "a detector needs a GPU and its pretrained weights; `source=detector` is torchvision's Mask R-CNN",
        "pseudolabel --part filter --set source=detector --set score=0.9",
    ),
    Deviation(
        "overlap of masks",
        "every pixel is tested",
        "two rows of the image are tested",
        "masks that overlap elsewhere are seen too",
    ),
    Deviation(
        "hardest 20 % of the pixels",
        "of those with a class, in each image",
        "of a batch, ignored ones counted",
        "an image counts as much as another, whatever share of it has a class",
        "train --set hard_of=all: ignored ones counted, in each image",
    ),
    Deviation(
        "network",
        "a decoder on stored tokens; as DeepLab torchvision's ResNet-50, a new head that normalises groups of channels "
        "and drops none, images as the features show them",
        "DeepLab on MoCo's ResNet-50 with SyncBN; 512 x 512, flips, rotation, scales",
        "trains without a GPU; MoCo's weights are on no hub of the dependencies",
        "train --set arch=deeplabv3_resnet50 --set resnet=FILE",
    ),
)
