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

TOKENS_A_CHARACTER = 0.25  # of English, for prompts that have not been answered yet
TOKENS_AN_ANSWER = 80


def estimate(
    session: Session,
    body: RunCreate,
    plan: Plan,
    prices: Prices,
    *,
    roots: Roots = (),
    texts: SourceTexts | None = None,
) -> RunEstimate:
    """Estimate a run from the means of earlier runs, or from the prompt's size if there are none.

    Means are per label or image, so that they include repeated attempts.
    """
    check_mode(body, plan)
    label_set = labels.get(session, body.label_set)
    folder, count = subject_of(session, label_set, body, plan, roots, texts)
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
    prompt_mean, completion_mean, basis = _mean_tokens(session, plan, images=folder is not None)
    prompt_tokens, completion_tokens = round(to_ask * prompt_mean), round(to_ask * completion_mean)
    cost_usd = None
    if price := prices.get(plan.model):
        share = PRICE_SHARE if body.mode is RunMode.BATCH else 1.0
        cost_usd = share * (price[0] * prompt_tokens + price[1] * completion_tokens) / 1_000_000
    return RunEstimate(
        total=total,
        cached=total - to_ask,
        to_ask=to_ask,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost_usd,
        basis=basis,
    )


def _mean_tokens(session: Session, plan: Plan, *, images: bool) -> tuple[float, float, str]:
    """Tokens of a prompt and of an answer, and the source of these numbers."""
    # From the runs' counters: the answers themselves would have to be read one by one.
    seen, prompt_sum, completion_sum = session.exec(
        select(
            func.sum(Run.accepted + Run.rejected),
            func.sum(Run.prompt_tokens),
            func.sum(Run.completion_tokens),
        ).where(Run.prompt_version_id == plan.version.id, Run.model == plan.model)
    ).one()
    if seen and prompt_sum:
        basis = f"the mean of {seen} earlier answers"
        return float(prompt_sum / seen), float(completion_sum / seen), basis
    size = len(plan.version.system) + len(plan.version.user) + 40
    prompt_mean = size * TOKENS_A_CHARACTER + (IMAGE_TOKENS if images else 0)
    basis = "a guess from the length of the prompt: nothing has been answered yet"
    return prompt_mean, TOKENS_AN_ANSWER, basis


def count_results(session: Session, keys: Iterable[str]) -> int:
    """How many of the dedupe keys have a result."""
    return sum(
        session.exec(
            select(func.count()).where(
                col(Generation.dedupe_key).in_(some), col(Generation.status).in_(RESULTS)
            )
        ).one()
        for some in chunks(keys)
    )
