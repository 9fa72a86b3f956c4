import asyncio
import json
import time
from dataclasses import dataclass

import pytest

from enrich_service.llm.chat_model import ChatModel
from enrich_service.llm.rate_limiter import PriorityRateLimiter
from enrich_service.llm.retry import send_with_retries
from tests.llm_server import Answer, LlmServer
from tests.service.llm.test_chat_model import chat_request


def test_an_urgent_call_goes_before_those_that_waited_longer() -> None:
    order: list[str] = []

    async def call(limiter: PriorityRateLimiter, name: str, urgent: bool) -> None:
        async with limiter.slot(urgent=urgent):
            order.append(name)
            await asyncio.sleep(0.01)

    async def main() -> None:
        limiter = PriorityRateLimiter(1)
        async with asyncio.TaskGroup() as group:
            for name in ("bulk 1", "bulk 2", "bulk 3"):
                group.create_task(call(limiter, name, False))
            await asyncio.sleep(0)
            group.create_task(call(limiter, "describe", True))

    asyncio.run(main())
    assert order == ["bulk 1", "describe", "bulk 2", "bulk 3"]


def test_a_slot_given_to_a_cancelled_call_is_not_lost() -> None:
    async def main() -> None:
        limiter = PriorityRateLimiter(1)
        async with limiter.slot(urgent=False):
            waiting = asyncio.create_task(enter(limiter))
            await asyncio.sleep(0)
        waiting.cancel()  # in the moment in which the slot is handed over
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(enter(limiter), 1)

    async def enter(limiter: PriorityRateLimiter) -> None:
        async with limiter.slot(urgent=False):
            pass

    asyncio.run(main())


@pytest.mark.parametrize("urgent", [False, True])
def test_a_cancelled_call_is_passed_over_for_the_next_one(urgent: bool) -> None:
    async def main() -> None:
        limiter = PriorityRateLimiter(1)
        async with limiter.slot(urgent=False):
            cancelled, waiting = (asyncio.create_task(enter(limiter)) for _ in range(2))
            await asyncio.sleep(0)
            cancelled.cancel()  # it still stands in the queue when the slot becomes free
        await asyncio.wait_for(waiting, 1)
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    async def enter(limiter: PriorityRateLimiter) -> None:
        async with limiter.slot(urgent=urgent):
            pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [({"calls_per_minute": 600}, 0), ({"tokens_per_minute": 60_000}, 100)],
    ids=["calls", "tokens"],
)
def test_no_more_is_begun_in_a_minute_than_the_limit_allows(
    limits: dict[str, int], tokens: int
) -> None:
    async def main() -> float:
        limiter = PriorityRateLimiter(100, **limits)
        started = time.monotonic()
        await asyncio.gather(*(call(limiter) for _ in range(16)))
        return time.monotonic() - started

    async def call(limiter: PriorityRateLimiter) -> None:
        async with limiter.slot(urgent=False, tokens=tokens):
            pass

    # A second's worth (10 calls) at once and one that overdraws; each after that takes 0.1 s.
    assert asyncio.run(main()) >= 0.4


def test_what_was_not_used_is_given_back_and_who_is_urgent_goes_first_under_a_limit() -> None:
    order: list[str] = []

    async def call(limiter: PriorityRateLimiter, name: str, urgent: bool) -> None:
        async with limiter.slot(urgent=urgent, tokens=1000) as slot:
            order.append(name)
            await asyncio.sleep(0.01)
            slot.reconcile(calls=1, tokens=0)  # it cost nothing after all

    async def main() -> None:
        limiter = PriorityRateLimiter(100, tokens_per_minute=60_000)
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(call(limiter, f"bulk {number}", False))
            await asyncio.sleep(0)
            group.create_task(call(limiter, "describe", True))

    asyncio.run(main())
    assert order.index("describe") <= 3
    assert len(order) == 41


@dataclass
class Two:
    """A group of which two calls at a time are let in, until it is halted."""

    calls_in_flight: int = 0
    reason: str | None = None

    def may_start_call(self) -> bool:
        return self.reason is None and self.calls_in_flight < 2

    def halt(self, reason: str) -> None:
        self.reason = reason


def test_of_a_group_no_more_are_let_in_than_it_says_while_others_pass() -> None:
    order: list[str] = []

    async def call(
        limiter: PriorityRateLimiter, name: str, run: Two | None, urgent: bool = False
    ) -> None:
        async with limiter.slot(urgent=urgent, group=run):
            order.append(name)
            await asyncio.sleep(0.05)

    async def main() -> int:
        limiter, run = PriorityRateLimiter(100), Two()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(call(limiter, f"run {number}", run))
            group.create_task(call(limiter, "another", None))
            await asyncio.sleep(0.01)
            assert order == ["run 0", "run 1", "another"]
            group.create_task(call(limiter, "describe", run, urgent=True))
        return run.calls_in_flight

    assert asyncio.run(main()) == 0
    assert order == ["run 0", "run 1", "another", "describe", "run 2", "run 3"]


def test_a_slot_that_is_kept_goes_to_nobody_else_of_the_group() -> None:
    order: list[str] = []

    async def call(limiter: PriorityRateLimiter, name: str, run: Two) -> None:
        async with limiter.slot(urgent=False, group=run):
            order.append(name)

    async def twice(limiter: PriorityRateLimiter, run: Two) -> None:
        async with limiter.slot(urgent=False, group=run) as slot:
            await asyncio.sleep(0.01)
            slot.keep = True
        await asyncio.sleep(0.01)  # the first answer is stored
        async with limiter.slot(urgent=False, group=run, kept=True):
            order.append("again")

    async def main() -> int:
        limiter, run = PriorityRateLimiter(100), Two(calls_in_flight=1)  # another call
        async with asyncio.TaskGroup() as group:
            group.create_task(twice(limiter, run))
            group.create_task(call(limiter, "next", run))
        return run.calls_in_flight

    assert asyncio.run(main()) == 1
    assert order == ["again", "next"]


def test_a_kept_slot_is_free_when_its_call_is_cancelled() -> None:
    async def main() -> int:
        limiter, run = PriorityRateLimiter(1), Two(calls_in_flight=1)

        async def again() -> None:
            async with limiter.slot(urgent=False, group=run, kept=True):
                pass

        async with limiter.slot(urgent=False):
            waiting = asyncio.create_task(again())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        return run.calls_in_flight

    assert asyncio.run(main()) == 0


def test_an_answer_is_judged_before_the_next_call_is_let_in() -> None:
    said: list[str] = []

    class Run(Two):
        def may_start_call(self) -> bool:
            said.append("may another be asked?")
            return super().may_start_call()

    async def main(url: str) -> None:
        model, limiter, run = ChatModel(url, None), PriorityRateLimiter(1), Run()

        async def call() -> None:
            async with limiter.slot(urgent=False, group=run) as slot:
                await send_with_retries(model, chat_request(), slot, tries=1)
                said.append("judged")

        await asyncio.gather(call(), call())
        await model.aclose()

    with LlmServer() as server:
        asyncio.run(main(server.url))
    assert said == ["may another be asked?", "judged"] * 2


def test_an_error_that_ends_a_run_lets_no_other_of_its_calls_in() -> None:
    body = json.dumps({"error": {"message": "You exceeded it", "code": "insufficient_quota"}})

    async def main(url: str) -> Two:
        model, limiter, run = ChatModel(url, None), PriorityRateLimiter(1), Two()

        async def call() -> None:
            async with limiter.slot(urgent=False, group=run) as slot:
                await send_with_retries(model, chat_request(), slot, tries=1)

        calls = [asyncio.create_task(call()) for _ in range(3)]
        await asyncio.wait(calls, timeout=1)
        assert [call.done() for call in calls] == [True, False, False]
        for call in calls[1:]:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await model.aclose()
        return run

    with LlmServer() as server:
        server.script("*", Answer(status=429, body=body))
        run = asyncio.run(main(server.url))
        assert len(server.requests) == 1
    assert run.reason is not None and "quota" in run.reason
    assert run.calls_in_flight == 0
