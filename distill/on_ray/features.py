"""The teacher's features of a job, computed on all nodes of a Ray cluster before its training.

Ray Data hands ranges of images to processes on all nodes. Each loads the teacher once, and writes a
shard per range into the cache folder, which all nodes mount. The training then finds whole shards
and only joins them.

When a node dies, Ray Data hands the range that it was computing to another process. Ray may also
repeat a range whose result was lost with its node; its shard is there, and is not computed again.

When a process finds an image that cannot be read, this is logged at once. The other ranges are then
only checked, which is faster than computing their features, so that the error names all images.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import ray
from ray.data import ActorPoolStrategy, DataContext

from contract import EventKind, SplitName, TrainConfig
from distill.data.files.row_shards import SHARD_ROWS, CachedRows
from distill.data.read_ahead import find_unreadable
from distill.data.releases import read_release
from distill.data.splits import Split, scan_splits
from distill.errors import Interrupted, UnreadableImages, UserError
from distill.models.devices import choose_device
from distill.models.teacher import load_teacher
from distill.on_ray.messages import RayFolder, StopRequest
from distill.pipeline.inputs import Inputs
from distill.pipeline.job import UNPACKING, check_inputs, progress_events, until_stopped
from distill.training.malloc_tuning import keep_freed_memory

Paths = Mapping[str, str]  # of config, release, out and cache, as `distill train` takes them
FEW_IMAGES: Final = SHARD_ROWS  # encoded before other processes have loaded the teacher


@dataclass(frozen=True)
class Plan:
    """What is missing of a job's features."""

    splits: Mapping[SplitName, Split]
    images: Mapping[str, int]  # all of each kind of features
    missing: list[dict[str, Any]]  # the kind, start and stop of each range of images

    @property
    def missing_images(self) -> int:
        """How many features are missing."""
        return sum(part["stop"] - part["start"] for part in self.missing)

    @property
    def done(self) -> dict[str, int]:
        """How many features of each kind are there."""
        done = dict(self.images)
        for part in self.missing:
            done[part["kind"]] -= part["stop"] - part["start"]
        return done


def compute_features(paths: Paths, resources: Mapping[str, Any], processes: int) -> None:
    """Compute the missing shards of a job's features.

    As many processes as the cluster has room for, and at least `processes`, compute them, each with
    `resources` (num_cpus, num_gpus, memory). Few images are left to the training.

    Raises:
        UserError: an input is missing or invalid; all unreadable images are named.
        Interrupted: the submitter ordered it, or is silent. What was computed is kept.
    """
    # In a process of its own, so that what torch and the teacher hold is freed.
    plan = ray.get(ray.remote(max_calls=1, **resources)(make_plan).remote(paths))
    if isinstance(plan, str):
        raise UserError(plan)
    if plan.missing_images <= FEW_IMAGES:
        return
    folder = RayFolder(Path(paths["out"]))
    count = min(len(plan.missing), max(processes, _room(resources)))
    message = (
        f"computing {len(plan.missing)} shards of teacher features in {count} processes on Ray"
    )
    folder.write_event(EventKind.LOG, {"message": message})
    DataContext.get_current().enable_progress_bars = False
    computed = ray.data.from_items(plan.missing, override_num_blocks=len(plan.missing)).map(
        ShardWriter,
        fn_constructor_args=(paths, ray.put(plan.splits)),
        compute=ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
        **resources,
    )
    _follow(computed.iter_rows(), plan, folder)


def _follow(parts: Iterable[Mapping[str, Any]], plan: Plan, folder: RayFolder) -> None:
    """Show the progress of the ranges as they are computed, and raise their errors."""
    show = {kind: progress_events(folder.write_event)(kind) for kind in plan.images}
    done = dict(plan.done)
    should_stop = StopRequest(folder)
    unreadable: set[str] = set()
    for part in parts:
        if part["error"]:
            raise UserError(part["error"])
        images = [str(image) for image in part["unreadable"]]  # Ray may give an array
        if images and not unreadable:
            message = f"{UnreadableImages(images)}; checking the other images"
            folder.write_event(EventKind.LOG, {"message": message})
        unreadable.update(images)
        kind = part["kind"]
        done[kind] += part["stop"] - part["start"]
        show[kind](done[kind], plan.images[kind])
        if should_stop():
            raise Interrupted
    if unreadable:
        raise UnreadableImages(sorted(unreadable))


def _room(resources: Mapping[str, Any]) -> int:
    """How many processes with `resources` the cluster has room for, about."""
    whole = ray.cluster_resources()
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    shares = [
        whole.get(name, 0) / resources[key] for key, name in names.items() if resources.get(key)
    ]
    return int(min(shares))


def make_plan(paths: Paths) -> Plan | str:
    """Check the inputs of a job and find what is missing of its features, on a node.

    Gives the message of an error that the user has to fix. Findings are logged only then: the
    training checks its inputs again.

    Raises:
        Interrupted: the submitter ordered it, or is silent. What was unpacked is kept.
    """
    config, cache, folder = _config(paths), Path(paths["cache"]), RayFolder(Path(paths["out"]))
    findings: list[str] = []
    phases = until_stopped(progress_events(folder.write_event), StopRequest(folder))
    keep_freed_memory()
    try:
        release = read_release(Path(paths["release"]))
        splits = scan_splits(
            config.data,
            {label.key for label in release.labels},
            cache=cache,
            progress=phases(UNPACKING),
        )
        checked = check_inputs(
            config,
            release,
            splits,
            cache=cache,
            device=choose_device(config.device),
            log=findings.append,
            phases=phases,
        )
        kinds = checked.inputs.feature_rows(config.teacher_views)
        missing = [
            {"kind": kind, "start": part.start, "stop": part.stop}
            for kind, (_, rows) in kinds.items()
            for part in rows.missing()
        ]
    except UserError as error:
        for message in findings:
            folder.write_event(EventKind.LOG, {"message": message})
        return str(error)
    return Plan(splits, {kind: len(split) for kind, (split, _) in kinds.items()}, missing)


class ShardWriter:
    """Computes and writes shards of features, in a process with a teacher of its own."""

    def __init__(self, paths: Paths, splits: "ray.ObjectRef[Mapping[SplitName, Split]]") -> None:
        self._paths, self._splits = paths, splits
        self._folder = RayFolder(Path(paths["out"]))

    @cached_property
    def _kinds(self) -> Mapping[str, tuple[Split, CachedRows]]:
        """Not loaded in `__init__`: there Ray would repeat an error that the user has to fix."""
        keep_freed_memory()
        config = _config(self._paths)
        inputs = Inputs(
            ray.get(self._splits),
            load_teacher(
                config.teacher, device=choose_device(config.device), precision=config.precision
            ),
            Path(self._paths["cache"]),
            progress=lambda _: lambda _done, _total: None,
            pixel_mode="streamed",  # each process decodes the images of its own ranges
        )
        return inputs.feature_rows(config.teacher_views)

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Write the shard of a range. Adds images that are `unreadable`, or another `error`.

        Once any process has found unreadable images, the range is only checked for others.
        """
        unreadable, problem = [], ""
        try:
            split, rows = self._kinds[part["kind"]]
            if self._folder.has_unreadable():
                unreadable = find_unreadable(split.paths[part["start"] : part["stop"]])
            else:
                rows.write_shard(range(part["start"], part["stop"]))
        except UnreadableImages as error:
            self._folder.report_unreadable()
            unreadable = list(error.images)
        except UserError as error:
            problem = str(error)
        return {**part, "unreadable": unreadable, "error": problem}


def _config(paths: Paths) -> TrainConfig:
    return TrainConfig.model_validate_json(Path(paths["config"]).read_bytes())
