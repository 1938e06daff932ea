"""One bar and each line once for work that several workers do."""

import pickle
from collections import deque

from unsupseg_cli.core.progress import Silent
from unsupseg_cli.pipeline.relay import Board, Relay


class Events(deque):
    """A queue as an engine has it."""

    put_nowait = deque.append
    qsize = deque.__len__

    def get_nowait_batch(self, count):
        return [self.popleft() for _ in range(count)]


class Heard(Silent):
    """A reporter that remembers lines, and the bars with what they counted."""

    def __init__(self):
        self.lines, self.bars = [], []

    def info(self, message):
        self.lines.append(message)

    def warn(self, message):
        self.lines.append(f"warning: {message}")

    def track(self, items, description, total=None, done=0):
        self.bars.append([description, total, done, 0])
        for item in items:
            self.bars[-1][3] += 1
            yield item


def test_loops_of_one_name_are_one_bar_and_lines_are_told_once():
    events, heard = Events(), Heard()
    one, two = Relay(events, "shard 1"), Relay(events, "shard 2")

    def rounds():
        yield ["shard 1", "shard 2"]
        for worker in (one, two):
            worker.info("three images")
            list(worker.track(range(3), "sizes"))
        yield ["shard 1", "shard 2"]
        list(one.track(range(5), "extract", total=8, done=3))
        yield ["shard 1", "shard 2"]
        list(two.track(range(8), "extract", total=8))
        two.warn("much void")
        yield ["shard 2"]

    Board(events, heard, ["shard 1", "shard 2"]).follow(rounds())
    assert heard.lines == ["three images", "warning: much void"]
    assert [bar[:2] for bar in heard.bars] == [["sizes", None], ["extract", 16]]
    assert [done + counted for _, _, done, counted in heard.bars] == [6, 16]


def test_shards_that_did_not_begin_count_as_the_mean_of_the_others():
    events, heard = Events(), Heard()

    def rounds():
        list(Relay(events, "shard 1").track(range(4), "extract", total=4))
        yield ["shard 1"]
        list(Relay(events, "shard 2").track(range(4), "extract", total=4))
        yield ["shard 2"]

    Board(events, heard, ["shard 1", "shard 2"]).follow(rounds())
    assert [(total, done + counted) for _, total, done, counted in heard.bars] == [(8, 8)]


def test_work_goes_on_when_nobody_listens():
    assert list(Relay(None, "shard 1").track(range(3), "extract", total=3)) == [0, 1, 2]
    assert isinstance(pickle.loads(pickle.dumps(Relay(None, "shard 1"))), Silent)
