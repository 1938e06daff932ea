"""Blocks of `extract`: written beside the computation, finished when written, bit-identical to NumPy's rounding."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unsupseg_cli.artifacts.arrays import RowReader
from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.grids import GridReader, GridWriter
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.int8_tokens import TokenReader
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.core.shards import WHOLE
from unsupseg_cli.data.geometry import View
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.views import table_of_views
from unsupseg_cli.inference import extraction
from unsupseg_cli.inference.extraction import Extraction, Layout, Network

PATCH, COUNT = 4, 10
KEEP = ("patch", "attention", "cls")


@pytest.fixture(autouse=True)
def blocks_of_four(monkeypatch):
    monkeypatch.setattr(extraction, "views_per_block", lambda *_: 4)


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gray")
    for number in range(COUNT):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    return [Item(f"{number}.png", folder / f"{number}.png") for number in range(COUNT)]


def arrays(number, height, width):
    """Values of all magnitudes that float16 has, subnormal ones and ties among them."""
    rng = np.random.default_rng(number)
    bits = rng.integers(0, 0x7BFF, (height, width, 5)).astype(np.uint16)
    patch = bits.view(np.float16).astype(np.float32) * rng.choice([1, -1, 1.0001, 1 + 2**-11], bits.shape)
    attention = rng.random((3, height, width), np.float32)
    return {"patch": patch.astype(np.float32), "attention": attention, "cls": patch[0, 0].astype(np.float32)}


def embed(images):
    rows = [arrays(int(image[0, 0, 0]), image.shape[0] // PATCH, image.shape[1] // PATCH) for image in images]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def started(folder, items, ragged=False, embed=embed, store_dtype="float16"):
    sides = [8 + 4 * (number % 3) if ragged else 8 for number in range(COUNT)]
    views = table_of_views([(i, View(0, (0, 0, 8, 8), side, 8)) for i, side in enumerate(sides)])
    backbone = SimpleNamespace(name="made", patch_size=PATCH, dim=5, weights_digest="")

    def render(image, view):
        return np.full((view.height, view.width, 3), image[0, 0, 0], np.uint8)

    network = Network(backbone, embed, KEEP, torch.device("cpu"))
    return Extraction(
        Draft(folder / "draft"),
        Context(Workspace(folder)),
        Layout(items, views, render, {}),
        network,
        strict=True,
        store="zarr",
        store_dtype=store_dtype,
        batch_size=3,
        workers=0,
        shard=WHOLE,
    )


@pytest.mark.parametrize("ragged", [False, True])
def test_rows_are_what_numpy_rounds_in_the_order_of_the_views(tmp_path, items, ragged):
    run = started(tmp_path, items, ragged)
    run.write()
    run.close()
    for name in ("patch", "attention"):
        reader = GridReader(tmp_path / "draft", name)
        for number in range(COUNT):
            expected = arrays(number, *reader.grids[number])[name]
            expected = np.moveaxis(expected, 0, -1) if name == "attention" else expected
            np.testing.assert_array_equal(
                reader[number].view(np.uint16), expected.astype(np.float16).view(np.uint16)
            )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_ends_the_call_and_keeps_the_blocks_before(tmp_path, items, bad):
    def spoiled(images):
        out = embed(images)
        for row, image in enumerate(images):
            if int(image[0, 0, 0]) == 6:  # in the second block
                out["attention"][row, 1, 0, 1] = bad
        return out

    with pytest.raises(UnsupsegError, match="NaN or infinite values in 'attention'"):
        started(tmp_path, items, embed=spoiled).write()
    again = started(tmp_path, items)
    assert [again.draft.is_done(f"block-{block:06d}") for block in range(3)] == [True, False, False]


def test_a_block_that_cannot_be_written_ends_the_call_and_the_next_one_goes_on(tmp_path, items, monkeypatch):
    write, seen = GridWriter.write, []

    def full(self, block, rows):
        seen.append(block)
        if block == 1:
            raise OSError(28, "No space left on device")
        write(self, block, rows)

    monkeypatch.setattr(GridWriter, "write", full)
    run = started(tmp_path, items)
    with pytest.raises(OSError, match="No space left"):
        run.write()
    assert 2 not in seen
    monkeypatch.setattr(GridWriter, "write", write)
    again = started(tmp_path, items)
    assert again.missing() == 2
    again.write()
    again.close()
    for number, row in enumerate(GridReader(tmp_path / "draft", "patch").take(range(COUNT))):
        np.testing.assert_array_equal(row, arrays(number, 2, 2)["patch"].astype(np.float16))


@pytest.mark.parametrize("ragged", [False, True])
def test_int8_goes_on_after_a_fault_as_if_there_had_been_none(tmp_path, items, ragged, monkeypatch):
    write = GridWriter.write

    def full(self, block, rows):
        if block == 1:
            raise OSError(28, "No space left on device")
        write(self, block, rows)

    folders = tmp_path / "broken", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(GridWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            started(folders[0], items, ragged, store_dtype="int8").write()
    contents = []
    for folder in folders:
        run = started(folder, items, ragged, store_dtype="int8")
        assert run.missing() == (2 if folder == folders[0] else 3)
        run.write()
        run.close()
        readers = [TokenReader(folder / "draft", "patch"), RowReader(folder / "draft" / "patch_scale")]
        contents.append([*readers[0].take(range(COUNT)), readers[1].rows(0, COUNT)])
    for one, other in zip(*contents, strict=True):
        np.testing.assert_array_equal(one, other)
    assert contents[0][0].dtype == np.float32


def test_a_block_is_computed_while_the_one_before_is_written(tmp_path, items, monkeypatch):
    """The first block's writing lasts until the second is being computed; it would wait for ever otherwise."""
    from threading import Event

    write, computing = GridWriter.write, Event()

    def waits(self, block, rows):
        assert block > 0 or computing.wait(timeout=30)
        write(self, block, rows)

    def tells(images):
        if int(images[0, 0, 0, 0]) == 4:
            computing.set()
        return embed(images)

    monkeypatch.setattr(GridWriter, "write", waits)
    run = started(tmp_path, items, embed=tells)
    run.write()
    assert run.missing() == 0


@pytest.mark.parametrize("ragged", [False, True])
def test_a_sheet_shows_some_views_beside_their_tokens(tmp_path, items, ragged):
    run = started(tmp_path, items, ragged)
    run.write()
    run.close()
    with Image.open(tmp_path / "draft" / "sheet.png") as sheet:
        assert sheet.width > 6 * 240


def test_a_sheet_is_of_the_blocks_that_are_here(tmp_path, items, monkeypatch):
    """Those of other machines are not fetched for it."""
    run = started(tmp_path, items)
    run.write()
    run.close()
    read, take = [], TokenReader.take
    monkeypatch.setattr(TokenReader, "take", lambda reader, views: read.extend(views) or take(reader, views))
    there = run.writers["patch"].file
    monkeypatch.setattr(
        run.writers["patch"], "file", lambda block: there(block) if block == 1 else tmp_path / "gone"
    )
    run._draw(np.arange(COUNT))
    assert set(read) == {4, 5, 6, 7}
