import shutil
from contextlib import suppress

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from unsupseg_cli.artifacts.arrays import pack_hdf5
from unsupseg_cli.artifacts.packed import PackedReader, PackedWriter, is_packed
from unsupseg_cli.core.errors import UnsupsegError

SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, max_side=9)


def write(folder, views, block=2, dtype=np.int16):
    writer = PackedWriter(folder, "labels", dtype)
    told = []
    for number, start in enumerate(range(0, len(views), block)):
        told += writer.write(number, views[start : start + block])
    writer.close(told)


def label_maps(count, side=40):
    rng = np.random.default_rng(0)
    return [
        np.kron(rng.integers(-1, 5, (1, side // 10, side // 10)), np.ones((1, 10, 10))).astype(np.int16)
        for _ in range(count)
    ]


@pytest.mark.parametrize("store", ["zarr", "hdf5"])
@settings(max_examples=25, deadline=None)
@given(
    views=st.lists(
        st.one_of(arrays.arrays(np.int16, SHAPES), arrays.arrays(np.int16, SHAPES, elements=st.just(-1))),
        min_size=1,
        max_size=6,
    ),
    block=st.integers(1, 4),
)
def test_whatever_is_written_comes_back_in_any_order(tmp_path_factory, store, views, block):
    folder = tmp_path_factory.mktemp("packed")
    write(folder, views, block)
    if store == "hdf5":
        for path in pack_hdf5(folder):
            shutil.rmtree(path)
    assert is_packed(folder, "labels")
    reader = PackedReader(folder, "labels", np.int16)
    assert len(reader) == len(views)
    for index in reversed(range(len(views))):
        np.testing.assert_array_equal(reader[index], views[index])


@settings(max_examples=25, deadline=None)
@given(bits=arrays.arrays(np.uint16, SHAPES))
def test_floats_come_back_to_the_last_bit(tmp_path_factory, bits):
    folder, view = tmp_path_factory.mktemp("packed"), bits.view(np.float16)
    write(folder, [view], dtype=np.float16)
    np.testing.assert_array_equal(PackedReader(folder, "labels", np.float16)[0].view(np.uint16), bits)


def test_label_maps_shrink_and_the_files_are_few(tmp_path):
    views = label_maps(50, 200)
    write(tmp_path, views, 8)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and ".labels" not in path.as_posix()]
    assert len(files) == 6  # three arrays of one shard
    assert sum(path.stat().st_size for path in files) < sum(view.nbytes for view in views) / 20


def test_bytes_are_stored_in_equal_shards_without_padding(tmp_path, monkeypatch):
    monkeypatch.setattr("unsupseg_cli.artifacts.arrays.SHARD_BYTES", 1000)
    views = [np.random.default_rng(seed).integers(0, 99, (1, 20, 15)).astype(np.int16) for seed in range(7)]
    write(tmp_path, views)
    array = zarr.open_array(tmp_path / "labels", mode="r")
    shards = -(-array.shape[0] // array.shards[0])
    assert shards > 1
    assert shards * array.shards[0] - array.shape[0] < shards
    reader = PackedReader(tmp_path, "labels", np.int16)
    for view, index in zip(views, range(7), strict=True):  # some lie across the border of two shards
        np.testing.assert_array_equal(reader[index], view)


def test_a_broken_piece_and_offsets_that_do_not_fit_are_named(tmp_path):
    write(tmp_path, label_maps(3))
    shard = next(path for path in (tmp_path / "labels" / "c").rglob("*") if path.is_file())
    whole = shard.read_bytes()
    for place in (4, 12):  # the lengths that a piece begins with
        shard.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(UnsupsegError, match=r"labels' cannot be decoded at view 0 .*`unsupseg verify`"):
            PackedReader(tmp_path, "labels", np.int16)[0]
    shard.write_bytes(whole)
    shutil.rmtree(tmp_path / "labels_offset")
    zarr.create_array(tmp_path / "labels_offset", data=np.array([0, 5, 9, 12]))
    with pytest.raises(UnsupsegError, match=r"labels' does not fit the offsets"):
        PackedReader(tmp_path, "labels", np.int16)


@settings(max_examples=100, deadline=None)
@given(bit=st.integers(0, 10**6))
def test_a_flipped_bit_is_an_error_or_other_values_but_never_more(tmp_path_factory, bit):
    """What a map cannot tell from damage is found by `unsupseg verify`; the reader at least does not break."""
    folder = tmp_path_factory.mktemp("packed")
    views = label_maps(1)
    write(folder, views)
    shard = next(path for path in (folder / "labels" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    bit %= 8 * (len(data) - 20)  # the shard's own index lies behind
    data[bit // 8] ^= 1 << bit % 8
    shard.write_bytes(bytes(data))
    with suppress(UnsupsegError):
        assert PackedReader(folder, "labels", np.int16)[0].shape == views[0].shape
