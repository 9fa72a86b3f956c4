"""The whole pipeline on real input: real photos, a real teacher, recorded replies of ChatGPT.

A local HTTP server implements the OpenAI protocol and replies with the recorded lines, including
faults. The service enriches the label set with it, a person writes the rejected texts, and a worker
trains two students that differ only in the texts: plain names, and names with descriptions.

    python -m benchmarks.quality.real_world [--epochs 12] [--seeds 1]
"""

import argparse
import json
import shutil
import time
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from benchmarks.quality._statistics import mean_and_deviation
from contract import Accuracy, Report, TextStrategy, TrainConfig
from demo.stack import BIN, Service, started, stop_tidily, wait_for_address
from demo.waiting import FollowedJob, finish_run, follow, progress_display
from tests.llm_server import LlmServer

STRATEGIES: tuple[TextStrategy, ...] = ("name", "name+description")
# The lines of these two labels are an error message; a person writes what they should have said.
BY_HAND = {
    "banana": "A banana is a long, curved fruit with a smooth yellow peel and a short brown stem.",
    "lakeside": "A lakeside is calm blue water along a shore of grass, sand or stones, with trees.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "real-world")
    options = parser.parse_args()
    skip_without_photos("real_world")
    stop_tidily()
    console = Console()
    began = time.monotonic()
    reports = drive(options.out.resolve(), options.epochs, options.seeds, console)
    show(reports, options.epochs, options.seeds, console)
    console.print(f"{(time.monotonic() - began) / 60:.0f} minutes; reports in {options.out}")


def drive(out: Path, epochs: int, seeds: int, console: Console) -> dict[str, list[Report]]:
    """Run the whole pipeline over REST. Returns the reports of each strategy, by seed."""
    work = out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    keys = [line.split(maxsplit=2) for line in (DATA / "label2text.txt").read_text().splitlines()]
    labels = [{"key": key, "name": name.replace("_", " ")} for key, _, name in keys]
    lines = (DATA / "chatgpt.txt").read_text().splitlines()
    answers = {
        label["name"]: json.dumps({"description": line})
        for label, line in zip(labels, lines, strict=True)
    }
    settings = {"ENRICH_DATA_DIR": str(work / "data")}
    with (
        LlmServer(answers=answers) as model,
        started(
            "service",
            [str(BIN / "enrich"), "serve", "--port", "0"],
            work,
            OPENAI_BASE_URL=model.url,
            OPENAI_API_KEY="local",
            **settings,
        ) as process,
        progress_display(console) as display,
    ):
        service = Service(process, wait_for_address(process))
        service.post("/v1/label-sets", {"name": "tiny", "labels": labels})
        run = service.post("/v1/runs", {"label_set": "tiny", "prompt": "visual-description"})
        run = finish_run(service, display, run)
        display.console.print(
            f"{run['accepted']} descriptions accepted, {run['rejected']} rejected, "
            f"{sum(model.calls.values())} calls"
        )
        written = write_rejected_texts(service, run["id"])
        display.console.print(f"written by hand: {', '.join(written)}")
        release = service.post(
            "/v1/releases",
            {
                "label_set": "tiny",
                "name": "tiny-1",
                "sources": [{"prompt": "visual-description", "alias": "production"}],
            },
        )
        jobs: dict[str, int] = {}
        followed = []
        for seed, strategy in product(range(seeds), STRATEGIES):
            config = TrainConfig(
                data=str(DATA),
                teacher=TEACHER,
                text_strategy=strategy,
                epochs=epochs,
                seed=seed,
                export=False,
            )
            body = {"release_id": release["id"], "config": config.model_dump(mode="json")}
            title = f"{strategy}, seed {seed}"
            jobs[title] = service.post("/v1/jobs", body)["id"]
            followed.append(FollowedJob(service, display, title, jobs[title], config))
        take = [str(BIN / "distill"), "worker", "--service", service.address, "--once"]
        take += ["--work-dir", str(work / "jobs")]
        with started("worker", take, work, **settings) as worker:
            follow(followed, [worker])
        reports: dict[str, list[Report]] = {strategy: [] for strategy in STRATEGIES}
        for title, number in jobs.items():
            report = Report.model_validate(service.get(f"/v1/jobs/{number}/report"))
            reports[report.config.text_strategy].append(report)
            page = service.send("GET", f"/v1/jobs/{number}/report.html").content
            (out / f"{title.replace(', ', '-').replace(' ', '')}.html").write_bytes(page)
        service.close()
    return reports


def write_rejected_texts(service: Service, run_id: int) -> list[str]:
    """Write a text for each rejected label as a person. Returns the labels' names."""
    rejected = service.get("/v1/generations", run_id=run_id, status="rejected")["items"]
    for item in rejected:
        text = {"text": BY_HAND[item["label"]], "author": "a person"}
        service.post(f"/v1/generations/{item['id']}/edits", text)
    return sorted(item["label"] for item in rejected)


def show(reports: dict[str, list[Report]], epochs: int, seeds: int, console: Console) -> None:
    """Print the table: top-1 in percent, mean and deviation over the seeds."""
    config = reports["name"][0].config
    table = Table(
        "model", "trained on", "tested on", "seen", "unseen",
        title=f"Top-1 %, {config.student}, {config.image_size} px, {epochs} epochs, {seeds} seeds",
    )  # fmt: skip
    rich = reports["name+description"]
    for text in (*STRATEGIES, "shuffled"):
        table.add_row("teacher", "", text, *_cells(rich[:1], "teacher", text))
    for trained in STRATEGIES:
        for text in dict.fromkeys(row.text for row in reports[trained][0].accuracies):
            table.add_row("student", trained, text, *_cells(reports[trained], "student", text))
    console.print(table)
    for row in rich[0].diagnostics:
        console.print(
            f"texts '{row.text}': mean cosine {row.mean_cosine:.3f}, "
            f"mean nearest {row.mean_nearest_cosine:.3f}"
        )


def _cells(reports: list[Report], model: str, text: str) -> list[str]:
    rows: list[Accuracy] = [row for report in reports for row in report.accuracies]
    return [
        mean_and_deviation(
            [row.top1 for row in rows if (row.model, row.text, row.split) == (model, text, split)]
        )
        for split in ("seen", "unseen")
    ]


if __name__ == "__main__":
    main()
