"""Losses as TensorBoard events, where the package is installed."""

import sys

import pytest

from unsupseg_cli import TrainConfig
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.core.layers import build_config
from unsupseg_cli.training.checkpoint import Journal


def test_a_missing_package_is_named_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr("unsupseg_cli.core.options.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'unsupseg\[tensorboard\]'"):
        build_config(TrainConfig, {"command line": {"tensorboard": tmp_path}})


def test_figures_go_to_events_beside_the_journal(tmp_path):
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, 0, events=tmp_path / "events")
    for step in (0, 10):
        journal.add({"step": step, "loss": 0.5 - step / 100})
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(one.step, round(one.value, 3)) for one in events.Scalars("loss")] == [(0, 0.5), (10, 0.4)]
    assert [record["step"] for record in journal.records] == [0, 10]


def test_without_the_option_the_package_is_not_imported(tmp_path):
    loaded = "torch.utils.tensorboard" in sys.modules
    Journal(tmp_path, 0).add({"step": 0, "loss": 1.0})
    assert ("torch.utils.tensorboard" in sys.modules) == loaded
