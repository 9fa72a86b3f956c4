"""Retries requests with exponential backoff and jitter; honours Retry-After."""

import random
from dataclasses import replace
from typing import Final

from enrich_service.core.errors import LanguageModelError, ModelBusy, RequestRejected
from enrich_service.llm.protocol import ChatRequest, LanguageModel, Reply
from enrich_service.llm.rate_limiter import Slot

MAX_RETRY_AFTER_S: Final = 120.0  # requests with a longer Retry-After are parked
FIRST_BACKOFF_S: Final = 0.5  # doubled on each try
MAX_BACKOFF_S: Final = 8.0


async def send_with_retries(
    model: LanguageModel, request: ChatRequest, slot: Slot, *, tries: int
) -> Reply:
    """Send a request until there is a reply; between two tries other calls can use the slot.

    An error that concerns every request of the slot's group halts the group before its next call
    starts.

    Raises:
        ModelBusy: all `tries` failed, or the server asked for more than `MAX_RETRY_AFTER_S`.
        RequestRejected, LanguageModelError: as `LanguageModel.send`.
    """
    calls = 0
    for attempt in range(1, tries + 1):
        try:
            reply = await model.send(request)
        except ModelBusy as busy:
            calls += busy.calls
            slot.reconcile(calls=busy.calls, tokens=0)
            if attempt == tries or (busy.retry_after or 0.0) > MAX_RETRY_AFTER_S:
                busy.calls = calls
                raise
            await slot.step_out(_backoff_s(busy, attempt))
        except RequestRejected as rejected:
            slot.reconcile(calls=rejected.calls, tokens=0)
            rejected.calls += calls
            raise
        except LanguageModelError as error:
            if slot.group is not None:
                slot.group.halt(str(error))
            raise
        else:
            used = (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
            slot.reconcile(calls=reply.calls, tokens=used or None)
            return replace(reply, calls=reply.calls + calls) if calls else reply
    raise AssertionError("tries is at least 1")


def _backoff_s(busy: ModelBusy, attempt: int) -> float:
    wait = busy.retry_after
    if wait is None:
        wait = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempt - 1))
    # Jitter only adds to the time that the server requested: an early retry is rejected again.
    return wait * random.uniform(1.0, 1.25)
