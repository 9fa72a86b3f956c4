"""The attributes of a class, as texts: what an image can show of it.

They are encoded without the name of the class. With the name in it, each text of the right class
lies close to an image of the class, whether the image shows the attribute or not.

Imports no torch, so that a classifier without torch finds the same attributes of a new class.
"""

import re
from collections.abc import Iterable
from typing import Final

from contract import ReleaseLabel
from distill.embeddings.class_prompts import has_text, prefix_of, prompts_of

# Between the sentences and clauses of a text.
SEPARATORS: Final = r"(?<=[.!?;])\s+|,\s+(?:and\s+)?"


def attributes_of(label: ReleaseLabel) -> tuple[str, ...]:
    """The attributes of a label ("colours: rusty"), else the clauses of its texts. Maybe none."""
    if has_text(label, "attributes"):
        prefix = prefix_of(label, "attributes")
        return tuple(text.removeprefix(prefix) for text in prompts_of(label, "attributes"))
    described = (label.description,) if label.description else ()
    return clauses(label.name, (*described, *label.sentences, *label.captions))


def clauses(name: str, texts: Iterable[str]) -> tuple[str, ...]:
    """The sentences and clauses of `texts`, each once, without "The NAME has" in front."""
    subject = re.compile(
        rf"(?:(?:the|an?)\s+)?{re.escape(name)}s?\s+(?:\w+ly\s+)?(?:has|have|is|are|features?)\s+",
        re.IGNORECASE,
    )
    split = (part.strip(" .!?,;:") for text in texts for part in re.split(SEPARATORS, text))
    parts = (subject.sub("", part, count=1) if subject.match(part) else part for part in split)
    return tuple(dict.fromkeys(part for part in parts if part))
