"""Class names that are probably mistakes: two spellings of one class, or not a name."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from enrich_service.core.text import shortened

MIN_SPELLING: Final = 6  # letters of a name that may be misspelt: short ones are alike by chance
FILE_NAME: Final = re.compile(
    r"(img|dsc[nf]?|dcim|pxl|vid|image|photo|picture|screenshot)[ _-]?\d[\d _-]*", re.IGNORECASE
)
WNID: Final = re.compile(r"n\d{8}")
NO_NAME: Final = re.compile(
    r"n/?a|none|null|nan|nil|unknown|unlabel+ed|misc|todo|tbd|undefined|untitled", re.IGNORECASE
)


def suspicious_names(names: Sequence[str]) -> list[str]:
    """A warning for each name that is not a word, and for names that look like one class."""
    return [*_no_names(names), *_alike(names)]


def _no_names(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        bare = name.strip()
        if WNID.fullmatch(bare):
            yield f"{shortened(name)} is a WordNet id: give the name that people use"
        elif FILE_NAME.fullmatch(bare):
            yield f"{shortened(name)} looks like the name of a file, not of a class"
        elif NO_NAME.fullmatch(bare) or not any(character.isalpha() for character in bare):
            yield f"{shortened(name)} is no name of a class"


def _alike(names: Sequence[str]) -> Iterator[str]:
    """Warnings for pairs that differ in case, punctuation or plural, or by one letter."""
    told: set[tuple[int, int]] = set()
    for forms, what in ((_forms, "may be the same class"), (_spellings, "may be misspelt")):
        by_form: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            for form in forms(name):
                by_form[form].append(index)
        for same in by_form.values():
            for other in same[1:]:
                pair = (same[0], other)
                if pair not in told and same[0] != other:
                    told.add(pair)
                    yield f"{shortened(names[same[0]])} and {shortened(names[other])} {what}"


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))


def _forms(name: str) -> set[str]:
    """The name without case, punctuation and the plural of its last word."""
    plain = _plain(name)
    for end, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("s", "")):
        if plain.endswith(end) and not plain.endswith("ss") and len(plain) > len(end) + 2:
            return {plain.removesuffix(end) + singular}
    return {plain}


def _spellings(name: str) -> set[str]:
    """The name, and the name without each of its letters: equal ones differ by a letter."""
    plain = _plain(name)
    if sum(character.isalpha() for character in plain) < MIN_SPELLING:
        return set()
    return {plain} | {
        plain[:place] + plain[place + 1 :]
        for place, character in enumerate(plain)
        if character.isalpha()  # "class 1" and "class 2" are no spellings of one name
    }
