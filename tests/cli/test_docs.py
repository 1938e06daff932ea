"""What the documents name is there: files, commands, options; the blocks of the first pages run."""

import json
import re
import shlex
from pathlib import Path
from string import Template

import numpy as np
import pytest
import rasterio
import typer
from fixtures.documents import PAGES, ROOT
from fixtures.layouts import potsdam_tiles
from fixtures.pictures import save
from fixtures.short import SHORT_STAGES
from PIL import Image
from rasterio.transform import from_origin

from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.contents.features import FeatureSet
from unsupseg_cli.exchange.table import FORMATS
from unsupseg_cli.methods.registry import BUNDLED

CODE = re.compile(r"```.*?```|`[^`]+`|^    \S.*?$", re.DOTALL | re.MULTILINE)
"""Fenced blocks, spans and indented lines."""


def calls(text, program):
    """Return the calls of a program in the code of a page: what follows its name, up to the end of the command."""
    code = "\n".join(found.strip("`") for found in CODE.findall(text.replace("\\\n", " ")))
    return re.findall(rf"{program}((?: +[^\s|&)#;`]+)*)", code)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("http") or (ROOT / page).parent.joinpath(link).exists(), link


def slug(heading):
    """Return the anchor that a heading has."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_to_headings_lead_to_headings(page):
    for link, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", (ROOT / page).read_text()):
        target = (ROOT / page).parent / link if link else ROOT / page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        assert anchor in map(slug, headings), f"{link}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    whole = typer.main.get_command(app)
    context = whole.make_context("unsupseg", [], resilient_parsing=True)
    for call in calls((ROOT / page).read_text(), r"(?<![\w/.-])unsupseg"):
        words, command = call.split(), whole
        while words and hasattr(command, "get_command") and not words[0].startswith(("COMMAND", "--")):
            command = command.get_command(context, words.pop(0))
            assert command is not None, f"unsupseg{call}"
        known = {"--help"}.union(*(option.opts + option.secondary_opts for option in command.params))
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in known, f"unsupseg{call}: {option}"


@pytest.mark.parametrize("page", PAGES)
def test_benchmarks_and_their_options_exist(page):
    text = (ROOT / page).read_text()
    for name in re.findall(r"benchmarks/[\w.]+\w", text):
        assert (ROOT / name).exists(), name
    extract = typer.main.get_command(app).get_command(None, "extract")
    passed_on = {option for param in extract.params for option in param.opts}
    for name, call in re.findall(r"(benchmarks/\w+\.py)((?:\s+[^\s`|;,)]+)*)", text.replace("\\\n", " ")):
        source = (ROOT / name).read_text()
        others = passed_on if "parse_known_args" in source else ()
        for option in re.findall(r"--[\w-]+", call):
            assert f'"{option}"' in source or option in others, f"{name}{call}: {option}"


def test_the_messages_of_the_troubleshooting_page_are_ours():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", page.split("## Messages")[1].split("##")[0], re.MULTILINE)
    source = "".join(path.read_text() for path in [*ROOT.glob("unsupseg_cli/**/*.py"), ROOT / "Makefile"])
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    assert len(rows) > 10
    for message in (message for row in rows for message in re.findall(r"`([^`]+)`", row)):
        for part in message.split("..."):
            assert part.strip("' ") in source, message


SHORT = f"""
backbone = "untrained"
workers = 0
[extract]
size = 208
{SHORT_STAGES}
"""


SMALL_VIEWS = "size = 96\nforeground_share = 0"


@pytest.fixture
def photos():
    """Fill the working folder with what the first pages speak of: pictures of three grounds, their labels."""
    Path("unsupseg.toml").write_text(SHORT)
    classes = [{"name": "near", "id": 0}, {"name": "far", "id": 1}]
    Path("classes.json").write_text(json.dumps({"classes": classes}))
    labels = np.repeat(np.array([1, 0], np.uint8), 24)[:, None].repeat(64, 1)
    for number in range(3):
        save(Path(f"photos/{number}.png"), grounds(number))
        save(Path(f"masks/{number}.png"), labels)
    save(Path("more-photos/0.png"), grounds(0))


def grounds(number):
    """Return a picture of three grounds, with noise of its own."""
    colors = np.repeat([(70, 110, 200), (60, 140, 50), (120, 120, 120)], 16, axis=0)[:, None]
    noise = np.random.default_rng(number).integers(-40, 40, (48, 64, 1))
    return (colors + noise).astype(np.uint8)


def lines_of(page):
    """Return the lines of the shell blocks of a page, without remarks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md", "docs/your-images.md"])
def test_the_blocks_of_the_first_pages_run(page, call, photos):
    lines = [shlex.split(line) for line in lines_of(page)]
    ours = [words[1:] for words in lines if words[0] == "unsupseg"]
    assert {words[0] for words in lines} <= {"unsupseg", "docker", "make", "pip"}
    assert len(ours) > 5
    for words in ours:
        call(*words)


@pytest.fixture
def labelled(photos):
    """Add what the page on data sets speaks of: labels in two encodings, masks in two forms, tiles of Potsdam."""
    colors = np.array([(200, 0, 0), (0, 0, 200)], np.uint8)
    Path("labelmap.txt").write_text("# label:color_rgb:parts:actions\nnear:200,0,0::\nfar:0,0,200::\n")
    size = {"width": 64, "height": 48}
    images = [{"id": number, "file_name": f"{number}.png", **size} for number in range(3)]
    box = {"bbox": [8, 8, 24, 16], "area": 384, "segmentation": [[8, 8, 32, 8, 32, 24, 8, 24]], "iscrowd": 0}
    masks = [{"id": number, "image_id": number, "category_id": 1, **box} for number in range(3)]
    coco = {"images": images, "annotations": masks, "categories": [{"id": 1, "name": "box"}]}
    for name in ("masks.json", "instances.json"):
        Path(name).write_text(json.dumps(coco))
    for path in Path("masks").iterdir():
        labels = np.asarray(Image.open(path))
        save(Path("photos/labels", path.name), labels)
        save(Path("annotated", f"{path.stem}_mask.png"), colors[labels])
        save(Path("label-maps", path.name), np.roll(labels, 8, axis=0))
    potsdam_tiles(Path("ISPRS_DOWNLOAD"))


def run_lines(call, lines):
    """Run lines of a page as a shell would: calls in a row, and what they print in variables; return these."""
    variables = {}
    for line in lines:
        for part in line.split(" && "):
            assigned = re.fullmatch(r"(\w+)=\$\((.*)\)", part)
            command = Template(assigned[2] if assigned else part).substitute(variables)
            program, *words = shlex.split(command)
            assert program == "unsupseg"
            said, _ = call(*words)
            if assigned:
                variables[assigned[1]] = said
    return variables


def test_the_blocks_of_the_page_on_data_sets_run(call, labelled):
    variables = run_lines(call, lines_of("docs/datasets.md"))
    assert {"MODEL", "MASKS", "NAMING"} == variables.keys()


@pytest.mark.parametrize("method", sorted(BUNDLED))
def test_the_blocks_of_the_pages_of_methods_run(method, call, photos):
    Path("unsupseg.toml").write_text(SHORT.replace("size = 208", SMALL_VIEWS))
    for number in range(24 if method == "maskdistill" else 0):  # a mask each, for 20 clusters
        save(Path(f"photos/{number}.png"), grounds(number))
    run_lines(call, lines_of(f"unsupseg_cli/methods/{method}/README.md"))
    models = Workspace(Path("unsupseg-workspace")).artifacts("model")
    assert {model.manifest.config["method"] for model in models} == {method}


def test_the_blocks_of_the_page_on_exchange_run(call, photos):
    call("extract", "photos/", "--size", 64)
    call("pseudolabel", "--classes", 6)
    call("train")
    made = {"PREDICTIONS": call("predict", "photos/", "--keep", "scores")[0]}
    made["REFINED"], _ = call("refine", "--iterations", 1)
    for line in lines_of("docs/exchange.md"):
        words = shlex.split(line)[1:]
        path, _ = call(*(made.get(word, word) for word in words))
        if words[1] == "merge":
            made["MODEL"] = path
    for name in ("labels.json", "yolo/data.yaml", "named/classes.json"):
        assert Path(name).exists()
    table = (ROOT / "docs/exchange.md").read_text().split("| `--format` |")[1]
    rows = re.findall(r"^\| `([^|]+)` \|", table, re.MULTILINE)
    assert {name for row in rows for name in row.split("`, `")} == set(FORMATS)


def test_the_blocks_of_the_page_of_first_tries_run(call, photos):
    mosaic = np.tile(grounds(0), (4, 4, 1)).transpose(2, 0, 1)
    ground = {"crs": "EPSG:32633", "transform": from_origin(392000, 5820000, 0.5, 0.5)}
    Path("ortho").mkdir()
    bands, height, width = mosaic.shape
    shape = {"count": bands, "height": height, "width": width, "dtype": "uint8"}
    with rasterio.open("ortho/city.tif", "w", **shape, **ground) as raster:
        raster.write(mosaic)
    Path("frames").symlink_to("photos")
    Path("labels").symlink_to("masks")
    run_lines(
        call, [line.replace("--windows 500", "--windows 128") for line in lines_of("docs/first-tries.md")]
    )
    for name in (
        "photos-segmented/classes.png",
        "ortho-segmented/geo/city.tif",
        "classes.gpkg",
        "report.html",
    ):
        assert Path(name).exists()


@pytest.mark.parametrize("store_dtype", ["float16", "int8"])
@pytest.mark.parametrize("widths", [(64, 64, 64), (64, 96, 64)], ids=["one size", "several sizes"])
def test_the_files_are_read_as_the_page_of_artifacts_says(widths, store_dtype, call, capsys):
    Path("unsupseg.toml").write_text(SHORT)
    Path("photos").mkdir()
    for number, width in enumerate(widths):
        noise = np.random.default_rng(number).integers(0, 255, (48, width, 3), np.uint8)
        Image.fromarray(noise).save(f"photos/{number}.png")
    for words in (
        ("extract", "photos/", "--size", 64, "--store-dtype", store_dtype),
        ("pseudolabel", "--classes", 2),
        ("train",),
        ("predict", "photos/"),
    ):
        call(*words)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/artifacts.md").read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert capsys.readouterr().out.startswith("0.png (4, 5, 192) {'class ")
    (features,) = Workspace(Path("unsupseg-workspace")).artifacts("features")
    np.testing.assert_allclose(names["tokens"], FeatureSet(features).tokens([0])[0], atol=1e-6)
    assert names["labels"].shape == (48, 64)
    assert names["layers"].shape == (1, 4, 5)
    assert set(np.unique(names["layers"])) <= {-1, 0, 1}
