"""Values that an option may have instead of the one it has."""

import typing


def other_values(config, name, value):
    """Return candidates for a field of a configuration class, by its type; not all need fit its bounds."""
    annotation = config.model_fields[name].annotation
    kinds = (annotation, *typing.get_args(annotation))
    kinds += tuple(typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is typing.Annotated)
    choices = [choice for kind in kinds for choice in _literals(kind)]
    if isinstance(value, bool):
        numbers = [not value]
    elif isinstance(value, int):
        numbers = [value + 1, value - 1, value + 2]
    elif isinstance(value, float):
        numbers = [value * 0.9, value * 1.1, value / 2 + 0.01, value + 0.25]
    elif isinstance(value, tuple) and all(isinstance(entry, float) for entry in value):
        numbers = [tuple(entry * 0.9 + 0.01 for entry in value)]
    elif isinstance(value, tuple):
        numbers = [value[:1]]
    elif isinstance(value, str) and not choices:
        numbers = [f"{value}-other"]
    else:
        numbers = [{int: 3, float: 0.5, bool: True}[kind] for kind in kinds if kind in (int, float, bool)]
    tuples = [(0.1,) * len(typing.get_args(kind)) for kind in kinds if typing.get_origin(kind) is tuple]
    return [candidate for candidate in [*choices, *numbers, *tuples] if candidate != value]


def _literals(kind):
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
