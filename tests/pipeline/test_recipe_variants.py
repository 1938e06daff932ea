"""Variants of a recipe: what wins, how one is named, what is said of a mistake, and the text that `show` prints."""

import tomllib

import pytest
from typer.testing import CliRunner

from unsupseg_cli.cli.main import app
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.pipeline.recipe import resolve
from unsupseg_cli.pipeline.recipe_file import bundled, load_recipe
from unsupseg_cli.pipeline.recipe_text import recipe_text

RECIPE = """
# Photos of the garden.
name = "photos"  # of mine
description = "k-means on photos"

[data]
dataset = "photos/"

[published]
source = "nowhere"
accuracy = 50.0

[[stage]]
command = "extract"
backbone = "dino_vits8"
size = 320  # the shorter side
keep = [
    "patch",  # no others
]

# The masks.
[[stage]]
id = "masks"
command = "pseudolabel"
method = "kmeans"
set = { restarts = 3, sample = 50_000 }

[[stage]]
command = "train"

[stage.set]
# as many as there are
steps = 100
lr = 5e-3  # as in the paper

[[stage]]
command = "eval"
split = "val"

[variant.small]
description = 'the "small" one'

# Large is slow.
[variant.large]
description = "ViT-B"
published = { accuracy = 60.5, miou = 9.5 }
data.labels = "more/labels"
extract.backbone = "dino_vitb8"  # 85 M weights
extract.keep = ["patch", "pooled"]
masks.set.restarts = 5
train.set = { steps = 200 }
eval.split = "train"

# Never seen.
[variant.other]
eval.crf = true
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "photos.toml"
    path.write_text(RECIPE)
    return path


def steps(recipe):
    return [(step.id, step.command, step.config, step.options, dict(step.inputs)) for step in resolve(recipe)]


def test_a_variant_wins_over_its_file_value_by_value(recipe, tmp_path):
    large = load_recipe(f"{recipe}:large")
    assert (large.name, large.description) == ("photos-large", "k-means on photos, ViT-B")
    assert (large.backbone, large.reference) == ("dino_vitb8", f"{recipe}:large")
    assert large.data == {"dataset": f"{tmp_path}/photos/", "labels": f"{tmp_path}/more/labels"}
    assert (large.published.accuracy, large.published.miou, large.published.source) == (60.5, 9.5, "nowhere")
    extract, masks, train, evaluation = resolve(large)
    assert (extract.config.backbone, extract.config.size) == ("dino_vitb8", 320)
    assert extract.config.keep == ("patch", "pooled")
    assert (masks.options.restarts, masks.options.sample) == (5, 50_000)
    assert (train.options.steps, train.options.lr) == (200, 5e-3)
    assert evaluation.config.split == "train"
    other = load_recipe(f"{recipe}:other")
    assert (other.description, other.backbone) == ("k-means on photos", "dino_vits8")
    assert resolve(other)[1].options.restarts == 3


def test_a_file_with_variants_runs_as_one_of_them(recipe):
    with pytest.raises(
        UsageError, match=r"name one of them, such as '.*photos\.toml:small'.*small, large, o"
    ):
        load_recipe(recipe)
    with pytest.raises(UsageError, match=r"photos\.toml' has no variant 'lagre'; did you mean 'large'"):
        load_recipe(f"{recipe}:lagre")
    recipe.write_text(RECIPE.split("[variant.small]")[0])
    assert load_recipe(recipe).name == "photos"
    with pytest.raises(UsageError, match=r"has no variants: give '.*photos\.toml' alone"):
        load_recipe(f"{recipe}:large")


def test_a_bundled_recipe_that_is_taken_for_a_file_is_called_by_its_name():
    with pytest.raises(UsageError, match="The bundled one is called 'kmeans-potsdam3-dino_vits8'"):
        load_recipe("kmeans.toml:potsdam3-dino_vits8")
    with pytest.raises(UsageError, match="The bundled one is called 'kmeans-potsdam3-dino_vits8'"):
        load_recipe("kmeans-potsdam3-dino_vits8.toml")
    with pytest.raises(UsageError, match=r"No bundled recipe 'kmeans'.*kmeans-cityscapes-dino_vits8"):
        load_recipe("kmeans")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("extract.backbone", "extract.command"), r"\[variant\.large\]: the command of a stage is the same"),
        (
            ("extract.backbone", "extarct.backbone"),
            r"\[variant\.large\]: .*no stage 'extarct'; did you mean 'extract'",
        ),
        (("data.labels", "dta.labels"), r"\[variant\.large\].*'dta'; did you mean 'data'"),
        (('eval.split = "train"', 'eval = "train"'), r"\[variant\.large\]: 'eval' holds options"),
        (("data.labels", "data.label"), r"photos\.toml:large', \[data\]\); did you mean 'labels'"),
        (("miou = 9.5", "mious = 9.5"), r"photos\.toml:large', \[published\]\); did you mean 'miou'"),
        (("extract.keep", "extract.kep"), r"photos\.toml:large', stage 1 \(extract\)\); did you mean 'keep'"),
        (
            ("masks.set.restarts", "masks.set.restart"),
            r"large', stage 2 \(masks\), set\); did you mean 'rest",
        ),
        (("train.set = { steps = 200 }", "train.set = 3"), r"large', stage 3 \(train\): 'set' holds"),
        (("[variant.large]", "[variant.small]"), r"photos\.toml' is not valid TOML.*small.*twice"),
        (("[variant.large]", "[[variant]]"), "not valid TOML"),
        (("[variant.large]", "[varaint.large]"), "'varaint'.*did you mean 'variant'"),
        (('command = "train"', 'command = "trian"'), r"stage 3: unknown command 'trian'"),
    ],
)
def test_a_mistake_names_the_file_and_the_entry(recipe, change, said):
    assert change[0] in RECIPE
    recipe.write_text(RECIPE.replace(*change, 1))
    with pytest.raises(UsageError, match=said):
        resolve(load_recipe(f"{recipe}:large"))


@pytest.mark.parametrize("variant", ['[[variant]]\nname = "large"', "[variant]\nlarge = 3"])
def test_a_variant_is_a_table_with_a_name(recipe, variant):
    recipe.write_text(RECIPE.split("[variant.small]")[0] + variant)
    with pytest.raises(UsageError, match=r"photos\.toml'\) does not fit: write .* \[variant\.NAME\]"):
        load_recipe(f"{recipe}:large")


# Text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bundled())
def test_the_text_of_a_bundled_recipe_is_a_recipe_by_itself(name, tmp_path):
    recipe = load_recipe(name)
    text = recipe_text(recipe)
    path = tmp_path / "copy.toml"
    path.write_text(text)
    copy = load_recipe(path)
    assert steps(copy) == steps(recipe)
    assert (copy.name, copy.description, copy.paper) == (name, recipe.description, recipe.paper)
    assert (copy.data, copy.published) == (recipe.data, recipe.published)
    assert copy.tables == recipe.tables
    assert text.startswith("# ")
    assert "variant" not in tomllib.loads(text)


def test_the_text_keeps_the_comments_that_hold(recipe):
    text = recipe_text(load_recipe(f"{recipe}:large"))
    assert (
        text
        == """\
# Photos of the garden.
#
# Large is slow.
name = "photos-large"
description = "k-means on photos, ViT-B"

[data]
dataset = "photos/"
labels = "more/labels"

[published]
accuracy = 60.5
miou = 9.5
source = "nowhere"

[[stage]]
command = "extract"
backbone = "dino_vitb8"  # 85 M weights
size = 320  # the shorter side
keep = ["patch", "pooled"]

# The masks.
[[stage]]
id = "masks"
command = "pseudolabel"
method = "kmeans"

[stage.set]
restarts = 5
sample = 50000

[[stage]]
command = "train"

[stage.set]
# as many as there are
steps = 200
lr = 5e-3  # as in the paper

[[stage]]
command = "eval"
split = "train"
"""
    )
    small = recipe_text(load_recipe(f"{recipe}:small"))
    assert r'description = "k-means on photos, the \"small\" one"' in small
    assert 'keep = ["patch"]' in small


@pytest.mark.parametrize("variant", ["small", "large", "other"])
def test_the_text_of_a_variant_resolves_as_the_variant(recipe, variant):
    chosen = load_recipe(f"{recipe}:{variant}")
    copy = recipe.parent / "copy.toml"
    copy.write_text(recipe_text(chosen))
    assert steps(load_recipe(copy)) == steps(chosen)
    assert load_recipe(copy).tables == chosen.tables


def test_show_prints_the_text_and_where_it_is_written(recipe):
    shown = CliRunner().invoke(app, ["recipes", "show", f"{recipe}:large"])
    assert shown.exit_code == 0, shown.output
    assert shown.stdout == recipe_text(load_recipe(f"{recipe}:large"))
    assert shown.stderr.strip() == f"the recipe is '{recipe}:large'"
    refused = CliRunner().invoke(app, ["recipes", "show", str(recipe)])
    assert refused.exit_code == 2
    assert "photos.toml:small" in refused.stderr
