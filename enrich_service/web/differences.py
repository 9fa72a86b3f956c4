"""Two texts side by side, line for line, with the words that changed marked."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
CONTEXT = 2  # equal lines that stay around a change when only changes are shown


@dataclass(frozen=True)
class Piece:
    """A stretch of a line."""

    text: str
    changed: bool


Side = tuple[Piece, ...]


@dataclass(frozen=True)
class Row:
    """A line of both texts. A side that is None has no such line.

    `skipped` counts equal lines that are left out here; such a row has no sides.
    """

    old_number: int | None = None
    new_number: int | None = None
    old: Side | None = None
    new: Side | None = None
    skipped: int = 0

    @property
    def changed(self) -> bool:
        """Whether the two sides differ."""
        return self.old != self.new


def words(before: str, after: str) -> tuple[Side, Side]:
    """Both texts, each in pieces: what only one of them has is marked as changed."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    old: list[Piece] = []
    new: list[Piece] = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b).get_opcodes():
        changed = tag != "equal"
        if i < j:
            old.append(Piece("".join(a[i:j]), changed))
        if k < m:
            new.append(Piece("".join(b[k:m]), changed))
    return tuple(old), tuple(new)


def side_by_side(before: str, after: str, *, only_changes: bool = False) -> list[Row]:
    """The lines of both texts in rows, equal ones beside each other.

    `only_changes`: equal lines further than CONTEXT from a change are counted, not shown.
    """
    a, b = before.split("\n"), after.split("\n")
    rows = list(_rows(a, b))
    return list(_without_equal(rows)) if only_changes else rows


def _rows(a: Sequence[str], b: Sequence[str]) -> Iterator[Row]:
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b).get_opcodes():
        for old, new in zip_longest(range(i, j), range(k, m)):
            if tag == "equal":
                same = (Piece(a[old], False),)
                yield Row(old + 1, new + 1, same, same)
            elif old is None:
                yield Row(None, new + 1, None, (Piece(b[new], True),))
            elif new is None:
                yield Row(old + 1, None, (Piece(a[old], True),), None)
            else:
                yield Row(old + 1, new + 1, *words(a[old], b[new]))


def _without_equal(rows: Sequence[Row]) -> Iterator[Row]:
    changes = [number for number, row in enumerate(rows) if row.changed]
    near = {
        number for change in changes for number in range(change - CONTEXT, change + CONTEXT + 1)
    }
    skipped = 0
    for number, row in enumerate(rows):
        if number not in near:
            skipped += 1
            continue
        if skipped:
            yield Row(skipped=skipped)
            skipped = 0
        yield row
    if skipped:
        yield Row(skipped=skipped)
