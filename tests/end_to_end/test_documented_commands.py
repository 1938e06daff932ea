"""The commands that the text of the documents names run as they stand there, but for what makes them long."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest
from fixtures.documents import PAGES, code_in_text
from fixtures.pictures import noise, save
from fixtures.programs import run
from fixtures.short import SHORT
from fixtures.weights import write_vits14

pytestmark = pytest.mark.documents

RECIPE = """
name = "my-setting"
description = "k-means on my photos"
[data]
dataset = "photos/"
[[stage]]
command = "extract"
[[stage]]
id = "masks"
command = "pseudolabel"
method = "kmeans"
classes = 3
[[stage]]
command = "train"
[variant.large]
description = "longer"
masks.set.restarts = 2
"""
BEHIND = {
    "unsupseg classes color": "0=red",
    "unsupseg demo": "--backbone untrained",
    "unsupseg eval --features VAL": "--model MODEL",
    "unsupseg eval --linear-probe": "--dataset set/ --split val --model MODEL",
    "unsupseg eval-masks": "--pseudolabels PROPOSALS",
    "unsupseg export": "--out model.onnx --frame 64x64",
    "unsupseg export --out classes.onnx --frame 512x512 --layout nchw": "--frame 64x64",
    "unsupseg pretrain --dataset CAMVID_ROOT/images/train --start tiny --steps 200 --learning-rate 5e-4": "--steps 1",
    "unsupseg pretrain --start tiny": "photos/",
    "unsupseg pretrain photos/ --hours 8": "--hours 0.0001",
    "unsupseg pseudolabel --method maskdistill --part filter": "--pseudolabels PSEUDOLABELS --model MODEL",
    "unsupseg segment --classes 8": "photos/",
    "unsupseg segment photos/ --backbone dinov2_vits14": "--weights vits14.safetensors",
    "unsupseg train --method primaps --masks ID": "--features FEATURES",
}
"""What is put behind a command: what the text around it says, or what shortens it."""
BEFORE = {
    "unsupseg classes merge --to 12": ("pseudolabel --classes 14 --features FEATURES", "train"),
    "unsupseg classes merge --to K": ("pseudolabel --classes 4 --features FEATURES", "train"),
    "unsupseg refine": ("predict photos/ --keep scores --model MODEL",),
    "unsupseg train": ("pseudolabel --classes 3 --features FEATURES",),
    "unsupseg train --tensorboard runs/one": ("pseudolabel --classes 3 --features FEATURES",),
}
"""What is done before a command."""


def documented():
    """Return the commands in the text of all pages, once each."""
    codes = [code for page in PAGES for code in code_in_text(page) if code.startswith("unsupseg ")]
    return list(dict.fromkeys(codes))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the pictures, labels and files that the documents speak of, all small."""
    folder = tmp_path_factory.mktemp("world")
    noise(folder / "photos", {f"{number}.png": (48, 64) for number in range(4)})
    noise(folder, {"more-photos/a.jpg": (48, 64), "more/a.jpg": (48, 64), "big.jpg": (48, 1100)})
    noise(folder, {"ortho/0.tif": (600, 64)})
    noise(folder / "CAMVID/images/train", {"0.png": (96, 96), "1.png": (96, 96)})
    labels = np.repeat(np.array([0, 1], np.uint8), 24)[:, None].repeat(64, 1)
    for split in ("train", "val"):
        for path in (folder / "photos").iterdir():
            (folder / "set/images" / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "set/images" / split)
            save(folder / "set/labels" / split / path.name, labels)
            save(folder / "masks" / path.name, np.roll(labels, 8, axis=0))
    (folder / "set/classes.json").write_text(json.dumps({"classes": ["near", "far"]}))
    write_vits14(folder / "vits14.safetensors")
    (folder / "unsupseg.toml").write_text(SHORT)
    (folder / "my.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def names(world, command):
    """What the names in capitals stand for."""
    features = command("extract --dataset set/ --split train --keep patch,cls,pooled,key,cls_query")
    validation = command("extract --dataset set/ --split val")
    command(f"graph --features {features}")
    model_of_codes = command(f"train --method stego --classes 3 --features {features}")
    proposals = command(f"pseudolabel --method primaps --classes 3 --features {features}")
    soft = command(f"pseudolabel --method primaps --keep scores --classes 3 --features {features}")
    objects = command(f"pseudolabel --method maskdistill --part masks --features {features}")
    masks = command("import-masks masks --dataset set/ --split train")
    clusters = command(f"pseudolabel --method kmeans --classes 3 --features {features}")
    model = command(f"train --pseudolabels {clusters}")
    evaluation = command(f"eval --model {model} --features {validation}")
    return {
        "backbones show NAME": "backbones show tiny",
        "datasets show NAME": "datasets show scenes",
        "methods show NAME": "methods show kmeans",
        "--pseudolabels ID": f"--pseudolabels {soft}",
        "--masks ID": f"--masks {masks} --classes 3",
        "--remove ID": f"--remove {objects}",
        "show ID": f"show {model}",
        "> docs/deviations.md": "",
        "samples/scenes/images/train/street_*.jpg": "photos/*.png",
        "CAMVID_ROOT": "CAMVID",
        "COMMAND": "extract",
        "DIR": "set",
        "EVAL...": evaluation,
        "FEATURES": features,
        "METHOD": "kmeans",
        "MODEL": model,
        "PHOTOS": "photos/",
        "PROPOSALS": proposals,
        "PSEUDOLABELS": clusters,
        "RECIPE": "my.toml:large",
        "STEGO_ID": model_of_codes,
        "VAL": validation,
        "2K": "6",
        "K": "3",
    }


@pytest.fixture(scope="module")
def command(world, command_folder):
    """Run a command in the world; return the last line that it prints."""
    return lambda line: run(world, command_folder / "unsupseg", *shlex.split(line))


@pytest.mark.parametrize("line", documented())
def test_documented_commands_run(line, names, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/bash")
    for said in (*BEFORE.get(line, ()), f"{line} {BEHIND.get(line, '')}"):
        for name, value in names.items():
            said = re.sub(rf"(?<![A-Z0-9]){re.escape(name)}(?![A-Z])", value, said)
        command(said.removeprefix("unsupseg "))
