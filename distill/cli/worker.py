"""`distill worker`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.console import DataRootOption, one_line_errors

# A job that needs more than a Ray cluster has waits there, until its autoscaler has brought it.
WHOLE_CLUSTER = {"gpu": True, "memory_gb": 1_000_000}


@one_line_errors
def worker(
    service: Annotated[str, typer.Option(help="Address of the enrichment service.")],
    once: Annotated[bool, typer.Option(help="Stop when there is nothing left to do.")] = False,
    work_dir: Annotated[Path, typer.Option(help="Checkpoints and results.")] = Path("distill-out"),
    name: Annotated[str, typer.Option(help="What the service calls this worker.")] = "",
    data_root: DataRootOption = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Let a Ray cluster train: its job server, like http://head:8265."),
    ] = None,
    ray_processes: Annotated[int, typer.Option(min=1, help="Of a training on Ray.")] = 1,
) -> None:
    """Take training jobs from the service, one after the other."""
    from distill.worker.main import TRAIN, work

    on_ray = (sys.executable, "-m", "distill.on_ray.submit", "--address", ray or "")
    work(
        service,
        work_dir=work_dir.absolute(),  # a Ray job runs in another folder
        once=once,
        name=name or f"{os.uname().nodename}-{os.getpid()}",
        api_key=os.environ.get("ENRICH_API_KEY"),
        command=(*on_ray, "--processes", str(ray_processes)) if ray else TRAIN,
        offers=WHOLE_CLUSTER if ray else None,
        data_roots=[root.absolute() for root in data_root or ()],
    )
