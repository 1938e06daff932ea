"""What every test shares."""

import unsupseg_cli.models.torchvision_ops  # noqa: F401 - lets timm import beside a CPU build of torch
