"""compare: what may stand in one table, what shares a row, and the forms of the table."""

import csv
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.manifest import DataSource
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.cli.main import app
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.metrics.protocols import get_protocol
from unsupseg_cli.pipeline.compare import compare

TRAIN = DataSource(dataset="camvid", split="train", fingerprint="t", count=9)
VAL = DataSource(dataset="camvid", split="val", fingerprint="v", count=4)


class Lab:
    """Makes evaluations with their whole past, without computing anything."""

    def __init__(self, root):
        self.workspace = Workspace(root)

    def make(self, kind, stage, config, inputs=(), data=TRAIN, summary=None, **fields):
        recipe = Identity(kind, stage, 1, f"{data.dataset}-{stage}", config, list(inputs), data, **fields)
        return self.workspace.produce(recipe, lambda draft: summary or {})[0]

    def model(self, seed=0, method="kmeans", backbone="tiny", **options):
        features = self.make("features", "extract", {"backbone": backbone, "size": 320})
        config = {"method": method, "classes": 3, "seed": seed, "options": {"steps": 10, **options}}
        return self.make("model", "train", config, [features.as_input("features")])

    def evaluation(
        self, model, miou, data=VAL, protocol="native", seed=0, crf=False, used_labels=False, **more
    ):
        rules = {**get_protocol("native").describe(), **get_protocol(protocol).describe(), **more}
        summary = {
            "protocol": rules,
            "crf": crf,
            "images": data.count,
            "clusters": 3,
            "class_names": ["a", "b", "c"],
            "accuracy": miou + 0.3,
            **dict.fromkeys(("miou", "miou_gt", "miou_all"), miou),
        }
        config = {"protocol": rules, "crf": crf, "seed": seed}
        given = [model.as_input("model")]
        return self.make("evaluation", "eval", config, given, data, summary, used_labels=used_labels)


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "w")


def test_only_seeds_share_a_row_with_mean_and_deviation(lab):
    same = [lab.evaluation(lab.model(seed), miou, seed=seed) for seed, miou in ((0, 0.2), (1, 0.3), (2, 0.4))]
    other = lab.evaluation(lab.model(0, method="stego"), 0.25)
    bigger = lab.evaluation(lab.model(0, backbone="dino_vits8"), 0.5)
    rows = compare([*same, other, bigger]).rows
    assert [(row.method, row.backbone, row.seeds) for row in rows] == [
        ("kmeans", "tiny", [0, 1, 2]),
        ("stego", "tiny", [0]),
        ("kmeans", "dino_vits8", [0]),
    ]
    assert rows[0].mean("miou") == pytest.approx(0.3)
    assert rows[0].deviation("miou") == pytest.approx(0.1)
    assert rows[0].mean("accuracy") == pytest.approx(0.6)
    assert rows[1].deviation("miou") is None
    assert [row.setting for row in rows] == ["", "", ""]


def test_one_evaluation_named_twice_counts_once(lab):
    one = lab.evaluation(lab.model(), 0.2)
    assert compare([one, one]).rows[0].seeds == [0]


def test_rows_that_look_the_same_say_what_sets_them_off(lab):
    found = compare([lab.evaluation(lab.model(steps=steps), 0.2) for steps in (10, 20)])
    assert [row.setting for row in found.rows] == ["train.options.steps = 10", "train.options.steps = 20"]


def test_an_input_that_is_gone_keeps_settings_apart(lab):
    models = [lab.model(seed) for seed in (0, 1)]
    found = [lab.evaluation(model, 0.2) for model in models]
    for model in models:
        (model.path / "manifest.json").unlink()
        model.path.rename(model.path.with_name(f".gone-{model.id}"))
    rows = compare(found).rows
    assert [row.method for row in rows] == ["?", "?"]


def test_a_manifest_that_names_itself_is_told(lab):
    model = lab.model()
    path = model.path / "manifest.json"
    manifest = json.loads(path.read_text())
    itself = {"role": "model", "kind": "model", "id": model.id, "key": model.manifest.key, "digest": ""}
    path.write_text(json.dumps({**manifest, "inputs": [itself]}))
    with pytest.raises(UnsupsegError, match="names itself among what it was made from"):
        compare([lab.evaluation(model, 0.2)])


def test_the_crf_is_a_row_of_its_own_and_labels_are_marked(lab):
    model = lab.model()
    rows = compare([lab.evaluation(model, 0.2), lab.evaluation(model, 0.3, crf=True, used_labels=True)]).rows
    assert [(row.crf, row.used_labels) for row in rows] == [(False, False), (True, True)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "stego"}, r"protocol \(name\) \(native and stego\)"),
        ({"matching": "majority"}, r"protocol \(matching\) \(hungarian and majority\)"),
        ({"flip": True}, r"protocol \(flip\) \(False and True\)"),
        ({"data": VAL.model_copy(update={"split": "test"})}, r"split \(val and test\)"),
        ({"data": VAL.model_copy(update={"dataset": "voc2012"})}, r"data set \(camvid and voc2012\)"),
        ({"data": VAL.model_copy(update={"fingerprint": "x"})}, r"images \(v and x\)"),
        ({"data": VAL.model_copy(update={"count": 3})}, r"labelled images \(4 and 3\)"),
    ],
)
def test_what_must_not_be_mixed_is_refused_and_named(lab, change, said):
    model = lab.model()
    first, other = lab.evaluation(model, 0.2), lab.evaluation(lab.model(1), 0.3, **change)
    with pytest.raises(UsageError, match=said):
        compare([first, other])


def test_other_kinds_and_nothing_are_refused(lab):
    with pytest.raises(UsageError, match="is of kind 'model'"):
        compare([lab.model()])
    with pytest.raises(UsageError, match="Name the evaluations"):
        compare([])


def test_evaluations_of_two_workspaces_are_compared_by_path(lab, tmp_path):
    other = Lab(tmp_path / "x")
    rows = compare([lab.evaluation(lab.model(0), 0.2), other.evaluation(other.model(1), 0.4)]).rows
    assert rows[0].seeds == [0, 1]


def test_the_command_prints_the_table_in_four_forms(lab):
    found = [lab.evaluation(lab.model(seed), 0.2 + seed / 10) for seed in (0, 1)]
    given = ["compare", *(one.id for one in found), "-w", str(lab.workspace.root)]

    def call(*flags, code=0):
        result = CliRunner().invoke(app, [*given, *flags])
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else " ".join(result.stderr.split())

    assert "25.00 ± 7.07" in call()
    assert "camvid/val, 4 images; protocol native" in call()
    value = json.loads(call("--json"))
    assert value["rows"][0]["miou"] == pytest.approx(0.25)
    assert value["rows"][0]["evaluations"] == [one.id for one in found]
    (row,) = csv.DictReader(call("--csv").splitlines())
    assert (row["method"], row["seeds"], float(row["miou"])) == ("kmeans", "0 1", pytest.approx(0.25))
    lines = call("--markdown").strip().splitlines()
    assert [line.count("|") for line in lines[2:]] == [12, 12, 12]
    assert "exclude each other" in call("--json", "--csv", code=2)
    third = lab.evaluation(lab.model(2), 0.3, protocol="stego")
    given.insert(1, third.id)
    assert "must not stand in one table" in call(code=2)


def test_the_rules_of_an_assignment_count(lab):
    model = lab.model()
    one = lab.evaluation(model, 0.2)
    recipe = Identity(
        "evaluation",
        "eval",
        1,
        "x",
        {"given": True},
        [model.as_input("model"), one.as_input("assignment")],
        VAL,
    )
    assigned = lab.workspace.produce(replace(recipe), lambda draft: one.manifest.summary)[0]
    with pytest.raises(UsageError, match="assignment"):
        compare([one, assigned])


def test_without_names_the_last_one_and_those_that_may_stand_beside_it_are_compared(lab):
    def call(code=0):
        done = CliRunner().invoke(app, ["compare", "--json", "-w", str(lab.workspace.root)])
        assert done.exit_code == code, done.output
        return done

    lab.workspace.root.mkdir(exist_ok=True)
    assert "run `unsupseg eval` first" in call(code=2).stderr
    lab.evaluation(lab.model(), 0.2, protocol="stego")
    lab.evaluation(lab.model(method="stego"), 0.3)
    lab.evaluation(lab.model(), 0.4)
    done = call()
    assert {row["method"] for row in json.loads(done.stdout)["rows"]} == {"kmeans", "stego"}
    assert "evaluations left out: 1, of other images" in " ".join(done.stderr.split())
