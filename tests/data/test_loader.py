import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkProcess

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.data import loader
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.items import Item
from unsupseg_cli.data.loader import Failed, Loaded, load_views

GEOMETRY = Geometry(size=16)


@pytest.fixture
def items(tmp_path):
    items = []
    for index in range(24):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (20 + index, 16), (index, 0, 0)).save(path)
        items.append(Item(path.name, path))
    return items


@pytest.fixture
def workers_alive():
    """A function that gives the processes started since the test began."""
    before = set(psutil.Process().children(recursive=True))

    def alive() -> list[psutil.Process]:
        children = psutil.Process().children(recursive=True)
        return [
            child
            for child in children
            if child not in before and child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]

    return alive


def wait_until(condition, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_and_pixels_are_the_same_whatever_the_workers(items, workers, workers_alive):
    indices = [23, *range(10), 0]
    records = list(load_views(items, GEOMETRY, 8, workers=workers, indices=indices))
    assert [record.item for record in records] == indices
    for record in records:
        assert isinstance(record, Loaded)
        ((view, image),) = record.views
        assert image.shape == (view.height, view.width, 3)
        assert image[0, 0].tolist() == [record.item, 0, 0]
    assert wait_until(lambda: not workers_alive())


def test_views_larger_than_a_place_in_shared_memory_arrive_too(items, monkeypatch):
    monkeypatch.setattr("unsupseg_cli.data.loader._SLOT", 16 * 24 * 3)  # half of the images are wider
    records = list(load_views(items, GEOMETRY, 8, workers=2))
    whole = list(load_views(items, GEOMETRY, 8, workers=0))
    assert len({image.nbytes > 16 * 24 * 3 for record in whole for _, image in record.views}) == 2
    for record, expected in zip(records, whole, strict=True):
        for (view, image), (other, pixels) in zip(record.views, expected.views, strict=True):
            assert view == other
            assert np.array_equal(image, pixels)


def test_pixels_come_in_shared_memory_and_wait_there_until_they_are_fetched(items, monkeypatch):
    told, fetch = [], loader._Shared.fetch

    def slow(shared, position, left):
        time.sleep(0.03)  # workers are ahead as far as they may
        told.append(type(left))
        return fetch(shared, position, left)

    monkeypatch.setattr(loader._Shared, "fetch", slow)
    records = list(load_views(items, GEOMETRY, 8, workers=2))
    assert set(told) == {loader._Left}
    assert [record.views[0][1][0, 0, 0] for record in records] == list(range(24))


def test_values_of_another_type_are_not_cut_to_bytes(items, monkeypatch):
    monkeypatch.setattr(Geometry, "render", lambda *_: np.full((16, 16, 3), 0.75, np.float32))
    for record in load_views(items, GEOMETRY, 8, workers=2):
        assert record.views[0][1][0, 0, 0] == 0.75


def test_an_error_of_a_worker_is_told_as_what_it_is(items, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Geometry, "render", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(load_views(items, GEOMETRY, 8, workers=2))


def test_views_arrive_where_no_memory_can_be_shared(items, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("unsupseg_cli.data.loader.mmap.mmap", refused)
    records = list(load_views(items, GEOMETRY, 8, workers=2))
    assert [record.views[0][1][0, 0, 0] for record in records] == list(range(24))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_in_the_middle_is_reported_in_its_place(items, workers):
    items[11].image.write_bytes(items[11].image.read_bytes()[:40])
    items[12].image.unlink()
    records = list(load_views(items, GEOMETRY, 8, workers=workers))
    assert [record.item for record in records] == list(range(24))
    assert [record.item for record in records if isinstance(record, Failed)] == [11, 12]
    assert "11.png" in records[11].message
    assert "12.png" in records[12].message


def test_images_are_decoded_by_several_processes_and_not_all_at_once(items, monkeypatch, workers_alive):
    def slow(path, reading=None):
        time.sleep(0.02)
        return np.full((16, 16, 3), list(os.getpid().to_bytes(3, "big")), np.uint8)

    monkeypatch.setattr("unsupseg_cli.data.loader.read_image", slow)
    records = load_views(items, GEOMETRY, 8, workers=2)
    first = next(records)
    assert len(workers_alive()) == 2
    seen = {bytes(record.views[0][1][0, 0]) for record in itertools.chain([first], records)}
    assert len({int.from_bytes(process, "big") for process in seen} - {os.getpid()}) == len(seen) == 2


def test_an_iteration_closed_early_leaves_no_process(items, workers_alive):
    records = load_views(items, GEOMETRY, 8, workers=2)
    next(records)
    assert workers_alive()
    records.close()
    assert wait_until(lambda: not workers_alive())
    for _ in load_views(items, GEOMETRY, 8, workers=2):
        break
    assert wait_until(lambda: not workers_alive())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_an_error_and_not_a_hang(items, monkeypatch, workers_alive, number):
    def slow(path, reading=None):
        time.sleep(0.05)
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr("unsupseg_cli.data.loader.read_image", slow)
    records = load_views(items, GEOMETRY, 8, workers=2)
    next(records)
    workers_alive()[0].send_signal(number)
    with pytest.raises(UnsupsegError, match=r"killed.*--workers 0"):
        list(records)
    assert wait_until(lambda: not workers_alive())


def test_workers_may_be_forked_while_torch_threads_exist(items):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        matrix = torch.randn(300, 300)
        before = matrix @ matrix
        for record in load_views(items, GEOMETRY, 8, workers=2):
            assert isinstance(record, Loaded)
            assert torch.equal(matrix @ matrix, before)
    finally:
        torch.set_num_threads(threads)


def test_workers_end_when_their_parent_is_killed(items):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from unsupseg_cli.data.items import Item\n"
        "from unsupseg_cli.data.geometry import Geometry\n"
        "from unsupseg_cli.data.loader import load_views\n"
        "items = [Item(p.name, p) for p in sorted(Path(sys.argv[1]).glob('*.png'))]\n"
        "records = load_views(items, Geometry(size=16), 8, workers=2)\n"
        "next(records)\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    folder = str(items[0].image.parent)
    with subprocess.Popen(
        [sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "started\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
    assert len(workers) == 2
    assert wait_until(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))


@pytest.mark.parametrize("kernel", [True, False])
def test_workers_end_with_their_parent_even_while_they_decode(items, kernel):
    """A worker that is busy, and looks at nothing, ends too: the kernel ends it, or a thread of its own."""
    program = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from unsupseg_cli.core import processes\n"
        "from unsupseg_cli.data import loader\n"
        "from unsupseg_cli.data.items import Item\n"
        "from unsupseg_cli.data.geometry import Geometry\n"
        f"processes._ask_kernel = processes._ask_kernel if {kernel} else lambda: False\n"
        "loader.read_image = lambda *how: (os.write(1, b'decoding\\n'), time.sleep(60))\n"
        "items = [Item(p.name, p) for p in sorted(Path(sys.argv[1]).glob('*.png'))]\n"
        "next(loader.load_views(items, Geometry(size=16), 8, workers=2))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(items[0].image.parent)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "decoding\n"
        workers = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        start = time.monotonic()
        alive = lambda: any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers)  # noqa: E731
        assert workers
        assert wait_until(lambda: not alive())
        assert time.monotonic() - start < 4


def test_ctrl_c_waits_until_all_processes_have_started_and_ends_them(items, monkeypatch, workers_alive):
    started, start = [], ForkProcess.start

    def start_and_press(process):
        start(process)
        started.append(process)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ForkProcess, "start", start_and_press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            list(load_views(items, GEOMETRY, 8, workers=2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 2
    assert wait_until(lambda: not workers_alive())
