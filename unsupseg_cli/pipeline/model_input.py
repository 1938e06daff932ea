"""Opening the model that a call reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unsupseg_cli.pipeline.stage import Call, once

if TYPE_CHECKING:
    from unsupseg_cli.contents.model import OpenModel


@once
def opened_model(call: Call) -> OpenModel:
    """Open a call's ``model`` with its backbone, on the device, in the precision and with the weights it names.

    Where a call reads the tokens of ``features``, no backbone is loaded.
    """
    from unsupseg_cli.contents.model import open_model
    from unsupseg_cli.models.device import resolve_device

    config = call.config
    return open_model(
        call.input("model"),
        call.context,
        resolve_device(config.device),
        weights=config.weights,
        precision=config.precision,
        tokens=call.inputs.get("features"),
    )
