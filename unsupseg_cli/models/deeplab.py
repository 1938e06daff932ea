"""DeepLab v3 over pixels, and the weights of the ResNet under it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.models.heads import DenseNetwork, register_head
from unsupseg_cli.models.hub import HubSilentError, hub
from unsupseg_cli.models.operators import require_operators
from unsupseg_cli.models.weights import read_tensors

FROZEN = ("conv1", "bn1", "layer1", "layer2")
"""Layers of the ResNet that stay as they are (MaskDistill, published code: conv1..layer2)."""


@register_head("deeplabv3-resnet50")
class DeepLab(DenseNetwork):
    """torchvision's DeepLab v3 with a ResNet-50 of stride 8, rates 12, 24 and 36.

    Its head normalises groups of channels instead of batches, and drops none, so that an image's gradient depends on
    no other image, and neither on how a batch is split over processes (published: batches, over all GPUs).

    Args:
        classes: number of classes K.
    """

    reads = ("pixels",)
    multiple = stride = 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        require_operators()
        from torchvision.models.segmentation import deeplabv3_resnet50

        whole = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes)
        self.backbone, self.classifier = whole.backbone, _without_batches(whole.classifier)

    def forward(self, arrays: dict[str, Tensor]) -> Tensor:
        """Return scores (B, K, H / 8, W / 8) of ``pixels`` (B, 3, H, W)."""
        scores: Tensor = self.classifier(self.backbone(arrays["pixels"])["out"])
        return scores

    def freeze(self) -> None:
        """Keep the first layers, and the statistics of the whole ResNet, as they are."""
        for name in FROZEN:
            self.backbone[name].requires_grad_(False)
        self.backbone.eval()


def _without_batches(part: nn.Module) -> nn.Module:
    """Return a module with groups of channels normalised in place of batches, and without dropout."""
    for name, child in part.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(part, name, nn.GroupNorm(32, child.num_features))
        elif isinstance(child, nn.Dropout):
            setattr(part, name, nn.Identity())
        else:
            _without_batches(child)
    return part


def load_resnet(resnet: nn.Module, source: str) -> None:
    """Load a ResNet-50 without its last layer: ``hub``, ``random`` (nothing is loaded), or a file of a state_dict.

    Of MoCo's checkpoints, which hold two, it is the one that learns (``encoder_q``).

    Raises:
        UnsupsegError: there are no such weights, or they are of another network; both ways to get some are named.
    """
    if source == "random":
        return
    ways = (
        "give --set resnet=FILE (a state_dict of torchvision's resnet50, .pth or .safetensors), or --set resnet=hub on "
        "a machine that reaches the hub of PyTorch"
    )
    try:
        tensors = _hub() if source == "hub" else _of_file(Path(source))
    except (OSError, RuntimeError, UnsupsegError, HubSilentError) as error:
        raise UnsupsegError(
            f"The weights of the ResNet-50 ('{source}') are not to be had ({reason_of(error).rstrip('.')}); {ways}."
        ) from None
    own = {name: value for name, value in resnet.state_dict().items() if not name.endswith(_COUNTS)}
    lacking = sorted(
        name for name, value in own.items()
        if name not in tensors or tensors[name].shape != value.shape or not tensors[name].is_floating_point()
    )  # fmt: skip
    if lacking:
        raise UnsupsegError(
            f"The weights '{source}' are not of a ResNet-50 in floating point: {len(lacking)} of {len(own)} tensors "
            f"lack or have another shape or type (the first: {lacking[0]}); {ways}."
        )
    if wrong := [name for name in own if not bool(tensors[name].isfinite().all())]:
        raise UnsupsegError(f"The weights '{source}' hold NaN or infinite values (in {wrong[0]}); {ways}.")
    resnet.load_state_dict({name: tensors[name] for name in own}, strict=False)


_COUNTS = ".num_batches_tracked"  # of batch normalisation: not in every file, and not read with a momentum
_FIRST = "layer1.0.conv1.weight"  # behind it lies what stands before the names of a ResNet
_LEARNS = "encoder_q."  # of MoCo's two networks the one that gradients reach


def _of_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of the ResNet in a file, whatever stands before their names."""
    if not path.exists():
        raise UnsupsegError("there is no such file")
    tensors = read_tensors(path, "a ResNet-50")
    prefixes = [name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)] or [""]
    if len(prefixes) > 1:
        prefixes = [prefix for prefix in prefixes if prefix.endswith(_LEARNS)]
    if len(prefixes) != 1:
        raise UnsupsegError("the file holds several networks; save the one that is meant")
    before = prefixes[0]
    return {name.removeprefix(before): value for name, value in tensors.items() if name.startswith(before)}


def _hub() -> dict[str, Tensor]:
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V1
    fetch, cache = partial(weights.get_state_dict, progress=False), Path(torch.hub.get_dir())
    with hub(weights.url, fetch, cache):
        tensors: dict[str, Tensor] = dict(weights.get_state_dict(progress=False))
    return tensors
