"""torchvision's operators: they run after the README's installation, else one sentence says how to mend it."""

import subprocess
import sys

import pytest
import torch
from torchvision.ops import nms, roi_align

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.models.operators import missing_operators


def test_nms_keeps_the_best_of_boxes_that_overlap():
    boxes = torch.tensor([[0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 5.0]])
    scores = torch.tensor([0.7, 0.9, 0.1, 0.8])
    # intersection over union: of 0 and 1 81 / 119, of 0 and 3 50 / 100, of 1 and 3 36 / 114
    assert nms(boxes, scores, 0.45).tolist() == [1, 3, 2]
    assert nms(boxes, scores, 0.7).tolist() == [1, 3, 0, 2]


def test_roi_align_averages_what_a_box_covers_and_gives_gradients():
    image = torch.arange(64.0).view(1, 1, 8, 8).requires_grad_()
    crops = roi_align(image, [torch.tensor([[2.0, 1.0, 6.0, 5.0]])], (2, 2), sampling_ratio=2, aligned=True)
    # A linear ramp: each cell gives its value in the middle, pixel centres lying at half.
    rows, columns = torch.tensor([2.0, 4.0]) - 0.5, torch.tensor([3.0, 5.0]) - 0.5
    torch.testing.assert_close(crops[0, 0], 8 * rows[:, None] + columns)
    crops.sum().backward()
    torch.testing.assert_close(image.grad.sum(), torch.tensor(4.0))


def test_the_installed_pair_fits():
    assert missing_operators() == ""


def test_a_pair_that_does_not_fit_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    with pytest.raises(
        UnsupsegError, match=r"do not fit each other \(torchvision .* beside torch .*constraints.txt"
    ):
        load_backbone("tiny")


def test_operators_that_do_not_load_end_a_command_with_that_sentence(tmp_path):
    """As it is beside a torch of another build: torchvision's library cannot be loaded."""
    broken = (
        "import torch\ndef refuse(*_): raise OSError('libtorch_cuda.so')\ntorch.ops.load_library = refuse\n"
    )
    call = f"{broken}from unsupseg_cli.cli.main import app\napp(['extract', '--dataset', 'scenes'])"
    done = subprocess.run([sys.executable, "-c", call], cwd=tmp_path, capture_output=True, text=True)
    said = " ".join(done.stderr.split())
    assert done.returncode == 1, said
    assert "do not fit each other" in said
    assert "nms does not exist" in said
    assert "not foreseen" not in said
