"""A client for the REST interface of the service.

    with Client("http://127.0.0.1:8000") as client:
        client.create_label_set("ducks", ["mallard", "teal"])
        run = client.start_run(RunCreate(label_set="ducks"))
        client.wait_for_run(run.id)
        client.create_release(ReleaseCreate(label_set="ducks", name="ducks-1", sources=[…]))

Arguments and results are the pydantic models of the service; files are bytes. If the service
requires API keys, pass one: `Client(URL, key=KEY)`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx
from pydantic import BaseModel, RootModel, TypeAdapter

from contract import ImageCaption, Job, JobCreate, QueuedJob, Release, Report
from enrich_service.core.text import without_password
from enrich_service.exchange.schemas import Imported, Manifest
from enrich_service.generations.models import ReviewAction, RunState
from enrich_service.generations.schemas import (
    GenerationDetail,
    GenerationView,
    LabelTextIn,
    ReviewIn,
    ReviewView,
    TextIn,
)
from enrich_service.keys.schemas import AuditView, KeyCreate, KeyCreated, KeyView
from enrich_service.labels.schemas import (
    Confusable,
    LabelIn,
    LabelPage,
    LabelSetCreate,
    LabelSetView,
    LabelView,
)
from enrich_service.prompts.schemas import (
    AliasMoveView,
    AliasPut,
    AliasRollback,
    AliasView,
    ArchivePut,
    PromptCreate,
    PromptView,
    TagsPut,
    VersionCreate,
    VersionDiff,
    VersionView,
)
from enrich_service.releases.schemas import (
    ReleaseCreate,
    ReleaseDiff,
    ReleaseView,
    TranslationCreate,
)
from enrich_service.runs.schemas import (
    Described,
    DescribeRequest,
    RunCreate,
    RunEstimate,
    RunResume,
    RunView,
)
from enrich_service.students.schemas import (
    StudentAliasMoveView,
    StudentAliasPut,
    StudentAliasRollback,
    StudentAliasView,
    StudentRegister,
    StudentVersionView,
    StudentView,
)
from enrich_service.trials.schemas import Comparison, Trial, TrialRequest
from enrich_service.workers.schemas import WorkerView

ACTIVE_STATES = (RunState.QUEUED, RunState.RUNNING)
M = TypeVar("M", bound=BaseModel)
Lists = RootModel[dict[str, list[str]]]


class ClientError(Exception):
    """The service rejected a request or did not respond.

    Attributes:
        detail: One line that says what to do.
        status: HTTP status; None without a response.
    """

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail, self.status = detail, status


class Client:
    """The service at one URL. Every method raises ClientError if the request fails.

    Args:
        url: Address of the service, such as http://127.0.0.1:8000.
        key: API key, if the service requires one. It takes precedence over a password in `url`.
        timeout: Time limit of a request, in seconds.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 120.0) -> None:
        _check(url, key)
        self._http = httpx.Client(
            base_url=url.rstrip("/") + "/v1/",
            auth=_bearer(key) if key else None,
            timeout=timeout,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --------------------------------------------------------------------------------- label sets

    def create_label_set(self, name: str, labels: Iterable[LabelIn | str]) -> LabelSetView:
        """Create a label set; a string is the name of a label."""
        items = [LabelIn(name=label) if isinstance(label, str) else label for label in labels]
        return self._post("label-sets", LabelSetCreate(name=name, labels=items), LabelSetView)

    def upload_label_set(self, name: str, csv: bytes) -> LabelSetView:
        """Create a label set from a CSV file with the columns key, name and context."""
        return self._upload("label-sets/upload", {"file": csv}, LabelSetView, name=name)

    def label_sets(self) -> list[LabelSetView]:
        """List label sets by name (the first 1000)."""
        return self._list("label-sets", LabelSetView, limit=1000)

    def label_set(self, name: str) -> LabelSetView:
        """Get a label set."""
        return self._get(f"label-sets/{name}", LabelSetView)

    def labels(self, name: str) -> Iterator[LabelView]:
        """Iterate over all labels of a label set, in order."""
        offset: int | None = 0
        while offset is not None:
            page = self._get(f"label-sets/{name}/labels", LabelPage, offset=offset)
            yield from page.items
            offset = page.next_offset

    def set_confusable(self, name: str, confusable: dict[str, list[str]]) -> Confusable:
        """Set which labels each given label is easily confused with; labels are named by key."""
        body = Confusable(confusable=confusable)
        return self._send("PUT", f"label-sets/{name}/confusable", body, Confusable)

    def guess_confusable(self, name: str) -> Confusable:
        """Mark labels whose names end in the same words as confusable; keep lists already set."""
        return self._post(f"label-sets/{name}/confusable/from-names", None, Confusable)

    def delete_label_set(self, name: str) -> None:
        """Delete a label set that nothing uses."""
        self._call("DELETE", f"label-sets/{name}")

    # ------------------------------------------------------------------------------------ prompts

    def create_prompt(self, prompt: PromptCreate) -> VersionView:
        """Create a prompt with its version 1."""
        return self._post("prompts", prompt, VersionView)

    def prompts(
        self, *, search: str = "", tag: str | None = None, archived: bool = False
    ) -> list[PromptView]:
        """List prompts by name (the first 1000); `archived` includes archived ones."""
        filters = {"search": search, "tag": tag, "archived": archived}
        return self._list("prompts", PromptView, **filters, limit=1000)

    def prompt(self, name: str) -> PromptView:
        """Get a prompt with its aliases."""
        return self._get(f"prompts/{name}", PromptView)

    def archive_prompt(self, name: str) -> PromptView:
        """Archive a prompt: it stays readable but accepts no new versions."""
        return self._send("PUT", f"prompts/{name}/archived", ArchivePut(archived=True), PromptView)

    def unarchive_prompt(self, name: str) -> PromptView:
        """Restore an archived prompt."""
        return self._send("PUT", f"prompts/{name}/archived", ArchivePut(archived=False), PromptView)

    def tag_prompt(self, name: str, tags: Iterable[str]) -> PromptView:
        """Replace the tags of a prompt."""
        return self._send("PUT", f"prompts/{name}/tags", TagsPut(tags=list(tags)), PromptView)

    def add_version(self, name: str, version: VersionCreate) -> VersionView:
        """Add a version; returns the newest version if it has the same content."""
        return self._post(f"prompts/{name}/versions", version, VersionView)

    def versions(self, name: str) -> list[VersionView]:
        """List all versions of a prompt, newest first."""
        return self._list(f"prompts/{name}/versions", VersionView)

    def version(self, name: str, which: int | str) -> VersionView:
        """Get a version of a prompt by number or alias."""
        kind = "versions" if isinstance(which, int) else "aliases"
        return self._get(f"prompts/{name}/{kind}/{which}", VersionView)

    def compare_versions(
        self, name: str, before: int, after: int, *, context: int | None = None
    ) -> VersionDiff:
        """Compare two versions; `context` is the number of equal lines around a change."""
        numbers = {"from": before, "to": after}
        return self._get(f"prompts/{name}/diff", VersionDiff, **numbers, context=context)

    def move_alias(self, name: str, alias: str, move: AliasPut) -> AliasView:
        """Point an alias at a version."""
        return self._send("PUT", f"prompts/{name}/aliases/{alias}", move, AliasView)

    def roll_back_alias(
        self, name: str, alias: str, rollback: AliasRollback | None = None
    ) -> AliasView:
        """Roll an alias back to its previous version."""
        body = rollback or AliasRollback()
        return self._post(f"prompts/{name}/aliases/{alias}/rollback", body, AliasView)

    def alias_moves(self, name: str, alias: str) -> list[AliasMoveView]:
        """List the moves of an alias, newest first."""
        return self._list(f"prompts/{name}/aliases/{alias}/moves", AliasMoveView)

    def try_prompt(self, trial: TrialRequest) -> Trial:
        """Try an unsaved prompt on a few labels; nothing is stored."""
        return self._post("playground", trial, Trial)

    def compare(
        self,
        label_set: str,
        a: str,
        b: str,
        *,
        model_a: str | None = None,
        model_b: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> Comparison:
        """Compare the texts of two versions, each `PROMPT@VERSION` or `PROMPT@ALIAS`."""
        return self._get(
            f"label-sets/{label_set}/comparison",
            Comparison,
            a=a,
            b=b,
            model_a=model_a,
            model_b=model_b,
            limit=limit,
            offset=offset,
        )

    # --------------------------------------------------------------------------- descriptions, runs

    def describe(self, request: DescribeRequest) -> list[Described]:
        """Describe up to 100 class names and wait for the texts."""
        response = self._call("POST", "describe", request)
        return TypeAdapter(list[Described]).validate_json(response.content)

    def start_run(self, run: RunCreate) -> RunView:
        """Start the enrichment of a label set in the background."""
        return self._post("runs", run, RunView)

    def estimate_run(self, run: RunCreate) -> RunEstimate:
        """Estimate the requests and the cost of a run."""
        return self._post("runs/estimate", run, RunEstimate)

    def runs(self, *, label_set: str | None = None) -> list[RunView]:
        """List runs, newest first (the first 1000)."""
        return self._list("runs", RunView, label_set=label_set, limit=1000)

    def run(self, run_id: int) -> RunView:
        """Get a run."""
        return self._get(f"runs/{run_id}", RunView)

    def follow_run(self, run_id: int, *, every: float = 0.5) -> Iterator[RunView]:
        """Yield the run whenever it changes, until it ends or is paused; polls `every` seconds."""
        last = None
        while True:
            view = self.run(run_id)
            if view != last:
                yield view
            if view.state not in ACTIVE_STATES:
                return
            last = view
            time.sleep(every)

    def wait_for_run(self, run_id: int, *, every: float = 0.5) -> RunView:
        """Wait until a run has ended or is paused; polls `every` seconds."""
        *_, last = self.follow_run(run_id, every=every)
        return last

    def pause_run(self, run_id: int) -> RunView:
        """Pause a run."""
        return self._post(f"runs/{run_id}/pause", None, RunView)

    def resume_run(self, run_id: int, budget: RunResume | None = None) -> RunView:
        """Resume a paused run, optionally with a new budget."""
        return self._post(f"runs/{run_id}/resume", budget, RunView)

    def cancel_run(self, run_id: int) -> RunView:
        """Cancel a run; answers so far are kept."""
        return self._post(f"runs/{run_id}/cancel", None, RunView)

    def retry_run(self, run_id: int) -> RunView:
        """Run an ended run again for the labels without an answer."""
        return self._post(f"runs/{run_id}/retry", None, RunView)

    def captions(self, run_id: int) -> Iterator[ImageCaption]:
        """Iterate over the image captions of a run."""
        for line in self._call("GET", f"runs/{run_id}/captions.jsonl").iter_lines():
            yield ImageCaption.model_validate_json(line)

    # -------------------------------------------------------------------------------------- texts

    def generations(self, **filters: Any) -> Iterator[GenerationView]:  # noqa: ANN401 - of the route
        """Iterate over generations, newest first; `filters` as in GET /v1/generations."""
        before: int | None = None
        while True:
            page = self._call("GET", "generations", None, **filters, before=before).json()
            yield from TypeAdapter(list[GenerationView]).validate_python(page["items"])
            before = page["next_before"]
            if before is None:
                return

    def generation(self, generation_id: int) -> GenerationDetail:
        """Get a generation with its provenance."""
        return self._get(f"generations/{generation_id}", GenerationDetail)

    def edit(self, generation_id: int, text: TextIn) -> GenerationDetail:
        """Store a person's text that replaces the text of a generation."""
        return self._post(f"generations/{generation_id}/edits", text, GenerationDetail)

    def write_text(self, label_id: int, text: LabelTextIn) -> GenerationDetail:
        """Store a person's text for a label."""
        return self._post(f"labels/{label_id}/texts", text, GenerationDetail)

    def review(
        self,
        generations: Sequence[int],
        action: ReviewAction,
        *,
        reason: str = "",
        author: str = "",
    ) -> list[ReviewView]:
        """Approve, reject, lock or unlock texts."""
        body = ReviewIn(generations=list(generations), action=action, reason=reason, author=author)
        response = self._call("POST", "reviews", body)
        return TypeAdapter(list[ReviewView]).validate_json(response.content)

    def reviews(self, generation_id: int) -> list[ReviewView]:
        """List the reviews of a text, newest first."""
        return self._list(f"generations/{generation_id}/reviews", ReviewView)

    # ----------------------------------------------------------------------------- releases, jobs

    def create_release(self, release: ReleaseCreate) -> ReleaseView:
        """Create a release: one fixed text for every label."""
        return self._post("releases", release, ReleaseView)

    def import_release(
        self, release: Release, *, name: str | None = None, label_set: str | None = None
    ) -> ReleaseView:
        """Import a release; it keeps its hash."""
        return self._post("releases/import", release, ReleaseView, name=name, label_set=label_set)

    def translate(self, release_id: int, translation: TranslationCreate) -> RunView:
        """Start a run that translates the texts of a release."""
        return self._post(f"releases/{release_id}/translations", translation, RunView)

    def releases(self, *, label_set: str | None = None) -> list[ReleaseView]:
        """List releases, newest first (the first 1000)."""
        return self._list("releases", ReleaseView, label_set=label_set, limit=1000)

    def release(self, release_id: int) -> Release:
        """Get a release with its texts."""
        return self._get(f"releases/{release_id}", Release)

    def compare_releases(self, before: int, after: int) -> ReleaseDiff:
        """Compare two releases: the labels whose texts differ."""
        return self._get(f"releases/{before}/diff", ReleaseDiff, to=after)

    def create_job(self, job: JobCreate) -> QueuedJob:
        """Queue a training job; its `warnings` list what the running workers lack for it."""
        return self._post("jobs", job, QueuedJob)

    def workers(self) -> list[WorkerView]:
        """List workers with what they have, running ones first."""
        return self._list("workers", WorkerView)

    def jobs(self) -> list[Job]:
        """List jobs, newest first (the first 1000)."""
        return self._list("jobs", Job, limit=1000)

    def job(self, job_id: int) -> Job:
        """Get a job."""
        return self._get(f"jobs/{job_id}", Job)

    def wait_for_job(self, job_id: int, *, every: float = 2.0) -> Job:
        """Wait until a job has ended; polls `every` seconds."""
        while not (job := self.job(job_id)).state.is_final:
            time.sleep(every)
        return job

    def cancel_job(self, job_id: int) -> Job:
        """Cancel a job."""
        return self._post(f"jobs/{job_id}/cancel", None, Job)

    def retry_job(self, job_id: int) -> Job:
        """Queue a failed or cancelled job again."""
        return self._post(f"jobs/{job_id}/retry", None, Job)

    def report(self, job_id: int) -> Report:
        """Get the report of a job."""
        return self._get(f"jobs/{job_id}/report", Report)

    # ----------------------------------------------------------------------------------- students

    def register_student(self, student: StudentRegister) -> StudentVersionView:
        """Register the classifier of a job as the next version of a student."""
        return self._post("students", student, StudentVersionView)

    def students(self) -> list[StudentView]:
        """List students by name (the first 1000)."""
        return self._list("students", StudentView, limit=1000)

    def student(self, name: str) -> StudentView:
        """Get a student with its aliases."""
        return self._get(f"students/{name}", StudentView)

    def student_versions(self, name: str) -> list[StudentVersionView]:
        """List all versions of a student with their figures, newest first."""
        return self._list(f"students/{name}/versions", StudentVersionView)

    def student_version(self, name: str, number: int) -> StudentVersionView:
        """Get a version of a student."""
        return self._get(f"students/{name}/versions/{number}", StudentVersionView)

    def student_classifier(self, name: str, number: int) -> bytes:
        """Get the classifier folder of a version as a zip file."""
        return self._call("GET", f"students/{name}/versions/{number}/classifier").content

    def student_alias(self, name: str, alias: str) -> StudentAliasView:
        """Resolve an alias of a student to a version."""
        return self._get(f"students/{name}/aliases/{alias}", StudentAliasView)

    def move_student_alias(self, name: str, alias: str, move: StudentAliasPut) -> StudentAliasView:
        """Point an alias at a version of a student."""
        return self._send("PUT", f"students/{name}/aliases/{alias}", move, StudentAliasView)

    def roll_back_student_alias(
        self, name: str, alias: str, rollback: StudentAliasRollback
    ) -> StudentAliasView:
        """Roll an alias of a student back to its previous version."""
        return self._post(f"students/{name}/aliases/{alias}/rollback", rollback, StudentAliasView)

    def student_alias_moves(self, name: str, alias: str) -> list[StudentAliasMoveView]:
        """List the moves of an alias of a student, newest first."""
        return self._list(f"students/{name}/aliases/{alias}/moves", StudentAliasMoveView)

    # -------------------------------------------------------------------------- imports, exports

    def import_all(self, export: bytes) -> Imported:
        """Import the output of `export_all`, completely or not at all."""
        return self._post("import", export, Imported)

    def import_generations_csv(self, csv: bytes) -> Imported:
        """Import the output of `generations_csv`; its prompts and label sets must exist."""
        return self._post("import/generations.csv", csv, Imported)

    def import_release_csv(
        self, csv: bytes, *, name: str, label_set: str, author: str = ""
    ) -> ReleaseView:
        """Create a release, and the label set if it does not exist, from a CSV file."""
        query = {"name": name, "label_set": label_set, "author": author}
        return self._post("import/release.csv", csv, ReleaseView, **query)

    def import_pairs(
        self,
        name: str,
        label2text: bytes,
        descriptions: bytes | None = None,
        *,
        context: str | None = None,
        author: str = "",
        check_texts: bool = True,
    ) -> Imported:
        """Create a label set from the paper's label2text.txt, with the texts of chatgpt.txt."""
        files = {"label2text": label2text, "descriptions": descriptions}
        options = {"context": context, "author": author, "check_texts": check_texts}
        return self._upload("import/pairs", files, Imported, name=name, **options)

    def import_lists(
        self,
        lists: dict[str, list[str]],
        *,
        label_set: str,
        kind: Literal["attributes", "sentences"],
        author: str = "",
        check_texts: bool = True,
    ) -> Imported:
        """Import descriptors (attributes) or sentences by class name."""
        options = {"kind": kind, "author": author, "check_texts": check_texts}
        return self._post("import/lists", Lists(lists), Imported, label_set=label_set, **options)

    def export_all(self, *, label_set: str | None = None) -> bytes:
        """Export label sets, prompts, generations and releases as JSONL: all, or of one set."""
        return self._call("GET", "export", label_set=label_set).content

    def generations_csv(self, *, label_set: str | None = None) -> bytes:
        """Export generations as CSV; all, or those of one label set."""
        return self._call("GET", "export/generations.csv", label_set=label_set).content

    def reviews_csv(self, *, label_set: str | None = None) -> bytes:
        """Export reviews as CSV; all, or those of one label set."""
        return self._call("GET", "export/reviews.csv", label_set=label_set).content

    def confusable_csv(self, name: str) -> bytes:
        """Export which labels of a label set are confused, as CSV."""
        return self._call("GET", f"label-sets/{name}/confusable.csv").content

    def labels_csv(self, name: str) -> bytes:
        """Export a label set as CSV, the input of `upload_label_set`."""
        return self._call("GET", f"label-sets/{name}/labels.csv").content

    def release_csv(self, release_id: int) -> bytes:
        """Export a release as CSV, the input of `import_release_csv`."""
        return self._call("GET", f"releases/{release_id}/release.csv").content

    def label2text(self, release_id: int) -> bytes:
        """Export the labels of a release as the paper's label2text.txt."""
        return self._call("GET", f"releases/{release_id}/label2text.txt").content

    def descriptions(self, release_id: int) -> bytes:
        """Export the descriptions of a release as the paper's chatgpt.txt."""
        return self._call("GET", f"releases/{release_id}/chatgpt.txt").content

    def descriptors(self, release_id: int) -> dict[str, list[str]]:
        """Get the attributes of a release by class name, the format of classify-by-description."""
        return self._get(f"releases/{release_id}/descriptors.json", Lists).root

    def sentences(self, release_id: int) -> dict[str, list[str]]:
        """Get the sentences of a release by class name, the format of CuPL."""
        return self._get(f"releases/{release_id}/sentences.json", Lists).root

    def manifest(self, release_id: int) -> Manifest:
        """Get the provenance of the texts of a release."""
        return self._get(f"releases/{release_id}/manifest.json", Manifest)

    # --------------------------------------------------------------------------------------- keys

    def create_key(self, key: KeyCreate) -> KeyCreated:
        """Create an API key. Only this response contains the key."""
        return self._post("keys", key, KeyCreated)

    def keys(self) -> list[KeyView]:
        """List all API keys, newest first."""
        return self._list("keys", KeyView)

    def revoke_key(self, key_id: int) -> KeyView:
        """Revoke an API key."""
        return self._post(f"keys/{key_id}/revoke", None, KeyView)

    def audit_log(self, *, key_id: int | None = None, before: int | None = None) -> list[AuditView]:
        """List changes and who made them, newest first (1000 before the id `before`)."""
        return self._list("audit", AuditView, key_id=key_id, before=before, limit=1000)

    # ----------------------------------------------------------------------------------- requests

    def _call(
        self,
        method: str,
        path: str,
        body: BaseModel | bytes | None = None,
        **query: Any,  # noqa: ANN401
    ) -> httpx.Response:
        if isinstance(body, BaseModel):
            content: bytes | None = body.model_dump_json(exclude_unset=True).encode()
            content_type = "application/json"
        else:
            content, content_type = body, "application/octet-stream"
        return self._request(
            method,
            path,
            content=content,
            headers=None if content is None else {"Content-Type": content_type},
            params=_without_none(query),
        )

    def _upload(
        self,
        path: str,
        files: dict[str, bytes | None],
        model: type[M],
        **form: Any,  # noqa: ANN401
    ) -> M:
        response = self._request("POST", path, files=_without_none(files), data=_without_none(form))
        return model.model_validate_json(response.content)

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401
        try:
            response = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ClientError(
                f"{without_password(str(self._http.base_url))} does not answer "
                f"({error or type(error).__name__}): check the address and that the service runs"
            ) from error
        if response.is_success:
            return response
        raise ClientError(_detail(response), response.status_code)

    def _send(
        self,
        method: str,
        path: str,
        body: BaseModel | bytes | None,
        model: type[M],
        **query: Any,  # noqa: ANN401
    ) -> M:
        return model.model_validate_json(self._call(method, path, body, **query).content)

    def _post(
        self,
        path: str,
        body: BaseModel | bytes | None,
        model: type[M],
        **query: Any,  # noqa: ANN401
    ) -> M:
        return self._send("POST", path, body, model, **query)

    def _get(self, path: str, model: type[M], **query: Any) -> M:  # noqa: ANN401
        return self._send("GET", path, None, model, **query)

    def _list(self, path: str, model: type[M], **query: Any) -> list[M]:  # noqa: ANN401
        items = self._call("GET", path, None, **query).json()
        return [model.model_validate(item) for item in items]


def _check(url: str, key: str | None) -> None:
    """Raise ClientError for an invalid address or key; the message contains neither."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host:
        raise ClientError("the service's address must be like http://127.0.0.1:8000")
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise ClientError("the API key contains invalid characters: copy it again")


def _bearer(key: str) -> Callable[[httpx.Request], httpx.Request]:
    """Add `key` to a request. httpx replaces a plain header by a password in the URL."""

    def authorize(request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return authorize


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _detail(response: httpx.Response) -> str:
    """The detail of a problem document; else the status and the start of the body."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}: {response.text[:200]}".strip()
