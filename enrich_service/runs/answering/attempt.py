"""One attempt at an answer, and the request that it sends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from enrich_service.generations.models import GenerationFields
from enrich_service.llm.protocol import DEFAULT_MAX_TOKENS, ChatRequest
from enrich_service.prompts.templates import render
from enrich_service.runs.plan import Item, Plan
from enrich_service.validation.judge import correction

ATTEMPTS = 3  # answers per item; if all are rejected, the item is
MAX_TOKENS_FACTOR = 2  # increase of max_tokens after an answer that was cut off
MAX_BAD_ANSWER_CHARS = 2000  # of a rejected answer that is sent back with its problems
PROTOCOL_PROBLEM = "protocol: "  # prefix of the problem of a reply without an answer


@dataclass(frozen=True)
class Attempt:
    """One attempt at an answer, with the rejected answers of earlier attempts."""

    number: int  # from 1 to ATTEMPTS
    parameters: Mapping[str, Any]
    rejected: str = ""  # the last rejected answer
    problems: tuple[str, ...] = ()  # why it was rejected

    def after(self, answer: GenerationFields) -> "Attempt":
        """The next attempt, after a rejected answer."""
        number = min(self.number + 1, ATTEMPTS)
        if answer.finish_reason == "length":
            name = next((n for n in self.parameters if n.startswith("max_")), "max_tokens")
            max_tokens = MAX_TOKENS_FACTOR * int(self.parameters.get(name, DEFAULT_MAX_TOKENS))
            return Attempt(
                number, {**self.parameters, name: max_tokens}, self.rejected, self.problems
            )
        if answer.problems[0].startswith(PROTOCOL_PROBLEM):
            return replace(self, number=number)
        rejected = (answer.raw_reply or "")[:MAX_BAD_ANSWER_CHARS]
        return Attempt(number, self.parameters, rejected, tuple(answer.problems))


def build_request(
    plan: Plan, item: Item, attempt: Attempt, image_url: str | None = None
) -> ChatRequest:
    """The request for one attempt at `item`. `image_url`: its image as a data URL."""
    return ChatRequest(
        label=item.image.name if item.image else item.name,
        prompt=plan.prompt,
        model=plan.model,
        messages=_messages(plan, item, attempt.rejected, attempt.problems, image_url),
        parameters=dict(attempt.parameters),
        schema=plan.version.output_schema,
        sample_index=item.sample_index,
        key=item.key,
    )


def _messages(
    plan: Plan, item: Item, rejected: str, problems: Sequence[str], image_url: str | None = None
) -> tuple[dict[str, Any], ...]:
    """The prompt for a label; on a later attempt also the rejected answer and its problems.

    `image_url`: an image to include, as a data URL.
    """
    variables = {
        "label": item.name,
        "context": item.context,
        "labels": item.confusable,
        "texts": item.texts,
        "problems": tuple(problems),
    }
    text = render(plan.version, {**variables, **plan.variables})
    user_text = text.user
    if problems and not rejected:  # many chat templates do not allow two user messages in a row
        user_text += "\n\n" + correction(problems)
    content: str | list[dict[str, Any]] = user_text
    if image_url is not None:
        content = [
            {"type": "text", "text": user_text},
            {"type": "image_url", "image_url": {"url": image_url}},
        ]
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if text.system:
        messages.insert(0, {"role": "system", "content": text.system})
    if problems and rejected:
        messages.append({"role": "assistant", "content": rejected})
        messages.append({"role": "user", "content": correction(problems)})
    return tuple(messages)
