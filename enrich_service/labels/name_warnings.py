"""Warnings for class names that are probably mistakes: duplicates, misspellings, file names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from enrich_service.core.text import shortened

MIN_SPELLING: Final = 6  # letters; shorter names are similar by chance
FILE_NAME: Final = re.compile(
    r"(img|dsc[nf]?|dcim|pxl|vid|image|photo|picture|screenshot)[ _-]?\d[\d _-]*", re.IGNORECASE
)
WNID: Final = re.compile(r"n\d{8}")
PLACEHOLDER: Final = re.compile(
    r"n/?a|none|null|nan|nil|unknown|unlabel+ed|misc|todo|tbd|undefined|untitled", re.IGNORECASE
)


def suspicious_names(names: Sequence[str]) -> list[str]:
    """A warning for each name that is not a class name, and for pairs that look like one class."""
    return [*_not_class_names(names), *_similar_names(names)]


def _not_class_names(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        bare = name.strip()
        if WNID.fullmatch(bare):
            yield f"{shortened(name)} is a WordNet id: give the name of the class"
        elif FILE_NAME.fullmatch(bare):
            yield f"{shortened(name)} looks like a file name, not a class name"
        elif PLACEHOLDER.fullmatch(bare) or not any(character.isalpha() for character in bare):
            yield f"{shortened(name)} is not a class name"


def _similar_names(names: Sequence[str]) -> Iterator[str]:
    """Warnings for pairs that differ in case, punctuation or plural, or by one letter."""
    reported: set[tuple[int, int]] = set()
    for forms, warning in ((_forms, "may be the same class"), (_spellings, "may be misspelt")):
        by_form: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            for form in forms(name):
                by_form[form].append(index)
        for indices in by_form.values():
            for other in indices[1:]:
                pair = (indices[0], other)
                if pair not in reported and indices[0] != other:
                    reported.add(pair)
                    yield f"{shortened(names[indices[0]])} and {shortened(names[other])} {warning}"


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))


def _forms(name: str) -> set[str]:
    """The normalised name: without case, punctuation and the plural ending of its last word."""
    plain = _plain(name)
    for end, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", "")):
        if plain.endswith(end) and not plain.endswith("ss") and len(plain) > len(end) + 2:
            return {plain.removesuffix(end) + singular}
    return {plain}


def _spellings(name: str) -> set[str]:
    """The name and its variants without one letter: names that share one differ by a letter."""
    plain = _plain(name)
    if sum(character.isalpha() for character in plain) < MIN_SPELLING:
        return set()
    return {plain} | {
        plain[:index] + plain[index + 1 :]
        for index, character in enumerate(plain)
        if character.isalpha()  # "class 1" and "class 2" are different names
    }
