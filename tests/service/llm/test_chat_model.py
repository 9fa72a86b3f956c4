import asyncio
import email.utils
import json
import time
import tracemalloc
import zlib
from datetime import timedelta

import pytest

from enrich_service.core.errors import (
    InvalidInput,
    LanguageModelError,
    ModelBusy,
    RequestRejected,
)
from enrich_service.core.storage.database import utcnow
from enrich_service.llm.chat_model import ChatModel, provider_of
from enrich_service.llm.protocol import ChatRequest, Reply
from enrich_service.llm.rate_limiter import PriorityRateLimiter
from enrich_service.llm.retry import send_with_retries
from enrich_service.llm.server_errors import retry_after
from tests.llm_server import Answer, LlmServer

SCHEMA = {
    "type": "object",
    "properties": {"description": {"type": "string"}},
    "required": ["description"],
    "additionalProperties": False,
}


def chat_request(label: str = "harlequin duck", model: str = "small") -> ChatRequest:
    return ChatRequest(
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
            async with PriorityRateLimiter(1).slot(urgent=True) as slot:
                return await send_with_retries(model, chat_request(), slot, tries=tries)
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
    assert str(caught.value).endswith("asks to wait for 3600 s")
    assert server.calls["harlequin duck"] == 1


def test_a_quota_used_up_stops_at_once() -> None:
    body = json.dumps({"error": {"message": "You exceeded it", "code": "insufficient_quota"}})
    with LlmServer() as server:
        server.script("*", Answer(429, body=body))
        with pytest.raises(
            LanguageModelError, match=r"quota at http://127.0.0.1:.* is exhausted"
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
        with pytest.raises(RequestRejected, match=r"answers 400 .prompt is too long"):
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
        with pytest.raises(RequestRejected, match=r"answers 400 .prompt is too long"):
            ask(server)


@pytest.mark.parametrize("refusal", [(400, "json_schema?"), (422, "no"), (500, "response_format")])
@pytest.mark.parametrize("formats", [("json_object", "text"), ("text",)])
def test_a_server_without_json_schema_is_asked_more_plainly_and_this_is_remembered(
    refusal: tuple[int, str], formats: tuple[str, ...]
) -> None:
    async def twice(url: str) -> list[Reply]:
        model = ChatModel(url, None)
        try:
            return [await model.send(chat_request()), await model.send(chat_request("surf scoter"))]
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
        with pytest.raises(RequestRejected, match="is larger than 16 MiB"):
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
