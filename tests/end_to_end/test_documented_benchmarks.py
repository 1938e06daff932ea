"""The benchmarks that the documents call run as they are called there, on tiny data and for a moment."""

import json
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fixtures.documents import PAGES, ROOT, code_in_text
from fixtures.layouts import build, stripes
from fixtures.pictures import save
from fixtures.programs import run
from fixtures.short import SHORT_STAGES
from fixtures.weights import write_vits14

pytestmark = pytest.mark.documents

CALL = re.compile(
    r"((?:[A-Z_]+=(?:\"[^\"]*\"|\w+) )*)((?:python )?)benchmarks/(\w+\.(?:py|sh))((?: +[^\s`|;)(]+)*)"
)
"""Variables, the interpreter, the script and the words behind it."""

SHORT = f"""
workers = 0
[extract]
size = 56
{SHORT_STAGES}
"""

RECIPE = """
name = "short"
description = "k-means on four pictures"
[data]
dataset = "street/"
[[stage]]
command = "extract"
split = "train"
[[stage]]
command = "pseudolabel"
method = "kmeans"
classes = 5
[[stage]]
command = "train"
[[stage]]
command = "eval"
split = "val"
"""

SHORTER = {
    "backbone.py": "--size 64 --every 3",
    "blocks.py": "--images 4 --seeds 0",
    "class_number.py": "--sets aerial",
    "cloud.py": "--rounds 1 --recipe short.toml",
    "conditions.py": "--seeds 0",
    "context_ablations.py": "--seeds 0 --steps 2 --batch 2",
    "crf.py": "--frames 1 --images 1 --rounds 1 --workers 1",
    "disk.py": "--counts 1,2",
    "em_course.py": "--epochs 1 --every 1",
    "end_to_end.py": "--counts 2,3 --size 56",
    "extract.py": "--count 2 --rounds 1",
    "fidelity.py": "--size 56 --seeds 0 --steps 2 --resolution 28",
    "forward.py": "--size 56 --rounds 1",
    "graph.py": "--rows 500",
    "interval.py": "--draws 20",
    "kill_matrix.py": "--stages extract --stride 50",
    "kmeans_sample.py": "--tokens 3000 --memory 3000 --dim 8 --classes 5 --restarts 1",
    "label_free.py": "--size 56",
    "loader.py": "--count 2 --rounds 1 --size 56",
    "look.py": "--size 64",
    "loop.py": "--steps 2 --rounds 1 --views 2 --side 4",
    "mask_quality.py": "--size 56",
    "mask_speed.py": "--images 2 --rounds 1 --size 64",
    "methods.py": "--size 56 --seeds 0 --stego-steps 2 --classes 4",
    "object_masks.py": "--size 56",
    "primaps_proposals.py": "--images 1 --loop-images 1 --side 6 --channels 8",
    "regions.py": "--count 1 --rounds 1 --size 56 --whole 56",
    "scale.py": "--views 8 --side 4 --channels 8",
    "scoring.py": "--size 56 --rounds 1",
    "startup.py": "--rounds 1",
    "stego_steps.py": "--steps 1 --rounds 1",
    "store.py": "--views 8 --rounds 1",
    "store_dtype.py": "--size 56 --seeds 0",
    "threads.py": "--rounds 1 --seconds 0.1 --neighbours 0,1",
    "transfgu_ablation.py": "--seeds 1 --steps 2 --restarts 1",
    "transfgu_maps.py": "--images 1 --size 64 --rounds 1",
    "options.sh": "--size 56",
}
"""What is put behind a call, so that it lasts a moment; of an option that is given twice the last counts."""

FEWER = {"SEEDS": "0", "STEGO_STEPS": "2"}
"""What variables of a call are set to instead."""


def documented():
    """Return every call of a benchmark in a document, once, as (variables, script, words); a bare name is no call."""
    found = {}
    for page in PAGES:
        for code in code_in_text(page):
            for variables, python, script, words in CALL.findall(code):
                if python or words:
                    found[variables.strip(), script, words.strip()] = None
    return list(found)


def labelled_folder(root, classes, splits=("train", "val")):
    """Write striped pictures of some classes, whose names begin with those of two drives of CamVid."""
    for split in splits:
        for number in range(4):
            image, labels = stripes(number, list(range(classes)), 60, 84)
            name = f"{('0001TP', 'Seq05VD')[number % 2]}_{number:03d}.png"
            save(root / "images" / split / name, image)
            save(root / "labels" / split / name, labels.astype(np.uint8))
    names = ["background", *(f"class {number}" for number in range(1, classes))]
    (root / "classes.json").write_text(json.dumps({"classes": names, "void": 255}))
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the data sets that the documents speak of, all tiny, and weights."""
    folder = tmp_path_factory.mktemp("world")
    labelled_folder(folder / "camvid", 11, ("train", "val", "test"))
    for name, classes in (("fashion", 8), ("aerial", 4), ("street", 5)):
        labelled_folder(folder / name, classes)
    build("voc2012", folder / "VOCdevkit")
    write_vits14(folder / "vits14.safetensors")
    (folder / "docs/images").mkdir(parents=True)
    (folder / "unsupseg.toml").write_text(SHORT)
    (folder / "short.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def names(world, command_folder):
    """What the names in capitals stand for in a call: paths and ids of artifacts made on the way."""
    unsupseg = partial(run, world, f"{command_folder}/unsupseg")
    camvid = ("--dataset", "camvid", "--root", "camvid", "--backbone", "tiny")
    features = unsupseg(
        "extract", *camvid, "--split", "train", "--keep", "patch,cls,pooled,attention,key,cls_query"
    )
    graph = unsupseg("graph", "--features", features)
    validation = unsupseg("extract", *camvid, "--split", "val")
    proposals = unsupseg("pseudolabel", "--method", "primaps", "--features", features)
    clusters = unsupseg("pseudolabel", "--method", "kmeans", "--features", features)
    model = unsupseg("train", "--pseudolabels", clusters)
    codes = unsupseg("train", "--method", "stego", "--features", features, "--graph", graph)
    pyramid = unsupseg("extract", *camvid, "--split", "train", "--regions", "pyramid", "--keep", "cls,patch")
    anchors = unsupseg(
        *("extract", *camvid, "--split", "train"),
        *("--regions", "anchors", "--embed", "masked", "--foreground-share", "0"),
    )
    evaluation = unsupseg("eval", "--no-crf", "--model", model, "--features", validation)
    scores = unsupseg(
        "predict", *camvid[:4], "--split", "val", "--model", model, "--keep", "scores", "--no-overlay"
    )
    backbone = unsupseg("pretrain", "camvid/images/train", "--start", "tiny")
    return {
        "boundaries.py": {"ROOT": "camvid", "MODEL...": Path(model).name},
        "backbone.py": {"...": "camvid camvid tiny", "first=FOLDER_OF_FIRST": f"first={backbone}"},
        "code_norms.py": {"MODEL": Path(codes).name},
        "context_ablations.py": {"REGIONS": pyramid},
        "mask_quality.py": {"...": "camvid camvid"},
        "options.sh": {"scenes": "camvid --root camvid"},
        "placement.py": {"...": "camvid:train:camvid fashion/:val"},
        "store.py": {"...": proposals},
        "stego_pairs.py": {
            "NAME=FEATURES:GRAPH": f"camvid={features}:{graph}",
            "...": f"again={features}:{graph}",
        },
        "transfgu_ablation.py": {"REGIONS": anchors},
        "": {
            "CAMVID_FOLDER": "camvid",
            "CAMVID_ROOT": "camvid",
            "CAMVID_ROOT/images/train": "camvid/images/train",
            "CAMVID_ROOT/images/val": "camvid/images/val",
            "CHECKOUT": str(ROOT),
            "CLASSES": "4",
            "DATA": ".",
            "DATASET": "street/",
            "EVALUATION...": evaluation,
            "FEATURES": features,
            "FILE": "vits14.safetensors",
            "GRAPH": graph,
            "IMAGES": "camvid/images/val/0001TP_000.png",
            "K": "5",
            "PREDICTIONS": scores,
            "PSEUDOLABELS": proposals,
            "SHARE": "0.1",
            "SIZE": "56",
            "SPLIT": "val",
            "VAL_FEATURES": validation,
            "VOC/JPEGImages": "VOCdevkit/VOC2012/JPEGImages",
            "VOC_ROOT": "VOCdevkit",
            "WORKSPACE": "unsupseg-workspace",
            "in-domain=FOLDER": f"in-domain={backbone}",
            "scenes": "street/",
        },
    }


def words_of(script, words, names):
    """Return the words of a documented call with what its names in capitals stand for, and what shortens it."""
    own = names[""] | names.get(script, {})
    said = [own.get(word, word) for word in shlex.split(words)]
    shorter = SHORTER.get(script, "")
    if script == "methods.py" and "--objects" not in words:  # the others run every method
        shorter += " --methods kmeans best"
    return [*(part for word in said for part in (shlex.split(word) or [word])), *shlex.split(shorter)]


@pytest.fixture
def benchmark(world, names, command_folder):
    """Run a documented call of a benchmark; words may be other than those that ``names`` has for them."""

    def call(variables, script, words, **others):
        path = ROOT / "benchmarks" / script
        python = sys.executable if "multiprocessing" in path.read_text() else command_folder / "python"
        given = dict(one.split("=") for one in shlex.split(variables))
        given |= {name: value for name, value in FEWER.items() if name in given}
        given["PATH"] = f"{command_folder}{os.pathsep}{os.environ['PATH']}"
        said = words_of(script, words, names | {script: names.get(script, {}) | others})
        run(world, python if path.suffix == ".py" else "bash", path, *said, **given)

    return call


ON_A_BUCKET = [call for call in documented() if "s3://" in call[2]]


@pytest.mark.parametrize(
    ("variables", "script", "words"), [call for call in documented() if call not in ON_A_BUCKET]
)
def test_documented_benchmarks_run(variables, script, words, benchmark):
    benchmark(variables, script, words)


@pytest.mark.parametrize(("variables", "script", "words"), ON_A_BUCKET)
def test_documented_benchmarks_on_a_bucket_run(variables, script, words, benchmark, bucket):
    benchmark(variables, script, words, **{"s3://BUCKET/PREFIX": bucket.address()})
