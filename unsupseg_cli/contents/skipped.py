"""Images that are left out because they cannot be read."""

from __future__ import annotations

from unsupseg_cli.artifacts.context import Context
from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.data.images import UnreadableImage, read_image
from unsupseg_cli.data.items import Item


class Skipped(dict[str, str]):
    """The reason for each image that is left out, by its key.

    Args:
        context: of the call, which knows what the images were when its key was made.
        strict: fail instead of leaving one out.
    """

    def __init__(self, context: Context, strict: bool = False) -> None:
        super().__init__()
        self.context, self._strict = context, strict

    def add(self, item: Item, reason: str) -> None:
        """Leave an image out.

        Raises:
            UnsupsegError: ``strict`` is set; or the image is no damaged one, but was gone or unreadable for a while:
                its key says that it is there.
        """
        if self._strict:
            raise UnsupsegError(f"{reason} (--strict stops at the first unreadable image).")
        sources = self.context.sources
        sources.require_readable(item.image)
        sources.require_unchanged([item.image])
        if _is_readable(item):
            raise UnsupsegError(
                f"'{item.image}' was unreadable for a moment ({reason}): check its disk; the same call goes on where "
                "it stopped."
            )
        self[item.key] = reason


def _is_readable(item: Item) -> bool:
    try:
        read_image(item.image, item.reading)
    except UnreadableImage:
        return False
    return True
