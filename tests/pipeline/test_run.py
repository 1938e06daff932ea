"""Recipes: reading, wiring, precedence; the dry run beside the run; what is reused and why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.pipeline.options import RunConfig
from unsupseg_cli.pipeline.pace import extrapolate, probe
from unsupseg_cli.pipeline.plan import plan
from unsupseg_cli.pipeline.recipe import resolve
from unsupseg_cli.pipeline.recipe_file import bundled, load_recipe
from unsupseg_cli.pipeline.run import outcomes, run

RECIPE = """
name = "small"
description = "k-means on a few pictures"

[data]
dataset = "{photos}/"
labels = "{photos}/labels"
class_file = "{photos}/classes.json"

[published]
accuracy = 90.0
miou = 80.5
source = "nowhere"

[[stage]]
command = "extract"
split = "train"
backbone = "untrained"
size = 32
workers = 0

[[stage]]
command = "pseudolabel"
method = "kmeans"
classes = 3
sheet = 0
set = {{ restarts = 1, iterations = 3 }}

[[stage]]
command = "train"
set = {{ steps = 4, restarts = 2, batch = 2 }}

[[stage]]
command = "eval"
split = "val"
workers = 0
sheet = 0
"""
STEPS = ["extract", "pseudolabel", "train", "eval"]


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for split, count in (("train", 5), ("val", 2)):
        for number in range(count):
            rng = np.random.default_rng(number + (split == "val") * 100)
            label = np.kron(rng.integers(0, 3, (2, 3)), np.ones((16, 16))).astype(np.uint8)
            image = np.stack([80 * label + 20, 200 - 60 * label, 40 * label], -1) + rng.integers(
                0, 20, (32, 48, 1)
            )
            for kind, pixels in (("images", image.astype(np.uint8)), ("labels", label)):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "void": [255]}))
    return root


@pytest.fixture
def recipe(tmp_path, photos):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(photos=photos))
    return path


def write(tmp_path, text):
    path = tmp_path / "other.toml"
    path.write_text(text)
    return path


def files(folder):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


# Reading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('split = "train"', 'splitt = "train"'), r"stage 1 \(extract\).*did you mean 'split'"),
        (("steps = 4", "step = 4"), r"stage 3 \(train\), set.*did you mean 'steps'"),
        (("size = 32", "size = 'big'"), r"extract\.size 'big' .*stage 1 \(extract\).*does not fit"),
        (("iterations = 3", "iterations = 0"), r"pseudolabel\.set\.iterations '0'.*stage 2"),
        (('method = "kmeans"', 'method = "kmean"'), r"stage 2 \(pseudolabel\): Unknown method.*'kmeans'"),
        (
            ('command = "train"', 'command = "trian"'),
            r"stage 3: unknown command 'trian'; did you mean 'train'",
        ),
        (('name = "small"', 'nmae = "small"'), "'nmae'.*did you mean 'name'"),
        (('name = "small"', ""), r"name is required \('.*other\.toml'\)"),
        (("labels =", "label ="), r"\[data\].*did you mean 'labels'"),
        (("miou = 80.5", "mious = 80.5"), r"\[published\].*did you mean 'miou'"),
        (("miou = 80.5", "miou = 805"), r"miou '805'.*\[published\]"),
        (('source = "nowhere"', 'evaluation = "evil"'), r"No evaluation 'evil'.*did you mean 'eval'"),
        (
            ('command = "train"', 'command = "train"\nfeatures = "extarct"'),
            "is no earlier stage that makes features",
        ),
        (('command = "train"', 'command = "train"\nid = "extract"'), "the id 'extract' is taken"),
        (("classes = 3", "classes = "), "is not valid TOML"),
        (('command = "pseudolabel"', 'command = "refine"'), r"stage 2 \(refine\).*(set|Unknown|reads)"),
    ],
)
def test_a_mistake_in_a_recipe_names_the_file_and_the_stage(tmp_path, recipe, change, said):
    assert change[0] in recipe.read_text()
    path = write(tmp_path, recipe.read_text().replace(*change, 1))
    with pytest.raises(UsageError, match=said) as caught:
        resolve(load_recipe(path))
    assert "other.toml" in str(caught.value) or "stage" in str(caught.value)


def test_a_recipe_that_is_not_there_is_said_with_a_suggestion(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'scenes-kmeans'"):
        load_recipe("scenes-kmean")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="The bundled one is called 'scenes-stego'"):
        load_recipe("scenes-stego.toml")


def test_a_stage_without_its_input_is_refused(tmp_path):
    path = write(tmp_path, 'name = "x"\ndescription = "y"\n[[stage]]\ncommand = "train"\nmethod = "stego"\n')
    with pytest.raises(UsageError, match="reads features, but no stage before it is `extract`"):
        resolve(load_recipe(path))
    path.write_text('name = "x"\ndescription = "y"\n[[stage]]\ncommand = "train"\n')
    with pytest.raises(UsageError, match="give a method, or a `pseudolabel` stage before it"):
        resolve(load_recipe(path))


@pytest.mark.parametrize("name", bundled())
def test_every_bundled_recipe_is_valid_and_named_as_its_file(name):
    recipe = load_recipe(name)
    steps = resolve(recipe)
    assert recipe.name == name
    last = "eval" if recipe.data else "predict"  # photos have no labels
    assert (steps[0].command, steps[-1].command) == ("extract", last)
    if recipe.data and not name.startswith("scenes-"):
        assert recipe.published.source
        assert recipe.paper
        assert steps[-1].config.crf == (not name.startswith("transfgu-"))
        assert steps[-1].config.protocol == published_protocol(name)
        assert (recipe.published.miou is None) == (name in WITHOUT_FIGURES)
    for step in steps:
        if step.command == "train" and step.config.method == "primaps":
            assert step.config.tokens == "live"


WITHOUT_FIGURES = ("stego-potsdam3-dino_vitb8", "maskdistill-coco20k-dino_vits16")


def published_protocol(name):
    if name.startswith("maskdistill-"):
        return "maskdistill"
    if name.startswith("transfgu-"):
        return "transfgu-cityscapes" if "cityscapes" in name else "transfgu"
    return "stego" if name.startswith("stego-") and "primaps" not in name else "primaps"


def test_an_input_is_the_last_of_its_kind_or_the_one_named():
    steps = {step.id: step for step in resolve(load_recipe("stego-primaps-cityscapes-dino_vitb8"))}
    names = ["extract", "graph", "stego", "codes", "tokens", "pseudolabel", "train-2", "eval", "eval-crf"]
    assert list(steps) == names
    assert steps["stego"].inputs == {"features": "extract", "graph": "graph"}
    assert steps["codes"].inputs == {"model": "stego"}
    assert steps["pseudolabel"].inputs == {"features": "tokens"}  # masks from the backbone, as published
    assert steps["train-2"].inputs == {"pseudolabels": "pseudolabel", "features": "codes"}
    assert steps["train-2"].config.method == "primaps"
    assert steps["eval"].inputs == {"model": "train-2"}


# Precedence -----------------------------------------------------------------------------------------------


def test_the_command_line_wins_over_the_recipe_and_that_over_the_settings(recipe):
    def defaults(command, fields):
        values = {"size": 99, "precision": "fp32", "device": "cpu", "method": "primaps", "seed": 5}
        return {key: value for key, value in values.items() if key in fields}

    given = RunConfig(seed=7, workers=1)
    steps = {one.id: one for one in resolve(load_recipe(recipe), given, {"train.steps": "9"}, defaults)}
    extract, train = steps["extract"].config, steps["train"].config
    assert (extract.size, extract.precision, extract.device, extract.workers) == (32, "fp32", "cpu", 1)
    assert (train.method, train.seed) == ("kmeans", 7)
    assert steps["train"].options.steps == 9
    assert steps["pseudolabel"].options.restarts == 1
    assert steps["train"].overridden == {"steps": 9}  # another seed is the same setting
    assert resolve(load_recipe(recipe), defaults=defaults)[2].config.seed == 5


def test_settings_for_other_images_or_weights_are_left_out():
    def defaults(command, fields):
        values = {"dataset": "camvid", "root": "/camvid", "backbone": "dino_vitb8", "weights": "/b8.pth"}
        return {key: value for key, value in values.items() if key in fields}

    step = resolve(load_recipe("kmeans-cityscapes-dino_vits8"), defaults=defaults)[0]
    assert (step.config.dataset, step.config.root, step.config.weights) == ("cityscapes", None, None)
    given = RunConfig(dataset="camvid", backbone="dino_vitb8")
    steps = resolve(load_recipe("kmeans-cityscapes-dino_vits8"), given, defaults=defaults)
    assert [str(steps[0].config.root), str(steps[0].config.weights)] == ["/camvid", "/b8.pth"]
    assert str(steps[-1].config.weights) == "/b8.pth"


def test_paths_are_relative_to_the_recipe_and_go_with_their_images(tmp_path):
    text = 'name = "x"\ndescription = "y"\n[data]\ndataset = "here/photos"\nlabels = "here/labels"\n'
    path = write(tmp_path, text + '[[stage]]\ncommand = "extract"\nweights = "w.pth"\n')
    (step,) = resolve(load_recipe(path))
    assert step.config.dataset == f"{tmp_path}/here/photos/"
    assert (step.config.labels, step.config.weights) == (tmp_path / "here/labels", tmp_path / "w.pth")
    (step,) = resolve(load_recipe(path), RunConfig(dataset="camvid"))
    assert (step.config.dataset, step.config.labels) == ("camvid", None)


def test_the_documentation_has_the_published_figures_of_every_recipe():
    text = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text().replace(" (unverified)", "")
    for name in bundled():
        published = load_recipe(name).published
        figures = (
            f"{published.accuracy} / {published.miou}" if published.accuracy else f"mIoU {published.miou}"
        )
        assert name in text or name.split("-")[0] in ("kmeans", "primaps")
        assert published.miou is None or figures in text


def test_an_assignment_goes_to_a_stage_by_id_or_to_all_of_a_command():
    recipe = load_recipe("stego-primaps-cityscapes-dino_vitb8")
    steps = {one.id: one for one in resolve(recipe, assignments={"train.batch": 8, "stego.steps": 3})}
    assert (steps["stego"].options.batch, steps["train-2"].options.batch) == (8, 8)
    assert steps["stego"].options.steps == 3
    steps = {one.id: one for one in resolve(recipe, assignments={"train.epochs": 1, "eval-crf.flip": False})}
    assert steps["train-2"].options.epochs == 1  # STEGO has no epochs
    assert (steps["eval"].config.flip, steps["eval-crf"].config.flip) == (None, False)
    for name, said in (
        ("train.epoch", "did you mean 'epochs'"),
        ("trian.epochs", "no stage 'trian'; did you mean 'train'"),
        ("epochs", "STAGE.key=value"),
        ("train.features", "Unknown option 'features'"),
    ):
        with pytest.raises(UsageError, match=said):
            resolve(recipe, assignments={name: 1})


# Run and dry run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 0.5])
def test_the_dry_run_knows_the_artifacts_and_their_sizes_and_writes_nothing(
    tmp_path, recipe, monkeypatch, position
):
    recipe.write_text(recipe.read_text().replace("size = 32", f"size = 32\nposition = {position}"))
    channels = 194 if position else 192
    steps = resolve(load_recipe(recipe))
    context = Context(Workspace(tmp_path / "w"))
    planned = plan(steps, context)
    assert not (tmp_path / "w").exists()
    assert not any(one.reused for one in planned)
    assert [one.images for one in planned] == [5, 5, 5, 2]
    assert (
        planned[0].bytes == 5 * 2 * 3 * channels * 2 + 2 * 5 * 192 * 4
    )  # tokens in 2 bytes, cls and pooled in 4
    assert planned[1].bytes == 5 * (2 * 3 * 2 + 16)  # maps of the tokens' grid are too small to shrink
    made = run(steps, context)
    sizes = {
        name: output.bytes
        for name, output in made["extract"].manifest.outputs.items()
        if name.split("/")[0] in ("patch", "cls", "pooled") and "/c/" in name
    }
    assert planned[0].bytes <= sum(sizes.values()) <= planned[0].bytes + 1000  # the shards' own tables
    before = files(tmp_path / "w")
    again = plan(steps, context)
    assert files(tmp_path / "w") == before
    assert all(one.reused for one in again)
    assert [one.artifact.id for one in again] == [made[step.id].id for step in steps]
    assert sum(one.bytes for one in again) == 0

    # Everything gone but the first artifact: the keys of the rest are foretold without loading weights.
    monkeypatch.setattr("unsupseg_cli.contents.backbone.load_backbone", None)
    for kind in ("pseudolabels", "model", "evaluation"):
        shutil.rmtree(tmp_path / "w" / kind)
    foretold = plan(steps, context)
    assert [one.reused for one in foretold] == [True, False, False, False]
    assert [one.artifact.manifest.key for one in foretold] == [made[step.id].manifest.key for step in steps]


def test_the_dry_run_says_why_and_how_long(tmp_path, recipe):
    context = Context(Workspace(tmp_path / "w"))
    run(resolve(load_recipe(recipe)), context)
    planned = plan(resolve(load_recipe(recipe), assignments={"train.steps": 8}), context)
    assert [one.reused for one in planned] == [True, True, False, False]
    assert "options.steps = 8 (was 4)" in planned[2].why
    assert "its model (new)" in planned[3].why
    model = next(one for one in Workspace(tmp_path / "w").artifacts("model"))
    assert planned[2].seconds == pytest.approx(2 * model.manifest.seconds)
    planned = plan(resolve(load_recipe(recipe), assignments={"extract.size": 64}), context)
    assert "size = 64 (was 32)" in planned[0].why
    assert planned[0].seconds is None
    assert "its features (new)" in planned[1].why
    planned = plan(resolve(load_recipe(recipe)), context, first="train")
    assert [one.reused for one in planned] == [True, True, False, False]
    assert "--from" in planned[2].why


def test_a_probe_tells_the_times_that_no_run_does(tmp_path, recipe):
    context = Context(Workspace(tmp_path / "w"))
    steps = resolve(load_recipe(recipe))
    assert {one.seconds for one in plan(steps, context)} == {None}
    probed = probe(steps, context)
    assert not (tmp_path / "w").exists()
    planned = plan(steps, context, probed=probed)
    assert all(one.seconds > 0 for one in planned)
    made = run(steps, context)
    again = plan(steps, context, first=steps[0].id, probed=probed)
    past = [made[step.id].manifest.seconds for step in steps]
    assert [one.seconds for one in again] == pytest.approx(past)


def test_a_line_through_two_runs_tells_the_third():
    assert extrapolate([(12, 5.0), (4, 3.0)], 100) == pytest.approx(27)  # 2 s fixed, 1/4 s each
    assert extrapolate([(4, 3.0), (12, 2.5)], 100) == 2.5  # noise: no slope is known
    assert extrapolate([(4, 3.0), (4, 2.0)], 4) == 3.0


def test_changed_images_and_drafts_are_seen_by_the_dry_run(tmp_path, recipe, photos):
    context = Context(Workspace(tmp_path / "w"))
    made = run(resolve(load_recipe(recipe)), context)
    folder = tmp_path / "w" / "model"
    key = made["train"].manifest.key
    shutil.rmtree(made["train"].path)
    (folder / f".partial-{key[:16]}").mkdir()
    assert "goes on where it stopped" in plan(resolve(load_recipe(recipe)), context)[2].why
    Image.new("RGB", (48, 32)).save(photos / "images" / "train" / "0.png")
    assert "the images" in plan(resolve(load_recipe(recipe)), context)[0].why
    Image.fromarray(np.zeros((32, 48), np.uint8)).save(photos / "labels" / "val" / "0.png")
    shutil.rmtree(folder / f".partial-{key[:16]}")
    (photos / "images" / "train" / "1.png").unlink()
    planned = plan(resolve(load_recipe(recipe)), context)
    assert planned[0].images == 4


def test_weights_from_a_file_are_known_until_the_file_changes(tmp_path, recipe):
    network = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    recipe.write_text(recipe.read_text().split('[[stage]]\ncommand = "pseudolabel"')[0])
    steps = resolve(load_recipe(recipe), RunConfig(backbone="timm:vit_tiny_patch16_224", weights=file))
    context = Context(Workspace(tmp_path / "w"))
    assert plan(steps, context)[0].to_json()["artifact"] is None  # nobody knows the weights' digest yet
    made = run(steps, context)["extract"]
    assert plan(steps, context)[0].artifact.id == made.id
    assert plan(steps, context)[0].reused
    file.touch()
    assert "the weights, which were not used here yet" in plan(steps, context)[0].why
    assert run(steps, context)["extract"].manifest.started == made.manifest.started
    assert plan(steps, context)[0].reused


def test_run_reuses_and_makes_again_from_a_stage(tmp_path, recipe):
    context = Context(Workspace(tmp_path / "w"))
    steps = resolve(load_recipe(recipe))
    first = run(steps, context)
    times = {name: (one.path / "manifest.json").stat().st_mtime_ns for name, one in first.items()}
    second = run(steps, context, first="train")
    later = {name: (one.path / "manifest.json").stat().st_mtime_ns for name, one in second.items()}
    assert [later[name] > times[name] for name in STEPS] == [False, False, True, True]
    assert [one.manifest.digest for one in first.values()] == [one.manifest.digest for one in second.values()]
    with pytest.raises(UsageError, match="no stage 'trian'; did you mean 'train'"):
        run(steps, context, first="trian")


def test_inputs_are_never_the_current_ones_of_the_workspace(tmp_path, recipe):
    context = Context(Workspace(tmp_path / "w"))
    first = run(resolve(load_recipe(recipe)), context)
    other = run(resolve(load_recipe(recipe), assignments={"extract.size": 64}), context)
    assert context.workspace.current("model").id == other["train"].id
    again = run(resolve(load_recipe(recipe)), context)
    assert [again[name].id for name in STEPS] == [first[name].id for name in STEPS]


def test_a_run_that_stopped_goes_on(tmp_path, recipe, monkeypatch):
    context = Context(Workspace(tmp_path / "w"))
    steps = resolve(load_recipe(recipe))

    def stop(*arguments, **named):
        raise UnsupsegError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr("unsupseg_cli.training.loop.fit", stop)
        with pytest.raises(UnsupsegError, match="stopped here"):
            run(steps, context)
    begun = {one.id: one.manifest.started for one in context.workspace.artifacts()}
    made = run(steps, context)
    assert {name: made[name].manifest.started for name in STEPS[:2]} == {
        name: begun[made[name].id] for name in STEPS[:2]
    }


def test_the_result_stands_beside_the_published_figure(call, recipe, tmp_path):
    path, said = call("run", recipe)
    assert Path(path).parent.name == "evaluation"
    summary = json.loads((Path(path) / "manifest.json").read_text())["summary"]
    assert "published 90.0 80.5" in said
    assert f"{100 * summary['miou'] - 80.5:+.1f}" in said
    assert "compare with care" not in said
    _, said = call("run", recipe, "--set", "train.steps=5", "--seed", 0)
    assert "not the setting of the recipe (train.steps = 5)" in said


def test_the_dry_run_of_the_command_prints_a_table_or_json(call, recipe, tmp_path):
    printed, said = call("run", recipe, "--dry-run")
    assert printed.count("would run") == 4
    assert "free" in said
    value = json.loads(call("run", recipe, "--dry-run", "--json")[0])
    assert [one["stage"] for one in value["stages"]] == STEPS
    assert value["bytes"] == sum(one["bytes"] for one in value["stages"])
    value = json.loads(call("run", recipe, "--dry-run", "--json", "--measure")[0])
    assert all(one["seconds"] > 0 for one in value["stages"])
    assert not list((tmp_path / "here").iterdir())
    assert "it goes with --dry-run" in call("run", recipe, "--measure", code=2)[1]
    _, said = call("run", recipe, "--dry-run", "--explain", "--set", "train.steps=6")
    assert "train.set.steps = 6 (command line)" in said
    assert "stage 1 (extract)) extract.size" in said or "extract.size = 32" in said
    assert "train.pseudolabels = stage pseudolabel (recipe)" in said


def test_bad_calls_of_run_exit_with_2(call, recipe):
    assert "did you mean 'train'" in call("run", recipe, "--from", "trian", "--dry-run", code=2)[1]
    assert "did you mean 'steps'" in call("run", recipe, "--set", "train.stepps=1", code=2)[1]
    assert "Where does 'cityscapes' lie?" in call("run", "kmeans-cityscapes-dino_vits8", code=2)[1]
    assert "exclude" not in call("recipes", "show", "none", code=2)[1]


def test_recipes_are_listed_and_shown(call):
    listed = json.loads(call("recipes", "list", "--json")[0])
    assert {row["name"] for row in listed} == set(bundled())
    row = next(row for row in listed if row["name"] == "primaps-cityscapes-dinov2_vitb14")
    assert (row["dataset"], row["backbone"], row["accuracy"], row["miou"]) == (
        "cityscapes",
        "dinov2_vitb14",
        82.9,
        21.3,
    )
    table = call("recipes", "list")[0]
    assert "primaps-cityscapes-dinov2_vitb14" in table
    (detector,) = (line for line in table.splitlines() if "maskdistill-coco20k" in line)
    assert detector.split()[-1] == "15.3"  # average precision
    shown, said = call("recipes", "show", "scenes-stego")
    place = said.removeprefix("the recipe is '").removesuffix("'")
    assert shown + "\n" == Path(place).read_text()


def test_a_refined_chain_is_wired_and_planned(tmp_path, recipe):
    text = recipe.read_text()
    head, tail = (
        text[: text.index('[[stage]]\ncommand = "pseudolabel"')],
        text[text.index('[[stage]]\ncommand = "eval"') :],
    )
    middle = """
[[stage]]
command = "pseudolabel"
method = "primaps"
classes = 3
keep = "scores"
set = { crf = false }

[[stage]]
command = "refine"
pseudolabels = "pseudolabel"
iterations = 1

[[stage]]
command = "train"
set = { epochs = 1, batch = 2 }

[[stage]]
command = "predict"
split = "val"
keep = "scores"
workers = 0

[[stage]]
id = "sharper"
command = "refine"
iterations = 1

"""
    path = write(
        tmp_path, head + middle + tail.replace("workers = 0", 'workers = 0\npredictions = "sharper"')
    )
    steps = resolve(load_recipe(path))
    assert steps[3].inputs == {"pseudolabels": "refine", "features": "extract"}
    assert steps[6].inputs == {"predictions": "sharper"}
    context = Context(Workspace(tmp_path / "w"))
    planned = plan(steps, context)
    made = run(steps, context)
    for step in planned[1:3]:  # label maps are compressed, so that their size is only about known
        outputs = made[step.step.id].manifest.outputs
        size = sum(output.bytes for name, output in outputs.items() if name.startswith("labels/c/"))
        assert 0 < size < 2 * step.bytes
    scores = 2 * 32 * 48 * 3 * 2
    assert scores < planned[4].bytes < 1.2 * scores  # with maps and pictures
    assert [one.artifact.id for one in plan(steps, context)] == [made[step.id].id for step in steps]
    assert all(one.reused for one in plan(steps, context))
    (found,) = outcomes(steps, made, load_recipe(path).published)
    assert found.accuracy == 100 * made["eval"].manifest.summary["accuracy"]


@pytest.mark.parametrize("root", [(), ("--root", "nowhere"), ("--root", ".")])
def test_the_dry_run_without_the_images_is_the_plan_without_sizes(call, root):
    printed, said = call("run", "kmeans-cityscapes-dinov2_vits14", "--dry-run", *root)
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert [(row[0], row[3], row[4]) for row in rows][:2] == [
        ("extract", "2,975", "unknown"),
        ("train", "2,975", "unknown"),
    ]
    assert rows[-1][1:4] == ["would", "run", "500"]
    assert "Sizes and times are told once the images are there." in said
    value = json.loads(call("run", "kmeans-cityscapes-dinov2_vits14", "--dry-run", "--json", *root)[0])
    assert value["bytes"] is None
    assert "nowhere" in call("run", "kmeans-cityscapes-dinov2_vits14", "--root", "nowhere", code=2)[1]
