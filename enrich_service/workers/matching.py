"""The requirements of a job that workers do not meet, as far as they report what they have.

Workers that have reported nothing, or that may read any folder, are assumed to have all files.
"""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from contract import Needs, TrainConfig, WorkerOffers
from enrich_service.core.text import shortened
from enrich_service.workers.schemas import WorkerView

MAX_LISTED: Final = 5  # workers in a warning
NO_WORKER: Final = "No worker is running: the job waits until one starts."
_EXPORTS: Final = ("COCO export", "YOLO export", "shards")  # one file of them may be `data`, too
_HUB: Final = ("hf:", "hf-hub:")


@dataclass(frozen=True)
class _Requirement:
    """What a job needs of a worker. `cached`: a worker that is not offline may download it."""

    name: str
    cached: bool = False
    remedy: str = "."  # if it is not cached

    def __str__(self) -> str:
        return f"{self.name} in its cache" if self.cached else self.name

    def consequence(self, offline: bool) -> str:
        """The end of the sentence that no running worker has this."""
        if not self.cached:
            return self.remedy
        return ", and none may download it." if offline else ": it will be downloaded."


def warnings(
    workers: Sequence[WorkerView], config: TrainConfig, needs: Needs | None = None
) -> list[str]:
    """The reasons why no running worker can do a job; empty if one can."""
    running = [worker for worker in workers if worker.running]
    if not running:
        return [NO_WORKER]
    missing = {worker.name: list(_missing(worker, config, needs or Needs())) for worker in running}
    if not all(missing.values()):
        return []
    first, *others = missing.values()
    common = [requirement for requirement in first if all(requirement in other for other in others)]
    if common:
        offline = all(worker.offers and worker.offers.offline for worker in running)
        return [
            f"No running worker has {requirement}{requirement.consequence(offline)}"
            for requirement in common
        ]
    listed = [
        f"{name} lacks {requirements[0]}"
        for name, requirements in list(missing.items())[:MAX_LISTED]
    ]
    more = f"; and {len(missing) - MAX_LISTED} more" if len(missing) > MAX_LISTED else ""
    return [f"No running worker meets all requirements: {'; '.join(listed)}{more}."]


def can_do(worker: WorkerView, config: TrainConfig, needs: Needs) -> bool:
    """Whether `worker` meets all requirements of the job, but for what it may download."""
    offline = worker.offers is not None and worker.offers.offline
    missing = _missing(worker, config, needs)
    return all(requirement.cached and not offline for requirement in missing)


def _missing(worker: WorkerView, config: TrainConfig, needs: Needs) -> Iterator[_Requirement]:
    """The requirements of the job that `worker` does not meet, most important first."""
    if needs.gpu and not worker.gpu:
        yield _Requirement("a GPU")
    elif config.device.startswith("cuda") and not worker.gpu:
        yield _Requirement(f"the device {config.device}")
    if needs.memory_gb > worker.memory_gb:
        yield _Requirement(f"{needs.memory_gb:g} GiB of memory")
    if worker.offers is not None:
        yield from _missing_files(worker.offers, config)


def _missing_files(offers: WorkerOffers, config: TrainConfig) -> Iterator[_Requirement]:
    if not _may_have_data(offers, config.data):
        yield _Requirement(f"the data {shortened(config.data)}")
    if config.weights is not None and not _may_have(offers, config.weights, offers.weights):
        yield _Requirement(f"the weights {shortened(config.weights)}")
    scheme, _, folder = config.teacher.partition(":")
    if scheme == "local-dir":
        local = [name.partition(":")[2] for name in offers.teachers if name.startswith(scheme)]
        if not _may_have(offers, folder, local):
            yield _Requirement(f"the teacher {shortened(config.teacher)}")
    elif config.teacher not in offers.teachers:
        yield _Requirement(f"the teacher {shortened(config.teacher)}", cached=True)
    if config.pretrained and not any(
        name == config.student or name.startswith(f"{config.student}.") for name in offers.students
    ):
        yield _Requirement(f"pretrained weights of the student {config.student}", cached=True)
    for name in config.track:
        if name not in offers.trackers:
            remedy = ": install it there, or remove it from `track`."
            yield _Requirement(f"the package {name} of `track`", remedy=remedy)


def _may_have_data(offers: WorkerOffers, data: str) -> bool:
    """As `_may_have`; workers do not list each file of an export."""
    is_file_of_export = "." in posixpath.basename(data) and any(
        folder.kind in _EXPORTS and data.startswith(f"{folder.path}/") for folder in offers.data
    )
    known = [folder.path for folder in offers.data]
    return data.startswith(_HUB) or is_file_of_export or _may_have(offers, data, known)


def _may_have(offers: WorkerOffers, path: str, known: Sequence[str]) -> bool:
    """Whether the worker has `path`, or may have it without having reported it."""
    if not offers.data_roots or not path.startswith("/"):
        return True
    path = posixpath.normpath(path)
    if path in (posixpath.normpath(other) for other in known):
        return True
    in_data_root = any(
        path == root or path.startswith(f"{root.rstrip('/')}/")
        for root in map(posixpath.normpath, offers.data_roots)
    )
    return in_data_root and not offers.data_complete
