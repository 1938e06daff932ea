"""The dry run of a recipe: what is reused, what would be made and why, how large, how long. Nothing is written.

The keys of artifacts that are not there yet are known from their inputs' keys and options, so that the whole recipe
can be planned. No weights are loaded: their digest is known for `tiny` and `backbone` artifacts, and for other
weights from earlier features of this workspace (of a file, while its size and time are the same).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unsupseg_cli.artifacts.arrays import has_array
from unsupseg_cli.artifacts.grids import GridReader, array_bytes
from unsupseg_cli.artifacts.manifest import DataSource, Manifest
from unsupseg_cli.artifacts.workspace import Artifact, Recipe
from unsupseg_cli.contents.features import stored_geometry
from unsupseg_cli.contents.images import (
    Context,
    describe_images,
    open_data,
    remembered_weights,
    resolve_device,
)
from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.data.datasets import Dataset
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.methods.registry import get_method
from unsupseg_cli.models.backbone import backbone_row, resolve_precision
from unsupseg_cli.models.backbones import ALIASES, TINY, default_backbone
from unsupseg_cli.pipeline.lineage import flat, lineage
from unsupseg_cli.pipeline.pace import extrapolate
from unsupseg_cli.pipeline.recipe import Step
from unsupseg_cli.pipeline.run import with_force
from unsupseg_cli.stages.config import ExtractConfig
from unsupseg_cli.stages.evaluate import evaluate_dataset, evaluate_recipe
from unsupseg_cli.stages.extract import GRID_DTYPES, extract_recipe, plan_views, view_geometry
from unsupseg_cli.stages.graph import graph_recipe
from unsupseg_cli.stages.predict import predict_dataset, predict_geometry, predict_recipe
from unsupseg_cli.stages.pseudolabel import pseudolabel_recipe
from unsupseg_cli.stages.refine import refine_recipe
from unsupseg_cli.stages.refine_masks import refine_masks_recipe
from unsupseg_cli.stages.train import train_recipe

_HEAD_DIM = 64  # channels of an attention head: the same in every ViT of `backbones list`
_UNKNOWN = "unknown"
_SHOWN = 4  # differences of a key that are told
_LENGTH = (
    "seed",
    "steps",
    "epochs",
)  # options that change how long a stage takes in proportion, or not at all


@dataclass(frozen=True)
class Planned:
    """One stage of a dry run.

    ``artifact`` is there, or as it will be; it is not ``named`` where its key needs images or weights that were not
    read.
    ``bytes`` is the size of its arrays; pictures, tables and models come on top, as do soft masks, whose number nobody
    knows before. ``seconds`` is what earlier runs of this workspace and device, or a probe, took, scaled to this one;
    None is unknown.
    """

    step: Step
    artifact: Artifact
    named: bool
    reused: bool
    why: str
    images: int
    bytes: int
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "stage": self.step.id,
            "command": self.step.command,
            "artifact": self.artifact.id if self.named else None,
            "reused": self.reused,
            "why": self.why,
            "images": self.images,
            "bytes": self.bytes,
            "seconds": self.seconds,
        }


def plan(
    steps: Sequence[Step],
    context: Context,
    *,
    first: str | None = None,
    probed: Sequence[Manifest] = (),
) -> list[Planned]:
    """Return what `run` would do with each step; the workspace is only read.

    Args:
        steps: of the recipe.
        context: whose workspace is looked at; with ``force`` nothing is reused.
        first: this step and all later ones are made again.
        probed: what `pace.probe` returned, for times that no earlier run tells.

    Raises:
        UsageError: the images are not found, or a step does not fit them.
    """
    planner = _Planner(replace(context, read_only=True), probed)
    return [planner.plan(step, forced) for step, forced in with_force(steps, context.force, first)]


def free_bytes(workspace: Path) -> int:
    """Return the free space where a workspace is or will be."""
    folder = workspace.resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class _Planner:
    def __init__(self, context: Context, probed: Sequence[Manifest]) -> None:
        self.context, self.workspace, self.probed = context, context.workspace, probed
        self.past = [artifact.manifest for artifact in context.workspace.artifacts()]
        self.planned: dict[str, Artifact] = {}
        self.grids: dict[str, NDArray[np.int64]] = {}  # by the id of an `extract` step
        self.new: set[str] = set()  # keys of artifacts that are not there yet
        self.guessed: set[str] = set()  # keys that stand for what is not known yet

    def plan(self, step: Step, forced: bool) -> Planned:
        plans = {
            "extract": self._extract,
            "graph": self._graph,
            "pseudolabel": self._pseudolabel,
            "train": self._train,
            "predict": self._predict,
            "refine": self._refine,
            "eval": self._eval,
        }
        recipe, summary, size = plans[step.command](step)
        found = self.workspace.find_key(recipe.kind, recipe.key)
        why = self._why(step, recipe, found, forced)
        if found is None:
            self.new.add(recipe.key)
        unread = _UNKNOWN in (recipe.weights, recipe.data.fingerprint if recipe.data else "")
        if unread or any(item.key in self.guessed for item in recipe.inputs):
            self.guessed.add(recipe.key)
        artifact = found or self._promise(recipe, summary)
        self.planned[step.id] = artifact
        reused = found is not None and not forced
        return Planned(
            step=step,
            artifact=artifact,
            named=recipe.key not in self.guessed,
            reused=reused,
            why=why,
            images=recipe.data.count if recipe.data else 0,
            bytes=0 if reused else size,
            seconds=0.0 if reused else self._seconds(self._promise(recipe, summary).manifest),
        )

    def _promise(self, recipe: Recipe, summary: dict[str, Any]) -> Artifact:
        """Return the artifact that a recipe will make, as far as it is known."""
        manifest = Manifest(
            kind=recipe.kind,
            id=recipe.id,
            stage=recipe.stage,
            stage_version=recipe.stage_version,
            key=recipe.key,
            config=recipe.config,
            execution=recipe.execution,
            inputs=recipe.inputs,
            data=recipe.data,
            summary=summary,
            used_labels=recipe.used_labels,
        )
        return Artifact(self.workspace.root / recipe.kind / recipe.id, manifest)

    def _input(self, step: Step, role: str) -> Artifact | None:
        return self.planned[step.inputs[role]] if role in step.inputs else None

    def _needed(self, step: Step, role: str) -> Artifact:
        found = self._input(step, role)
        assert found is not None
        return found

    def _describe(self, dataset: Dataset) -> DataSource:
        """Describe images; they are read for their digest only if an artifact of as many images is there."""
        if any(one.data and one.data.count == len(dataset.items) for one in self.past):
            return describe_images(dataset, self.context)
        return DataSource(
            dataset=dataset.name,
            split=dataset.split,
            root=str(dataset.root.absolute()),
            fingerprint=_UNKNOWN,
            count=len(dataset.items),
        )

    # The stages: what decides the artifact, what later stages need to know of it, bytes of its arrays --------

    def _extract(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        config: ExtractConfig = step.config
        device = resolve_device(config.device)
        dataset = open_data(config, self.context)
        model = self._input(step, "model")
        if model is None:
            name, patch, dim, weights = self._backbone(config)
            placed = dim + 2 if config.position else dim
        else:
            features = self._features_of(model)
            name, weights = features.manifest.config["backbone"], features.manifest.summary["weights_digest"]
            patch, dim = features.manifest.summary["patch_size"], self._code_channels(model)
            placed = dim
        precision = resolve_precision(config.precision, device)
        recipe = extract_recipe(config, self._describe(dataset), (name, precision, weights), device, model)
        found = self.workspace.find_key("features", recipe.key)
        if found is not None and has_array(found.path / "patch"):
            grids = GridReader(found.path, "patch").grids
        else:
            self.context.reporter.info(f"{step.id}: reading the sizes of {len(dataset.items):,} images")
            grids = plan_views(dataset, view_geometry(config), patch, config.strict).grids(patch)
        self.grids[step.id] = grids
        size = 0
        for array in recipe.config["keep"]:
            if array in GRID_DTYPES:
                channels = {"attention": dim // _HEAD_DIM, "patch": placed}.get(array, dim)
                size += array_bytes(grids, (channels,), GRID_DTYPES[array])
            else:
                size += len(grids) * dim * np.dtype(np.float32).itemsize
        summary = {"views": len(grids), "dim": placed, "patch_size": patch, "weights_digest": weights}
        return recipe, summary, size

    def _graph(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        features = self._needed(step, "features")
        recipe = graph_recipe(step.config, features, resolve_device(step.config.device))
        views = int(features.manifest.summary["views"])
        pair = np.dtype(np.int32).itemsize + np.dtype(np.float16).itemsize
        return recipe, {}, views * min(step.config.neighbors, views - 1) * pair

    def _pseudolabel(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        assert step.options is not None
        features = self._needed(step, "features")
        recipe = pseudolabel_recipe(step.config, features, step.options)
        labeller = get_method(step.config.method).pseudolabeller(
            step.options, recipe.config["classes"], step.config.seed
        )
        size = self._label_bytes(step.inputs["features"], pixels=labeller.needs_images)
        return recipe, {}, size

    def _label_bytes(self, features: str, pixels: bool) -> int:
        """Return the bytes of label maps of all views, by cell or by pixel."""
        scale = int(self.planned[features].manifest.summary["patch_size"]) if pixels else 1
        return array_bytes(self.grids[features] * scale, (), np.int16)

    def _train(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        assert step.options is not None
        recipe = train_recipe(
            step.config,
            get_method(step.config.method).name,
            self._needed(step, "features"),
            self._input(step, "pseudolabels"),
            self._input(step, "graph"),
            step.options,
            resolve_device(step.config.device),
        )
        return recipe, {}, 0

    def _predict(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        model = self._needed(step, "model")
        features = self._features_of(model).manifest
        device = resolve_device(step.config.device)
        dataset = predict_dataset(step.config, model, self.context)
        trained = Geometry(**stored_geometry(features.config))
        geometry = predict_geometry(step.config, trained)
        precision = resolve_precision(step.config.precision, device)
        recipe = predict_recipe(step.config, self._describe(dataset), model, geometry, precision, device)
        size = 0
        if step.config.keep == "scores":
            views = plan_views(dataset, geometry, features.summary["patch_size"], step.config.strict).views
            pixels = sum(view.height * view.width for _, view in views)
            size = pixels * int(model.manifest.config["classes"]) * np.dtype(np.float16).itemsize
        return recipe, {}, size

    def _refine(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        if step.makes == "predictions":
            return refine_recipe(step.config, self._needed(step, "predictions")), {}, 0
        labels = self._needed(step, "pseudolabels")
        used = labels.input("features")
        assert used is not None
        features = next(name for name, one in self.planned.items() if one.manifest.key == used.key)
        recipe = refine_masks_recipe(step.config, labels, self.planned[features])
        return recipe, {}, self._label_bytes(features, pixels=True)

    def _eval(self, step: Step) -> tuple[Recipe, dict[str, Any], int]:
        scored = self._input(step, "predictions") or self._needed(step, "model")
        precision = ""
        if scored.manifest.kind == "model":
            precision = resolve_precision(step.config.precision, resolve_device(step.config.device))
        dataset = evaluate_dataset(step.config, scored, self.context)
        assignment = self._input(step, "assignment")
        return evaluate_recipe(step.config, dataset, scored, assignment, precision, self.context), {}, 0

    # Backbones -------------------------------------------------------------------------------------------

    def _backbone(self, config: ExtractConfig) -> tuple[str, int, int, str]:
        """Return name, patch size, channels and the digest of the weights, where it is known."""
        name = default_backbone() if config.backbone == "auto" else config.backbone
        folder = config.weights if config.weights and config.weights.is_dir() else None
        if name not in ALIASES and not name.startswith("timm:") and config.weights is None:
            folder = self.workspace.get(name, "backbone").path
        if folder is not None:
            meta = _read_meta(folder / "backbone.json")
            return name, int(meta["patch_size"]), int(meta["arch"]["embed_dim"]), str(meta["digest"])
        row = backbone_row(name)
        weights = str(_read_meta(TINY.with_suffix(".json"))["digest"]) if name == "tiny" else ""
        return name, row.patch_size, row.dim, weights or self._used_weights(name, config.weights)

    def _used_weights(self, name: str, file: Path | None) -> str:
        """Return the digest that weights had when features were made with them in this workspace."""
        if file is not None:
            return remembered_weights(name, file, self.context) or _UNKNOWN
        for one in reversed(self.past):  # of the hub: its file of a name does not change
            if one.stage == "extract" and one.config["backbone"] == name and not one.execution.get("weights"):
                return str(one.summary["weights_digest"])
        return _UNKNOWN

    def _features_of(self, model: Artifact) -> Artifact:
        """Return the features of the backbone that a model stands on."""
        used = model.input("features")
        assert used is not None
        known = {one.manifest.key: one for one in self.planned.values()}
        features = known.get(used.key) or self.workspace.find_key("features", used.key)
        if features is None:
            raise UsageError(
                f"The features '{used.id}' of the model '{model.id}' are gone; run their `extract` again."
            )
        return features

    def _code_channels(self, model: Artifact) -> int:
        """Return the channels of the codes that ``extract --model`` stores."""
        codes = model.manifest.config["options"].get("codes")
        if codes is not None:
            return int(codes)
        features = self._features_of(model)
        base = features.input("model")
        if base is None:
            return int(features.manifest.summary["dim"])
        known = {one.manifest.key: one for one in self.planned.values()}
        return self._code_channels(
            known[base.key] if base.key in known else self.workspace.get(base.id, "model")
        )

    # Why and how long --------------------------------------------------------------------------------------

    def _why(self, step: Step, recipe: Recipe, found: Artifact | None, forced: bool) -> str:
        if found is not None:
            return (
                f"made again: --force or --from ('{found.id}' is there)"
                if forced
                else f"'{found.id}' is there"
            )
        if (self.workspace.root / recipe.kind / f".partial-{recipe.key[:16]}").exists():
            return "was begun and goes on where it stopped"
        older = [one for one in self.past if one.stage == recipe.stage and one.kind == recipe.kind]
        if not older:
            return "there is none of this kind yet"
        differing = [(self._differences(recipe, one), one) for one in older]
        fewest = min(len(differences) for differences, _ in differing)
        differences, nearest = [pair for pair in differing if len(pair[0]) == fewest][-1]
        more = f" and {fewest - _SHOWN} more" if fewest > _SHOWN else ""
        return f"differs from '{nearest.id}' in {'; '.join(differences[:_SHOWN])}{more}"

    def _differences(self, recipe: Recipe, old: Manifest) -> list[str]:
        """Return which parts of the key are others than those of an artifact."""
        found = []
        if recipe.stage_version != old.stage_version:
            found.append(f"the version of the stage ({recipe.stage_version}, was {old.stage_version})")
        if recipe.data and old.data and recipe.data.fingerprint != old.data.fingerprint:
            found.append("the images")
        if recipe.weights == _UNKNOWN:
            found.append("the weights, which were not used here yet")
        elif recipe.weights and recipe.weights != old.summary.get("weights_digest"):
            found.append("the weights")
        inputs = {item.role: item for item in old.inputs}
        for item in recipe.inputs:
            if item.role not in inputs or inputs[item.role].key != item.key:
                found.append(f"its {item.role} ({'new' if item.key in self.new else item.id})")
        found += [f"no {role} now" for role in inputs.keys() - {item.role for item in recipe.inputs}]
        now, then = flat(recipe.config), flat(old.config)
        for name in sorted(now.keys() | then.keys()):
            if now.get(name) != then.get(name):
                found.append(f"{name} = {now.get(name, 'none')} (was {then.get(name, 'none')})")
        return found or ["the labels"]

    def _seconds(self, manifest: Manifest) -> float | None:
        """Return how long a stage may take, from the last run with the same options on this device or a probe."""
        wanted = self._pace(manifest)

        def comparable(one: Manifest) -> bool:
            same = one.stage == manifest.stage and one.execution.get("device") == manifest.execution.get(
                "device"
            )
            return same and one.seconds > 0 and self._pace(one) == wanted

        if past := next(filter(comparable, reversed(self.past)), None):
            return past.seconds * _work(manifest) / _work(past)
        points = [(_work(one), one.seconds) for one in filter(comparable, self.probed)]
        return extrapolate(points, _work(manifest)) if len(points) == 2 else None

    def _pace(self, manifest: Manifest) -> str:
        """Return what decides how long an item or a step takes."""
        planned = {one.manifest.key: one.manifest for one in self.planned.values()}
        past = {one.key: one for one in (*self.past, *self.probed)}
        return lineage(
            manifest, lambda _, key: planned.get(key) or past.get(key), ignore=_LENGTH, images=False
        )


def _work(manifest: Manifest) -> float:
    """Return the amount of work that time grows with: images, as often as they are looked at."""
    options = manifest.config.get("options", {})
    images = manifest.data.count if manifest.data else 1
    if steps := options.get("steps"):
        return float(steps * min(images, options.get("batch", 1)))
    return float(images * options.get("epochs", 1))


def _read_meta(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
