"""One answer for a run: requested, shared with another caller, or waited for."""

import time

from enrich_service.generations.claims import ClaimedByOther
from enrich_service.generations.models import GenerationFields, GenerationStatus
from enrich_service.runs.active_run import ActiveRun
from enrich_service.runs.answering.enricher import Caller, Enricher
from enrich_service.runs.plan import Item, Plan


async def answer_for_run(
    enricher: Enricher,
    active: ActiveRun,
    plan: Plan,
    item: Item,
    caller: Caller,
    *,
    max_failures: int,
) -> None:
    """Get an answer for `item`; halt the run after `max_failures` consecutive failures.

    A result paid for by another caller counts as cached. A failed call of another caller is
    repeated for this run. Items that other processes are requesting are added to `active.waiting`.

    Raises:
        ModelBusy: see `Enricher.answer`.
        LanguageModelError: see `Enricher.answer`.
    """
    run_id = active.run.id
    assert run_id is not None
    try:
        answer = await enricher.answer(plan, item, caller)
        while _failed(answer) and answer.run_id != run_id:
            answer = await enricher.answer(plan, item, caller)
    except ClaimedByOther:
        active.waiting.add_claimed(item)
        return
    active.finished.append(time.monotonic())
    if answer.run_id != run_id:
        await enricher.store.count(run_id, cached=1)
    elif _failed(answer) and active.consecutive_failures >= max_failures:
        active.halt(
            f"{active.consecutive_failures} labels in a row got no answer, the last because "
            f"{answer.problems[0]}"
        )


def _failed(answer: GenerationFields) -> bool:
    return answer.status is GenerationStatus.FAILED
