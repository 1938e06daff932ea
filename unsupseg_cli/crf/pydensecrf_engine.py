"""The same CRF through the pydensecrf library (extra ``crf``), one process per core.

Imports numpy only, so that a spawned worker starts quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.crf.config import CRFConfig

Job = tuple[NDArray[np.float32], NDArray[np.uint8], CRFConfig]


def refine_one(job: Job) -> NDArray[np.float32]:
    """Refine log-probabilities (K, H, W) with an image (H, W, 3) uint8; returns probabilities (K, H, W)."""
    from pydensecrf.densecrf import DenseCRF2D

    log_probs, image, config = job
    classes, height, width = log_probs.shape
    if classes == 1:
        return np.ones_like(log_probs)
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(-log_probs.reshape(classes, -1)))
    if config.pos_w:
        crf.addPairwiseGaussian(sxy=config.pos_xy_std, compat=config.pos_w)
    if config.bi_w:
        pixels = np.array(image, order="C")  # the library wants a writable array
        crf.addPairwiseBilateral(
            sxy=config.bi_xy_std, srgb=config.bi_rgb_std, rgbim=pixels, compat=config.bi_w
        )
    return np.array(crf.inference(config.iterations), np.float32).reshape(classes, height, width)


def refine_all(jobs: Iterator[Job], workers: int) -> Iterator[NDArray[np.float32]]:
    """Refine the jobs in order, ``workers`` at a time; one worker stays in this process."""
    if workers == 1:
        yield from map(refine_one, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(refine_one, jobs)
