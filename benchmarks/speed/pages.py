"""Server time and size of every page at 10,000 labels and 100,000 generations.

The database is filled with rows as written by runs (generated texts with the lengths of real
texts), and with a report whose images are drawn by the worker's code. Then each page is requested
over HTTP. Goal: under 200 ms for the page, and under 300 kB including its style sheets, scripts and
images.
"""

import argparse
import hashlib
import json
import random
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import sqlalchemy as sa
import uvicorn
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine

from contract import (
    ClassMargin,
    ConfusablePair,
    EventKind,
    JobState,
    Move,
    PulledApart,
    Report,
    TextDiagnostics,
    TextPlane,
    TrainConfig,
)
from distill.evaluation.report.images import draw_similarity
from enrich_service.app import create_app
from enrich_service.core.settings import Settings
from enrich_service.core.storage.database import make_engine, writing
from enrich_service.core.storage.prestart import prestart
from enrich_service.generations.models import (
    Generation,
    GenerationSource,
    GenerationStatus,
    Run,
    RunState,
)
from enrich_service.jobs import artifacts
from enrich_service.jobs.models import JobArtifact, JobEvent, JobRow
from enrich_service.labels import service as labels
from enrich_service.labels.schemas import LabelIn
from enrich_service.prompts import service as prompts
from enrich_service.prompts.schemas import VersionCreate
from enrich_service.releases import service as releases
from enrich_service.releases.schemas import ReleaseCreate, ReleaseSource

MILLISECONDS, KILOBYTES = 200, 300
VERSIONS = 10  # of the prompt, each with one answer a label
EDITS = 200
EPOCHS, LOG_LINES = 100, 400
WORDS = re.findall(
    r"\w+",
    "slate blue chestnut white striped crested round glossy mottled slender broad curved pale dark "
    "golden speckled webbed pointed short plumage bill wings flanks back legs",
)


def sentence(dice: random.Random, name: str) -> str:
    return f"The {name} has a {' '.join(dice.choices(WORDS, k=22))}."


def fill(engine: Engine, count: int) -> None:
    """`count` labels, VERSIONS answers for each, edits, runs, two releases, six jobs."""
    dice = random.Random(0)
    with writing(engine) as session:
        # One in fifty labels has only answers that were rejected.
        names = [f"{dice.choice(WORDS)} {dice.choice(WORDS)} bird {n}" for n in range(count)]
        given = [
            LabelIn(key=f"n{n:08}", name=name, context="a bird") for n, name in enumerate(names)
        ]
        label_set = labels.create(session, "birds", given)
        rows = labels.labels_of(session, label_set)
        prompt = prompts.get(session, "visual-description")
        first = prompts.latest(session, prompt)
        content = {name: getattr(first, name) for name in prompts.CONTENT_FIELDS}
        versions = [first]
        for number in range(2, VERSIONS + 1):
            changed = content | {"user": f"{first.user}\nName the colours first ({number})."}
            version, _ = prompts.create_version(
                session, prompt, VersionCreate(**changed, message="colours")
            )
            versions.append(version)
        for version in versions:
            run = Run(
                label_set_id=label_set.id or 0,
                prompt_version_id=version.id or 0,
                model="gpt-4o-mini",
                parameters={"temperature": 0.2},
                total=count,
                accepted=count - count // 50,
                rejected=count // 50,
                calls=count,
                prompt_tokens=count * 150,
                completion_tokens=count * 40,
                cost_usd=count * 0.00004,
                state=RunState.SUCCEEDED,
            )
            session.add(run)
            session.flush()
            session.execute(
                sa.insert(Generation),
                [
                    _generation(
                        dice,
                        label.id,
                        label.name,
                        version,
                        run.id,
                        rejected=label.position % 50 == 7,
                    )
                    for label in rows
                ],
            )
        for label in rows[:: max(1, count // EDITS)]:
            session.add(
                Generation(
                    source=GenerationSource.PERSON,
                    status=GenerationStatus.ACCEPTED,
                    kind="description",
                    label_id=label.id,
                    label_name=label.name,
                    label_context=label.context,
                    prompt_version_id=first.id,
                    parsed={"description": sentence(dice, label.name)},
                    author="ada",
                )
            )
        for number in (1, 2):
            releases.create(
                session,
                ReleaseCreate(
                    label_set="birds",
                    name=f"birds-{number}",
                    sources=[ReleaseSource(prompt=prompt.name, version=number)],
                    allow_missing=True,
                ),
            )


def _generation(
    dice: random.Random,
    label_id: int | None,
    name: str,
    version: Any,  # noqa: ANN401
    run_id: int | None,
    rejected: bool,
) -> dict[str, Any]:
    text = sentence(dice, name)
    return {
        "source": GenerationSource.MODEL,
        "status": GenerationStatus.REJECTED if rejected else GenerationStatus.ACCEPTED,
        "kind": "description",
        "label_id": label_id,
        "label_name": name,
        "label_context": "a bird",
        "run_id": run_id,
        "prompt_version_id": version.id,
        "dedupe_key": f"{label_id}-{version.id}",
        "sample_index": 0,
        "attempt": 1,
        "calls": 1,
        "provider": "https://api.openai.com",
        "requested_model": "gpt-4o-mini",
        "resolved_model": "gpt-4o-mini-2024-07-18",
        "finish_reason": "stop",
        "parameters": {"temperature": 0.2, "max_tokens": 200},
        "messages": [
            {"role": "system", "content": version.system},
            {"role": "user", "content": version.user + name},
        ],
        "raw_reply": json.dumps({"description": text}),
        "parsed": {"description": text},
        "problems": ["refusal: the answer declines to describe"] if rejected else [],
        "flags": ["length: about 90 tokens; the teacher reads 77"] if dice.random() < 0.02 else [],
        "prompt_tokens": 150,
        "completion_tokens": 40,
        "cost_usd": 0.00004,
        "latency_ms": 800.0,
        "author": "",
        "created_at": datetime.now(UTC),
    }


def train(engine: Engine, settings: Settings) -> None:
    """Six jobs as written by workers, with curves and logs; one is still training."""
    dice = random.Random(1)
    with writing(engine) as session:
        for number in range(6):
            job = JobRow(
                release_id=1 + number % 2,
                config={"data": "/data/birds", "teacher": "ViT-L-14@openai", "seed": number},
                state=JobState.RUNNING if number == 5 else JobState.SUCCEEDED,
                worker="gpu-1",
                attempts=1,
            )
            session.add(job)
            session.flush()
            assert job.id is not None
            events: list[tuple[EventKind, dict[str, Any]]] = [
                (EventKind.LOG, {"message": f"step {n}: {sentence(dice, 'log')}"})
                for n in range(LOG_LINES)
            ]
            events += [(EventKind.EPOCH, _epoch(dice, epoch)) for epoch in range(1, EPOCHS + 1)]
            session.execute(
                sa.insert(JobEvent),
                [
                    {"job_id": job.id, "seq": seq, "kind": kind, "data": data}
                    for seq, (kind, data) in enumerate(events, start=1)
                ],
            )


def report(engine: Engine, settings: Settings) -> None:
    """Write a report of all labels with its images, as a worker does, for the first job."""
    with writing(engine) as session, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = [line.name for line in labels.lines_of(session, labels.get(session, "birds"))]
        made = _report(names, folder)
        (folder / "report.json").write_text(made.model_dump_json())
        for file in sorted(folder.iterdir()):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            place = artifacts.location(settings.artifact_dir, digest)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
            kind = "image/png" if file.suffix == ".png" else "application/json"
            size = file.stat().st_size
            session.add(
                JobArtifact(job_id=1, name=file.name, media_type=kind, sha256=digest, size=size)
            )


def _report(names: list[str], folder: Path) -> Report:
    rng = np.random.default_rng(0)
    drawn = names[:1000]
    groups = rng.standard_normal((len(drawn) // 10 + 1, 512))[np.arange(len(drawn)) // 10]
    banks = {}
    for text, spread in (("name", 0.5), ("name+description", 1.0)):
        rows = 1 + groups + spread * rng.standard_normal((len(drawn), 512))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        banks[text] = (rows @ rows.T).astype(np.float32)
    pairs = [(names[2 * n], names[2 * n + 1]) for n in range(10)]
    text = sentence(random.Random(2), "bird")
    now = datetime.now(UTC)
    return Report(
        config=TrainConfig(data="/data/birds", teacher="ViT-L-14@openai"),
        release_id=1,
        release_hash="0" * 64,
        label_set="birds",
        teacher="ViT-L-14@openai",
        teacher_fingerprint="0" * 64,
        teacher_dim=768,
        student_parameters=11_000_000,
        epochs=(),
        accuracies=(),
        diagnostics=tuple(
            TextDiagnostics(
                text=text,
                classes=len(names),
                mean_cosine=0.5,
                mean_nearest_cosine=0.8,
                effective_rank=300.0,
                singular_values=tuple(100 / (n + 1) for n in range(768)),
                confusable=tuple(ConfusablePair(a=a, b=b, cosine=0.9) for a, b in pairs),
                margins=tuple(ClassMargin(name=name, margin=0.123456789012) for name in names),
            )
            for text in ("name", "name+description", "shuffled")
        ),
        pulled_apart=tuple(
            PulledApart(a=a, b=b, before=0.9, after=0.4, text_a=text, text_b=text) for a, b in pairs
        ),
        similarity=draw_similarity(folder, banks, drawn),
        text_plane=TextPlane(
            before="name",
            after="name+description",
            explained=0.2,
            classes=tuple(
                Move(name=name, before=tuple(rng.random(2)), after=tuple(rng.random(2)))
                for name in names[:250]
            ),
        ),
        started_at=now,
        finished_at=now,
    )


def _epoch(dice: random.Random, epoch: int) -> dict[str, Any]:
    parts = {name: 4 / epoch + dice.random() / 10 for name in ("cls", "mse", "im_cst", "vlprox")}
    return {
        "epoch": epoch,
        "learning_rate": 0.001,
        "loss": sum(parts.values()),
        "losses": parts,
        "seen_top1": 80 - 60 / epoch,
        "seconds": 31.5,
        "images_per_second": 3000.0,
    }


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=0, log_level="warning", access_log=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


SIDES = "a=visual-description@1&b=visual-description@2"
PAGES = (
    "/",
    "/label-sets",
    "/label-sets/birds",
    "/label-sets/birds?offset=9950",
    "/label-sets/birds?search=slate",
    "/label-sets/birds?state=missing",
    "/label-sets/birds?state=edited",
    "/label-sets/birds?state=flagged",
    "/label-sets/birds?state=rejected",
    "/label-sets/birds?state=accepted",
    "/label-sets/birds?state=approved",
    f"/label-sets/birds/comparison?{SIDES}",
    f"/label-sets/birds/comparison?{SIDES}&offset=9975",
    "/labels/5000",
    "/generations/50000",
    "/prompts",
    "/prompts/visual-description",
    "/prompts/visual-description/versions/3",
    "/prompts/visual-description/diff?from=1&to=10",
    "/prompts/visual-description/playground?version=3",
    "/runs",
    "/runs/3",
    "/runs/new",
    "/runs/new?label_set=birds&prompt=visual-description",
    "/releases",
    "/releases/new",
    "/releases/1",
    "/releases/1?search=slate",
    "/releases/1/diff?to=2",
    "/jobs",
    "/jobs/new",
    "/jobs/1",
    "/jobs/6",
    "/jobs/1/diagnostics",
    "/jobs/1/similarity",
    "/jobs/compare?job=1&job=2&job=3&job=4&job=5&job=6",
)


def parts_of(page: str) -> set[str]:
    """The addresses of the style sheets, scripts and images of a page."""
    addresses = re.findall(r'(?:<image href|<link rel="[a-z]+" href| src|data-src)="([^"]+)"', page)
    return set(addresses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="folder to keep the database in")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(
            data_dir=options.data or Path(temporary), llm_url="http://127.0.0.1:9/v1"
        )
        engine = make_engine(settings.sqlalchemy_url)
        fresh = not (settings.data_dir / "enrich.db").exists()
        prestart(engine, settings)
        if fresh:
            began = time.perf_counter()
            fill(engine, options.labels)
            train(engine, settings)
            report(engine, settings)
            console.print(f"filled in {time.perf_counter() - began:.0f} s")
        engine.dispose()
        table = Table("page", "first ms", "median ms", "kB", "", box=None)
        late = 0
        with (
            serving(settings) as url,
            httpx.Client(base_url=url, headers={"Accept": "text/html"}, timeout=60) as client,
        ):
            for path in PAGES:
                times, size = [], 0
                for _ in range(options.rounds):
                    began = time.perf_counter()
                    answer = client.get(path)
                    times.append(1000 * (time.perf_counter() - began))
                    assert answer.status_code == 200, f"{path}: {answer.status_code}"
                size = len(answer.content) + sum(
                    len(client.get(file).content) for file in parts_of(answer.text)
                )
                median = statistics.median(times)
                over = median > MILLISECONDS or size > 1000 * KILOBYTES
                late += over
                table.add_row(
                    path, f"{times[0]:.0f}", f"{median:.0f}", f"{size / 1000:.0f}",
                    "over" if over else "",
                )  # fmt: skip
        console.print(table)
        console.print(
            f"{len(PAGES) - late} of {len(PAGES)} within {MILLISECONDS} ms and {KILOBYTES} kB"
        )


if __name__ == "__main__":
    main()
