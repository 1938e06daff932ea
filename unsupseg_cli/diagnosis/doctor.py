"""doctor: what this machine has and lacks. Heavy imports are late, since they may be what fails."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unsupseg_cli.core.errors import UnsupsegError, reason_of
from unsupseg_cli.core.threads import usable_cores
from unsupseg_cli.core.words import counted
from unsupseg_cli.models.backbones import ALIASES, TINY, BackboneRow

if TYPE_CHECKING:
    from unsupseg_cli.artifacts.workspace import Workspace

_PYTHON = (3, 11)
_MODULES = (
    "numpy",
    "PIL",
    "pydantic",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "torch",
    "timm",
    "lightning_fabric",
    "zarr",
    "faiss",
    "matplotlib",
)
_LITTLE_MEMORY = 4 * 2**30  # a batch of 16 images of 320 pixels through a ViT-B/8 takes about this
_LITTLE_DISK = 10 * 10**9  # features of 2,975 images of 320 pixels with a ViT-B/8 take 7.3 GB
_LITTLE_SHARED = 256 * 2**20  # containers often give 64 MiB, which a few decoded batches fill


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``advice`` says how to mend it, ``broken`` that no command works without it."""

    topic: str
    name: str
    value: str
    advice: str = ""
    broken: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def examine(
    workspace: Workspace, device: str = "auto", files: Mapping[str, Path] | None = None
) -> list[Finding]:
    """Look at everything that commands depend on; nothing is written, nothing is fetched.

    Args:
        workspace: which need not exist yet.
        device: as the option of the commands.
        files: weights files that an ``unsupseg.toml`` names, by backbone.
    """
    findings = list(_versions())
    if not any(finding.broken for finding in findings):
        findings += [*_device(device), *_crf(), *_weights(workspace, files or {})]
    return [*findings, *_memory(), *_storage(workspace), *_disk(workspace.root)]


def _versions() -> Iterator[Finding]:
    from unsupseg_cli.artifacts.environment import describe_environment

    old = sys.version_info < _PYTHON
    needed = ".".join(map(str, _PYTHON))
    for name, value in describe_environment().items():
        broken = name == "python" and old
        yield Finding("versions", name, value, f"install Python {needed} or newer" if broken else "", broken)
    operators = None
    for name in _MODULES:
        try:
            import_module(name)
        except Exception as error:  # a package may fail to import in any way
            if name == "timm" and operators is not None and operators.broken:
                continue  # timm imports torchvision: one cause, one finding
            reason = reason_of(error)
            advice = "install unsupseg again into a fresh environment (make install)"
            yield Finding("versions", name, f"cannot be imported: {reason}", advice, broken=True)
            continue
        if name == "torch":
            operators = _operators()
            yield operators


def _operators() -> Finding:
    """Say whether torchvision's operators run; without them timm cannot be imported either."""
    from unsupseg_cli.models.operators import MEND, missing_operators

    if reason := missing_operators():
        return Finding("versions", "operators", f"do not load: {reason}", MEND, broken=True)
    return Finding("versions", "operators", "nms and roi_align of torchvision run")


def _device(name: str) -> Iterator[Finding]:
    import torch

    from unsupseg_cli.models.backbone import resolve_precision
    from unsupseg_cli.models.device import resolve_device

    try:
        device = resolve_device(name)
    except UnsupsegError as error:
        yield Finding("device", name, "not usable", str(error))
        return
    advice = ""
    if device.type == "cpu" and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        built = "has no CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        advice = (
            f"there is an NVIDIA driver, but torch {built}: install a build of torch that fits the driver"
        )
    yield Finding("device", "device", _describe_device(device), advice)
    precision = resolve_precision("auto", device)
    native = "bf16 native" if precision == "bf16" else "no native bf16"
    yield Finding("device", "precision", f"{precision} ({native})")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        advice = "free memory of the device, or lower --batch-size" if free < _LITTLE_MEMORY else ""
        yield Finding("device", "device memory", f"{_gib(free)} free of {_gib(total)}", advice)


def _describe_device(device: Any) -> str:
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return f"{device}: {name}, capability {major}.{minor}, CUDA {torch.version.cuda}"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"cpu: {usable_cores()} of {os.cpu_count()} cores, {torch.get_num_threads()} threads, {capability}"
    return str(device)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    advice = (
        ""
        if memory.available >= _LITTLE_MEMORY
        else "close other programs, or lower --batch-size and --workers"
    )
    yield Finding("memory", "memory", f"{_gib(memory.available)} available of {_gib(memory.total)}", advice)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        advice = (
            ""
            if free >= _LITTLE_SHARED
            else "give the container more (--shm-size 2g), or decode with --workers 0"
        )
        yield Finding("memory", "shared memory", f"{_gib(free)} free", advice)


def _storage(workspace: Workspace) -> Iterator[Finding]:
    """Say of a workspace in object storage whether it answers."""
    if str(workspace) == str(workspace.root):
        return
    try:
        state = "" if workspace.exists() else " (not there yet)"
        yield Finding("storage", "address", f"'{workspace}'{state}")
    except UnsupsegError as error:
        yield Finding("storage", "address", f"'{workspace}' cannot be used", str(error), broken=True)


def _disk(workspace: Path) -> Iterator[Finding]:
    from unsupseg_cli.artifacts.files import existing_folder

    folder = existing_folder(workspace)
    state = "" if folder == workspace.resolve() else " (not there yet)"
    elsewhere = "give another folder with --workspace or $UNSUPSEG_WORKSPACE"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("disk", "workspace", f"'{workspace}' cannot be written", elsewhere, broken=True)
    else:
        yield Finding("disk", "workspace", f"'{workspace}'{state}")
    free = shutil.disk_usage(folder).free
    advice = (
        "" if free >= _LITTLE_DISK else f"large sets need more (`unsupseg run RECIPE --dry-run`): {elsewhere}"
    )
    yield Finding("disk", "free disk", f"{free / 1e9:.1f} GB", advice)
    drafts = len(list(workspace.glob("*/.partial-*"))) if workspace.is_dir() else 0
    if drafts:
        advice = "call the same commands again, which go on, or remove them with `unsupseg gc --yes`"
        yield Finding(
            "disk", "interrupted", f"{counted(drafts, 'draft')} of interrupted or running calls", advice
        )


def _crf() -> Iterator[Finding]:
    from unsupseg_cli.crf import resolve_engine

    yield Finding("crf", "torch", f"there{' (the default)' if resolve_engine('auto') == 'torch' else ''}")
    installed = find_spec("pydensecrf") is not None
    yield Finding(
        "crf", "pydensecrf", "there" if installed else "not installed; optional: pip install 'unsupseg[crf]'"
    )


def _weights(workspace: Workspace, files: Mapping[str, Path]) -> Iterator[Finding]:
    """Say where weights were found, of each backbone that has some here, and how the others come here."""
    used = _used_weights_files(workspace)
    missing = []
    for name, row in ALIASES.items():
        place, advice = _find_weights(name, row, files, used)
        if place:
            yield Finding("weights", name, place, advice)
        else:
            missing.append(name)
    if of_hub := [name for name in missing if ALIASES[name].tag]:
        offline = " (HF_HUB_OFFLINE is set: not on this machine)" if os.environ.get("HF_HUB_OFFLINE") else ""
        yield Finding("weights", "on the hub", ", ".join(of_hub))
        yield Finding(
            "weights",
            "to have them",
            f"each is fetched by the first `extract --backbone NAME`{offline}; without network give --weights FILE "
            f"(`unsupseg backbones show NAME`), or run once where there is one and copy {_hub_folder()}",
        )
    if of_files := [name for name in missing if not ALIASES[name].tag]:
        wanted = ", ".join(f"{name} (--weights {ALIASES[name].file})" for name in of_files)
        yield Finding("weights", "as files only", wanted)


def _find_weights(
    name: str, row: BackboneRow, files: Mapping[str, Path], used: Mapping[str, Path]
) -> tuple[str, str]:
    """Return where weights were found ("" if nowhere) and what to do about it."""
    if name == "tiny":
        advice = "" if TINY.exists() else "install the package again"
        return (str(TINY) if TINY.exists() else "missing from the package"), advice
    if name == "untrained":
        return "random weights, none needed", ""
    if name in files:
        exists = files[name].exists()
        return (
            f"{files[name]} (unsupseg.toml){'' if exists else ': missing'}",
            "" if exists else "mend the path there",
        )
    if cached := _cached(row):
        return str(cached), ""
    if name in used:
        return f"{used[name]} (used before: give it with --weights)", ""
    import torch

    original = Path(torch.hub.get_dir()) / "checkpoints" / row.file
    return (f"{original} (give it with --weights)", "") if row.file and original.is_file() else ("", "")


def _cached(row: BackboneRow) -> Path | None:
    """Return the file of a backbone in the hub's cache."""
    if not row.tag:
        return None
    import timm
    from huggingface_hub import try_to_load_from_cache

    config: Any = timm.get_pretrained_cfg(f"{row.timm}.{row.tag}", allow_unregistered=True)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        return None
    if repository.endswith("/"):  # timm's own: the model's full name follows
        repository = f"{repository}{row.timm}.{row.tag}"
    for file in ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _used_weights_files(workspace: Workspace) -> dict[str, Path]:
    """Return the weights files that features of the workspace were made with, by backbone."""
    used = {}
    for artifact in workspace.artifacts("features") if workspace.root.is_dir() else ():
        name = artifact.manifest.execution.get("weights")
        if name and Path(name).exists():
            used[str(artifact.manifest.config["backbone"])] = Path(name)
    return used


def _hub_folder() -> str:
    from huggingface_hub.constants import HF_HOME

    return str(HF_HOME)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
