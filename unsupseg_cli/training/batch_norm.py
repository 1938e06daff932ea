"""Batch normalisation over the batch that several processes share.

torch's own `SyncBatchNorm` computes on GPUs only, and two processes on a CPU must find what one finds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_batch_norms(module: nn.Module) -> None:
    """Let the batch norms within a module normalise over all processes; they keep their parameters and names."""
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm | nn.SyncBatchNorm):
            setattr(module, name, SharedBatchNorm(child))
        else:
            share_batch_norms(child)


class SharedBatchNorm(_BatchNorm):
    """A batch norm over the inputs (n, C, ...) of all processes; n may be 0 in some."""

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self._buffers.update(norm._buffers)
        self.train(norm.training)
        # timm's norms do what follows them too.
        self.after = nn.Sequential(
            *(child for name, child in norm.named_children() if name in ("drop", "act"))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the inputs normalised; in evaluation by the running mean and variance, where they are kept."""
        if not self.training and self.track_running_stats:
            evaluated: Tensor = self.after(super().forward(x))
            return evaluated
        across = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        totals = _Sum.apply(torch.cat([values.sum(across), count]))
        mean, number = totals[:-1] / totals[-1], float(totals[-1].detach())
        values = values - mean.reshape(shape)
        variance = _Sum.apply(values.square().sum(across)) / number
        if self.training:
            self._follow(mean.detach(), variance.detach() * (number / (number - 1)))
        values = values * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            values = values * self.weight.reshape(shape) + self.bias.reshape(shape)
        normalised: Tensor = self.after(values.to(x.dtype))
        return normalised

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        # Without a momentum the mean over all batches so far.
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any: the norm that this one stands for has been checked."""


class _Sum(torch.autograd.Function):
    """A tensor of this process -> the sum of those of all; gradients are added up as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the sum."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient of this process's tensor, of the losses of all processes."""
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
