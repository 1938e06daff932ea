"""What a labeller learns of the whole collection, in the draft of its masks: once, by one process or by several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from unsupseg_cli.artifacts.draft import Draft
from unsupseg_cli.artifacts.files import whole_file
from unsupseg_cli.core.progress import Reporter
from unsupseg_cli.core.shards import Shard
from unsupseg_cli.methods.interface import Labeller
from unsupseg_cli.training.all_tokens import track_parts

_LEARNED, _FIT = ".learned.safetensors", "fit"
_PARTS = ".fit"


def fit_once(labeller: Labeller, draft: Draft) -> dict[str, Any]:
    """Return the figures of a labeller that is fitted; one that has learned in this draft goes on with that.

    So all blocks of an artifact are of one fit, whichever processes make them.
    """
    path = draft.folder / _LEARNED
    if not draft.is_done(_FIT):
        figures = labeller.fit()
        draft.refresh()
        if not draft.is_done(_FIT):  # by another of the processes that fit together
            _save(path, labeller.learned())
            draft.finish(_FIT, figures, [path])
            return figures
    draft.bring([path])
    labeller.restore(load_file(path))
    learned_figures: dict[str, Any] = draft.note(_FIT)
    return learned_figures


class DraftParts:
    """Parts that the processes which write a draft share, and which survive a kill.

    Nobody waits: a process makes its own shard's parts, then those that the others have not finished, from their
    end. So the work ends when the fastest are through, whether others are slow, dead or were never started; at most
    the last part of each process is made twice.

    Args:
        draft: of the artifact.
        shard: the parts that are made here first.
        reporter: is told the progress.
    """

    def __init__(self, draft: Draft, shard: Shard, reporter: Reporter) -> None:
        self._draft, self._shard, self._reporter = draft, shard, reporter

    def gather(
        self, name: str, count: int, make: Callable[[int], Mapping[str, Tensor]]
    ) -> Iterator[Mapping[str, Tensor]]:
        """Make the parts that are missing, and yield all of them in their order."""
        self._draft.refresh()
        own = self._shard.take(range(count))
        for part in track_parts(self._reporter, [*own, *self._of_others(count)], name):
            if part not in own:
                self._draft.refresh()
            if not self._draft.is_done(_note(name, part)):
                file = self._file(name, part)
                file.parent.mkdir(exist_ok=True)
                _save(file, make(part))
                self._draft.finish(_note(name, part), files=[file])
        for part in range(count):
            file = self._file(name, part)
            self._draft.bring([file])
            yield load_file(file)

    def _of_others(self, count: int) -> list[int]:
        """Return the parts of other shards, from the next one on, each from its end."""
        number, of = self._shard
        others = [Shard((number - 1 + step) % of + 1, of) for step in range(1, of)]
        return [part for other in others for part in reversed(other.take(range(count)))]

    def _file(self, name: str, part: int) -> Path:
        return self._draft.folder / _PARTS / f"{_note(name, part)}.safetensors"


def _note(name: str, part: int) -> str:
    return f"{name.replace(' ', '-')}-{part:03d}"


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors so that another process sees all or nothing of them."""
    with whole_file(path) as partial:
        save_file({name: values.contiguous() for name, values in tensors.items()}, partial)
