"""Changes of colour and sharpness of the images of a step; what is drawn of them is a method's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from unsupseg_cli.models.operators import require_operators

require_operators()
from torchvision.transforms.v2 import functional as TF  # noqa: E402

Step = Callable[[Tensor], Tensor]
"""Images (..., 3, H, W) from 0 to 1 -> changed ones; changes of colour cut off what lies outside."""
COLOURS = ("brightness", "contrast", "saturation", "hue")


def adjust(colour: str, amount: float) -> Step:
    """Return the step that changes one of `COLOURS`: by a factor, the hue by a part of a turn in [-0.5, 0.5]."""
    change: Callable[[Tensor, float], Tensor] = getattr(TF, f"adjust_{colour}")
    return lambda images: change(images, amount)


def blur(kernel: int, sigma: float) -> Step:
    """Return the step that blurs by a Gaussian of a width in pixels, over ``kernel`` (odd) of them."""

    def change(images: Tensor) -> Tensor:
        # The mirrored border of the blur must be thinner than the image.
        side = min(kernel, 2 * ((min(images.shape[-2:]) - 1) // 2) + 1)
        blurred: Tensor = TF.gaussian_blur(images, [side, side], [sigma, sigma])
        return blurred

    return change


def grey(images: Tensor) -> Tensor:
    """Return images without colours, of as many channels."""
    without: Tensor = TF.rgb_to_grayscale(images, num_output_channels=3)
    return without


def change_colours(images: Tensor, steps: Iterable[Step]) -> Tensor:
    """Return images after some steps, in their order."""
    for step in steps:
        images = step(images)
    return images
