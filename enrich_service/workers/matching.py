"""What the running workers lack for a training, as warnings before it is queued.

Nothing here decides who gets a job: a worker may know less of itself than it has.
"""

import posixpath
from collections.abc import Iterator, Sequence
from typing import Final

from contract import Needs, TrainConfig, WorkerOffers
from enrich_service.core.text import shortened
from enrich_service.workers.schemas import WorkerView

MAX_SHOWN: Final = 5
NO_WORKER: Final = "No worker is running: the job waits until one starts."
_HUB: Final = ("hf:", "hf-hub:")
_CACHED: Final = " in its cache"


def warnings(
    workers: Sequence[WorkerView], config: TrainConfig, needs: Needs | None = None
) -> list[str]:
    """Why no running worker can do a job, as far as workers say what they have; none if one can.

    A worker that has not said what it has, or that may read any folder, gets the benefit of the
    doubt.
    """
    running = [worker for worker in workers if worker.running]
    if not running:
        return [NO_WORKER]
    lacking = {worker.name: list(_lacks(worker, config, needs or Needs())) for worker in running}
    if not all(lacking.values()):
        return []
    first, *others = lacking.values()
    common = [what for what in first if all(what in other for other in others)]
    if common:
        offline = all(worker.offers and worker.offers.offline for worker in running)
        return [f"No running worker has {what}{_consequence(what, offline)}" for what in common]
    shown = [f"{name} lacks {what[0]}" for name, what in list(lacking.items())[:MAX_SHOWN]]
    more = f"; and {len(lacking) - MAX_SHOWN} more" if len(lacking) > MAX_SHOWN else ""
    return [f"No running worker has all that this needs: {'; '.join(shown)}{more}."]


def _consequence(what: str, offline: bool) -> str:
    if not what.endswith(_CACHED):
        return "."
    return ", and none may download it." if offline else ": it is downloaded first."


def _lacks(worker: WorkerView, config: TrainConfig, needs: Needs) -> Iterator[str]:
    """What `worker` lacks for the training, the most important first."""
    if needs.gpu and not worker.gpu:
        yield "a GPU"
    elif config.device.startswith("cuda") and not worker.gpu:
        yield f"the device {config.device}"
    if needs.memory_gb > worker.memory_gb:
        yield f"{needs.memory_gb:g} GiB of memory"
    if worker.offers is not None:
        yield from _lacks_files(worker.offers, config)


def _lacks_files(offers: WorkerOffers, config: TrainConfig) -> Iterator[str]:
    folders = [folder.path for folder in offers.data]
    if not config.data.startswith(_HUB) and not _may_have(offers, config.data, folders):
        yield f"the data {shortened(config.data)}"
    if config.weights is not None and not _may_have(offers, config.weights, offers.weights):
        yield f"the weights {shortened(config.weights)}"
    scheme, _, folder = config.teacher.partition(":")
    if scheme == "local-dir":
        local = [name.partition(":")[2] for name in offers.teachers if name.startswith(scheme)]
        if not _may_have(offers, folder, local):
            yield f"the teacher {shortened(config.teacher)}"
    elif config.teacher not in offers.teachers:
        yield f"the teacher {shortened(config.teacher)}{_CACHED}"
    if config.pretrained and not any(
        name == config.student or name.startswith(f"{config.student}.") for name in offers.students
    ):
        yield f"trained weights of the student {config.student}{_CACHED}"


def _may_have(offers: WorkerOffers, path: str, known: Sequence[str]) -> bool:
    """Whether the worker has `path`, or does not know."""
    if not offers.data_roots or not path.startswith("/"):
        return True
    path = posixpath.normpath(path)
    if path in (posixpath.normpath(other) for other in known):
        return True
    is_below = any(
        path == root or path.startswith(f"{root.rstrip('/')}/")
        for root in map(posixpath.normpath, offers.data_roots)
    )
    return is_below and not offers.data_complete
