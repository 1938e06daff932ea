"""The workspace in Azure Blob Storage, of its emulator Azurite: `make test-azure`. Skipped without it."""

import base64
import hashlib
import hmac
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from email.utils import formatdate
from pathlib import Path

import pytest
from fixtures.artifacts import hang, never, recipe, write_one
from fixtures.pictures import noise

from unsupseg_cli.artifacts.cache import Cache
from unsupseg_cli.core.address import parse_address

pytestmark = pytest.mark.skipif(not shutil.which("azurite-blob"), reason="azurite is not installed (npm)")
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""What the emulator's documentation gives for everybody."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where a server listens that keeps everything in memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--inMemoryPersistence",
        "--skipApiVersionCheck",
        "--silent",
        "--disableTelemetry",
        "--blobPort",
    ]
    server = subprocess.Popen(["azurite-blob", *options, str(port)], cwd=tmp_path_factory.mktemp("azurite"))
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def make_container(url, name):
    """Make a container: a request signed with the shared key of the account."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "\n".join(f"{key}:{value}" for key, value in headers.items())
    text = "PUT" + 12 * "\n" + f"{signed}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    address = f"{url}/{ACCOUNT}/{name}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(address, method="PUT", headers=headers)) as answer:
        assert answer.status == 201


@pytest.fixture
def address(url, monkeypatch, tmp_path):
    """The address of a workspace in a container of the test's own."""
    pytest.importorskip("obstore", reason="the extra `cloud` is missing: pip install 'unsupseg[cloud]'")
    name = f"test-{uuid.uuid4().hex[:12]}"
    make_container(url, name)
    environment = {
        "AZURITE_BLOB_STORAGE_URL": url,
        "AZURE_STORAGE_USE_EMULATOR": "true",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "UNSUPSEG_CACHE": str(tmp_path / "cache"),
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    return f"az://{name}/work"


@pytest.fixture
def machine(address, tmp_path):
    """Return the workspace as a machine of a name sees it: each has a cache of its own."""
    from unsupseg_cli.storage.remote import RemoteWorkspace

    def open_(name, tell=None):
        return RemoteWorkspace(parse_address(address), Cache(tmp_path / name, 10**9), tell, 0.6)

    return open_


def test_the_commands_give_the_digests_of_a_local_run(address, call, monkeypatch):
    noise(Path("photos"), {f"{number}.png": (48, 64) for number in range(3)})
    Path("unsupseg.toml").write_text("workers = 0\n")
    digests = []
    for place in ("local", address):
        monkeypatch.setenv("UNSUPSEG_WORKSPACE", place)
        call("extract", "photos/", "--size", 48, "--backbone", "untrained")
        call("pseudolabel", "--classes", 3, "--sheet", 0)
        call("train", "--set", "steps=20")
        call("predict", "photos/")
        digests.append({row["id"]: row["digest"] for row in json.loads(call("list", "--json")[0])})
    assert digests[0] == digests[1]
    assert len(digests[1]) == 4
    call("verify")
    call("gc")


def test_two_writers_at_once_make_one_copy(machine):
    made = []

    def slow(draft):
        time.sleep(1)
        return write_one()(draft)

    threads = [
        threading.Thread(target=lambda name=name: made.append(machine(name).produce(recipe(), slow)))
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reused for _, reused in made) == [False, True]
    assert made[0][0].manifest == made[1][0].manifest


def test_after_a_kill_the_lease_passes_and_another_machine_makes_it(machine):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hang, args=(machine("one"), ready))
    process.start()
    assert ready.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    made, reused = machine("two").produce(recipe(), write_one())
    assert not reused
    assert (made.path / "part" / "data.bin").read_text() == "hello"
    assert machine("one").produce(recipe(), never)[1]


@pytest.mark.parametrize(
    ("place", "key", "code", "said"),
    [
        ("az://nowhere/work", KEY, 1, "There is no container 'nowhere'"),
        (None, f"F{KEY[1:]}", 1, "are wrong"),
        (None, "x", 2, "cannot be opened"),
    ],
)
def test_what_no_try_mends_is_one_sentence(address, call, monkeypatch, place, key, code, said):
    monkeypatch.setenv("UNSUPSEG_WORKSPACE", place or address)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", key)
    printed, told = call("list", code=code)
    assert (printed, said in told, told.count("error:")) == ("", True, 1)
