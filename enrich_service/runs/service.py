"""Runs, generations and people's edits: everything about them that needs only a session."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import aliased
from sqlmodel import Session, and_, col, exists, func, or_, select

from enrich_service.core.database import utcnow
from enrich_service.core.errors import Conflict, InvalidInput, NoSuch, NotFound
from enrich_service.core.settings import Settings
from enrich_service.core.text import check_line, check_text, shortened
from enrich_service.generations import reviews
from enrich_service.generations.models import (
    Batch,
    Generation,
    GenerationSource,
    GenerationStatus,
    Run,
    RunFinding,
    RunMode,
    RunState,
    RunText,
    language_of,
)
from enrich_service.generations.store import RESULTS, get_generation
from enrich_service.labels import service as labels
from enrich_service.labels.models import Label, LabelLine, LabelSet
from enrich_service.llm.batch_api import PRICE_SHARE
from enrich_service.llm.chat_model import IMAGE_TOKENS, RESERVED_PARAMETERS
from enrich_service.llm.images import Roots, checked_folder, images_of, names_of
from enrich_service.prompts import service as prompts
from enrich_service.prompts.models import Prompt, PromptVersion
from enrich_service.prompts.schemas import PromptKind
from enrich_service.prompts.templates import VARIABLES, variables_of
from enrich_service.runs.active_run import Work
from enrich_service.runs.enricher import Item, Plan, Prices
from enrich_service.runs.schemas import (
    BatchView,
    Choice,
    GenerationDetail,
    GenerationPage,
    GenerationView,
    Opinion,
    RunCreate,
    RunEstimate,
    RunView,
)
from enrich_service.validation.answers import attributes_of, texts_of
from enrich_service.validation.rules import ENGLISH, Answer, check

DEFAULT_ALIAS = "production"
UNFINISHED = (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED)
TOKENS_A_CHARACTER = 0.25  # of English, for prompts that have not been answered yet
TOKENS_AN_ANSWER = 80
IMAGES_A_PAGE = 200  # hashed at a time

_States = Mapping[int | None, tuple[bool | None, bool]]  # as `reviews.states` gives them
_OPINIONS = {
    Opinion.APPROVED: reviews.APPROVED,
    Opinion.REJECTED: reviews.REJECTED,
    Opinion.LOCKED: reviews.LOCKED,
    Opinion.OPEN: ~reviews.APPROVED & ~reviews.REJECTED,
}


def choose(session: Session, choice: Choice, settings: Settings, source: GenerationSource) -> Plan:
    """The plan that a choice amounts to."""
    version = _version(session, choice)
    prompt = session.get_one(Prompt, version.prompt_id)
    return plan_with(prompt.name, prompt.kind, version, choice, settings, source)


def plan_with(
    prompt: str,
    kind: str,
    version: PromptVersion,
    choice: Choice,
    settings: Settings,
    source: GenerationSource,
) -> Plan:
    """The plan that asks `version`, stored or not, as `choice` and its own defaults say."""
    defaults = dict(version.model_defaults)
    own = str(defaults.pop("model", "") or settings.llm_model)
    if wrong := RESERVED_PARAMETERS & choice.parameters.keys():
        raise InvalidInput(f"parameters: {min(wrong)!r} belongs to the call and cannot be set")
    parameters = {**defaults, **choice.parameters}
    prompts.check_parameters(parameters)
    variables = _variables(choice, version)
    return Plan(prompt, kind, version, source, choice.model or own, parameters, variables)


def _variables(choice: Choice, version: PromptVersion) -> dict[str, Any]:
    """`n` and `language` where they are not as ever, so that what was asked before stays known."""
    language = check_line("language", choice.language, limit=50)
    asked = {"n": choice.n, "language": language}
    asked = {name: value for name, value in asked.items() if value != VARIABLES[name][0]}
    if unused := asked.keys() - variables_of(version):
        name = min(unused)
        raise InvalidInput(
            f"{name}: version {version.number} of prompt {choice.prompt!r} does not speak of it: "
            f"add {{{{ {name} }}}} to the prompt, or leave it out"
        )
    return asked


def _version(session: Session, choice: Choice) -> PromptVersion:
    if choice.version is None and choice.alias is None:
        try:
            return prompts.resolve(session, choice.prompt, alias=DEFAULT_ALIAS)
        except NotFound:
            return prompts.resolve(session, choice.prompt)
    return prompts.resolve(session, choice.prompt, version=choice.version, alias=choice.alias)


def plan_of(session: Session, run: Run, source: GenerationSource) -> Plan:
    """The plan of a stored run."""
    version = session.get_one(PromptVersion, run.prompt_version_id)
    prompt = session.get_one(Prompt, version.prompt_id)
    return Plan(prompt.name, prompt.kind, version, source, run.model, run.parameters, run.variables)


def check_subject(plan: Plan, *, images: str | None = None, texts: bool = False) -> None:
    """Raise InvalidInput unless a prompt about images or texts gets some, and no other does."""
    if plan.rewrites and not texts:
        raise InvalidInput(
            f"prompt {plan.prompt!r} works on texts that are there: name a release that has them "
            "(`enrich release translate RELEASE --language …`)"
        )
    if texts and not plan.rewrites:
        raise InvalidInput(
            f"prompt {plan.prompt!r} works on no text: name one that speaks of {{{{ texts }}}}, "
            "such as translation"
        )
    if plan.kind == PromptKind.IMAGE_CAPTION and images is None:
        raise InvalidInput(
            f"prompt {plan.prompt!r} asks about images: start a run with a folder of them "
            "(`enrich run start LABEL_SET --prompt … --images FOLDER`)"
        )
    if plan.kind != PromptKind.IMAGE_CAPTION and images is not None:
        raise InvalidInput(
            f"images: prompt {plan.prompt!r} gives a {plan.kind} of a label and looks at no image: "
            "name a prompt of the kind image_caption, such as image-caption"
        )


# ------------------------------------------------------------------------------------------ runs


@dataclass(frozen=True)
class SourceText:
    """What a run is to work on for one label, and the generation that it came from, if known."""

    texts: tuple[str, ...]
    generation_id: int | None


SourceTexts = Mapping[int, SourceText]  # by the id of the label


def create_run(
    session: Session,
    body: RunCreate,
    plan: Plan,
    prices: Prices,
    *,
    roots: Roots = (),
    texts: SourceTexts | None = None,
) -> Run:
    """Queue a run. Raises InvalidInput for a budget in money where nothing has a price.

    `roots`: where images may lie (see `images`). `texts`: what to work on; labels without are left
    out.
    """
    _check_budget(body.budget_usd, plan.model, prices)
    _check_mode(body, plan)
    label_set = labels.get(session, body.label_set)
    assert label_set.id is not None and plan.version.id is not None
    folder, count = _subject(session, label_set, body, plan, roots, texts)
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
            texts=list(given.texts),
            generation_id=given.generation_id,
        )
        for label_id, given in (texts or {}).items()
    )
    session.flush()
    return run


def _check_budget(budget_usd: float | None, model: str, prices: Prices) -> None:
    if budget_usd is not None and model not in prices:
        raise InvalidInput(
            f"budget_usd: what {model!r} costs is not known, so the budget would never be spent: "
            "give its price in ENRICH_PRICES, or a budget in tokens"
        )


def _check_mode(body: RunCreate, plan: Plan) -> None:
    if body.mode is RunMode.LIVE:
        return
    if body.images is not None:
        raise InvalidInput(
            "mode: images are asked about live, since a file of them would soon be too large for a "
            "batch: leave out --batch"
        )
    if plan.source is GenerationSource.REPLAY:
        raise InvalidInput(
            "mode: a replay file answers at once and takes no batches: leave out --batch"
        )


def _subject(
    session: Session,
    label_set: LabelSet,
    body: RunCreate,
    plan: Plan,
    roots: Roots,
    texts: SourceTexts | None,
) -> tuple[Path | None, int]:
    """The folder of images that is asked about, if any, and how many images or labels there are."""
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
            f"images: {body.images} has no image for any label of {label_set.name!r}: name the "
            f"folder that holds the class folders, such as {keys[0]!r}"
        )
    return folder, count


def get_run(session: Session, run_id: int) -> Run:
    """The run; else NotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise NoSuch(f"run {run_id}", "run list", "/v1/runs")
    return run


def run_view(session: Session, run: Run, work: Work | None = None) -> RunView:
    """`run` as it crosses the wire, with what is known of it where it is worked on."""
    version = session.get_one(PromptVersion, run.prompt_version_id)
    found = session.exec(
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
        problems={one.rule: one.answers for one in found if one.verdict == "problem"},
        flags={one.rule: one.answers for one in found if one.verdict == "flag"},
        parked=len(work.parked) if work else 0,
        elsewhere=len(work.elsewhere) if work else 0,
        rate=work.rate() if work else None,
    )


def _batches(session: Session, run: Run) -> list[BatchView]:
    if run.mode is RunMode.LIVE:
        return []
    found = session.exec(select(Batch).where(Batch.run_id == run.id).order_by(col(Batch.id)))
    return [BatchView.model_validate(batch.model_dump()) for batch in found]


def list_runs(
    session: Session, *, label_set: str | None, state: RunState | None, limit: int, offset: int
) -> Sequence[Run]:
    """Runs, the newest first."""
    query = select(Run).order_by(col(Run.id).desc()).limit(limit).offset(offset)
    if label_set is not None:
        query = query.where(Run.label_set_id == labels.get(session, label_set).id)
    if state is not None:
        query = query.where(Run.state == state)
    return session.exec(query).all()


def pause_run(session: Session, run_id: int) -> Run:
    """Stop asking until the run is resumed."""
    run = get_run(session, run_id)
    if run.state not in UNFINISHED:
        raise Conflict(f"Run {run_id} has {run.state} already.")
    run.state = RunState.PAUSED
    session.add(run)
    return run


def cancel_run(session: Session, run_id: int) -> Run:
    """Stop asking for good; what was answered stays."""
    run = get_run(session, run_id)
    if run.state not in UNFINISHED:
        raise Conflict(f"Run {run_id} has {run.state} already.")
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
    """Go on with a paused run, if wanted with other budgets (see `create_run`)."""
    run = get_run(session, run_id)
    if run.state is not RunState.PAUSED:
        raise Conflict(f"Run {run_id} is {run.state}, not paused.")
    _check_budget(budget_usd, run.model, prices)
    run.budget_usd = budget_usd or run.budget_usd
    run.budget_tokens = budget_tokens or run.budget_tokens
    return _queue_again(session, run)


def retry_run(session: Session, run_id: int) -> Run:
    """Ask the labels of an ended run that have no answer; nothing that is stored is asked again."""
    run = get_run(session, run_id)
    if run.state in UNFINISHED:
        raise Conflict(f"Run {run_id} is {run.state}: wait for its end, or resume it.")
    if run.state is RunState.SUCCEEDED:
        raise Conflict(f"Run {run_id} has an answer for every label.")
    return _queue_again(session, run)


def _queue_again(session: Session, run: Run) -> Run:
    run.state, run.error, run.finished_at = RunState.QUEUED, None, None
    session.add(run)
    return run


def source_texts(session: Session, run: Run, found: Sequence[Label]) -> SourceTexts:
    """What a run is to work on for these labels."""
    rows = session.exec(
        select(RunText).where(
            RunText.run_id == run.id, col(RunText.label_id).in_([label.id for label in found])
        )
    )
    return {row.label_id: SourceText(tuple(row.texts), row.generation_id) for row in rows}


def items_of(
    session: Session,
    plan: Plan,
    found: Sequence[Label | LabelLine],
    samples: int,
    texts: SourceTexts | None = None,
) -> list[Item]:
    """What a run asks about labels of a label set: each of them `samples` times.

    `texts`: what it works on; labels without are left out.
    """
    if texts is not None:
        given = [
            (label, texts[label.id])
            for label in found
            if label.id is not None and label.id in texts
        ]
        return [
            plan.item(
                label.name,
                label.context,
                sample_index=i,
                label_id=label.id,
                texts=source.texts,
                parent_id=source.generation_id,
            )
            for label, source in given
            for i in range(samples)
        ]
    near = labels.confusable_of(session, found) if plan.compares else [[] for _ in found]
    return [
        plan.item(
            label.name,
            label.context,
            sample_index=i,
            label_id=label.id,
            confusable=[other.name for other in others],
        )
        for label, others in zip(found, near, strict=True)
        for i in range(samples)
    ]


def image_items(
    plan: Plan, label: Item, key: str, folder: Path, roots: Roots, samples: int
) -> Iterator[list[Item]]:
    """What a run asks about the images of a label, a page at a time: each of them `samples` times.

    `label`: the item that would ask about the label alone; `key`: its folder. Reads every image.
    """
    for page in images_of(folder, key, roots, page=IMAGES_A_PAGE):
        yield [
            plan.item(
                label.name,
                label.context,
                sample_index=i,
                label_id=label.label_id,
                confusable=label.confusable,
                image=image,
            )
            for image in page
            for i in range(samples)
        ]


def estimate(
    session: Session,
    body: RunCreate,
    plan: Plan,
    prices: Prices,
    *,
    roots: Roots = (),
    texts: SourceTexts | None = None,
) -> RunEstimate:
    """What the run would ask, by the means of earlier runs, or else by the prompt's size.

    The means are over labels or images, so that what was asked again after a bad answer counts.
    """
    _check_mode(body, plan)
    label_set = labels.get(session, body.label_set)
    folder, count = _subject(session, label_set, body, plan, roots, texts)
    found = labels.lines_of(session, label_set)
    if folder is None:
        keys = {item.key for item in items_of(session, plan, found, body.samples, texts)}
    else:
        about = zip(found, items_of(session, plan, found, 1), strict=True)
        keys = {
            item.key
            for label, item in about
            for page in image_items(plan, item, label.key, folder, roots, body.samples)
            for item in page
        }
    total = count * body.samples
    to_ask = len(keys) - count_results(session, keys)
    # From the runs' counters: the answers themselves would have to be read one by one.
    seen, prompt_sum, completion_sum = session.exec(
        select(
            func.sum(Run.accepted + Run.rejected),
            func.sum(Run.prompt_tokens),
            func.sum(Run.completion_tokens),
        ).where(Run.prompt_version_id == plan.version.id, Run.model == plan.model)
    ).one()
    if seen and prompt_sum:
        prompt_mean, completion_mean = prompt_sum / seen, completion_sum / seen
        basis = f"the mean of {seen} earlier answers"
    else:
        size = len(plan.version.system) + len(plan.version.user) + 40
        prompt_mean, completion_mean = size * TOKENS_A_CHARACTER, TOKENS_AN_ANSWER
        prompt_mean += IMAGE_TOKENS if folder else 0
        basis = "a guess from the length of the prompt: nothing has been answered yet"
    prompt_tokens = round(to_ask * float(prompt_mean))
    completion_tokens = round(to_ask * float(completion_mean))
    price = prices.get(plan.model)
    share = PRICE_SHARE if body.mode is RunMode.BATCH else 1.0
    return RunEstimate(
        total=total,
        cached=total - to_ask,
        to_ask=to_ask,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=price
        and share * (price[0] * prompt_tokens + price[1] * completion_tokens) / 1_000_000,
        basis=basis,
    )


@dataclass(frozen=True)
class Failures:
    """The labels or images of a run without a text for one reason, the first of them by name."""

    reason: str  # the rule that was broken, or what the server said
    labels: int
    named: tuple[str, ...]
    example: str  # the whole problem, of the first
    generation_id: int


def failures(session: Session, run_id: int, *, named: int = 5) -> list[Failures]:
    """Why labels or images of a run have no text, the most frequent reason first.

    A call that failed counts until the same question is answered, or the image once it is mended.
    """
    answered = aliased(Generation)
    open_ = and_(
        col(Generation.status) == GenerationStatus.FAILED,
        ~exists().where(
            or_(
                col(answered.dedupe_key) == col(Generation.dedupe_key),
                and_(col(answered.run_id) == run_id, col(answered.image) == col(Generation.image)),
            ),
            col(answered.status).in_(RESULTS),
        ),
    )
    rows = session.exec(
        select(
            func.coalesce(Generation.image, Generation.label_name),
            Generation.problems,
            Generation.id,
        )
        .where(
            Generation.run_id == run_id,
            or_(col(Generation.status) == GenerationStatus.REJECTED, open_),
        )
        .order_by(col(Generation.id))
    )
    groups: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    for label, problems, generation_id in rows:
        problem = problems[0] if problems else "no reason was stored"
        reason = problem.partition(":")[0] if ": " in problem else problem
        groups[reason][label] = (problem, generation_id or 0)
    found = [
        Failures(reason, len(labels), tuple(labels)[:named], *next(iter(labels.values())))
        for reason, labels in groups.items()
    ]
    return sorted(found, key=lambda group: -group.labels)


def runs_by_version(session: Session) -> dict[int, int]:
    """How many runs there are of each prompt version, by its id."""
    counted = select(Run.prompt_version_id, func.count()).group_by(col(Run.prompt_version_id))
    return dict(session.exec(counted).all())


def answers_by_version(session: Session) -> dict[int, int]:
    """How many generations there are of each prompt version, by its id."""
    counted = (
        select(Generation.prompt_version_id, func.count())
        .where(col(Generation.prompt_version_id).is_not(None))
        .group_by(col(Generation.prompt_version_id))
    )
    return {version: count for version, count in session.exec(counted) if version is not None}


def count_results(session: Session, keys: Iterable[str]) -> int:
    """How many of the dedupe keys have a result."""
    listed = list(keys)
    return sum(
        session.exec(
            select(func.count()).where(
                col(Generation.dedupe_key).in_(listed[i : i + 500]),
                col(Generation.status).in_(RESULTS),
            )
        ).one()
        for i in range(0, len(listed), 500)
    )


# ----------------------------------------------------------------------------------- generations


def list_generations(
    session: Session,
    *,
    label: str | None = None,
    label_id: int | None = None,
    run_id: int | None = None,
    prompt: str | None = None,
    version: int | None = None,
    status: GenerationStatus | None = None,
    source: GenerationSource | None = None,
    flagged: bool | None = None,
    opinion: Opinion | None = None,
    before: int | None = None,
    limit: int = 100,
) -> GenerationPage:
    """Generations that fit all filters, the newest first."""
    query = select(Generation).order_by(col(Generation.id).desc()).limit(limit + 1)
    for column, value in (
        (Generation.label_name, label),
        (Generation.label_id, label_id),
        (Generation.run_id, run_id),
        (Generation.status, status),
        (Generation.source, source),
    ):
        if value is not None:
            query = query.where(column == value)
    if prompt is not None:
        versions = [
            found.id
            for found in prompts.versions(session, prompts.get(session, prompt))
            if version is None or found.number == version
        ]
        query = query.where(col(Generation.prompt_version_id).in_(versions))
    elif version is not None:
        raise InvalidInput("version: name the prompt too")
    if flagged is not None:
        empty = func.json_array_length(Generation.flags) == 0
        query = query.where(~empty if flagged else empty)
    if opinion is not None:
        query = query.where(_OPINIONS[opinion])
    if before is not None:
        query = query.where(col(Generation.id) < before)
    rows = session.exec(query).all()
    shown = rows[:limit]
    states = reviews.states(session, [row.id for row in shown])
    return GenerationPage(
        items=[_in_list(session, row, states) for row in shown],
        next_before=shown[-1].id if len(rows) > limit else None,
    )


def texts_of_label(session: Session, label: Label, *, limit: int) -> list[GenerationView]:
    """What was ever answered and written for a label, the newest first.

    A text that was made for a label of the same name and context elsewhere belongs to it too.
    """
    rows = session.exec(
        select(Generation)
        .where(
            Generation.label_name == label.name,
            col(Generation.label_context).is_not_distinct_from(label.context),
            or_(
                col(Generation.source) != GenerationSource.PERSON,
                Generation.label_id == label.id,
                col(Generation.label_id).is_(None),
            ),
        )
        .order_by(col(Generation.id).desc())
        .limit(limit)
    )
    return [generation_view(session, row) for row in rows]


def line_of(kind: str, parsed: Mapping[str, Any] | None) -> str | None:
    """The text of an answer on one line: the first, or all attributes."""
    if kind == PromptKind.ATTRIBUTES:
        found = attributes_of(parsed)
        return "; ".join(f"{name}: {', '.join(values)}" for name, values in found.items()) or None
    return next(iter(texts_of(kind, parsed)), None)


def _view(session: Session, row: Generation, states: _States) -> dict[str, Any]:
    approved, locked = states[row.id]
    version = (
        session.get_one(PromptVersion, row.prompt_version_id) if row.prompt_version_id else None
    )
    return {
        "id": row.id,
        "label": row.label_name,
        "context": row.label_context,
        "text": line_of(row.kind, row.parsed),
        "prompt": session.get_one(Prompt, version.prompt_id).name if version else None,
        "prompt_version": version.number if version else None,
        "prompt_hash": version.content_hash if version else None,
        "model": row.requested_model,
        "approved": approved,
        "locked": locked,
    }


def _in_list(session: Session, row: Generation, states: _States) -> GenerationView:
    return GenerationView.model_validate(row.model_dump() | _view(session, row, states))


def generation_view(session: Session, row: Generation) -> GenerationView:
    """A generation without its bulky parts."""
    return _in_list(session, row, reviews.states(session, [row.id]))


def generation_detail(session: Session, row: Generation) -> GenerationDetail:
    """A generation with its whole provenance."""
    attributes = attributes_of(row.parsed) if row.kind == PromptKind.ATTRIBUTES else {}
    more = {"texts": texts_of(row.kind, row.parsed), "attributes": attributes}
    view = _view(session, row, reviews.states(session, [row.id]))
    return GenerationDetail.model_validate(row.model_dump() | view | more)


# ----------------------------------------------------------------------------------------- edits


def edit_generation(
    session: Session,
    generation_id: int,
    *,
    text: str | None,
    parsed: Mapping[str, Any] | None,
    author: str,
) -> Generation:
    """A person's better text for what a generation says, with that generation as its parent."""
    parent = get_generation(session, generation_id)
    if parent.prompt_version_id is None:
        raise Conflict(
            f"Generation {generation_id} belongs to no prompt, so it cannot be edited: write a "
            "text of its label instead (`enrich texts write`, POST /v1/labels/…/texts)."
        )
    return _write(
        session,
        version=session.get_one(PromptVersion, parent.prompt_version_id),
        kind=parent.kind,
        label_id=parent.label_id,
        name=parent.label_name,
        context=parent.label_context,
        text=text,
        parsed=parsed,
        author=author,
        parent=parent,
        language=language_of(parent),
    )


def write_text(
    session: Session,
    label_id: int,
    *,
    prompt: str,
    text: str | None,
    parsed: Mapping[str, Any] | None,
    author: str,
    language: str = ENGLISH,
) -> Generation:
    """A person's own text for a label of a label set."""
    label, _ = labels.label(session, label_id)
    version = _version(session, Choice(prompt=prompt))
    kind = session.get_one(Prompt, version.prompt_id).kind
    if kind == PromptKind.IMAGE_CAPTION:
        raise InvalidInput(f"prompt {prompt!r} is about images: edit the caption of one instead")
    return _write(
        session,
        version=version,
        kind=kind,
        label_id=label_id,
        name=label.name,
        context=label.context,
        text=text,
        parsed=parsed,
        author=author,
        parent=None,
        language=check_line("language", language, limit=50),
    )


def _write(
    session: Session,
    *,
    version: PromptVersion,
    kind: str,
    label_id: int | None,
    name: str,
    context: str | None,
    text: str | None,
    parsed: Mapping[str, Any] | None,
    author: str,
    parent: Generation | None,
    language: str,
) -> Generation:
    reviews.check_unlocked(
        session,
        kind=kind,
        name=name,
        context=context,
        label_id=label_id,
        language=language,
        image_hash=parent.image_hash if parent else None,
    )
    content = _content(kind, text, parsed)
    texts = texts_of(kind, content)
    for written in texts:
        check_text("The text", written, limit=20_000)
    answer = Answer(
        name, context, kind, raw="", parsed=content, texts=texts, others={}, language=language
    )
    # A person may say more or less than the prompt asks of a model; only the form must be right.
    form = check([{"rule": "empty"}, {"rule": "control"}], answer)
    if form.problems:
        raise InvalidInput(form.problems[0])
    edit = Generation(
        source=GenerationSource.PERSON,
        status=GenerationStatus.ACCEPTED,
        kind=kind,
        label_id=label_id,
        label_name=name,
        label_context=context,
        prompt_version_id=version.id,
        image=parent.image if parent else None,
        image_hash=parent.image_hash if parent else None,
        parent_id=parent.id if parent else None,
        variables={} if language == ENGLISH else {"language": language},
        parsed=content,
        flags=list(check([{"rule": "length"}], answer).flags),
        calls=0,
        author=author,
    )
    session.add(edit)
    session.flush()
    return edit


def _content(kind: str, text: str | None, parsed: Mapping[str, Any] | None) -> dict[str, Any]:
    if (text is None) == (parsed is None):
        raise InvalidInput("give either text or parsed")
    if parsed is not None:
        allowed = {name for name in parsed if kind in (PromptKind.ATTRIBUTES, name)}
        if allowed != set(parsed) or not texts_of(kind, parsed):
            raise InvalidInput(f"parsed: give an object with texts, as the kind {kind!r} has them")
        return dict(parsed)
    assert text is not None
    if kind == PromptKind.ATTRIBUTES:
        raise InvalidInput(
            'attributes are edited as parsed, e.g. {"parsed": {"shape": "round"}}, not as text'
        )
    if kind in (PromptKind.DESCRIPTION, PromptKind.IMAGE_CAPTION):
        return {kind: " ".join(text.split())}
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if not lines:
        raise InvalidInput(f"text: {shortened(text)} has no line with text")
    return {kind: lines}
