"""One attempt at an answer, and the request that it sends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from enrich_service.generations.models import GenerationFields
from enrich_service.llm.protocol import DEFAULT_MAX_TOKENS, ChatRequest
from enrich_service.prompts.templates import render
from enrich_service.runs.plan import Item, Plan
from enrich_service.validation.judge import correction

ATTEMPTS = 3  # answers that may be bad before the label is given up
MAX_TOKENS_FACTOR = 2  # factor on max_tokens after an answer that was cut off
MAX_BAD_ANSWER_CHARS = 2000  # characters that go back to the model with the reason
PROTOCOL_PROBLEM = "protocol: "  # what the problem of a reply that is no answer at all begins with


@dataclass(frozen=True)
class Attempt:
    """One attempt at an answer, with the rejected answers of earlier attempts."""

    number: int  # from 1 to ATTEMPTS
    parameters: Mapping[str, Any]
    bad: str = ""  # an answer that could not be used, and why
    wrong: tuple[str, ...] = ()

    def after(self, answer: GenerationFields) -> "Attempt":
        """The next attempt, after a rejected answer."""
        number = min(self.number + 1, ATTEMPTS)
        if answer.finish_reason == "length":
            name = next((n for n in self.parameters if n.startswith("max_")), "max_tokens")
            room = MAX_TOKENS_FACTOR * int(self.parameters.get(name, DEFAULT_MAX_TOKENS))
            return Attempt(number, {**self.parameters, name: room}, self.bad, self.wrong)
        if answer.problems[0].startswith(PROTOCOL_PROBLEM):
            return replace(self, number=number)
        bad = (answer.raw_reply or "")[:MAX_BAD_ANSWER_CHARS]
        return Attempt(number, self.parameters, bad, tuple(answer.problems))


def build_request(
    plan: Plan, item: Item, attempt: Attempt, picture: str | None = None
) -> ChatRequest:
    """The request for one attempt at `item`. `picture`: its image as a data URL."""
    return ChatRequest(
        label=item.image.name if item.image else item.name,
        prompt=plan.prompt,
        model=plan.model,
        messages=_messages(plan, item, attempt.bad, attempt.wrong, picture),
        parameters=dict(attempt.parameters),
        schema=plan.version.output_schema,
        sample_index=item.sample_index,
        key=item.key,
    )


def _messages(
    plan: Plan, item: Item, bad: str, problems: Sequence[str], picture: str | None = None
) -> tuple[dict[str, Any], ...]:
    """The prompt for a label; on a later attempt also the rejected answer and its problems.

    `picture`: an image to include, as a data URL.
    """
    about = {
        "label": item.name,
        "context": item.context,
        "labels": item.confusable,
        "texts": item.texts,
        "problems": tuple(problems),
    }
    text = render(plan.version, {**about, **plan.variables})
    asked = text.user
    if problems and not bad:  # many chat templates allow no two user messages in a row
        asked += "\n\n" + correction(problems)
    content: str | list[dict[str, Any]] = asked
    if picture is not None:
        content = [
            {"type": "text", "text": asked},
            {"type": "image_url", "image_url": {"url": picture}},
        ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if text.system:
        messages.insert(0, {"role": "system", "content": text.system})
    if problems and bad:
        messages.append({"role": "assistant", "content": bad})
        messages.append({"role": "user", "content": correction(problems)})
    return tuple(messages)
