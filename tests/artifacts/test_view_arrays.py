"""Arrays that a labeller leaves for trainers: whatever it gives comes back, of its type, after a kill too."""

import numpy as np
import pytest

from unsupseg_cli.contents.view_arrays import ViewArrays, ViewArraysWriter
from unsupseg_cli.core.errors import UnsupsegError


def views(count):
    rng = np.random.default_rng(0)
    return [
        {
            "evidence": rng.random((view + 1, 3)).astype(np.float16),
            "order": rng.integers(0, 255, (2, 4)).astype(np.uint8),
            "scale": rng.random(1).astype(np.float32),
        }
        for view in range(count)
    ]


def test_every_array_comes_back_with_its_type(tmp_path):
    given = views(5)
    blocks = [
        ViewArraysWriter(tmp_path).write(number, given[start : start + 2])  # each block by another process
        for number, start in enumerate(range(0, 5, 2))
    ]
    ViewArraysWriter(tmp_path).close(blocks)
    read = ViewArrays(tmp_path)
    for view in (4, 0, 3, 1, 2):
        assert read(view).keys() == given[view].keys()
        for name, array in read(view).items():
            assert array.dtype == given[view][name].dtype
            np.testing.assert_array_equal(array, given[view][name])


def test_a_labeller_may_leave_none(tmp_path):
    writer = ViewArraysWriter(tmp_path)
    writer.close([writer.write(0, [{}, {}])])
    assert ViewArrays(tmp_path)(1) == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other", [{}, {"scale": np.zeros(1, np.float64)}, {"share": np.zeros(1, np.float32)}]
)
def test_all_views_have_the_same_arrays(tmp_path, other):
    with pytest.raises(UnsupsegError, match="different names or types"):
        ViewArraysWriter(tmp_path).write(0, [{"scale": np.zeros(1, np.float32)}, other])
