"""The visible attributes of a class, as texts.

They are encoded without the class name: with it, every text of the right class would have a high
cosine with an image of the class, whether the image shows the attribute or not.

Does not import torch, so that a classifier without torch finds the same attributes of a new class.
"""

import re
from collections.abc import Iterable
from typing import Final

from contract import ReleaseLabel
from distill.embeddings.class_prompts import has_text, prefix_of, prompts_of

# Boundaries of sentences and clauses.
SEPARATORS: Final = r"(?<=[.!?;])\s+|,\s+(?:and\s+)?"


def attributes_of(label: ReleaseLabel) -> tuple[str, ...]:
    """The attributes of a label ("colours: rusty"), or the clauses of its texts; may be empty."""
    if has_text(label, "attributes"):
        prefix = prefix_of(label, "attributes")
        return tuple(text.removeprefix(prefix) for text in prompts_of(label, "attributes"))
    described = (label.description,) if label.description else ()
    return clauses(label.name, (*described, *label.sentences, *label.captions))


def clauses(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """The distinct sentences and clauses of `texts`, without a leading "The NAME has"."""
    subject = re.compile(
        rf"(?:(?:the|an?)\s+)?{re.escape(name)}s?\s+(?:\w+ly\s+)?(?:has|have|is|are|features?)\s+",
        re.IGNORECASE,
    )
    split = (part.strip(" .!?,;:") for text in texts for part in re.split(SEPARATORS, text))
    parts = (subject.sub("", part, count=1) if subject.match(part) else part for part in split)
    return tuple(dict.fromkeys(part for part in parts if part))
