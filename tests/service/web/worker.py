"""What a worker does to a job over HTTP, without training anything: claim, tell, leave a report."""

from datetime import UTC, datetime
from typing import Any

import httpx

from contract import (
    Accuracy,
    ConfusablePair,
    Epoch,
    Job,
    Lease,
    PulledApart,
    Report,
    TextDiagnostics,
)

LOSSES = {"cls": 2.0, "mse": 0.5, "im_cst": 1.0, "vlprox": 0.25}


class Worker:
    """Holds the lease of the most urgent job that waits."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        claimed = client.post("/v1/jobs/claim", json={"worker": "gpu-1"})
        self.lease = Lease.model_validate_json(claimed.content)
        self.url = f"/v1/jobs/{self.job.id}"
        self.told = 0

    @property
    def job(self) -> Job:
        return self.lease.job

    def tell(self, kind: str, **data: Any) -> None:
        self.told += 1
        event = {"worker_seq": self.told, "kind": kind, "data": data}
        body = {"fence": self.lease.fence, "events": [event]}
        assert self.client.post(f"{self.url}/events", json=body).status_code == 200

    def train(self, epoch: int) -> Epoch:
        """Tell of one epoch."""
        told = Epoch(
            epoch=epoch,
            learning_rate=0.001,
            loss=sum(LOSSES.values()) / epoch,
            losses={name: value / epoch for name, value in LOSSES.items()},
            seen_top1=80 - 40 / epoch,
            seconds=3.5,
            images_per_second=900.0,
        )
        self.tell("epoch", **told.model_dump(mode="json"))
        return told

    def leave(self, name: str, body: bytes, media_type: str) -> None:
        answer = self.client.put(
            f"{self.url}/artifacts/{name}?fence={self.lease.fence}",
            content=body,
            headers={"Content-Type": media_type},
        )
        assert answer.status_code == 200, answer.text

    def finish(self, *, unseen: float, page: str = "<h1>The report</h1>") -> None:
        """Train three epochs, leave both reports, end the job."""
        epochs = tuple(self.train(n) for n in (1, 2, 3))
        report = report_of(self.lease, epochs, unseen)
        self.leave("report.json", report.model_dump_json().encode(), "application/json")
        self.leave("report.html", page.encode(), "text/html; charset=utf-8")
        body = {"fence": self.lease.fence, "state": "succeeded"}
        assert self.client.post(f"{self.url}/finish", json=body).status_code == 200


def report_of(lease: Lease, epochs: tuple[Epoch, ...], unseen: float) -> Report:
    """A report whose names are those of the release's first two labels."""
    config, release = lease.job.config, lease.release
    a, b = release.labels[0], release.labels[1]
    texts = dict.fromkeys(("name", config.text_strategy, "shuffled"))
    return Report(
        config=config,
        release_id=release.id,
        release_hash=release.hash,
        label_set=release.label_set,
        teacher=config.teacher,
        teacher_fingerprint="f" * 64,
        teacher_dim=4,
        student_parameters=1000,
        epochs=epochs,
        accuracies=tuple(
            Accuracy(
                model=model,
                text=text,
                split=split,
                top1=unseen + len(text),
                mean_per_class=unseen,
                images=60,
                classes=2,
            )
            for model in ("teacher", "student")
            for text in texts
            for split in ("seen", "unseen")
        ),
        diagnostics=tuple(
            TextDiagnostics(
                text=text,
                classes=2,
                mean_cosine=0.4,
                mean_nearest_cosine=0.8,
                effective_rank=1.5,
                singular_values=(1.5, 0.5, 1e-9),
                confusable=(ConfusablePair(a=a.name, b=b.name, cosine=0.75),),
            )
            for text in texts
        ),
        pulled_apart=(
            PulledApart(
                a=a.name,
                b=b.name,
                before=0.9,
                after=0.25,
                text_a=a.description or "",
                text_b=b.description or "",
            ),
        ),
        started_at=datetime.now(UTC),
        finished_at=datetime.now(UTC),
    )
