import asyncio
import email.utils
import json
import time
import tracemalloc
import zlib
from dataclasses import dataclass
from datetime import timedelta

import pytest

from enrich_service.core.database import utcnow
from enrich_service.core.errors import (
    InvalidInput,
    LanguageModelError,
    ModelBusy,
    QuestionRefused,
)
from enrich_service.llm.chat_model import (
    ChatModel,
    Question,
    Reply,
    Turnstile,
    ask_patiently,
    provider_of,
    retry_after,
)
from tests.llm_server import Answer, LlmServer

SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string"}},
    "required": ["description"],
    "additionalProperties": False,
}


def question(label: str = "harlequin duck", model: str = "small") -> Question:
    return Question(
        label=label,
        prompt="visual-description",
        model=model,
        messages=(
            {"role": "system", "content": "Describe."},
            {"role": "user", "content": json.dumps({"name": label})},
        ),
        parameters={"temperature": 0.2, "max_tokens": 100},
        schema=SCHEMA,
    )


def ask(
    server: LlmServer | str, *, key: str | None = None, tries: int = 4, timeout: float = 5.0
) -> Reply:
    """One patient question to the server."""
    url = server if isinstance(server, str) else server.url

    async def main() -> Reply:
        model = ChatModel(url, key, timeout)
        try:
            return await ask_patiently(
                model, question(), Turnstile(1), urgent=True, tries=tries, judge=lambda reply: reply
            )
        finally:
            await model.aclose()

    return asyncio.run(main())


def test_a_reply_comes_with_all_that_is_known_of_it() -> None:
    with LlmServer() as server:
        reply = ask(server)
        sent = server.requests[0].body
    assert "harlequin duck" in json.loads(reply.text)["description"]
    assert (reply.prompt_tokens, reply.completion_tokens) == (50, 20)
    assert reply.resolved_model == "small-2026-01-01"
    assert (reply.fingerprint, reply.finish_reason, reply.calls) == ("fp_test", "stop", 1)
    assert sent["temperature"] == 0.2
    assert sent["max_tokens"] == 100
    assert sent["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    "fault",
    [
        Answer(429, headers={"retry-after-ms": "10"}),
        Answer(429, headers={"Retry-After": "0.01"}),
        Answer(503),
        Answer(500),
        Answer(408),
        Answer(409),
        Answer(reset=True),
    ],
    ids=["429 ms", "429 s", "503", "500", "408", "409", "reset"],
)
def test_a_passing_fault_is_asked_again_and_counted(fault: Answer) -> None:
    with LlmServer() as server:
        server.script("harlequin duck", fault)
        assert ask(server).calls == 2
        assert server.calls["harlequin duck"] == 2


@pytest.mark.parametrize("fault", [Answer(hang=True), Answer(drip=0.05)], ids=["hang", "drip"])
def test_a_server_that_never_ends_is_given_up_after_the_timeout_and_asked_again(
    fault: Answer,
) -> None:
    with LlmServer() as server:
        server.script("harlequin duck", fault)
        assert ask(server, timeout=0.3).calls == 2


def test_retry_after_is_honoured() -> None:
    with LlmServer() as server:
        server.script("harlequin duck", Answer(429, headers={"Retry-After": "1"}))
        started = time.monotonic()
        ask(server)
        assert time.monotonic() - started >= 1.0


def test_retry_after_is_read_in_all_its_forms() -> None:
    date = email.utils.format_datetime(utcnow() + timedelta(seconds=300))
    assert retry_after({"retry-after-ms": "1500"}) == 1.5
    assert retry_after({"retry-after": "7"}) == 7.0
    assert retry_after({"retry-after": date}) == pytest.approx(300, abs=2)
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_a_long_retry_after_is_told_and_not_waited_out() -> None:
    with LlmServer() as server:
        server.script("harlequin duck", Answer(429, headers={"Retry-After": "3600"}))
        with pytest.raises(ModelBusy) as caught:
            ask(server)
    assert caught.value.retry_after == 3600
    assert str(caught.value).endswith("asks to be left alone for 3600 s")
    assert server.calls["harlequin duck"] == 1


def test_a_quota_used_up_stops_at_once() -> None:
    body = json.dumps({"error": {"message": "You exceeded it", "code": "insufficient_quota"}})
    with LlmServer() as server:
        server.script("*", Answer(429, body=body))
        with pytest.raises(
            LanguageModelError, match=r"quota at http://127.0.0.1:.* is used up"
        ) as e:
            ask(server)
        assert not isinstance(e.value, ModelBusy)
        assert server.calls.total() == 1


def test_a_wrong_key_is_named_by_its_variable_and_never_shown() -> None:
    echo = json.dumps({"error": {"message": "bad key sk-secret-123"}})
    with LlmServer() as server:
        server.script("*", Answer(401, body=echo))
        with pytest.raises(LanguageModelError, match="OPENAI_API_KEY is wrong") as caught:
            ask(server, key="sk-secret-123")
        server.script("*", Answer(401, body=echo))
        with pytest.raises(LanguageModelError, match="set OPENAI_API_KEY"):
            ask(server)
    assert "sk-secret-123" not in str(caught.value)


@pytest.mark.parametrize("key", ["a", "black", "sk-secret-of-this-test"])
def test_what_the_model_wrote_and_used_is_kept_as_it_is_whatever_the_key(key: str) -> None:
    text = json.dumps({"description": f"A black duck, and {key} besides."})
    with LlmServer(key=key) as server:
        server.script("*", Answer(content=text))
        reply = ask(server, key=key)
    assert reply.text == text
    assert (reply.prompt_tokens, reply.completion_tokens) == (50, 20)


def test_a_short_key_does_not_garble_what_an_error_says() -> None:
    body = json.dumps({"error": {"message": "prompt is too long"}})
    with LlmServer() as server:
        server.script("*", *[Answer(400, body=body)] * 3)
        with pytest.raises(QuestionRefused, match=r"answers 400 .prompt is too long"):
            ask(server, key="o")


def test_a_body_that_is_no_completion_is_kept_without_the_key() -> None:
    with LlmServer() as server:
        server.script("*", Answer(body='{"you_sent": "Bearer sk-secret-123"}'))
        assert ask(server, key="sk-secret-123").text == '{"you_sent": "Bearer ***"}'


def test_an_unknown_model_is_named() -> None:
    with (
        LlmServer(model="large") as server,
        pytest.raises(LanguageModelError, match="does not know the model 'small'"),
    ):
        ask(server)


def test_an_unreachable_address_is_named_with_its_variable() -> None:
    with LlmServer() as server:
        gone = server.url
    with pytest.raises(ModelBusy, match=f"cannot reach {gone} .*: check OPENAI_BASE_URL") as caught:
        ask(gone, tries=2)
    assert caught.value.unreachable
    assert caught.value.calls == 2


def test_a_redirect_is_not_followed() -> None:
    with LlmServer() as server:
        server.script("*", Answer(307, headers={"Location": "http://127.0.0.1:9/"}))
        with pytest.raises(
            LanguageModelError, match=r"redirects to http://127.0.0.1:9/: set OPENAI"
        ):
            ask(server)


def test_a_refused_question_says_why() -> None:
    body = json.dumps({"error": {"message": "prompt is too long"}})
    with LlmServer() as server:
        server.script("*", *[Answer(400, body=body)] * 3)
        with pytest.raises(QuestionRefused, match=r"answers 400 .prompt is too long"):
            ask(server)


@pytest.mark.parametrize("refusal", [(400, "json_schema?"), (422, "no"), (500, "response_format")])
@pytest.mark.parametrize("formats", [("json_object", "text"), ("text",)])
def test_a_server_without_json_schema_is_asked_more_plainly_and_this_is_remembered(
    refusal: tuple[int, str], formats: tuple[str, ...]
) -> None:
    async def twice(url: str) -> list[Reply]:
        model = ChatModel(url, None)
        try:
            return [await model.ask(question()), await model.ask(question("surf scoter"))]
        finally:
            await model.aclose()

    with LlmServer(formats=formats, format_refusal=refusal) as server:
        first, second = asyncio.run(twice(server.url))
    assert first.response_format == second.response_format == formats[0]
    assert first.calls == 4 - len(formats)
    assert second.calls == 1
    assert '"description"' in first.messages[0]["content"]  # the schema travels as words
    assert [message["role"] for message in first.messages] == ["system", "user"]


def test_a_passing_500_does_not_cost_a_server_its_json_schema() -> None:
    with LlmServer() as server:
        server.script("*", Answer(500))
        assert ask(server).response_format == "json_schema"


def test_a_model_that_wants_the_newer_length_parameter_gets_it() -> None:
    said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    with LlmServer() as server:
        server.script("*", Answer(400, body=json.dumps({"error": {"message": said}})))
        ask(server)
        assert server.requests[1].body["max_completion_tokens"] == 100
        assert "max_tokens" not in server.requests[1].body


@pytest.mark.parametrize(
    "answer",
    [Answer(body="{broken"), Answer(body="hello", content_type="text/plain"), Answer(body="[]")],
    ids=["broken", "plain", "other"],
)
def test_a_body_that_is_no_completion_is_kept_and_marked(answer: Answer) -> None:
    with LlmServer() as server:
        server.script("*", answer)
        reply = ask(server)
    assert reply.text == answer.body
    assert reply.problem == "the server's answer is not a chat completion"


def packed(body: bytes, times: int = 1) -> Answer:
    """`body`, so many times over, as a gzip reply."""
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(body) for _ in range(times)]
    return Answer(body=b"".join([*parts, packer.flush()]), headers={"Content-Encoding": "gzip"})


def test_a_packed_reply_is_read() -> None:
    body = json.dumps({"choices": [{"message": {"content": "black"}}]}).encode()
    with LlmServer() as server:
        server.script("*", packed(body))
        assert ask(server).text == "black"


def test_a_small_reply_that_unpacks_to_200_mb_is_refused_before_it_fills_the_memory() -> None:
    with LlmServer() as server:
        server.script("*", packed(bytes(2**20), times=200))
        tracemalloc.start()
        with pytest.raises(QuestionRefused, match="is larger than 16 MiB"):
            ask(server)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert server.calls.total() == 1
    assert peak < 64 * 2**20


def test_only_scheme_host_and_port_of_the_address_are_kept() -> None:
    assert provider_of("https://me:secret@api.example.org/v1?k=v") == "https://api.example.org"
    assert provider_of("http://[::1]:8080/v1") == "http://[::1]:8080"
    for wrong in ("api.openai.com/v1", "ftp://host", "", "http://[::1", "http://host:port"):
        with pytest.raises(InvalidInput, match="OPENAI_BASE_URL"):
            provider_of(wrong)


def test_an_urgent_call_goes_before_those_that_waited_longer() -> None:
    order: list[str] = []

    async def call(turnstile: Turnstile, name: str, urgent: bool) -> None:
        async with turnstile(urgent=urgent):
            order.append(name)
            await asyncio.sleep(0.01)

    async def main() -> None:
        turnstile = Turnstile(1)
        async with asyncio.TaskGroup() as group:
            for name in ("bulk 1", "bulk 2", "bulk 3"):
                group.create_task(call(turnstile, name, False))
            await asyncio.sleep(0)
            group.create_task(call(turnstile, "describe", True))

    asyncio.run(main())
    assert order == ["bulk 1", "describe", "bulk 2", "bulk 3"]


def test_a_place_given_to_a_cancelled_call_is_not_lost() -> None:
    async def main() -> None:
        turnstile = Turnstile(1)
        async with turnstile(urgent=False):
            waiting = asyncio.create_task(enter(turnstile))
            await asyncio.sleep(0)
        waiting.cancel()  # in the moment in which the place is handed over
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(enter(turnstile), 1)

    async def enter(turnstile: Turnstile) -> None:
        async with turnstile(urgent=False):
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
        turnstile = Turnstile(100, **limits)
        started = time.monotonic()
        await asyncio.gather(*(call(turnstile) for _ in range(16)))
        return time.monotonic() - started

    async def call(turnstile: Turnstile) -> None:
        async with turnstile(urgent=False, tokens=tokens):
            pass

    # A second's worth (10 calls) at once and one that overdraws; each after that takes 0.1 s.
    assert asyncio.run(main()) >= 0.4


def test_what_was_not_used_is_given_back_and_who_is_urgent_goes_first_under_a_limit() -> None:
    order: list[str] = []

    async def call(turnstile: Turnstile, name: str, urgent: bool) -> None:
        async with turnstile(urgent=urgent, tokens=1000):
            order.append(name)
            await asyncio.sleep(0.01)
        turnstile.settle(calls=0, tokens=-1000)  # it cost nothing after all

    async def main() -> None:
        turnstile = Turnstile(100, tokens_per_minute=60_000)
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(call(turnstile, f"bulk {number}", False))
            await asyncio.sleep(0)
            group.create_task(call(turnstile, "describe", True))

    asyncio.run(main())
    assert order.index("describe") <= 3
    assert len(order) == 41


@dataclass
class Two:
    """A group of which two calls at a time are let in, until it is halted."""

    inside: int = 0
    reason: str | None = None

    def lets_in(self) -> bool:
        return self.reason is None and self.inside < 2

    def halt(self, reason: str) -> None:
        self.reason = reason


def test_of_a_group_no_more_are_let_in_than_it_says_while_others_pass() -> None:
    order: list[str] = []

    async def call(turnstile: Turnstile, name: str, run: Two | None, urgent: bool = False) -> None:
        async with turnstile(urgent=urgent, group=run):
            order.append(name)
            await asyncio.sleep(0.05)

    async def main() -> int:
        turnstile, run = Turnstile(100), Two()
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(call(turnstile, f"run {number}", run))
            group.create_task(call(turnstile, "another", None))
            await asyncio.sleep(0.01)
            assert order == ["run 0", "run 1", "another"]
            group.create_task(call(turnstile, "describe", run, urgent=True))
        return run.inside

    assert asyncio.run(main()) == 0
    assert order == ["run 0", "run 1", "another", "describe", "run 2", "run 3"]


def test_a_place_that_is_kept_goes_to_nobody_else_of_the_group() -> None:
    order: list[str] = []

    async def call(turnstile: Turnstile, name: str, run: Two) -> None:
        async with turnstile(urgent=False, group=run):
            order.append(name)

    async def twice(turnstile: Turnstile, run: Two) -> None:
        async with turnstile(urgent=False, group=run) as place:
            await asyncio.sleep(0.01)
            place.keep = True
        await asyncio.sleep(0.01)  # the first answer is stored
        async with turnstile(urgent=False, group=run, kept=True):
            order.append("again")

    async def main() -> int:
        turnstile, run = Turnstile(100), Two(inside=1)  # one is busy with something else
        async with asyncio.TaskGroup() as group:
            group.create_task(twice(turnstile, run))
            group.create_task(call(turnstile, "next", run))
        return run.inside

    assert asyncio.run(main()) == 1
    assert order == ["again", "next"]


def test_a_kept_place_is_free_when_its_call_is_cancelled() -> None:
    async def main() -> int:
        turnstile, run = Turnstile(1), Two(inside=1)

        async def again() -> None:
            async with turnstile(urgent=False, group=run, kept=True):
                pass

        async with turnstile(urgent=False):
            waiting = asyncio.create_task(again())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        return run.inside

    assert asyncio.run(main()) == 0


def test_an_answer_is_judged_before_the_next_call_is_let_in() -> None:
    said: list[str] = []

    class Run(Two):
        def lets_in(self) -> bool:
            said.append("may another be asked?")
            return super().lets_in()

    async def main(url: str) -> None:
        model, turnstile, run = ChatModel(url, None), Turnstile(1), Run()

        async def call() -> None:
            await ask_patiently(
                model,
                question(),
                turnstile,
                urgent=False,
                tries=1,
                judge=lambda _: said.append("judged"),
                group=run,
            )

        await asyncio.gather(call(), call())
        await model.aclose()

    with LlmServer() as server:
        asyncio.run(main(server.url))
    assert said == ["may another be asked?", "judged"] * 2


def test_an_error_that_ends_a_run_lets_no_other_of_its_calls_in() -> None:
    body = json.dumps({"error": {"message": "You exceeded it", "code": "insufficient_quota"}})

    async def main(url: str) -> Two:
        model, turnstile, run = ChatModel(url, None), Turnstile(1), Two()
        calls = [
            asyncio.create_task(
                ask_patiently(
                    model, question(), turnstile, urgent=False, tries=1, judge=id, group=run
                )
            )
            for _ in range(3)
        ]
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
    assert run.inside == 0
