"""The number of calls, tokens and dollars of a run, before it starts."""

from collections.abc import Iterable

from sqlmodel import Session, col, func, select

from enrich_service.generations.models import Generation, Run, RunMode
from enrich_service.generations.queries import RESULTS, chunks
from enrich_service.labels import service as labels
from enrich_service.llm.batch_api import PRICE_SHARE
from enrich_service.llm.images import Roots
from enrich_service.llm.protocol import IMAGE_TOKENS
from enrich_service.runs.answering.build_generation import Prices
from enrich_service.runs.items import SourceTexts, image_items, items_of
from enrich_service.runs.plan import Plan
from enrich_service.runs.schemas import RunCreate, RunEstimate
from enrich_service.runs.service import check_mode, subject_of

TOKENS_PER_CHARACTER = 0.25  # of English; for prompts without earlier answers
TOKENS_PER_ANSWER = 80


def estimate(
    session: Session,
    body: RunCreate,
    plan: Plan,
    prices: Prices,
    *,
    roots: Roots = (),
    texts: SourceTexts | None = None,
) -> RunEstimate:
    """Estimate a run from the means of earlier runs, or without any from the length of the prompt.

    Means are per label or image, so that they include repeated attempts.
    """
    check_mode(body, plan)
    label_set = labels.get(session, body.label_set)
    folder, count = subject_of(session, label_set, body, plan, roots, texts)
    label_lines = labels.lines_of(session, label_set)
    if folder is None:
        keys = {item.key for item in items_of(session, plan, label_lines, body.samples, texts)}
    else:
        items = zip(label_lines, items_of(session, plan, label_lines, 1), strict=True)
        keys = {
            item.key
            for label, item in items
            for page in image_items(plan, item, label.key, folder, roots, body.samples)
            for item in page
        }
    total = count * body.samples
    new_requests = len(keys) - count_results(session, keys)
    prompt_mean, completion_mean, basis = _mean_tokens(session, plan, images=folder is not None)
    prompt_tokens, completion_tokens = (
        round(new_requests * prompt_mean),
        round(new_requests * completion_mean),
    )
    cost_usd = None
    if price := prices.get(plan.model):
        share = PRICE_SHARE if body.mode is RunMode.BATCH else 1.0
        cost_usd = share * (price[0] * prompt_tokens + price[1] * completion_tokens) / 1_000_000
    return RunEstimate(
        total=total,
        cached=total - new_requests,
        new_requests=new_requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost_usd,
        basis=basis,
    )


def _mean_tokens(session: Session, plan: Plan, *, images: bool) -> tuple[float, float, str]:
    """Mean tokens of a prompt and of an answer, and the basis of the estimate, for users."""
    # From the counters of runs, which is faster than reading all answers.
    answers, prompt_sum, completion_sum = session.exec(
        select(
            func.sum(Run.accepted + Run.rejected),
            func.sum(Run.prompt_tokens),
            func.sum(Run.completion_tokens),
        ).where(Run.prompt_version_id == plan.version.id, Run.model == plan.model)
    ).one()
    if answers and prompt_sum:
        basis = f"the mean of {answers} earlier answers"
        return float(prompt_sum / answers), float(completion_sum / answers), basis
    size = len(plan.version.system) + len(plan.version.user) + 40
    prompt_mean = size * TOKENS_PER_CHARACTER + (IMAGE_TOKENS if images else 0)
    basis = "the length of the prompt, since there are no earlier answers"
    return prompt_mean, TOKENS_PER_ANSWER, basis


def count_results(session: Session, keys: Iterable[str]) -> int:
    """The number of dedupe keys that have a result."""
    return sum(
        session.exec(
            select(func.count()).where(
                col(Generation.dedupe_key).in_(chunk), col(Generation.status).in_(RESULTS)
            )
        ).one()
        for chunk in chunks(keys)
    )
