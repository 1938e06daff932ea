"""torchvision's compiled operators (nms, roi_align): whether they load beside the torch that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

from unsupseg_cli.core.errors import UnsupsegError, reason_of

MEND = (
    "install a pair of one release from one place: `make install` (or `pip install -c constraints.txt .`), or on a "
    "machine without GPU both from PyTorch's index of CPU builds, which are smaller"
)


def missing_operators() -> str:
    """Return why the operators do not run on this machine; "" where they do.

    torchvision is compiled for one release and one kind of build (CUDA, CPU) of torch. Beside another one its
    operators do not load, and neither torchvision nor timm can be imported.
    """
    try:
        from torchvision.ops import nms

        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except Exception as error:  # a package may fail to import in any way
        try:
            present = f"torchvision {version('torchvision')}"
        except PackageNotFoundError:
            present = "no torchvision"
        return f"{present} beside torch {torch.__version__}: {reason_of(error)}"
    return ""


def require_operators() -> None:
    """Raise UnsupsegError, which says how to mend it, unless the operators run; call it before importing timm."""
    if reason := missing_operators():
        raise UnsupsegError(f"torch and torchvision do not fit each other ({reason}): {MEND}.")
