"""Opening weights files: what they are is told by their first bytes, not by their names; nothing is unpickled."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from unsupseg_cli.core.errors import UnsupsegError, reason_of

_LFS = b"version https://git-lfs"
_OTHERS = {  # first bytes -> what such a file is
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"\xfd7zXZ": "packed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x89HDF": "HDF5, as Keras writes it: convert it to .safetensors with PyTorch's names",
    b"GGUF": "GGUF, quantised weights of another program: take the original .safetensors or .pth",
    b"\x93NUMPY": "a NumPy array: save a state_dict as .safetensors",
    b"{": "JSON text, perhaps a configuration or an index: take the file of tensors that lies beside it",
}
_PROGRAMS = {
    ".onnx": "an ONNX graph",
    ".tflite": "a TensorFlow Lite model",
    ".engine": "a TensorRT engine",
    ".pb": "a TensorFlow graph",
}
_TAR = (257, b"ustar")
_ADVICE = "save its state_dict as .safetensors"


def load_checkpoint(path: Path) -> object:
    """Return what a weights file holds: nested mappings of tensors, and whatever stands beside them.

    Safetensors and PyTorch's files are told apart by their content. The one type allowed beside tensors and plain
    values is `argparse.Namespace`, which full DINO checkpoints carry.

    Raises:
        UnsupsegError: the file is missing, of another kind (the message says which), cut short, or would run code.
    """
    require_weights(path)
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        if _is_safetensors(head):
            return _load_safetensors(path, int.from_bytes(head[:8], "little"))
        if problem := _problem(path, head):
            raise UnsupsegError(f"The weights file '{path}' {problem}.")
        with (
            warnings.catch_warnings(action="ignore"),  # of torch, on pickles of other protocols
            torch.serialization.safe_globals([argparse.Namespace]),
            path.open("rb") as file,
        ):
            loaded: object = torch.load(file, map_location="cpu", weights_only=True)
        return loaded
    except pickle.UnpicklingError:
        raise UnsupsegError(_not_loaded(path)) from None
    except OSError as error:
        raise UnsupsegError(f"The weights file '{path}' cannot be read ({reason_of(error)}).") from None
    except (ValueError, RuntimeError, EOFError, KeyError, AttributeError, TypeError, IndexError) as error:
        reason = reason_of(error)
        said = "" if "torch.load" in reason or "weights_only" in reason else f" ({reason[:120]})"
        raise UnsupsegError(
            f"The weights file '{path}' cannot be read: it is damaged or cut short{said}; get it again."
        ) from None


def problem_of(path: Path) -> str:
    """Return why a file that should be safetensors is none, such as ``is a pointer of Git LFS``; else an empty text."""
    with path.open("rb") as file:
        head = file.read(1024)
    return "" if _is_safetensors(head) else _problem(path, head)


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 100_000_000


def require_weights(path: Path) -> None:
    """Raise UnsupsegError where a weights file is not there."""
    if path.is_dir():
        raise UnsupsegError(f"The weights '{path}' are a folder; give the file in it{_file_in(path)}.")
    if not path.is_file():
        raise UnsupsegError(
            f"The weights file '{path}' does not exist; give --weights FILE (.safetensors or .pth)."
        )


def _load_safetensors(path: Path, header: int) -> object:
    size = path.stat().st_size
    whole = 8 + header
    if size >= whole:
        with path.open("rb") as file:
            file.seek(8)
            entries = json.loads(file.read(header))
        whole += max(
            (e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"), default=0
        )
    if size < whole:
        raise UnsupsegError(
            f"The weights file '{path}' is cut short: {size:,} of {whole:,} bytes or more; get it again."
        )
    return load_file(path)


def _problem(path: Path, head: bytes) -> str:
    """Return why a file is no checkpoint of PyTorch, empty where it looks like one."""
    start = head.lstrip()[:1]
    if not head:
        return "is empty; get it again"
    if head.startswith(_LFS):
        return "is a pointer of Git LFS, not the file itself; run `git lfs pull`, or download it again"
    if start == b"<":
        return "is a web page (of a login, a licence or an error, it seems), not the file itself; download it again"
    if kind := next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), ""):
        return f"is {kind}"
    if head[_TAR[0] :].startswith(_TAR[1]):
        return "is a tar archive: unpack it first"
    if head.startswith(b"PK"):
        return _problem_of_zip(path)
    if path.suffix.lower() in _PROGRAMS:
        return f"is {_PROGRAMS[path.suffix.lower()]}, not PyTorch's weights; take the .safetensors or .pth of the model"
    if head.startswith(b"\x80"):
        return ""
    if head[:64].isascii() and head[:64].decode("ascii").replace("\n", "").replace("\r", "").isprintable():
        return f"is text, which begins '{head[:40].decode('ascii').splitlines()[0]}', no weights"
    return "is of no known format; expected .safetensors, or a .pth or .pt of PyTorch"


def _problem_of_zip(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "is cut short: the end of the archive is missing; get it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return f"is a TorchScript program, not weights; {_ADVICE}"
    if names and all(name.endswith(".npy") for name in names):
        return "is a NumPy archive (.npz, as JAX models have it); take the PyTorch weights of this model"
    if not any(name.endswith("data.pkl") for name in names):
        return f"is a zip archive of other files ({', '.join(names[:3])}); unpack it first"
    return ""


def _not_loaded(path: Path) -> str:
    """Say that a file wants more than tensors, or is no pickle at all."""
    try:
        with warnings.catch_warnings(action="ignore"):
            types = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a damaged or old file says nothing of itself
        types = []
    named = f" ({', '.join(types[:3])})" if types else ""
    return (
        f"The weights file '{path}' holds objects other than tensors{named}, or is damaged. It is not loaded, since "
        f"that would run code from the file; where it comes from, {_ADVICE}."
    )


def _file_in(folder: Path) -> str:
    names = sorted(
        file.name for pattern in ("*.safetensors", "*.pth", "*.pt", "*.bin") for file in folder.glob(pattern)
    )
    return f", such as '{folder / names[0]}'" if names else " (.safetensors or .pth); it holds none"
