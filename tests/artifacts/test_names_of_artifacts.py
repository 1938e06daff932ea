"""What a name of an artifact that fits none, or many, is told."""

import pytest

from unsupseg_cli.artifacts.identity import Identity
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.core.errors import UsageError


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace(tmp_path)
    for seed in range(9):
        identity = Identity("model", "train", 1, f"streets{seed}", {"seed": seed})
        workspace.produce(identity, lambda draft: {})
    return workspace


def test_a_name_that_fits_many_names_a_few_of_them(workspace):
    with pytest.raises(
        UsageError, match=r"'streets' means more than one artifact: .* and 4 more; give the whole"
    ):
        workspace.get("streets")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_beginning_of_all(workspace, name):
    with pytest.raises(UsageError, match="is empty, perhaps a variable of the shell"):
        workspace.get(name)
