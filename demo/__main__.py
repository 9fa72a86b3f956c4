"""The whole way once, over REST, as a user would go it: `python -m demo` (or `make demo`).

Renders the world, starts the service (recorded replies stand in for the language model) and a
worker, and drives: label set, enrichment runs, release, two training jobs that differ in nothing
but the text strategy, reports. Needs no network, no key, no GPU. Everything lands in demo-out/;
what was started is stopped, however it ends.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from contract import Accuracy, Report, TextStrategy, TrainConfig
from demo.stack import (
    BIN,
    DemoError,
    Service,
    finish_run,
    follow,
    started,
    stop_tidily,
    wait_for_address,
)
from demo.world import write_world

HERE = Path(__file__).resolve().parent
STRATEGIES: tuple[TextStrategy, ...] = ("name", "name+description")
PROMPTS = ("visual-description", "attributes")
IMAGES = {"train": 80, "val_on_train": 25, "val": 40}  # a class
STUDENT: dict[str, Any] = {
    "student": "resnet10t",
    "image_size": 32,
    "epochs": 8,
    "seed": 0,
}
WAIT_SECONDS = 600  # for one step; the whole demo takes a few minutes


def enrich(service: Service, bars: Progress, prompt: str) -> dict[str, Any]:
    """Run one prompt over the label set; the finished run, which must have a text for each."""
    asked = {"label_set": "charms", "prompt": prompt, "author": "demo"}
    run = finish_run(service, bars, service.post("/v1/runs", asked), seconds=WAIT_SECONDS)
    if run["rejected"] or run["failed"]:
        raise DemoError(
            f"the run of {prompt} left {run['rejected']} labels rejected, {run['failed']} failed",
            service.log,
        )
    return run


def gather(reports: dict[TextStrategy, Report]) -> list[Accuracy]:
    """The rows to compare: the teacher on each text, each student on what it was trained with.

    The teacher's shuffled control and the student's come from the job with descriptions.
    """
    rows = []
    for model in ("teacher", "student"):
        for text in (*STRATEGIES, "shuffled"):
            report = reports["name" if text == "name" else "name+description"]
            rows += [row for row in report.accuracies if (row.model, row.text) == (model, text)]
    return rows


def show(console: Console, rows: list[Accuracy]) -> None:
    """Print the table and what the descriptions were worth."""
    table = Table(title="Top-1 accuracy, percent")
    for column in ("model", "text", "seen", "unseen"):
        table.add_column(column, justify="right" if column.endswith("seen") else "left")
    top1 = {(row.model, row.text, row.split): row.top1 for row in rows}
    for model, text in dict.fromkeys((row.model, row.text) for row in rows):
        cells = (f"{top1[model, text, split]:.1f}" for split in ("seen", "unseen"))
        table.add_row(model, text, *cells)
    console.print(table)
    for model in ("teacher", "student"):
        name, enriched = (top1[model, text, "unseen"] for text in STRATEGIES)
        console.print(f"On unseen classes descriptions give the {model} {enriched - name:+.1f}.")


def drive(out: Path, console: Console) -> None:
    """Go the whole way; raises DemoError where it cannot."""
    began = time.monotonic()
    work = out / "work"  # this run's own: images, database, checkpoints, logs
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with console.status("Rendering the world"):
        write_world(work / "world", **IMAGES)
    labels = json.loads((work / "world" / "labels.json").read_text(encoding="utf-8"))
    columns = (TextColumn("{task.description:26}"), BarColumn(), MofNCompleteColumn())
    serve = [str(BIN / "enrich"), "serve", "--port", "0"]
    settings = {
        "ENRICH_DATA_DIR": str(work / "data"),
        "OPENAI_BASE_URL": f"replay:{HERE / 'replies.jsonl'}",
    }
    with (
        started("service", serve, work, **settings) as process,
        Progress(*columns, TimeElapsedColumn(), console=console) as bars,
    ):
        service = Service(process, wait_for_address(process))
        bars.console.print(
            f"Service at {service.address}; its language model is a file of recorded replies"
        )
        service.post("/v1/label-sets", {"name": "charms", "labels": labels})
        for prompt in PROMPTS:
            run = enrich(service, bars, prompt)
            page = service.get("/v1/generations", run_id=run["id"], limit=1000)["items"]
            retried = sum(item["status"] == "retried" for item in page)
            flagged = sum(bool(item["flags"]) for item in page)
            bars.console.print(
                f"{prompt}: {run['accepted']} texts accepted, {retried} answers refused and asked "
                f"again, {flagged} flagged"
            )
        release = service.post(
            "/v1/releases",
            {
                "label_set": "charms",
                "name": "charms-1",
                "sources": [{"prompt": prompt, "alias": "production"} for prompt in PROMPTS],
                "message": "Recorded replies",
                "author": "demo",
            },
        )
        bars.console.print(f"Release {release['name']}, hash {release['hash'][:12]}")
        jobs: dict[str, int] = {}
        for strategy in STRATEGIES:
            config = TrainConfig(
                data=str(work / "world"),
                teacher=f"local-dir:{HERE / 'teacher'}",
                text_strategy=strategy,
                **STUDENT,
            )
            body = {"release_id": release["id"], "config": config.model_dump(mode="json")}
            jobs[strategy] = service.post("/v1/jobs", body)["id"]
        take = [str(BIN / "distill"), "worker", "--service", service.address, "--once"]
        with started("worker", [*take, "--work-dir", str(work / "jobs")], work) as worker:
            follow(service, worker, bars, jobs, epochs=STUDENT["epochs"], seconds=WAIT_SECONDS)
        reports: dict[TextStrategy, Report] = {}
        for strategy, number in jobs.items():
            reports[strategy] = Report.model_validate(service.get(f"/v1/jobs/{number}/report"))
            page = "report.html" if strategy == STRATEGIES[-1] else "report-name.html"
            html = service.send("GET", f"/v1/jobs/{number}/report.html").content
            (out / page).write_bytes(html)
        service.close()
    rows = gather(reports)
    document = {
        "seconds": round(time.monotonic() - began, 1),
        "release_hash": release["hash"],
        "accuracies": [row.model_dump() for row in rows],
        "jobs": {strategy: report.model_dump(mode="json") for strategy, report in reports.items()},
    }
    (out / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(console, rows)
    console.print(f"{document['seconds']:.0f} s. Look at {out / 'report.html'}", soft_wrap=True)
    console.print(f"The numbers: {out / 'report.json'}", soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description="The whole way once.")
    parser.add_argument(
        "--out", type=Path, default=HERE.parent / "demo-out", help="where everything lands"
    )
    out = parser.parse_args().out.resolve()
    console = Console()

    stop_tidily()
    try:
        drive(out, console)
    except KeyboardInterrupt:
        sys.exit("demo: stopped")
    except DemoError as error:
        if error.log is not None and error.log.is_file():
            lines = error.log.read_text(encoding="utf-8", errors="replace").splitlines()
            print(f"The end of {error.log}:", *lines[-20:], sep="\n  ", file=sys.stderr)
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
