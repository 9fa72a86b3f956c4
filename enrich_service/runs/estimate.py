"""What a run would ask and cost, before it starts."""

from collections.abc import Iterable

from sqlmodel import Session, col, func, select

from enrich_service.generations.models import Generation, Run, RunMode
from enrich_service.generations.sql import RESULTS
from enrich_service.labels import service as labels
from enrich_service.llm.batch_api import PRICE_SHARE
from enrich_service.llm.images import Roots
from enrich_service.llm.protocol import IMAGE_TOKENS
from enrich_service.runs.build_generation import Prices
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
    """What the run would ask, by the means of earlier runs, or else by the prompt's size.

    The means are over labels or images, so that what was asked again after a bad answer counts.
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
