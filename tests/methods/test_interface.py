"""What a method is given, and what it must say of itself to be taken: the seam that plug-ins are written against."""

import numpy as np
import pytest
import torch

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.core.ports import FEATURES, GRAPH, Port
from unsupseg_cli.methods.declaration import Method, MethodOptions, Needs, Part, check_method
from unsupseg_cli.methods.interface import Inputs, Labeller, Masks, MaskSet, Trainer
from unsupseg_cli.methods.registry import get_method, method_names
from unsupseg_cli.training.loop import Task
from unsupseg_cli.training.tokens import DeviceSource, MemorySource

SOURCE = MemorySource([torch.ones(2, 3, 4)], {"key": [torch.full((2, 3, 5), 2.0)]})
GIVEN = {  # by the name of the property: the name that it is given under, and a value
    "classes": ("classes", 3),
    "seed": ("seed", 7),
    "images": ("images", lambda views: [np.zeros((4, 6, 3), np.uint8) for _ in views]),
    "masks": ("masks", MaskSet([], [], {})),
    "graph": ("graph", np.zeros((1, 1), np.int32)),
    "regions": ("regions", SOURCE),
    "network": ("network", object()),
    "model": ("model", torch.eye(3)),
}
OPTIONAL = ("masks", "graph", "regions", "network", "model")


# Inputs ------------------------------------------------------------------------------------------------------


def test_a_part_is_given_what_it_declared():
    inputs = Inputs(SOURCE, **dict(GIVEN.values()))
    assert inputs.features is SOURCE
    for name, (_, value) in GIVEN.items():
        assert getattr(inputs, name) is value


def test_a_part_computes_silently_on_the_cpu_unless_told_otherwise():
    inputs = Inputs(SOURCE)
    assert inputs.device == torch.device("cpu")
    assert list(inputs.reporter.track([1, 2], "nothing is shown")) == [1, 2]
    assert Inputs(SOURCE, device=torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize("name", GIVEN)
def test_reading_what_was_not_declared_is_an_error_that_names_it_and_what_was_declared(name):
    given_as, _ = GIVEN[name]
    others = {key: value for key, value in GIVEN.values() if key != given_as}
    with pytest.raises(UnsupsegError, match=f"reads '{given_as}' without having declared") as error:
        getattr(Inputs(SOURCE, **others), name)
    assert f"(declared: {', '.join(others)})" in str(error.value)
    assert "`Needs`" in str(error.value)
    with pytest.raises(UnsupsegError, match="declared: nothing"):
        getattr(Inputs(SOURCE), name)


@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_input_that_is_not_there_is_none(name):
    given_as, _ = GIVEN[name]
    assert getattr(Inputs(SOURCE, **{given_as: None}), name) is None


# The arrays of the features ----------------------------------------------------------------------------------


def test_the_declared_arrays_of_the_features_are_given_on_the_device():
    source = DeviceSource(SOURCE, torch.device("meta"), ("patch", "key"))
    assert source.tokens([0])[0].device.type == "meta"
    assert source.tokens([0])[0].shape == (2, 3, 4)
    assert source.array("key", [0])[0].device.type == "meta"
    plain = DeviceSource(SOURCE, torch.device("cpu"), ("patch", "key"))
    assert torch.equal(plain.array("key", [0])[0], torch.full((2, 3, 5), 2.0))


def test_an_array_of_the_features_that_was_not_declared_is_refused():
    cpu = torch.device("cpu")
    with pytest.raises(UnsupsegError, match=r"'key' .* not declared \(declared: patch\).*`Needs`"):
        DeviceSource(SOURCE, cpu).array("key", [0])
    without_tokens = DeviceSource(SOURCE, cpu, ("cls", "key"))
    with pytest.raises(UnsupsegError, match=r"'patch' .* not declared \(declared: cls, key\)"):
        without_tokens.tokens([0])
    with pytest.raises(UnsupsegError, match="'patch'"):
        without_tokens.array("patch", [0])


# A method's own classes --------------------------------------------------------------------------------------


def test_a_labeller_needs_to_write_nothing_but_how_it_labels():
    class Whole(Labeller):
        def label(self, views):
            grids = self.inputs.features.grids[views]
            return [
                Masks(
                    np.zeros(grid, np.int16), np.array([grid.prod()]), np.ones(1, np.float32), np.array([-1])
                )
                for grid in grids
            ]

    labeller = Whole(MethodOptions(), Inputs(SOURCE))
    assert (labeller.fit(), labeller.figures(), labeller.state()) == ({}, {}, {})
    (masks,) = labeller.label([0])
    assert masks.labels.shape == (2, 3)
    assert masks.soft is None


@pytest.mark.parametrize("base", [Labeller, Trainer])
def test_a_part_that_lacks_a_function_is_refused_when_it_is_made(base):
    class Empty(base):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Empty(MethodOptions(), Inputs(SOURCE))


def test_a_task_without_losses_is_refused_when_it_is_made():
    class Still(Task):
        def optimizer(self):
            return torch.optim.SGD([torch.zeros(1)])

    with pytest.raises(TypeError, match="losses"):
        Still()


# Declarations ------------------------------------------------------------------------------------------------


def part(name=""):
    return Part(MethodOptions, "fractions:Fraction", name)


class Blind(MethodOptions):
    def needs(self):
        return Needs(reads=(GRAPH,))


class Lost(MethodOptions):
    def needs(self):
        return Needs(reads=(FEATURES, Port("grap", "graph")))


def method(*names, trainer=None, **given):
    return Method("dots", "Finds dots", labellers=tuple(map(part, names)), trainer=trainer, **given)


@pytest.mark.parametrize(
    "good",
    [
        method(""),
        method("small"),
        method("small", "large"),
        method(trainer=part()),
        method("", trainer=part()),
    ],
    ids=["one labeller", "one with a name", "two with names", "only a trainer", "both"],
)
def test_a_method_that_can_be_used_is_taken_as_it_is(good):
    assert check_method(good, "dots") is good


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "expected a Method, found NoneType"),
        (Method, "expected a Method, found type"),
        ({"name": "dots"}, "expected a Method, found dict"),
        (Method("spots", "", labellers=(part(),)), "called 'dots', as the entry point is, found 'spots'"),
        (method("", ""), "another name for each labeller, found '', ''"),
        (method("small", ""), "another name for each labeller, found 'small', ''"),
        (method("small", "small"), "another name for each labeller, found 'small', 'small'"),
        (method(), "a labeller or a trainer, found neither"),
        (Method("dots", "", labellers=[part()]), "labellers as a tuple, found list"),
        (method(trainer="module:Class"), "expected a Part, found str"),
        (method(trainer=Part(dict, "fractions:Fraction")), "a class of MethodOptions"),
        (method(trainer=Part(MethodOptions, "fractions")), "'module:Class', found 'fractions'"),
        (method(trainer=Part(Blind, "fractions:Fraction")), "reads features, found one that reads ['graph']"),
        (method(trainer=Part(Lost, "fractions:Fraction")), "unknown role 'grap'; did you mean 'graph'"),
    ],
    ids=[
        "nothing",
        "a class",
        "a dictionary",
        "another name",
        "no names",
        "a name missing",
        "a name twice",
        "no parts",
        "a list",
        "no part",
        "no options",
        "no class",
        "no features",
        "no role",
    ],
)
def test_a_malformed_method_is_refused_with_what_was_expected(given, says):
    with pytest.raises(UnsupsegError) as error:
        check_method(given, "dots")
    assert says in str(error.value)


@pytest.mark.parametrize("name", method_names())
def test_the_bundled_methods_are_well_formed_and_their_classes_are_there(name):
    bundled = check_method(get_method(name), name)
    for labeller in bundled.labellers:
        assert issubclass(labeller.load(), Labeller)
        assert issubclass(labeller.options, MethodOptions)
    if bundled.trainer:
        assert issubclass(bundled.require_trainer().load(), Trainer)
        assert issubclass(bundled.trainer.options, MethodOptions)


def test_the_version_of_an_installed_package_enters_that_of_its_method():
    ours = method("", version="3")
    installed = ours.of_package("dots-method", "0.2")
    assert (ours.package, installed.package) == ("", "dots-method")
    assert "0.2" in installed.version
    assert "3" in installed.version
    assert installed.labellers == ours.labellers


# Choosing a part ---------------------------------------------------------------------------------------------


def test_the_only_part_needs_no_name_and_others_are_chosen_by_theirs():
    assert method("").labeller() == part()
    assert method("small").labeller() == method("small").labeller("small") == part("small")
    assert method("small", "large").labeller("large") == part("large")
    assert part().load().__name__ == "Fraction"


def test_an_unknown_part_gets_a_suggestion():
    with pytest.raises(UsageError, match="'dots' has no part 'smal'; did you mean 'small'"):
        method("small", "large").labeller("smal")
    with pytest.raises(UsageError, match="no part 'smal'; did you mean 'small'"):
        method("small").labeller("smal")


def test_a_missing_part_option_lists_the_parts():
    with pytest.raises(UsageError, match="has the parts small, large: name one with --part"):
        method("small", "large").labeller()


def test_a_part_option_for_a_method_without_named_parts_is_refused():
    with pytest.raises(UsageError, match="leave --part small out"):
        method("").labeller("small")


def test_a_command_that_a_method_does_not_have_names_the_one_that_it_has():
    with pytest.raises(UsageError, match="makes no pseudo-labels; its first command is `train`"):
        method(trainer=part()).labeller()
    with pytest.raises(UsageError, match="trains no model; its only command is `pseudolabel`"):
        method("").require_trainer()
    assert method(trainer=part("x")).require_trainer() == part("x")
