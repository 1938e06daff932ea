"""`extract --shard` from machines that share a bucket and nothing else."""

import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, Workspace, extract
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.inference.extraction import Extraction

IMAGES = 140  # three blocks


@pytest.fixture(scope="module", params=["one size", "several sizes"])
def photos(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        width = 24 if request.param == "several sizes" and number % 2 else 16
        Image.fromarray(rng.integers(0, 256, (16, width, 3), np.uint8)).save(folder / f"{number:03d}.png")
    return folder


def config(folder, **fields):
    return ExtractConfig(dataset=f"{folder}/", size=16, workers=0, backbone="tiny", device="cpu", **fields)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    return extract(config(photos), Context(Workspace(tmp_path_factory.mktemp("w"))))


@pytest.fixture
def embedded(monkeypatch):
    """Count the images that go through the backbone."""
    counted, embed = [0], Extraction._embed_group

    def counting(self, embedded, members, images):
        counted[0] += len(members)
        return embed(self, embedded, members, images)

    monkeypatch.setattr(Extraction, "_embed_group", counting)
    return counted


def test_shares_of_two_machines_make_the_artifact_of_one_with_one_copy(bucket, machine, photos, whole):
    assert extract(config(photos, shard="2/2"), Context(machine("one"))) is None
    assert bucket.keys("published") == []
    made = extract(config(photos, shard="1/2"), Context(machine("two")))
    assert (made.id, made.manifest.digest) == (whole.id, whole.manifest.digest)
    shards = bucket.keys(r"/patch/c/")
    assert len(shards) == len([name for name in whole.manifest.outputs if name.startswith("patch/c/")])
    for name in shards:
        assert bucket.count("PUT", name) == 1
    if FeatureSet(whole).grids.std() == 0:  # the last one does not read what the other one wrote
        assert bucket.count("GET", "/patch/c/") == 0
    assert bucket.keys("/shared/") == []
    three = machine("three")
    assert extract(config(photos, shard="2/2"), Context(three)).id == made.id
    assert three.verify(made) == []
    np.testing.assert_array_equal(
        FeatureSet(three.get(made.id)).tokens([77])[0], FeatureSet(whole).tokens([77])[0]
    )
    assert three.leftovers(shared=True) == []


def test_a_share_that_died_is_gone_on_with_on_another_machine(bucket, machine, photos, whole, embedded):
    failing = machine("one")
    put = failing.objects.create

    def killed_at_the_second_note(path, data):
        if "/done/block" in path and bucket.keys("/done/block"):
            raise KeyboardInterrupt
        return put(path, data)

    failing.objects.create = killed_at_the_second_note
    with pytest.raises(KeyboardInterrupt):
        extract(config(photos, shard="1/1"), Context(failing))
    assert len(bucket.keys("/done/block")) == 1
    embedded[0] = 0
    made = extract(config(photos), Context(machine("two")))
    assert embedded[0] == IMAGES - 64
    assert made.manifest.digest == whole.manifest.digest
    assert machine("two").verify(made) == []
    assert machine("two").leftovers(shared=True) == []


def test_what_another_machine_put_first_is_taken_over(bucket, machine, photos, whole):
    """A block whose note was never written: its files stay, whoever makes the block again."""
    one = machine("one")
    put = one.objects.create
    one.objects.create = lambda path, data: put(path, data) if "/done/" not in path else 1 / 0
    with pytest.raises(ZeroDivisionError):
        extract(config(photos, shard="1/1"), Context(one))
    (first,) = bucket.keys(r"/\.cls-000000")
    bucket.change(
        first, bucket.content(first)[:-4] + b"\0\0\0\0"
    )  # as of another kind of machine, whose sums differ
    made = extract(config(photos), Context(machine("two")))
    assert made.manifest.digest != whole.manifest.digest
    assert FeatureSet(made).rows("cls")[63, -1] == 0
    assert machine("two").verify(made) == []


def test_images_that_turn_out_unreadable_are_left_out(bucket, machine, tmp_path, photos, monkeypatch):
    """Rows are taken out of arrays of which other machines made a part; a kill before the record changes nothing."""
    broken = tmp_path / "broken"
    shutil.copytree(photos, broken)
    (broken / "100.png").write_bytes((broken / "100.png").read_bytes()[:60])  # its header is whole
    local = extract(config(broken), Context(Workspace(tmp_path / "local")))
    assert extract(config(broken, shard="1/2"), Context(machine("one"))) is None
    with monkeypatch.context() as patched:
        patched.setattr("unsupseg_cli.storage.remote.path_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            extract(config(broken, shard="2/2"), Context(machine("two")))
    made = extract(config(broken, shard="2/2"), Context(machine("two")))
    assert made.manifest.digest == local.manifest.digest
    assert machine("three").verify(made) == []
    assert len(bucket.keys("features/.*/manifest.json")) == 1
    for left in machine("three").leftovers(shared=True):  # of the call that was killed
        machine("three").remove(left)
    assert machine("three").verify(made) == []


def test_begun_shares_are_leftovers_only_if_asked_for(bucket, machine, photos):
    extract(config(photos, shard="2/2"), Context(machine("one")))
    two = machine("two")
    assert two.leftovers() == []
    left = two.leftovers(shared=True)
    assert len(left) == 1 + bool(bucket.keys("/patch/c/"))  # notes and scratch, and the files to publish
    for place in left:
        two.remove(place)
    assert bucket.keys("features/|shared/") == []


def test_shares_at_once_wait_for_no_other(bucket, machine, photos, whole):
    made = []

    def run(index):
        made.append(extract(config(photos, shard=f"{index}/3"), Context(machine(f"m{index}"))))

    threads = [threading.Thread(target=run, args=(index,)) for index in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (artifact,) = [one for one in made if one is not None][:1]
    assert artifact.manifest.digest == whole.manifest.digest
    assert len(bucket.keys("published")) == 1


def test_a_note_that_leads_elsewhere_is_no_note(bucket, machine, photos, tmp_path):
    extract(config(photos, shard="2/2"), Context(machine("one")))
    (name, *_) = bucket.keys("/done/block")
    note = json.loads(bucket.content(name))
    for field in ("files", "bytes"):
        note[field]["../../../../escaped"] = note[field].popitem()[1]
    bucket.change(name, json.dumps(note).encode())
    made = extract(config(photos), Context(machine("two")))
    assert machine("two").verify(made) == []
    assert not list(tmp_path.rglob("escaped"))
