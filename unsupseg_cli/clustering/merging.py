"""Which classes are most alike: hierarchical clustering of classes by the tokens that they cover.

Source: average linkage, Sokal and Michener (1958), here of the cosine: of two groups the mean over all pairs of their
tokens, which is the product of their mean unit tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def merge_alike(sums: NDArray[np.float64], counts: NDArray[np.int64], classes: int) -> list[list[int]]:
    """Return groups of classes, as many as asked for: the two groups that are most alike become one, again and again.

    Classes without a token are put into the last group that is left, for nothing tells where they belong.

    Args:
        sums: of the unit tokens of each class, (K, C).
        counts: of its tokens, (K,).
        classes: number of groups, at least 1.

    Returns:
        The classes of each group in ascending order, the groups by their first class.
    """
    groups = [[int(number)] for number in np.flatnonzero(counts)]
    means = [sums[group[0]] / counts[group[0]] for group in groups]
    sizes = [int(counts[group[0]]) for group in groups]
    while len(groups) > classes:
        cosine = np.stack(means) @ np.stack(means).T
        cosine[np.tril_indices(len(groups))] = -np.inf
        one, other = divmod(int(cosine.argmax()), len(groups))
        total = sizes[one] + sizes[other]
        means[one] = (sizes[one] * means[one] + sizes[other] * means[other]) / total
        groups[one], sizes[one] = sorted(groups[one] + groups[other]), total
        del groups[other], means[other], sizes[other]
    unseen = np.flatnonzero(counts == 0).tolist()
    while unseen and len(groups) < classes:
        groups.append([unseen.pop(0)])
    if unseen:
        groups[-1] = sorted(groups[-1] + unseen)
    return sorted(groups)
