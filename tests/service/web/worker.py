"""What a worker does to a job over HTTP, without training anything: claim, tell, leave a report."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from contract import (
    Accuracy,
    ConfusablePair,
    Epoch,
    Job,
    JointAccuracy,
    Lease,
    Move,
    PulledApart,
    Report,
    Similarity,
    SimilarityPicture,
    TextDiagnostics,
    TextPlane,
    Thumbnails,
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

    def finish(
        self, *, unseen: float, page: str = "<h1>The report</h1>", photo: bytes | None = None
    ) -> None:
        """Train three epochs, leave both reports and the classifier, end the job.

        With a `photo`, leave pictures too.

        The photo, a JPEG of 64 px, is the example image of the release's first label.
        """
        epochs = tuple(self.train(n) for n in (1, 2, 3))
        report = report_of(self.lease, epochs, unseen)
        if photo is not None:
            names = [label.name for label in self.lease.release.labels]
            report = report.model_copy(update=pictures_of(names))
            self.leave("similarity-before.png", grey_png(len(names), 0), "image/png")
            self.leave("similarity-after.png", grey_png(len(names), 1), "image/png")
            self.leave("thumbnails.jpg", photo, "image/jpeg")
        self.leave("report.json", report.model_dump_json().encode(), "application/json")
        self.leave("report.html", page.encode(), "text/html; charset=utf-8")
        self.leave("classifier.zip", classifier_zip(self.job.id), "application/zip")
        body = {"fence": self.lease.fence, "state": "succeeded"}
        assert self.client.post(f"{self.url}/finish", json=body).status_code == 200


def classifier_zip(job_id: int) -> bytes:
    """A zip in the layout of a classifier folder; other bytes for each job."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            zipfile.ZipInfo("classifier.json"), json.dumps({"job": job_id, "latency_ms": 6.5})
        )
        archive.writestr(zipfile.ZipInfo("image_encoder.onnx"), b"onnx" * 100)
    return file.getvalue()


LOW, HIGH = -0.5, 0.9  # cosines of the pictures


def grey(row: int, column: int, number: int) -> int:
    """The grey value of a pair in picture `number`."""
    return (7 * row + 13 * column + 101 * number) % 256


def grey_png(size: int, number: int) -> bytes:
    """A picture of made-up similarities, as workers draw them."""
    rows = [
        bytes(grey(row, column, number) if row < column else 0 for column in range(size))
        for row in range(size)
    ]

    def chunk(name: bytes, body: bytes) -> bytes:
        check = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pictures_of(names: Sequence[str]) -> dict[str, Any]:
    """What a report says of the pictures; the classes lie on two circles."""
    files = {"name": "similarity-before.png", "name+description": "similarity-after.png"}
    return {
        "similarity": Similarity(
            classes=tuple(names),
            pictures=tuple(
                SimilarityPicture(text=text, file=file, low=LOW, high=HIGH, step=(HIGH - LOW) / 255)
                for text, file in files.items()
            ),
        ),
        "text_plane": TextPlane(
            before="name",
            after="name+description",
            explained=0.25,
            classes=tuple(
                Move(name=name, before=(n % 8, n // 8), after=(n % 8 + 0.5, n // 8 + 0.25))
                for n, name in enumerate(names)
            ),
        ),
        "thumbnails": Thumbnails(file="thumbnails.jpg", side=64, columns=1, tiles=(names[0],)),
    }


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
        joint=tuple(
            JointAccuracy(
                model="student",
                text=text,
                bias=0.1,
                seen=60.0,
                unseen=unseen,
                harmonic_mean=120 * unseen / (60 + unseen),
                best_harmonic_mean=70.0,
                ausuc=0.4,
                classes=4,
            )
            for text in texts
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
