"""The prompts of a class under each text strategy.

    name               "a photo of {name}"
    name+description   "a photo of {name} . {description}"          (Li et al., section 3.3)
    attributes         mean over one prompt per attribute value      (Menon & Vondrick, 2210.07183)
    ensemble           mean over all texts of the class              (CuPL, 2209.03320)
    captions           mean over captions of typical images, unchanged, without the name

A prompt longer than the teacher's context is never truncated: it is encoded as the normalised mean
over its sentences, each prefixed with the class name if there is one, and the label is flagged.

Does not import torch, so that a classifier without torch builds the same prompts for a new class.
"""

import re
from typing import Protocol, get_args

from contract import ReleaseLabel, TextStrategy
from distill.errors import TextError

STRATEGIES: tuple[TextStrategy, ...] = get_args(TextStrategy)


class TokenCounter(Protocol):
    """A text encoder that can count tokens: a teacher, or its exported text tower."""

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text, including start and end tokens."""

    def token_count(self, text: str) -> int:
        """Number of tokens of `text` with start and end tokens."""


def has_text(label: ReleaseLabel, strategy: TextStrategy) -> bool:
    """Whether the label has the texts that `strategy` needs."""
    return strategy == "name" or bool(_texts(label, strategy))


def prompts_of(label: ReleaseLabel, strategy: TextStrategy) -> tuple[str, ...]:
    """The prompts of `label` under `strategy`.

    Raises:
        TextError: the label has no text for the strategy.
    """
    if strategy == "name":
        return (f"a photo of {label.name}",)
    texts = _texts(label, strategy)
    if not texts:
        raise TextError(
            f"the label {label.key!r} ({label.name}) has no text for the strategy "
            f"{strategy!r}: enrich it and release again, or use the strategy 'name'"
        )
    prefix = prefix_of(label, strategy)
    return tuple(f"{prefix}{text}" for text in texts)


def _texts(label: ReleaseLabel, strategy: TextStrategy) -> tuple[str, ...]:
    described = (label.description,) if label.description else ()
    match strategy:
        case "name":
            return ()
        case "name+description":
            return described
        case "attributes":
            return tuple(
                f"{name.replace('_', ' ')}: {value}"
                for name, values in label.attributes.items()
                for value in values
            )
        case "ensemble":
            return (*described, *label.sentences, *label.captions)
        case "captions":
            return label.captions


def prefix_of(label: ReleaseLabel, strategy: TextStrategy) -> str:
    """The prefix of each text of the label, and of each sentence of a split text."""
    return "" if strategy == "captions" else f"a photo of {label.name} . "


def within_context(encoder: TokenCounter, text: str, prefix: str) -> tuple[str, ...]:
    """`text`, or its sentences with `prefix` if it is longer than the context.

    A sentence that is still too long is split into clauses, then between words.
    """
    if encoder.token_count(text) <= encoder.context_length:
        return (text,)
    body = text.removeprefix(prefix)
    for pattern in (r"(?<=[.!?])\s+", r"(?<=[,;:])\s+"):
        pieces = [piece for piece in re.split(pattern, body) if piece]
        if len(pieces) > 1:
            return tuple(
                part for piece in pieces for part in within_context(encoder, prefix + piece, prefix)
            )
    words = body.split()
    if len(words) < 2:
        return (text,)
    middle = len(words) // 2
    halves = (" ".join(words[:middle]), " ".join(words[middle:]))
    return tuple(part for half in halves for part in within_context(encoder, prefix + half, prefix))
