"""Runs: created, listed, paused, resumed, cancelled, retried."""

from collections.abc import Sequence
from pathlib import Path

from sqlmodel import Session, col, func, select

from enrich_service.core.errors import Conflict, InvalidInput, NoSuch
from enrich_service.core.storage.database import utcnow
from enrich_service.generations.models import (
    Batch,
    GenerationSource,
    Run,
    RunFinding,
    RunMode,
    RunState,
    RunText,
)
from enrich_service.labels import service as labels
from enrich_service.labels.models import Label, LabelSet
from enrich_service.llm.images import Roots, checked_folder, names_of
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.runs.active_run import ActiveRun
from enrich_service.runs.answering.build_generation import Prices
from enrich_service.runs.items import SourceTexts
from enrich_service.runs.plan import Plan, check_subject
from enrich_service.runs.schemas import BatchView, RunCreate, RunView

UNFINISHED = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)


def create_run(
    session: Session,
    body: RunCreate,
    plan: Plan,
    prices: Prices,
    *,
    roots: Roots = (),
    texts: SourceTexts | None = None,
) -> Run:
    """Queue a run.

    Args:
        roots: Folders that may contain images (see `llm.images`); None allows every folder.
        texts: Texts that the prompt rewrites; labels without texts are skipped.

    Raises:
        NotFound: the label set does not exist.
        InvalidInput: the plan does not fit the subject or mode, or a budget in dollars is given for
            a model without a known price.
    """
    _check_budget(body.budget_usd, plan.model, prices)
    check_mode(body, plan)
    label_set = labels.get(session, body.label_set)
    assert label_set.id is not None and plan.version.id is not None
    folder, count = subject_of(session, label_set, body, plan, roots, texts)
    run = Run(
        label_set_id=label_set.id,
        prompt_version_id=plan.version.id,
        model=plan.model,
        parameters=dict(plan.parameters),
        variables=dict(plan.variables),
        images=str(folder) if folder else None,
        mode=body.mode,
        samples=body.samples,
        concurrency=body.concurrency,
        budget_usd=body.budget_usd,
        budget_tokens=body.budget_tokens,
        total=count * body.samples,
        author=body.author,
    )
    session.add(run)
    session.flush()
    assert run.id is not None
    session.add_all(
        RunText(
            run_id=run.id,
            label_id=label_id,
            texts=list(source.texts),
            generation_id=source.generation_id,
        )
        for label_id, source in (texts or {}).items()
    )
    session.flush()
    return run


def _check_budget(budget_usd: float | None, model: str, prices: Prices) -> None:
    if budget_usd is not None and model not in prices:
        raise InvalidInput(
            f"budget_usd: the price of {model!r} is unknown, so the budget cannot be enforced: "
            "set its price in ENRICH_PRICES, or give a budget in tokens"
        )


def check_mode(body: RunCreate, plan: Plan) -> None:
    """Raise InvalidInput if the run is in batch mode but does not support it."""
    if body.mode is RunMode.LIVE:
        return
    if body.images is not None:
        raise InvalidInput(
            "mode: runs over images are live, because files with images would be too large for a "
            "batch: leave out --batch"
        )
    if plan.source is GenerationSource.REPLAY:
        raise InvalidInput("mode: a replay file does not support batches: leave out --batch")


def subject_of(
    session: Session,
    label_set: LabelSet,
    body: RunCreate,
    plan: Plan,
    roots: Roots,
    texts: SourceTexts | None,
) -> tuple[Path | None, int]:
    """The folder of images, if any, and the number of images or labels.

    Raises InvalidInput if the prompt does not fit, or there are no images.
    """
    check_subject(plan, images=body.images, texts=texts is not None)
    if texts is not None:
        return None, len(texts)
    if body.images is None:
        counted = select(func.count()).select_from(Label).where(Label.label_set_id == label_set.id)
        return None, session.exec(counted).one()
    folder = checked_folder(body.images, roots)
    keys = [label.key for label in labels.labels_of(session, label_set)]
    count = sum(len(names_of(folder, key)) for key in keys)
    if not count:
        raise InvalidInput(
            f"images: {body.images} has no images of labels of {label_set.name!r}: give the "
            f"folder that contains the class folders, such as {keys[0]!r}"
        )
    return folder, count


def get_run(session: Session, run_id: int) -> Run:
    """The run with this id. Raises NotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise NoSuch(f"run {run_id}", "run list", "/v1/runs")
    return run


def run_view(session: Session, run: Run, active: ActiveRun | None = None) -> RunView:
    """The API schema of `run`; `active`: its state in this process."""
    version = session.get_one(PromptVersion, run.prompt_version_id)
    findings = session.exec(
        select(RunFinding)
        .where(RunFinding.run_id == run.id)
        .order_by(col(RunFinding.answers).desc(), RunFinding.rule)
    ).all()
    return RunView(
        **run.model_dump(
            exclude={"label_set_id", "prompt_version_id", "owner", "owner_expires_at"}
        ),
        label_set=session.get_one(LabelSet, run.label_set_id).name,
        prompt=session.get_one(Prompt, version.prompt_id).name,
        prompt_version=version.number,
        done=run.cached + run.accepted + run.rejected + run.failed,
        batches=_batches(session, run),
        problems={
            finding.rule: finding.answers for finding in findings if finding.verdict == "problem"
        },
        flags={finding.rule: finding.answers for finding in findings if finding.verdict == "flag"},
        parked=len(active.parked) if active else 0,
        waiting_on_other_runs=len(active.waiting) if active else 0,
        rate=active.rate() if active else None,
    )


def _batches(session: Session, run: Run) -> list[BatchView]:
    if run.mode is RunMode.LIVE:
        return []
    findings = session.exec(select(Batch).where(Batch.run_id == run.id).order_by(col(Batch.id)))
    return [BatchView.model_validate(batch.model_dump()) for batch in findings]


def list_runs(
    session: Session, *, label_set: str | None, state: RunState | None, limit: int, offset: int
) -> Sequence[Run]:
    """Runs, newest first."""
    query = select(Run).order_by(col(Run.id).desc()).limit(limit).offset(offset)
    if label_set is not None:
        query = query.where(Run.label_set_id == labels.get(session, label_set).id)
    if state is not None:
        query = query.where(Run.state == state)
    return session.exec(query).all()


def pause_run(session: Session, run_id: int) -> Run:
    """Pause a run until it is resumed. Raises NotFound, or Conflict if it has ended."""
    run = get_run(session, run_id)
    if run.state not in UNFINISHED:
        raise Conflict(f"Run {run_id} has already ended ({run.state}).")
    run.state = RunState.PAUSED
    session.add(run)
    return run


def cancel_run(session: Session, run_id: int) -> Run:
    """Cancel a run; stored answers are kept. Raises NotFound, or Conflict if it has ended."""
    run = get_run(session, run_id)
    if run.state not in UNFINISHED:
        raise Conflict(f"Run {run_id} has already ended ({run.state}).")
    run.state = RunState.CANCELLED
    run.finished_at = utcnow()
    session.add(run)
    return run


def resume_run(
    session: Session,
    run_id: int,
    prices: Prices,
    *,
    budget_usd: float | None = None,
    budget_tokens: int | None = None,
) -> Run:
    """Resume a paused run, optionally with other budgets (see `create_run`).

    Raises NotFound, Conflict if it is not paused, or InvalidInput for an unenforceable budget.
    """
    run = get_run(session, run_id)
    if run.state is not RunState.PAUSED:
        raise Conflict(f"Run {run_id} is {run.state}, not paused.")
    _check_budget(budget_usd, run.model, prices)
    run.budget_usd = budget_usd or run.budget_usd
    run.budget_tokens = budget_tokens or run.budget_tokens
    return _queue_again(session, run)


def retry_run(session: Session, run_id: int) -> Run:
    """Queue an ended run again for its missing answers. Raises NotFound or Conflict."""
    run = get_run(session, run_id)
    if run.state in UNFINISHED:
        raise Conflict(f"Run {run_id} is {run.state}: wait until it ends, or resume it.")
    if run.state is RunState.SUCCEEDED:
        raise Conflict(f"Run {run_id} already has an answer for every label.")
    return _queue_again(session, run)


def _queue_again(session: Session, run: Run) -> Run:
    run.state, run.error, run.finished_at = RunState.QUEUED, None, None
    session.add(run)
    return run


def runs_by_version(session: Session) -> dict[int, int]:
    """The number of runs by prompt version id."""
    counted = select(Run.prompt_version_id, func.count()).group_by(col(Run.prompt_version_id))
    return dict(session.exec(counted).all())
