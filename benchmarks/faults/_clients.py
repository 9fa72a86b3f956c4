"""Clients that keep sending requests while the service fails, and a check of confirmed results.

A client records only what the service has confirmed: a request without a response may or may not
have been executed. `check` compares these records with the database, the artifact folder and the
calls counted by the language-model server.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import httpx

from contract import Report

LABELS = 12  # of one label set
CONCURRENCY = 4  # calls that a run may have in flight
EPOCHS = 6
ARTIFACTS = {"report.json", "report.html", "student.safetensors", "text_bank.safetensors"}
FINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Confirmed:
    """What the service has confirmed to clients."""

    label_sets: dict[str, list[str]] = field(default_factory=dict)  # name → labels
    runs: dict[int, str] = field(default_factory=dict)  # id → label set
    jobs: set[int] = field(default_factory=set)
    texts: dict[int, str] = field(default_factory=dict)  # generation → text
    events: dict[tuple[int, int], str] = field(default_factory=dict)  # (job, seq) → kind
    ended: dict[str, str] = field(default_factory=dict)  # /v1/runs/7 → succeeded
    unanswered: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)  # unexpected answers


class Clients:
    """Threads that enrich, train and describe until they are stopped."""

    def __init__(
        self, address: str, job: Mapping[str, Any], *, no_answer_statuses: Collection[int]
    ) -> None:
        """`job` is the body of a job; a status in `no_answer_statuses` counts as no answer."""
        self.confirmed = Confirmed()
        self._job, self._no_answer_statuses = dict(job), no_answer_statuses
        self._http = httpx.Client(base_url=address, timeout=60, trust_env=False)
        self._stopping = threading.Event()

    @contextmanager
    def busy(self, *, enrichers: int = 2, trainers: int = 1, describers: int = 1) -> Iterator[None]:
        """Context in which the threads run; at its end each finishes its current task."""
        self._stopping.clear()
        works = [(self._enrich, enrichers), (self._train, trainers), (self._describe, describers)]
        threads = [
            threading.Thread(target=work, args=(number,))
            for work, count in works
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()

    def request(self, method: str, path: str, **content: Any) -> httpx.Response | None:  # noqa: ANN401
        """Send one request; None if no answer came."""
        try:
            answer = self._http.request(method, path, **content)
        except httpx.TransportError:
            answer = None
        if answer is None or answer.status_code in self._no_answer_statuses:
            if method != "GET":
                self.confirmed.unanswered[path] += 1
            time.sleep(0.2)
            return None
        if answer.is_error:
            self.confirmed.wrong[f"{method} {path}: {answer.status_code} {answer.text[:200]}"] += 1
            return None
        return answer

    def read(self, path: str, seconds: float = 120, **parameters: Any) -> Any:  # noqa: ANN401
        """The JSON at `path`, requested until there is an answer."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if answer := self.request("GET", path, params=parameters):
                return answer.json()
        raise TimeoutError(f"{path} was not answered within {seconds:g} s")

    def add_run(self, name: str, labels: list[dict[str, str]]) -> str | None:
        """Add a label set and start a run over it; the run's path, or None without an answer."""
        if not self.request("POST", "/v1/label-sets", json={"name": name, "labels": labels}):
            return None
        self.confirmed.label_sets[name] = [label["name"] for label in labels]
        body = {"label_set": name, "concurrency": CONCURRENCY}
        if not (answer := self.request("POST", "/v1/runs", json=body)):
            return None
        self.confirmed.runs[answer.json()["id"]] = name
        return f"/v1/runs/{answer.json()['id']}"

    def add_job(self) -> str | None:
        """Queue a job; its path, or None without an answer."""
        if not (answer := self.request("POST", "/v1/jobs", json=self._job)):
            return None
        self.confirmed.jobs.add(answer.json()["id"])
        return f"/v1/jobs/{answer.json()['id']}"

    def _enrich(self, number: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            name = f"set {number} {turn}"
            labels = [{"name": f"teal {number} {turn} {n}"} for n in range(LABELS)]
            if path := self.add_run(name, labels):
                self._follow(path)

    def _train(self, _number: int) -> None:
        while not self._stopping.is_set():
            if path := self.add_job():
                self._follow(path)

    def _describe(self, number: int) -> None:
        turn = 0
        while not self._stopping.is_set():
            turn += 1
            body = {"labels": [f"scoter {number} {turn}"]}
            if answer := self.request("POST", "/v1/describe", json=body):
                self.confirmed.texts |= {
                    text["generation_id"]: text["text"]
                    for text in answer.json()
                    if text["status"] == "accepted"
                }
            self._stopping.wait(0.5)

    def _follow(self, path: str) -> None:
        """Poll a run or a job until it has ended or the clients are stopped."""
        while not self._stopping.is_set():
            if self.poll(path):
                return
            self._stopping.wait(0.3)

    def poll(self, path: str) -> bool:
        """Record the current state of a run or a job. Returns whether it has ended."""
        state = self.read(path)["state"]
        number = int(path.rpartition("/")[2])
        if path.startswith("/v1/jobs"):
            seen = max(
                (seq for job, seq in list(self.confirmed.events) if job == number), default=0
            )
            for event in self.read(f"{path}/events", after=seen):
                if event["seq"] != seen + 1:
                    self.confirmed.wrong[f"{path}: event {event['seq']} came after {seen}"] += 1
                seen = event["seq"]
                self.confirmed.events[number, seen] = event["kind"]
        else:
            page = self.read("/v1/generations", run_id=number, status="accepted", limit=1000)
            self.confirmed.texts |= {item["id"]: item["text"] for item in page["items"]}
        if state not in FINAL:
            return False
        self.confirmed.ended[path] = state
        return True

    def wait_until_finished(self, seconds: float) -> None:
        """Wait until all runs and jobs have ended, for at most `seconds`."""
        until = time.monotonic() + seconds
        open_ = {
            *(f"/v1/{kind}/{item['id']}" for kind in ("runs", "jobs") for item in self._all(kind)),
        }
        while open_ and time.monotonic() < until:
            open_ = {path for path in open_ if not self.poll(path)}
            time.sleep(0.5)
        for path in sorted(open_):
            self.confirmed.wrong[f"{path} has not ended within {seconds:g} s"] += 1

    def _all(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        while page := self.read(f"/v1/{kind}", limit=1000, offset=len(items)):
            items += page
        return items

    def retry_failed(self) -> None:
        """Retry each failed run and job once, as a user would."""
        for kind in ("runs", "jobs"):
            for item in self._all(kind):
                if item["state"] == "failed":
                    print(f"  {kind[:-1]} {item['id']} failed ({item['error']}) and is retried")
                    self.request("POST", f"/v1/{kind}/{item['id']}/retry")

    def rerun_all(self) -> None:
        """Start another run over each enriched label set; it must not make any call."""
        for name in list(self.confirmed.runs.values()):
            answer = self.request("POST", "/v1/runs", json={"label_set": name})
            if answer is None:
                continue
            path = f"/v1/runs/{answer.json()['id']}"
            while not self.poll(path):
                time.sleep(0.1)
            if calls := self.read(path)["calls"]:
                self.confirmed.wrong[f"{calls} labels of {name!r} were requested again"] += 1

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def check(  # noqa: C901 - one condition for each promise of the service
    confirmed: Confirmed,
    data: Path,
    work: Path,
    counts: Mapping[str, Any],
    *,
    lost_calls: int,
    attempts: int,
) -> tuple[dict[str, Any], list[str]]:
    """Counts for the report, and a line for each error.

    Args:
        confirmed: What the service has confirmed to clients.
        data: Data folder of the stopped service.
        work: Work folder of the stopped workers.
        counts: Calls that the language-model server has counted.
        lost_calls: Good answers that may have been in flight when a service was killed.
        attempts: Attempts that the kills of workers may have cost.
    """
    wrong = [f"{words} (× {times})" for words, times in confirmed.wrong.items()]
    with closing(sqlite3.connect(f"file:{data / 'enrich.db'}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row

        def rows(query: str, *parameters: Any) -> list[sqlite3.Row]:  # noqa: ANN401
            return database.execute(query, parameters).fetchall()

        if (verdict := rows("PRAGMA integrity_check")[0][0]) != "ok":
            wrong.append(f"the database is damaged: {verdict}")
        if rows("PRAGMA foreign_key_check"):
            wrong.append("a foreign key of the database refers to no row")

        stored = {
            kind: Counter(row[0] for row in rows(query))
            for kind, query in (
                ("label set", "SELECT name FROM label_set"),
                ("run", "SELECT id FROM run"),
                ("job", "SELECT id FROM job"),
            )
        }
        expected: dict[str, Any] = {
            "label set": confirmed.label_sets, "run": confirmed.runs, "job": confirmed.jobs
        }  # fmt: skip
        for kind, there in stored.items():
            path = f"/v1/{kind.replace(' ', '-')}s"
            wrong += [f"{kind} {key} is lost" for key in expected[kind] if there[key] != 1]
            unrequested = there.total() - len(expected[kind]) - confirmed.unanswered[path]
            # `rerun_all` starts runs that are not recorded.
            if kind != "run" and unrequested > 0:
                wrong.append(f"{unrequested} {kind}s that no client requested")
            noted = rows("SELECT count(*) FROM audit_entry WHERE route = ?", f"POST {path}")[0][0]
            if noted != there.total():
                wrong.append(f"{there.total()} {kind}s, and {noted} in the audit log")

        texts = {row["id"]: row for row in rows("SELECT * FROM generation")}
        for number, text in confirmed.texts.items():
            if number not in texts or text not in json.loads(texts[number]["parsed"]).values():
                wrong.append(f"generation {number} is lost or was changed: {text!r}")
        accepted = Counter(
            row["label_name"] for row in texts.values() if row["status"] == "accepted"
        )
        for row in rows(
            "SELECT run.id, run.state, run.error, label_set.name FROM run "
            "JOIN label_set ON label_set.id = run.label_set_id"
        ):
            if row["state"] != "succeeded":
                wrong.append(f"run {row['id']} is {row['state']}: {row['error']}")
            for label in confirmed.label_sets.get(row["name"], []):
                if accepted[label] != 1:
                    wrong.append(f"{label!r} has {accepted[label]} texts")
        answered = counts["answered"]
        again = sum(answered.values()) - len(answered)
        if again > lost_calls:
            wrong.append(f"{again} good answers were requested again, {lost_calls} were in flight")

        more = 0
        for row in rows(
            "SELECT job.*, release.hash FROM job JOIN release ON release.id = release_id"
        ):
            events = rows("SELECT * FROM job_event WHERE job_id = ? ORDER BY seq", row["id"])
            more += max(0, _leases(events) - 1)
            files = rows("SELECT * FROM job_artifact WHERE job_id = ?", row["id"])
            wrong += [f"job {row['id']}: {words}" for words in _faults(row, events, files, data)]
            for event in events:
                kind = confirmed.events.get((row["id"], event["seq"]), event["kind"])
                if kind != event["kind"]:
                    wrong.append(f"job {row['id']}: event {event['seq']} was changed")
        if more > attempts:
            wrong.append(f"{more} attempts were lost; the kills of workers explain {attempts}")
        kept = {row[0] for row in rows("SELECT sha256 FROM job_artifact")}
        stored_files = [path for path in (data / "artifacts").rglob("*") if path.is_file()]
        wrong += [
            f"{path.name} belongs to no job" for path in stored_files if path.name not in kept
        ]
    wrong += [f"{path} was left half-written" for path in work.rglob("*.partial")]
    ended = Counter(confirmed.ended.values())
    counted = {
        "label sets, runs, jobs confirmed": [len(keys) for keys in expected.values()],
        "not answered": confirmed.unanswered.total(),
        "texts confirmed and found": len(confirmed.texts),
        "job events confirmed and found": len(confirmed.events),
        "ended": dict(ended),
        "good answers sent again": again,
        "attempts beyond the first": more,
    }
    return counted, wrong


def _leases(events: list[sqlite3.Row]) -> int:
    """The number of leases of the job."""
    return sum(
        event["kind"] == "state" and json.loads(event["data"])["state"] == "leased"
        for event in events
    )


def _faults(  # noqa: C901 - one condition for each way to lose something
    job: sqlite3.Row, events: list[sqlite3.Row], files: list[sqlite3.Row], data: Path
) -> Iterator[str]:
    """The errors of one job."""
    if job["state"] == "failed" and job["attempts"] == job["max_attempts"]:
        return  # expected when its workers are killed each time
    if job["state"] != "succeeded":
        yield f"{job['state']}: {job['error']}"
        return
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        yield "its events have gaps"
    contents = [json.loads(event["data"]) for event in events]
    states = [
        data["state"]
        for event, data in zip(events, contents, strict=True)
        if event["kind"] == "state"
    ]
    # A retry queues it again.
    if any(state in FINAL and then != "queued" for state, then in pairwise(states)):
        yield f"its state changed after its end: {states}"
    if states.count("leased") < job["attempts"]:
        yield f"{states.count('leased')} leases, {job['attempts']} attempts"
    fences = [fence for fence, _ in groupby(event["fence"] for event in events if event["fence"])]
    if len(fences) != len(set(fences)):
        yield "a worker wrote after another worker had leased the job"
    epochs = [
        data["epoch"]
        for event, data in zip(events, contents, strict=True)
        if event["kind"] == "epoch"
    ]
    if len(epochs) != len(set(epochs)):
        yield f"epochs were reported twice: {epochs}"
    if lacking := ARTIFACTS - {file["name"] for file in files}:
        yield f"it has no {', '.join(sorted(lacking))}"
    for file in files:
        path = data / "artifacts" / file["sha256"][:2] / file["sha256"]
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != file["sha256"]:
            yield f"its {file['name']} differs from what was stored"
        elif file["name"] == "report.json":
            report = Report.model_validate_json(content)
            if report.release_hash != job["hash"]:
                yield "its report is about another release"
            if [epoch.epoch for epoch in report.epochs] != list(range(1, EPOCHS + 1)):
                yield "its report lacks epochs"
