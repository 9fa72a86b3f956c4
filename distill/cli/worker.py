"""`distill worker`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from distill.cli.console import DataRootOption, one_line_errors

# Accept every job: if the Ray cluster is too small for it, the autoscaler adds nodes.
WHOLE_CLUSTER = {"gpu": True, "memory_gb": 1_000_000}


@one_line_errors
def worker(
    service: Annotated[str, typer.Option(help="Address of the enrichment service.")],
    once: Annotated[bool, typer.Option(help="Exit when the queue is empty.")] = False,
    work_dir: Annotated[Path, typer.Option(help="Folder for checkpoints and results.")] = Path(
        "distill-out"
    ),
    name: Annotated[
        str, typer.Option(help="Name of this worker. Default: host and process id.")
    ] = "",
    data_root: DataRootOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Train on a Ray cluster: address of its job server, such as http://head:8265."
        ),
    ] = None,
    ray_processes: Annotated[
        int, typer.Option(min=1, help="Number of processes per training on Ray.")
    ] = 1,
) -> None:
    """Run training jobs from the service, one at a time."""
    from distill.worker.main import TRAIN, work

    on_ray = (sys.executable, "-m", "distill.on_ray.submit", "--address", ray or "")
    work(
        service,
        work_dir=work_dir.absolute(),  # a Ray job runs in another folder
        once=once,
        name=name or f"{os.uname().nodename}-{os.getpid()}",
        api_key=os.environ.get("ENRICH_API_KEY"),
        command=(*on_ray, "--processes", str(ray_processes)) if ray else TRAIN,
        resources=WHOLE_CLUSTER if ray else None,
        device=f"Ray cluster at {ray}" if ray else None,
        data_roots=[root.absolute() for root in data_root or ()],
    )
