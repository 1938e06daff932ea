"""A fit that several processes share: each part once, whoever makes it, and the artifact of one process."""

import shutil

import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import Context, ExtractConfig, PseudolabelConfig, Workspace, extract, pseudolabel
from unsupseg_cli.contents import mask_writer
from unsupseg_cli.methods.kmeans.config import PseudolabelOptions
from unsupseg_cli.training import all_tokens

CONFIG = PseudolabelConfig(classes=4, sheet=0, device="cpu", workers=0)
ALL = PseudolabelOptions(sample="all", restarts=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace with features of 24 pictures."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 255, (3, 3, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 48 if number % 2 else 32)).save(root / f"{number}.png")
    context = Context(Workspace(tmp_path_factory.mktemp("made")))
    config = ExtractConfig(dataset=f"{root}/", size=32, backbone="untrained", device="cpu", workers=0)
    extract(config, context)
    return context


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """A function that labels in a workspace of a name, which begins with the features; in many parts."""
    monkeypatch.setattr(all_tokens, "_LEAST_VIEWS", 4)
    monkeypatch.setattr(all_tokens, "_BLOCK", 1)
    monkeypatch.setattr(mask_writer, "views_per_block", lambda *_: 4)

    def call(name, shard=None, options=ALL):
        if not (tmp_path / name).exists():
            shutil.copytree(made.workspace.root, tmp_path / name)
        config = CONFIG.model_copy(update={"shard": shard})
        return pseudolabel(config, Context(Workspace(tmp_path / name)), options=options)

    return call


class Passes:
    """What was made of passes: the part that each call of a pass began with."""

    def __init__(self, monkeypatch):
        self.parts, self.stop_after = [], None
        make = all_tokens._AllTokens._pass

        def counting(fit, centroids, part):
            if self.stop_after is not None and len(self.parts) == self.stop_after:
                raise KeyboardInterrupt
            self.parts.append(part)
            return make(fit, centroids, part)

        monkeypatch.setattr(all_tokens._AllTokens, "_pass", counting)


@pytest.fixture
def passes(monkeypatch):
    return Passes(monkeypatch)


def told(artifact):
    return artifact.id, artifact.manifest.digest, artifact.manifest.summary


def test_a_share_begins_with_its_own_parts_and_ends_with_those_of_others(work, passes):
    work("shards", "2/3")
    assert passes.parts[:6] == [1, 4, 5, 2, 3, 0]


def test_one_share_after_the_other_makes_every_part_once(work, passes):
    whole = work("whole")
    count = len(passes.parts)
    assert count == 6 * whole.manifest.summary["passes"]
    for shard in ("3/3", "1/3"):
        assert work("shards", shard) is None
    assert told(work("shards", "2/3")) == told(whole)
    assert len(passes.parts) == 2 * count


@pytest.mark.parametrize("then", [None, "2/2"])
def test_what_a_killed_process_finished_is_not_made_again(work, passes, then):
    whole = work("whole")
    count, passes.parts = len(passes.parts), []
    passes.stop_after = 8  # in the second pass
    with pytest.raises(KeyboardInterrupt):
        work("killed", then and "1/2")
    passes.stop_after = None
    work("killed", then)
    assert len(passes.parts) == count
    assert told(work("killed")) == told(whole)


def test_a_share_takes_what_another_makes_meanwhile(work, passes, monkeypatch):
    """The second share makes its part while the first is at its own: the first makes no part of the second."""
    whole = work("whole")
    passes.parts = []
    make, began = all_tokens._AllTokens._pass, []

    def beside(fit, centroids, part):
        if not began:
            began.append(part)
            with monkeypatch.context() as patched:
                patched.setattr(passes, "parts", [])
                assert work("shards", "2/2") is None
        return make(fit, centroids, part)

    monkeypatch.setattr(all_tokens._AllTokens, "_pass", beside)
    assert told(work("shards", "1/2")) == told(whole)
    assert passes.parts == [0], "of which the second share could not know"


def test_no_more_is_published_than_without(work, tmp_path):
    sampled, whole = work("sampled", options=PseudolabelOptions()), work("whole")
    assert whole.manifest.outputs.keys() == sampled.manifest.outputs.keys()
    assert whole.manifest.summary["inertia"] == pytest.approx(sampled.manifest.summary["inertia"], rel=0.05)
    assert not list(tmp_path.rglob(".fit"))
