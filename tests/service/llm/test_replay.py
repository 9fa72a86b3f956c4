import asyncio
import json
from pathlib import Path

import pytest

from enrich_service.core.errors import InvalidInput, RequestRejected
from enrich_service.generations.models import GenerationSource
from enrich_service.llm.protocol import ChatRequest
from enrich_service.llm.replay import ReplayModel


def line(label: str, reply: str, **more: object) -> str:
    return json.dumps({"label": label, "prompt": "visual-description", "reply": reply, **more})


def recorded(tmp_path: Path, *lines: str) -> ReplayModel:
    path = tmp_path / "replies.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return ReplayModel(path)


def ask(model: ReplayModel, label: str, sample_index: int = 0) -> str:
    question = ChatRequest(label, "visual-description", "any", (), {}, {}, sample_index)
    return asyncio.run(model.send(question)).text


def test_a_recorded_reply_is_given_and_named_as_such(tmp_path: Path) -> None:
    model = recorded(tmp_path, line("wug", "blue", model="gpt-x", usage={"prompt_tokens": 3}))
    reply = asyncio.run(model.send(ChatRequest("wug", "visual-description", "any", (), {}, {})))
    assert reply.text == "blue"
    assert (reply.resolved_model, reply.prompt_tokens) == ("gpt-x", 3)
    assert (model.source, model.provider) == (GenerationSource.REPLAY, "replay:replies.jsonl")


def test_several_lines_answer_successive_attempts_and_samples(tmp_path: Path) -> None:
    model = recorded(tmp_path, line("wug", "1"), line("wug", "2"), line("wug", "3"))
    assert [ask(model, "wug") for _ in range(4)] == ["1", "2", "3", "3"]
    assert [ask(model, "wug", sample_index=i) for i in (1, 2, 9)] == ["2", "3", "3"]


def test_an_unknown_label_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RequestRejected, match=r"replay:replies.jsonl has no reply for label 'dax'"):
        ask(recorded(tmp_path, line("wug", "1")), "dax")


@pytest.mark.parametrize(
    ("bad", "said"),
    [('{"label": "wug"', "Invalid JSON"), ('{"label": "wug", "reply": "x"}', "prompt: Field req")],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, bad: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=rf"replies.jsonl, line 3: {said}"):
        recorded(tmp_path, line("wug", "1"), "", bad)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cannot read the replay file .*gone.jsonl"):
        ReplayModel(tmp_path / "gone.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="is not UTF-8"):
        ReplayModel(tmp_path / "binary")
