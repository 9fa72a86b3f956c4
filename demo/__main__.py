"""Runs the whole pipeline once over REST, as a user would: `python -m demo` (or `make demo`).

Renders images, starts the service (with recorded replies instead of a language model) and workers,
and creates a label set, enrichment runs, a release, two training jobs that differ only in the text
strategy, and reports. At the end a new class is added to the classifier by a description. Needs no
network, no key and no GPU. All output is written to demo-out/, and all processes are always stopped
at the end.
"""

import argparse
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from contract import Accuracy, Report, TextStrategy, TrainConfig
from demo.new_class import add_new_class, fetch_classifier
from demo.stack import BIN, DemoError, Service, started, stop_tidily, wait_for_address
from demo.waiting import FollowedJob, finish_images, finish_run, follow, progress_display
from demo.world import CONTEXT, NEW_CLASS, charms, image_count
from distill.cli.console import ProgressDisplay

HERE = Path(__file__).resolve().parent
STRATEGIES: tuple[TextStrategy, ...] = ("name", "name+description")
PROMPTS = ("visual-description", "attributes")
# Chosen for its time to quality on a CPU without bfloat16: a CNN of 0.3 M parameters. Its matrices
# are so small that a step of Muon costs hardly more than a step of AdamW and learns more.
STUDENT: dict[str, Any] = {
    "student": "test_byobnet",
    "image_size": 32,
    "batch_size": 64,
    "epochs": 10,
    "seed": 0,
}


def enrich(service: Service, display: ProgressDisplay, prompt: str) -> None:
    """Run one prompt on the label set; raises DemoError unless every label gets a text."""
    body = {"label_set": "charms", "prompt": prompt, "author": "demo"}
    run = finish_run(service, display, service.post("/v1/runs", body))
    if run["rejected"] or run["failed"]:
        raise DemoError(
            f"the run of {prompt} has {run['rejected']} rejected and {run['failed']} failed labels",
            service.log,
        )
    page = service.get("/v1/generations", run_id=run["id"], limit=1000)["items"]
    retried = sum(item["status"] == "retried" for item in page)
    flagged = sum(bool(item["flags"]) for item in page)
    display.console.print(
        f"{prompt}: {run['accepted']} texts accepted, {retried} answers rejected and "
        f"requested again, {flagged} flagged",
        soft_wrap=True,
    )


def make_release(service: Service, display: ProgressDisplay) -> dict[str, Any]:
    """Describe all labels, release the texts, and return the release."""
    labels = [{"key": charm.key, "name": charm.name, "context": CONTEXT} for charm in charms()]
    service.post("/v1/label-sets", {"name": "charms", "labels": labels})
    for prompt in PROMPTS:
        enrich(service, display, prompt)
    body = {
        "label_set": "charms",
        "name": "charms-1",
        "sources": [{"prompt": prompt, "alias": "production"} for prompt in PROMPTS],
        "message": "Recorded replies",
        "author": "demo",
    }
    release: dict[str, Any] = service.post("/v1/releases", body)
    display.console.print(f"Release {release['name']}, hash {release['hash'][:12]}")
    return release


def train_students(
    service: Service, display: ProgressDisplay, release: dict[str, Any], work: Path
) -> dict[TextStrategy, int]:
    """Queue a job for each strategy, train both in parallel, and return the job ids.

    The student is so small that two threads of one training mostly wait for each other: two
    trainings with one thread each take little more than half the time.
    """
    jobs: dict[TextStrategy, int] = {}
    followed = []
    for strategy in STRATEGIES:
        config = TrainConfig(
            data=str(work / "world"),
            teacher=f"local-dir:{HERE / 'teacher'}",
            text_strategy=strategy,
            export=strategy == STRATEGIES[-1],
            **STUDENT,
        )
        body = {"release_id": release["id"], "config": config.model_dump(mode="json")}
        jobs[strategy] = service.post("/v1/jobs", body)["id"]
        followed.append(FollowedJob(service, display, strategy, jobs[strategy], config))
    command = [str(BIN / "distill"), "worker", "--service", service.address, "--once"]
    threads = str(max(1, (os.cpu_count() or 1) // len(jobs)))
    with ExitStack() as stack:
        workers = []
        for number in range(1, len(jobs) + 1):
            arguments = [*command, "--work-dir", str(work / f"jobs-{number}")]
            worker = started(f"worker-{number}", arguments, work, OMP_NUM_THREADS=threads)
            workers.append(stack.enter_context(worker))
        follow(followed, workers)
    return jobs


def save_reports(
    service: Service, jobs: dict[TextStrategy, int], out: Path
) -> dict[TextStrategy, Report]:
    """Write the report page of each job to `out`, and return the reports."""
    reports: dict[TextStrategy, Report] = {}
    for strategy, number in jobs.items():
        reports[strategy] = Report.model_validate(service.get(f"/v1/jobs/{number}/report"))
        page = "report.html" if strategy == STRATEGIES[-1] else "report-name.html"
        (out / page).write_bytes(service.send("GET", f"/v1/jobs/{number}/report.html").content)
    return reports


def comparison_rows(reports: dict[TextStrategy, Report]) -> list[Accuracy]:
    """The rows to compare: the teacher with each text, each student with the text of its training.

    The shuffled controls of teacher and student are from the job with descriptions.
    """
    rows = []
    for model in ("teacher", "student"):
        for text in (*STRATEGIES, "shuffled"):
            report = reports["name" if text == "name" else "name+description"]
            rows += [row for row in report.accuracies if (row.model, row.text) == (model, text)]
    return rows


def show(console: Console, rows: list[Accuracy]) -> None:
    """Print the table and the gain by descriptions."""
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
        console.print(
            f"On unseen classes, descriptions change the {model}'s top-1 by {enriched - name:+.1f}."
        )


def drive(out: Path, console: Console) -> None:
    """Run the pipeline; raises DemoError if a step fails."""
    started_at = time.monotonic()
    work = out / "work"  # images, database, checkpoints and logs of this run
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    render = [sys.executable, "-m", "demo.world", str(work / "world")]
    serve = [str(BIN / "enrich"), "serve", "--port", "0"]
    settings = {
        "ENRICH_DATA_DIR": str(work / "data"),
        "OPENAI_BASE_URL": f"replay:{HERE / 'replies.jsonl'}",
    }
    with (
        started("images", render, work, PYTHONPATH=str(HERE.parent)) as renderer,
        started("service", serve, work, **settings) as process,
        progress_display(console) as display,
    ):
        display.console.print("Rendering images and starting the service")
        service = Service(process, wait_for_address(process))
        display.console.print(
            f"Service at {service.address}; its language model is a file of recorded replies",
            soft_wrap=True,
        )
        release = make_release(service, display)
        finish_images(renderer, display, work / "world", image_count())
        jobs = train_students(service, display, release, work)
        reports = save_reports(service, jobs, out)
        shutil.rmtree(out / "classifier", ignore_errors=True)
        fetch_classifier(service, jobs[STRATEGIES[-1]], out / "classifier")
        service.close()
    rows = comparison_rows(reports)
    document = {
        "seconds": round(time.monotonic() - started_at, 1),
        "release_hash": release["hash"],
        "accuracies": [row.model_dump() for row in rows],
        "jobs": {strategy: report.model_dump(mode="json") for strategy, report in reports.items()},
    }
    (out / "report.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(console, rows)
    console.print(f"{document['seconds']:.0f} s. Open {out / 'report.html'}", soft_wrap=True)
    console.print(f"All numbers: {out / 'report.json'}", soft_wrap=True)
    add_new_class(out / "classifier", work / NEW_CLASS.key, console)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Run the whole pipeline once."
    )
    parser.add_argument("--out", type=Path, default=HERE.parent / "demo-out", help="output folder")
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
