"""CSV that is safe to open in a spreadsheet program.

All CSV of the service is written here. A text that begins with = + - @ (plain or full-width, with
or without blanks before it), a tab or a line end would be taken for a formula (OWASP, CSV
injection): it gets an apostrophe in front. So does a text that begins with apostrophes and then one
of these, and one apostrophe is taken away when such a cell is read: every text comes back equal.
Numbers are written as they are.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from enrich_service.core.errors import InvalidInput
from enrich_service.core.text import shortened

_START = r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
_FORMULA = re.compile(f"'*{_START}")
_NEUTRALISED = re.compile(f"'+{_START}")
MAX_CELL = 10_000_000  # characters; Python's own limit is smaller than some raw replies


def neutralised(text: str) -> str:
    """Escape `text` for a spreadsheet."""
    return "'" + text if _FORMULA.match(text) else text


def restored(cell: str) -> str:
    """Undo `neutralised`."""
    return cell[1:] if _NEUTRALISED.match(cell) else cell


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return neutralised(value)
    return json.dumps(value, ensure_ascii=False)  # of a number: that number


def write(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a CSV file with a header.

    A value is a text, a number, or a list or mapping that is written as JSON; None is left empty.
    """
    for row in chain([columns], rows):
        line = io.StringIO()
        csv.writer(line).writerow([_cell(value) for value in row])
        yield line.getvalue()


def read(data: bytes, known: Sequence[str], needed: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """The rows of a CSV file in UTF-8 as dicts, without missing columns.

    Raises InvalidInput, with the line: no UTF-8, a column that is not `known`, a `needed` one that
    is missing, a row with too many or too few fields.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"The CSV file is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error
    csv.field_size_limit(MAX_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = [column.strip().lower() for column in reader.fieldnames or ()]
        if set(needed) - set(columns) or set(columns) - set(known):
            raise InvalidInput(
                f"The CSV file needs a first line with the columns {','.join(known)}; it has "
                f"{shortened(','.join(columns))}"
            )
        reader.fieldnames = columns
        for row in reader:
            if None in row or None in row.values():
                raise InvalidInput(
                    f"Line {reader.line_num} of the CSV file does not have {len(columns)} fields: "
                    'put fields with commas in "quotes"'
                )
            yield {name: restored(cell) for name, cell in row.items()}
    except csv.Error as error:
        raise InvalidInput(f"Line {reader.line_num} of the CSV file: {error}") from error
