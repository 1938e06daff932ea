"""The device that work runs on."""

from __future__ import annotations

import torch

from unsupseg_cli.core.errors import UsageError


def resolve_device(name: str) -> torch.device:
    """Return the torch device; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: there is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device '{name}' is not usable here ({reason}); try --device auto.") from None
    return device
