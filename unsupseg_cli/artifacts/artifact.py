"""A published artifact, as what reads it and a notebook see it."""

from __future__ import annotations

from base64 import b64encode
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unsupseg_cli.artifacts.manifest import Input, Manifest
from unsupseg_cli.core.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image

    from unsupseg_cli.artifacts.workspace import Workspace

_SCORED = ("evaluation", "mask-evaluation")
_PICTURES = ("sheet.png", "classes.png", "overlay", "progress.png")
"""What an artifact may have to look at, the most telling first."""


@dataclass(frozen=True, repr=False)
class Artifact:
    """A published artifact: its folder and its manifest.

    ``workspace`` is the one that brings its files where they are not on this machine yet. In a notebook it shows
    itself: one line of what it is, and its picture where it has one.
    """

    folder: Path
    manifest: Manifest
    workspace: Workspace | None = field(default=None, compare=False)

    def __hash__(self) -> int:
        return hash(self.manifest.key)

    @property
    def path(self) -> Path:
        """Its folder, with all its files: from object storage they are fetched first; raises UnsupsegError then."""
        if self.workspace is not None:
            self.workspace.bring(self)
        return self.folder

    @property
    def place(self) -> Path | str:
        """What names it from any folder: its folder, or its address in object storage."""
        return self.folder if self.workspace is None else self.workspace.place(self)

    @property
    def home(self) -> Workspace:
        """The workspace that it lies in."""
        from unsupseg_cli.artifacts.workspace import Workspace

        return self.workspace or Workspace(self.folder.resolve().parents[1])

    @property
    def is_made(self) -> bool:
        """Whether there is such an artifact: a dry run only promises it."""
        return self.folder.exists()

    @property
    def is_here(self) -> bool:
        """Whether its files are on this machine, so that `path` fetches none."""
        names = self.manifest.outputs if self.workspace is not None else ()
        return all((self.folder / name).exists() for name in names)

    @property
    def id(self) -> str:
        """The name that commands take: ``<slug>-<first 8 digits of the key>``."""
        return self.manifest.id

    @property
    def picture(self) -> Path | None:
        """The picture, or the folder of pictures, that shows best what it holds, if it has one."""
        there = {name.split("/")[0] for name in self.manifest.outputs}
        return next((self.path / name for name in _PICTURES if name in there), None)

    @property
    def scores(self) -> dict[str, Any]:
        """The scores of an evaluation, of a model or of masks, as plain values; fractions are in [0, 1].

        Raises:
            UsageError: it is of another kind.
        """
        if self.manifest.kind not in _SCORED:
            raise UsageError(
                f"'{self.id}' is of kind '{self.manifest.kind}', which has no scores; `eval` makes some."
            )
        return deepcopy(self.manifest.summary)

    def show(self) -> Image.Image:
        """Return the picture that shows best what it holds; of many pictures, the first few as one.

        Raises:
            UsageError: it has none.
        """
        from unsupseg_cli.artifacts.look import draw

        picture = self.picture
        if picture is None:
            raise UsageError(
                f"'{self.id}' has no picture; features, masks, predictions, evaluations and most models have one."
            )
        return draw(picture)

    def __repr__(self) -> str:
        """Return kind and id, what it is of, and what it scores."""
        manifest = self.manifest
        data = f", {manifest.data.dataset}/{manifest.data.split}" if manifest.data else ""
        score = manifest.summary.get("miou") if manifest.kind in _SCORED else None
        miou = f", mIoU {100 * score:.2f} %" if isinstance(score, float) else ""
        labels = ", used labels" if manifest.used_labels else ""
        return f"<{manifest.kind} {manifest.id}{data}{miou}{labels}>"

    def _repr_png_(self) -> bytes | None:
        """Return its picture for a notebook, as wide as a screen at most."""
        from unsupseg_cli.artifacts.look import as_png, draw

        return None if self.picture is None else as_png(draw(self.picture))

    def _repr_html_(self) -> str:
        """Return what it is, and its picture, for a notebook."""
        png = self._repr_png_()
        source = f"data:image/png;base64,{b64encode(png).decode()}" if png else ""
        return f"<code>{escape(repr(self))}</code>" + (f'<br><img alt="" src="{source}">' if png else "")

    def as_input(self, role: str) -> Input:
        """Describe this artifact as the input of another one."""
        manifest = self.manifest
        return Input(role=role, kind=manifest.kind, id=manifest.id, key=manifest.key, digest=manifest.digest)

    def input(self, role: str) -> Input | None:
        """Return the input this artifact used in a role, if any."""
        return next((item for item in self.manifest.inputs if item.role == role), None)
