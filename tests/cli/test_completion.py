"""The Tab key offers the names that a value may have; pressing it imports no torch."""

import os
import subprocess
import sys

import pytest


def offered(*words):
    """Return what the completion of bash offers for the last word."""
    asked = {
        "_UNSUPSEG_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("unsupseg", *words)),
        "COMP_CWORD": str(len(words)),
    }
    program = (
        "import sys\n"
        "from unsupseg_cli.cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.split()[-1:] == ["False"], done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        (("train", "--method", ""), {"kmeans", "primaps", "stego"}),
        (("methods", "show", "prim"), {"primaps"}),
        (("run", "scenes-k"), {"scenes-kmeans"}),
        (("recipes", "show", "stego-city"), {"stego-cityscapes-dino_vitb8"}),
        (("extract", "--dataset", "cam"), {"camvid"}),
        (("eval", "scen"), {"scenes"}),
        (("extract", "--backbone", "dinov2_vits"), {"dinov2_vits14"}),
        (("eval", "--protocol", "pi"), {"picie"}),
        (("export-labels", "--format", "coco-"), {"coco-panoptic", "coco-instances"}),
        (("pseudolabel", "--classes", "a"), {"auto"}),
    ],
)
def test_values_are_offered_by_what_they_begin_with(words, some):
    found = offered(*words)
    assert some <= set(found)
    assert all(name.startswith(words[-1]) for name in found)


def test_a_path_is_left_to_the_shell():
    assert offered("extract", "--weights", "") == []
