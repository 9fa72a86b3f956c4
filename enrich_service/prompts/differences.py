"""Side-by-side diffs of two texts with changed words marked."""

import difflib
import re
from collections.abc import Sequence
from itertools import zip_longest

from enrich_service.prompts.schemas import DiffPart, DiffRow

_WORDS = re.compile(r"\w+|\s+|[^\w\s]")


def unified(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """A unified diff of lines, without file names."""
    return list(difflib.unified_diff(before, after, lineterm="", n=2))[2:]


def side_by_side(
    before: Sequence[str], after: Sequence[str], context: int | None = None
) -> list[DiffRow]:
    """Rows of two columns, with changed words marked.

    Args:
        before: Lines of the older text.
        after: Lines of the newer text.
        context: Number of equal lines kept before and after a change; the others become rows that
            count the omitted lines. 0: only changes. None: keep all lines.
    """
    rows: list[DiffRow] = []
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, before, after).get_opcodes():
        if kind == "equal":
            rows += [
                DiffRow(
                    before=_whole(before[i + n], False),
                    after=_whole(before[i + n], False),
                    before_line=i + n + 1,
                    after_line=j + n + 1,
                )
                for n in range(i_end - i)
            ]
            continue
        for a, b in zip_longest(range(i, i_end), range(j, j_end)):
            left, right = _marked(None if a is None else before[a], None if b is None else after[b])
            rows.append(
                DiffRow(
                    before=left,
                    after=right,
                    before_line=None if a is None else a + 1,
                    after_line=None if b is None else b + 1,
                    changed=True,
                )
            )
    return rows if context is None else _omit_distant(rows, context)


def _omit_distant(rows: Sequence[DiffRow], context: int) -> list[DiffRow]:
    near = {
        n + step
        for n, row in enumerate(rows)
        if row.changed
        for step in range(-context, context + 1)
    }
    kept: list[DiffRow] = []
    for n, row in enumerate(rows):
        if n in near:
            kept.append(row)
        elif kept and kept[-1].hidden:
            kept[-1].hidden += 1
        else:
            kept.append(DiffRow(hidden=1))
    return kept


def _whole(line: str, changed: bool) -> list[DiffPart]:
    return [DiffPart(text=line, changed=changed)] if line else []


def _marked(
    before: str | None, after: str | None
) -> tuple[list[DiffPart] | None, list[DiffPart] | None]:
    """Both lines split into equal and changed parts; a line without a partner is changed."""
    if before is None or after is None:
        return (
            None if before is None else _whole(before, True),
            None if after is None else _whole(after, True),
        )
    a, b = _WORDS.findall(before), _WORDS.findall(after)
    left: list[DiffPart] = []
    right: list[DiffPart] = []
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, a, b).get_opcodes():
        left += _whole("".join(a[i:i_end]), kind != "equal")
        right += _whole("".join(b[j:j_end]), kind != "equal")
    return left, right
