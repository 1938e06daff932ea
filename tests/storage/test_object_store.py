"""Addresses, objects, claims and the cache, on a store in memory."""

import signal
import threading
import time

import pytest

from unsupseg_cli.core.address import is_address, parse_address
from unsupseg_cli.core.errors import UnsupsegError, UsageError

obstore = pytest.importorskip("obstore", reason="the extra `cloud` is missing: pip install 'unsupseg[cloud]'")

from obstore.store import MemoryStore  # noqa: E402

from unsupseg_cli.artifacts.cache import SIZE, Cache, parse_bytes  # noqa: E402
from unsupseg_cli.storage.claims import Claims  # noqa: E402
from unsupseg_cli.storage.objects import Objects  # noqa: E402
from unsupseg_cli.storage.open import open_workspace  # noqa: E402

HERE = parse_address("s3://bucket/work")


@pytest.fixture
def objects():
    return Objects(HERE, MemoryStore())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hdfs://bucket/x", "unknown scheme 'hdfs'; expected a folder, or s3://"),
        ("s3://", "names no bucket"),
        ("s3://b", "'s3://b' names no bucket: expected .* 3 to 63 letters"),
        ("az://b", "'az://b' names no container: expected az://CONTAINER/PREFIX"),
        ("s3://bucket/a/../b", "malformed prefix"),
        ("gs://bucket/a?b", "malformed prefix"),
    ],
)
def test_a_malformed_address_says_what_was_expected(text, said):
    with pytest.raises(UsageError, match=f"The workspace: .*{said}"):
        open_workspace(text)


def test_an_address_keeps_its_parts_and_knows_what_lies_in_it():
    address = parse_address("s3:/bucket/a/b/")  # of which a path keeps one slash
    assert (str(address), address.name) == ("s3://bucket/a/b", "b")
    assert address.within("s3://bucket/a/b/features/x") == "features/x"
    assert address.within("s3://bucket/a/bc") is None
    assert address.within("s3://other/a/b/c") is None


def test_an_object_is_created_once_and_replaced_only_as_it_was_read(objects):
    first = objects.create("a.json", b"1")
    assert objects.create("a.json", b"2") is None
    assert objects.create("a.json", b"1") == first  # a put whose answer was lost
    second = objects.replace("a.json", b"3", first)
    assert objects.replace("a.json", b"4", first) is None
    assert objects.replace("a.json", b"3", first) == second
    assert objects.read("a.json").data == b"3"
    objects.remove(["a.json", "a.json"])
    assert objects.read("a.json") is None


def test_a_fetched_file_is_whole_or_not_there(objects, tmp_path):
    objects.write("x", b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert objects.digest("x", 3) == digest
    assert objects.fetch("x", tmp_path / "in" / "x", 3, digest)
    assert (tmp_path / "in" / "x").read_bytes() == b"abc"
    for path, size, sha256 in (("x", 3, "0" * 64), ("x", 2, digest), ("y", 3, None)):
        assert not objects.fetch(path, tmp_path / "other", size, sha256)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def claims(objects, cache, seconds=0.4):
    return Claims(objects, cache, seconds)


def test_a_claim_is_waited_for_and_given_back(objects):
    said, order, held = [], [], threading.Event()

    def first():
        with claims(objects, "one").hold("features-1", "The artifact", 5):
            held.set()
            time.sleep(1.2)  # three leases: it is renewed
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with (
        pytest.raises(
            UnsupsegError, match=r"The artifact is being written by process \d+ on .*; wait for it"
        ),
        claims(objects, "two").hold("features-1", "The artifact", 0),
    ):
        pass
    with claims(objects, "two").hold("features-1", "The artifact", 5, said.append):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert len(said) == 1
    assert "waiting for it, at most 0:00:05" in said[0]


def test_the_claim_of_a_dead_process_passes_and_at_once_where_its_lock_is_free(objects):
    objects.create("claims/a.json", b'{"holder": "process 1", "cache": "one", "token": "t", "seconds": 0.4}')
    begun = time.monotonic()
    with claims(objects, "one").hold("a", "It", 5):
        assert time.monotonic() - begun < 0.3
    objects.write("claims/a.json", b'{"holder": "process 1", "cache": "one", "token": "t", "seconds": 0.4}')
    with claims(objects, "two").hold("a", "It", 5):
        assert time.monotonic() - begun > 0.4


def test_what_holds_a_claim_and_loses_it_is_interrupted_with_a_sentence(objects):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def lose():
        with claims(objects, "one").hold("a", "It", 5):
            other = b'{"holder": "process 7 on other", "cache": "x", "token": "u", "seconds": 9}'
            objects.write("claims/a.json", other)
            time.sleep(20)

    begun = time.monotonic()
    try:
        with pytest.raises(UnsupsegError, match=r"passed to process 7 on other.*it stopped; call again"):
            lose()
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 5
    assert b"process 7" in objects.read("claims/a.json").data  # it is not given back for the other one


@pytest.mark.parametrize(("text", "count"), [("50GB", 50 * 10**9), ("1.5 MB", 1_500_000), ("7", 7)])
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1GB", "5 GiB", "many"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="such as 50GB"):
        parse_bytes(text)


def fill(cache, name, size):
    entry = cache.root / "work" / "features" / name
    cache.make_room(entry, size, f"'{name}'")
    (entry / "data").write_bytes(bytes(size))
    return entry


def test_the_least_recently_used_goes_first_and_nothing_in_use(tmp_path):
    """A cache of another process stands for what is not in use here any more."""
    entries = [fill(Cache(tmp_path, 300), name, 100) for name in "abc"]
    Cache(tmp_path, 300).pin(entries[0])
    fill(here := Cache(tmp_path, 300), "d", 150)
    assert [(entry / SIZE).exists() for entry in entries] == [True, False, False]
    here.pin(entries[0])
    with pytest.raises(UnsupsegError, match=r"full of what is in use: give more with --cache-size"):
        fill(here, "e", 200)
    with pytest.raises(UnsupsegError, match=r"'f' has .* holds .* at most: give more with --cache-size"):
        fill(here, "f", 301)
    assert (entries[0] / "data").exists()


@pytest.mark.parametrize("text", ["s3:", "GS:"])
def test_what_pathlib_leaves_of_an_address_without_a_bucket_is_no_folder(text):
    assert is_address(text)
    with pytest.raises(ValueError, match="names no bucket"):
        parse_address(text)
