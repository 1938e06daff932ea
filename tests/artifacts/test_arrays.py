import shutil

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.artifacts import arrays
from unsupseg_cli.artifacts.arrays import RaggedWriter, RegularWriter, RowReader, pack_hdf5, write_array
from unsupseg_cli.artifacts.grids import GridReader, GridWriter, bytes_needed
from unsupseg_cli.core.errors import UnsupsegError


def stored(folder, store):
    """Bring the arrays of a folder into a store."""
    if store == "hdf5":
        for path in pack_hdf5(folder):
            shutil.rmtree(path)


both_stores = pytest.mark.parametrize("store", ["zarr", "hdf5"])


def tokens(*shape, dtype=np.float16):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@both_stores
def test_a_regular_array_reads_back_in_any_order(tmp_path, store):
    values = tokens(10, 2, 3, 4)
    writer = RegularWriter(tmp_path / "patch", 10, (2, 3, 4), np.float16, shard=4)
    for start in (4, 0, 8):
        writer.write(start, values[start : start + 4])
    write_array(tmp_path / "cls", values[:, 0, 0])
    stored(tmp_path, store)
    reader = RowReader(tmp_path / "patch")
    assert (len(reader), reader.shape, reader.dtype) == (10, (10, 2, 3, 4), np.float16)
    np.testing.assert_array_equal(reader.rows(0, 10), values)
    np.testing.assert_array_equal(reader.rows(3, 7), values[3:7])
    np.testing.assert_array_equal(reader.take([9, 0, 0, 5]), values[[9, 0, 0, 5]])
    np.testing.assert_array_equal(RowReader(tmp_path / "cls").rows(0, 10), values[:, 0, 0])


def test_a_regular_array_is_plain_zarr(tmp_path):
    values = tokens(10, 2, 3, 4)
    writer = RegularWriter(tmp_path / "patch", 10, (2, 3, 4), np.float16, shard=4)
    for start in (4, 0, 8):
        writer.write(start, values[start : start + 4])
    reader = RowReader(tmp_path / "patch")
    np.testing.assert_array_equal(reader.rows(0, 10), values)
    np.testing.assert_array_equal(reader.take([9, 0, 0, 5]), values[[9, 0, 0, 5]])
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "patch", mode="r")[:], values)
    assert len(list((tmp_path / "patch" / "c").iterdir())) == 3


def test_a_compressed_array_of_somebody_else_is_read_too(tmp_path):
    values = tokens(5, 2)
    zarr.create_array(tmp_path / "other", data=values, chunks=(2, 2))
    np.testing.assert_array_equal(RowReader(tmp_path / "other").take([4, 1]), values[[4, 1]])


def test_a_shard_of_zeros_is_written_like_any_other(tmp_path):
    values = np.zeros((4, 3), np.float32)
    values[1] = 5
    writer = RegularWriter(tmp_path / "a", 4, (3,), np.float32, shard=2)
    writer.write(0, values[:2])
    RegularWriter(tmp_path / "a", 4, (3,), np.float32, shard=2).write(2, values[2:])
    np.testing.assert_array_equal(RowReader(tmp_path / "a").rows(0, 4), values)
    assert len(list((tmp_path / "a" / "c").iterdir())) == 2


def test_a_missing_or_cut_shard_is_named(tmp_path):
    write_array(tmp_path / "a", tokens(4, 3))
    shard = next(path for path in (tmp_path / "a" / "c").rglob("*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:10])
    with pytest.raises(UnsupsegError, match="cut short"):
        RowReader(tmp_path / "a").rows(0, 1)
    shard.unlink()
    with pytest.raises(UnsupsegError, match="missing"):
        RowReader(tmp_path / "a").rows(0, 1)


@settings(max_examples=60, deadline=None)
@given(bit=st.integers(0, 8 * 16 * 5 - 1))
def test_a_flipped_bit_in_the_index_of_a_shard_is_named(tmp_path_factory, bit):
    folder = tmp_path_factory.mktemp("index")
    RegularWriter(folder / "a", 5, (3,), np.float16, shard=5).write(0, tokens(5, 3))
    shard = next(path for path in (folder / "a" / "c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) - 4 - 16 * 5 + bit // 8] ^= 1 << bit % 8  # offsets and lengths, before the checksum
    shard.write_bytes(bytes(data))
    with pytest.raises(UnsupsegError, match=r"index is damaged; `unsupseg verify`"):
        RowReader(folder / "a").rows(0, 5)


def test_a_compressed_array_that_cannot_be_decoded_is_named(tmp_path):
    array = zarr.create_array(tmp_path / "a", shape=(4, 64), dtype="f4", chunks=(4, 64))
    array[:] = 1
    np.testing.assert_array_equal(RowReader(tmp_path / "a").rows(1, 3), np.ones((2, 64)))
    chunk = next(path for path in (tmp_path / "a" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    with pytest.raises(UnsupsegError, match=r"'.*a' cannot be decoded .*`unsupseg verify`"):
        RowReader(tmp_path / "a").rows(1, 3)


def test_offsets_that_do_not_fit_their_grids_are_named(tmp_path):
    grids = np.array([[1, 2], [3, 2]])
    writer = GridWriter(tmp_path, "patch", grids, (3,), np.float16, 2)
    writer.write(0, [tokens(1, 2, 3), tokens(3, 2, 3)])
    writer.close()
    write_array(tmp_path / "patch_offset", np.array([0, 3, 8]))
    with pytest.raises(UnsupsegError, match=r"patch_offset' does not fit"):
        GridReader(tmp_path, "patch")


@both_stores
@settings(max_examples=20, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=9),
    block=st.integers(1, 4),
)
def test_ragged_grids_come_back_whatever_their_shapes(tmp_path_factory, store, shapes, block):
    folder = tmp_path_factory.mktemp("ragged")
    views = [tokens(h, w, 3) + index for index, (h, w) in enumerate(shapes)]
    grids = np.array(shapes)
    writer = GridWriter(folder, "patch", grids, (3,), np.float16, block)
    for number, start in enumerate(range(0, len(views), block)):
        writer.write(number, views[start : start + block])
    writer.close()
    stored(folder, store)
    reader = GridReader(folder, "patch")
    assert len(reader) == len(views)
    np.testing.assert_array_equal(reader.grids, grids)
    assert reader.channels == (3,)
    for index in reversed(range(len(views))):
        np.testing.assert_array_equal(reader[index], views[index])
    for got, index in zip(reader.take([0, len(views) - 1]), (0, -1), strict=True):
        np.testing.assert_array_equal(got, views[index])


def test_ragged_tokens_are_stored_without_padding(tmp_path):
    writer = RaggedWriter(tmp_path / "tokens")
    for block in (1, 0):
        writer.write(block, np.full((300 + block, 2), block, np.float32))
    writer.close()
    array = zarr.open_array(tmp_path / "tokens", mode="r")
    assert array.shape == (601, 2)
    assert array[299, 0] == 0
    assert array[300, 0] == 1


@both_stores
def test_label_maps_have_no_channels(tmp_path, store):
    grids = np.array([[2, 3], [2, 3]])
    writer = GridWriter(tmp_path, "labels", grids, (), np.int16, 2)
    maps = [np.arange(6).reshape(2, 3).astype(np.int16), -np.ones((2, 3), np.int16)]
    writer.write(0, maps)
    writer.close()
    stored(tmp_path, store)
    np.testing.assert_array_equal(GridReader(tmp_path, "labels")[1], maps[1])


def test_the_size_is_known_before_writing():
    assert bytes_needed(np.array([[2, 3]] * 5), (4,), np.float16) == 5 * 6 * 4 * 2


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(0, 60),
    shape=st.sampled_from([(3,), (1,), (2, 3), (2, 2, 2)]),
    dtype=st.sampled_from([np.float32, np.float16, np.int64]),
)
def test_rows_are_written_as_zarr_writes_them(tmp_path_factory, rows, shape, dtype):
    folder = tmp_path_factory.mktemp("rows")
    values = np.random.default_rng(0).integers(0, 99, (rows, *shape)).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "SHARD_BYTES", 200)
        write_array(folder / "ours", values)
        shard = arrays.rows_per_shard(shape, dtype, max(1, rows))
        array = arrays.create_array(folder / "zarr", values.shape, dtype, (1, *shape), (shard, *shape))
    if rows:
        array[:] = values
    ours, theirs = (
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in (folder / "ours", folder / "zarr")
    )
    assert ours == theirs
