"""Many images on all cores: one image per thread (own engines) or per process (pydensecrf)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.threads import usable_cores
from unsupseg_cli.crf import pydensecrf_engine, resolve_engine
from unsupseg_cli.crf.config import CRFConfig
from unsupseg_cli.crf.meanfield import refine_prepared
from unsupseg_cli.crf.scores import prepare


def refine_batch(
    log_probs: Sequence[Any], images: Sequence[Any], config: CRFConfig, workers: int | None
) -> list[Tensor]:
    """Refine a list of images; see ``unsupseg_cli.crf.refine_batch``."""
    _check(log_probs, images, workers)
    count = max(1, min(workers or usable_cores(), len(images)))
    if resolve_engine(config.engine) == "pydensecrf" and config.iterations:
        jobs = (
            (scores.cpu().numpy(), image.cpu().numpy(), config)
            for scores, image in map(prepare, log_probs, images)
        )
        return [torch.from_numpy(q) for q in pydensecrf_engine.refine_all(jobs, count)]

    def work(scores: Any, image: Any) -> Tensor:
        return refine_prepared(*prepare(scores, image), config).cpu()

    with _one_thread_each(), ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, log_probs, images))


def _check(log_probs: Sequence[Any], images: Sequence[Any], workers: int | None) -> None:
    if len(log_probs) != len(images):
        raise UsageError(
            f"{len(log_probs)} score maps came with {len(images)} images; expected one for each image."
        )
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}; expected at least 1, or None for one per core.")


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Images run beside each other, so each takes one thread of torch; also keeps sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
