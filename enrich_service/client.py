"""A client of the service over HTTP, with the verbs of its REST interface.

    with Client("http://127.0.0.1:8000") as client:
        client.create_label_set("ducks", ["mallard", "teal"])
        run = client.start_run(RunCreate(label_set="ducks"))
        client.wait_for_run(run.id)
        client.create_release(ReleaseCreate(label_set="ducks", name="ducks-1", sources=[…]))

What goes in and what comes back are the models of the service itself, parsed and typed.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter

from contract import ImageCaption, Job, JobCreate, Release, Report
from enrich_service.enrichment.models import ReviewAction, RunState
from enrich_service.enrichment.schemas import (
    Described,
    DescribeRequest,
    GenerationDetail,
    GenerationView,
    LabelTextIn,
    ReviewIn,
    ReviewView,
    RunCreate,
    RunEstimate,
    RunResume,
    RunView,
    TextIn,
)
from enrich_service.labels.schemas import (
    Confusable,
    LabelIn,
    LabelPage,
    LabelSetCreate,
    LabelSetView,
    LabelView,
)
from enrich_service.prompts.schemas import (
    AliasPut,
    AliasView,
    PromptCreate,
    PromptView,
    VersionCreate,
    VersionView,
)
from enrich_service.releases.schemas import ReleaseCreate, ReleaseView, TranslationCreate
from enrich_service.trials.schemas import Comparison, Trial, TrialRequest

GOING_ON = (RunState.QUEUED, RunState.RUNNING)
M = TypeVar("M", bound=BaseModel)


class ClientError(Exception):
    """The service refused a request, or did not answer. `detail` says what to do.

    `status`: of HTTP; None where there was no answer.
    """

    def __init__(self, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.detail, self.status = detail, status


class Client:
    """The service at `url`. Every method raises ClientError; `timeout` is in seconds for a call."""

    def __init__(self, url: str, *, timeout: float = 120.0) -> None:
        self._http = httpx.Client(base_url=url.rstrip("/") + "/v1/", timeout=timeout)

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
        """Let go of the connections."""
        self._http.close()

    # --------------------------------------------------------------------------------- label sets

    def create_label_set(self, name: str, labels: Iterable[LabelIn | str]) -> LabelSetView:
        """A new label set; a string is a label's name."""
        given = [LabelIn(name=one) if isinstance(one, str) else one for one in labels]
        return self._post("label-sets", LabelSetCreate(name=name, labels=given), LabelSetView)

    def label_sets(self) -> list[LabelSetView]:
        """Label sets by name (the first 1000)."""
        return self._list("label-sets", LabelSetView, limit=1000)

    def label_set(self, name: str) -> LabelSetView:
        """One label set."""
        return self._get(f"label-sets/{name}", LabelSetView)

    def labels(self, name: str) -> Iterator[LabelView]:
        """All labels of a label set, in order."""
        offset: int | None = 0
        while offset is not None:
            page = self._get(f"label-sets/{name}/labels", LabelPage, offset=offset)
            yield from page.items
            offset = page.next_offset

    def set_confusable(self, name: str, confusable: dict[str, list[str]]) -> Confusable:
        """Say which labels (keys) each of the given ones is easily taken for."""
        body = Confusable(confusable=confusable)
        return self._send("PUT", f"label-sets/{name}/confusable", body, Confusable)

    def delete_label_set(self, name: str) -> None:
        """Delete a label set that nothing uses."""
        self._call("DELETE", f"label-sets/{name}")

    # ------------------------------------------------------------------------------------ prompts

    def create_prompt(self, prompt: PromptCreate) -> VersionView:
        """A new prompt with its version 1."""
        return self._post("prompts", prompt, VersionView)

    def prompts(self, *, search: str = "", tag: str | None = None) -> list[PromptView]:
        """Prompts by name (the first 1000)."""
        return self._list("prompts", PromptView, search=search, tag=tag, limit=1000)

    def prompt(self, name: str) -> PromptView:
        """One prompt with its aliases."""
        return self._get(f"prompts/{name}", PromptView)

    def add_version(self, name: str, version: VersionCreate) -> VersionView:
        """The next version of a prompt; the newest one where it has this very content."""
        return self._post(f"prompts/{name}/versions", version, VersionView)

    def version(self, name: str, which: int | str) -> VersionView:
        """A version of a prompt, by number or alias."""
        kind = "versions" if isinstance(which, int) else "aliases"
        return self._get(f"prompts/{name}/{kind}/{which}", VersionView)

    def move_alias(self, name: str, alias: str, move: AliasPut) -> AliasView:
        """Point an alias at a version."""
        return self._send("PUT", f"prompts/{name}/aliases/{alias}", move, AliasView)

    def try_prompt(self, trial: TrialRequest) -> Trial:
        """Ask a prompt that is not saved about a few labels."""
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
        """Two versions, each as `PROMPT@VERSION` or `PROMPT@ALIAS`, side by side."""
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
        """The texts of up to 100 class names, now."""
        answer = self._call("POST", "describe", request)
        return TypeAdapter(list[Described]).validate_json(answer.content)

    def start_run(self, run: RunCreate) -> RunView:
        """Enrich a label set in the background."""
        return self._post("runs", run, RunView)

    def estimate_run(self, run: RunCreate) -> RunEstimate:
        """What a run would ask and cost."""
        return self._post("runs/estimate", run, RunEstimate)

    def runs(self, *, label_set: str | None = None) -> list[RunView]:
        """Runs, the newest first (the first 1000)."""
        return self._list("runs", RunView, label_set=label_set, limit=1000)

    def run(self, run_id: int) -> RunView:
        """One run."""
        return self._get(f"runs/{run_id}", RunView)

    def follow_run(self, run_id: int, *, every: float = 0.5) -> Iterator[RunView]:
        """The run each time it has changed, until it ends or is paused; a look `every` seconds."""
        last = None
        while True:
            view = self.run(run_id)
            if view != last:
                yield view
            if view.state not in GOING_ON:
                return
            last = view
            time.sleep(every)

    def wait_for_run(self, run_id: int, *, every: float = 0.5) -> RunView:
        """The run once it has ended or is paused."""
        *_, last = self.follow_run(run_id, every=every)
        return last

    def pause_run(self, run_id: int) -> RunView:
        """Ask no more until it is resumed."""
        return self._post(f"runs/{run_id}/pause", None, RunView)

    def resume_run(self, run_id: int, budget: RunResume | None = None) -> RunView:
        """Go on with a paused run."""
        return self._post(f"runs/{run_id}/resume", budget, RunView)

    def cancel_run(self, run_id: int) -> RunView:
        """Stop a run; what was answered stays."""
        return self._post(f"runs/{run_id}/cancel", None, RunView)

    def retry_run(self, run_id: int) -> RunView:
        """Ask the labels of an ended run that have no answer."""
        return self._post(f"runs/{run_id}/retry", None, RunView)

    def captions(self, run_id: int) -> Iterator[ImageCaption]:
        """The captions of the images that a run asked about."""
        for line in self._call("GET", f"runs/{run_id}/captions.jsonl").iter_lines():
            yield ImageCaption.model_validate_json(line)

    # -------------------------------------------------------------------------------------- texts

    def generations(self, **filters: Any) -> Iterator[GenerationView]:  # noqa: ANN401 - of the route
        """All generations that fit the filters of GET /v1/generations, the newest first."""
        before: int | None = None
        while True:
            page = self._call("GET", "generations", None, **filters, before=before).json()
            yield from TypeAdapter(list[GenerationView]).validate_python(page["items"])
            before = page["next_before"]
            if before is None:
                return

    def generation(self, generation_id: int) -> GenerationDetail:
        """One generation with its provenance."""
        return self._get(f"generations/{generation_id}", GenerationDetail)

    def edit(self, generation_id: int, text: TextIn) -> GenerationDetail:
        """A person's text in place of what a generation says."""
        return self._post(f"generations/{generation_id}/edits", text, GenerationDetail)

    def write_text(self, label_id: int, text: LabelTextIn) -> GenerationDetail:
        """A person's own text for a label of a label set."""
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
        answer = self._call("POST", "reviews", body)
        return TypeAdapter(list[ReviewView]).validate_json(answer.content)

    def reviews(self, generation_id: int) -> list[ReviewView]:
        """Who said what of a text, the newest first."""
        return self._list(f"generations/{generation_id}/reviews", ReviewView)

    # ----------------------------------------------------------------------------- releases, jobs

    def create_release(self, release: ReleaseCreate) -> ReleaseView:
        """Freeze one text for every label."""
        return self._post("releases", release, ReleaseView)

    def import_release(
        self, release: Release, *, name: str | None = None, label_set: str | None = None
    ) -> ReleaseView:
        """Take in a release that was made elsewhere."""
        answer = self._call("POST", "releases/import", release, name=name, label_set=label_set)
        return ReleaseView.model_validate_json(answer.content)

    def translate(self, release_id: int, translation: TranslationCreate) -> RunView:
        """Begin a run that translates the texts of a release."""
        return self._post(f"releases/{release_id}/translations", translation, RunView)

    def releases(self, *, label_set: str | None = None) -> list[ReleaseView]:
        """Releases, the newest first (the first 1000)."""
        return self._list("releases", ReleaseView, label_set=label_set, limit=1000)

    def release(self, release_id: int) -> Release:
        """A release with its texts."""
        return self._get(f"releases/{release_id}", Release)

    def create_job(self, job: JobCreate) -> Job:
        """Queue the training of a student."""
        return self._post("jobs", job, Job)

    def jobs(self) -> list[Job]:
        """Jobs, the newest first (the first 1000)."""
        return self._list("jobs", Job, limit=1000)

    def job(self, job_id: int) -> Job:
        """One job."""
        return self._get(f"jobs/{job_id}", Job)

    def wait_for_job(self, job_id: int, *, every: float = 2.0) -> Job:
        """The job once it has ended; a look `every` seconds."""
        while not (job := self.job(job_id)).state.is_final:
            time.sleep(every)
        return job

    def cancel_job(self, job_id: int) -> Job:
        """Cancel a job."""
        return self._post(f"jobs/{job_id}/cancel", None, Job)

    def report(self, job_id: int) -> Report:
        """The report of a job."""
        return self._get(f"jobs/{job_id}/report", Report)

    # -------------------------------------------------------------------------------------- calls

    def _call(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        **query: Any,  # noqa: ANN401
    ) -> httpx.Response:
        content = None if body is None else body.model_dump_json(exclude_unset=True)
        try:
            answer = self._http.request(
                method,
                path,
                content=content,
                headers={"Content-Type": "application/json"} if content else None,
                params={name: value for name, value in query.items() if value is not None},
            )
        except httpx.HTTPError as error:
            raise ClientError(
                f"{self._http.base_url} does not answer ({error or type(error).__name__}): "
                "check the address, and that the service runs"
            ) from error
        if answer.is_success:
            return answer
        raise ClientError(_detail(answer), answer.status_code)

    def _send(self, method: str, path: str, body: BaseModel | None, model: type[M]) -> M:
        return model.model_validate_json(self._call(method, path, body).content)

    def _post(self, path: str, body: BaseModel | None, model: type[M]) -> M:
        return self._send("POST", path, body, model)

    def _get(self, path: str, model: type[M], **query: Any) -> M:  # noqa: ANN401
        return model.model_validate_json(self._call("GET", path, None, **query).content)

    def _list(self, path: str, model: type[M], **query: Any) -> list[M]:  # noqa: ANN401
        found = self._call("GET", path, None, **query).json()
        return [model.model_validate(one) for one in found]


def _detail(answer: httpx.Response) -> str:
    """What a problem document says; else the status and the start of the body."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason_phrase}: {answer.text[:200]}".strip()
