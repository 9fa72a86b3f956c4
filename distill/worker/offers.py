"""What this worker has, told to the service at the start and again every minute."""

import platform
import threading
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, get_args

from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

import distill
from contract import Recipe, Tracker, WorkerOffers
from distill.data.cores import usable_cores
from distill.errors import RequestRefused, ServiceError
from distill.worker.cached_models import cached_students, cached_teachers
from distill.worker.client import ServiceClient
from distill.worker.data_folders import DataScan
from distill.worker.gpus import find_gpus
from distill.worker.outbox import notes

WORKERS: Final = "/v1/workers"
REPEAT_S: Final = 60.0
PRESETS: Final = Path(distill.__file__).parent / "presets"


class Announcer:
    """Tells the service what this worker has, in a thread of its own.

    A slow disk or an unreachable service delays no job: what cannot be told now is told a minute
    later. `device`: what to show instead of this machine's device.
    """

    def __init__(
        self,
        service: ServiceClient,
        name: str,
        resources: Mapping[str, Any],
        *,
        work_dir: Path,
        data_roots: Sequence[Path],
        device: str | None = None,
    ) -> None:
        self._service = service
        self._body = {"worker": name, **resources}
        self._work_dir, self._roots, self._device = work_dir, tuple(data_roots), device
        self._scan = DataScan(self._roots)
        self._ended = threading.Event()
        self._refused = False
        self._thread = threading.Thread(target=self._run, name="offers", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, without waiting long for what is under way."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        device, memory = (self._device, None) if self._device else describe_device()
        while True:
            found = self._scan.find()
            offers = WorkerOffers(
                version=version("enrich-distill"),
                device=device or "",
                device_memory_gb=memory,
                data_roots=tuple(map(str, self._roots)),
                data=tuple(found.data),
                data_complete=found.complete,
                teachers=(*found.teachers, *cached_teachers(Path(HF_HUB_CACHE), self._work_dir)),
                students=tuple(cached_students(Path(HF_HUB_CACHE))),
                weights=tuple(found.weights),
                trackers=installed_trackers(),
                recipes=recipes(),
                offline=HF_HUB_OFFLINE,
            )
            self._tell(offers)
            if self._ended.wait(REPEAT_S):
                return

    def _tell(self, offers: WorkerOffers) -> None:
        body = self._body | {"offers": offers.model_dump(mode="json")}
        try:
            self._service.send("POST", WORKERS, body=body)
        except RequestRefused as error:
            if not self._refused:
                notes.print(f"the service does not list what this worker has: {error}")
            self._refused = True
        except ServiceError:
            pass  # the loop that claims jobs reports it


def recipes() -> tuple[Recipe, ...]:
    """The presets of `distill train`."""
    return tuple(
        Recipe(name=path.stem, config=tomllib.loads(path.read_text(encoding="utf-8")))
        for path in sorted(PRESETS.glob("*.toml"))
    )


def installed_trackers() -> tuple[str, ...]:
    """The experiment trackers whose package is installed, as `track` of a configuration names them.

    (Importing `distill.pipeline.tracking` would load torch into this process.)
    """
    return tuple(name for name in get_args(Tracker) if find_spec(name) is not None)


def describe_device() -> tuple[str, float | None]:
    """The GPUs that a training may use and the memory of one in GiB; or the processor and None.

    (Asking torch would load it into this process.)
    """
    if gpus := find_gpus():
        names = Counter(gpu.name for gpu in gpus)
        shown = (name if count == 1 else f"{count} × {name}" for name, count in names.items())
        return ", ".join(shown), min(gpu.memory_gb for gpu in gpus)
    return f"{_processor()}, {usable_cores()} cores", None


def _processor() -> str:
    with suppress(OSError):
        for line in (
            Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
