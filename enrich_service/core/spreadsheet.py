"""CSV that is safe to open in a spreadsheet program.

All CSV files of the service are written here. A spreadsheet program runs a text as a formula if it
begins with = + - @ (plain or full-width, possibly after spaces), a tab or a line break (OWASP, CSV
injection): such a text is prefixed with an apostrophe. So is a text that begins with apostrophes
followed by one of these. Reading removes one apostrophe from such cells, so that every text is
restored exactly. Numbers are written unchanged.
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
_ESCAPED = re.compile(f"'+{_START}")
MAX_CELL = 10_000_000  # characters; some raw replies exceed the default of the csv module


def escape_formula(text: str) -> str:
    """Prefix `text` with an apostrophe if a spreadsheet program would run it as a formula."""
    return "'" + text if _FORMULA.match(text) else text


def unescape_formula(cell: str) -> str:
    """Undo `escape_formula`."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return escape_formula(value)
    return json.dumps(value, ensure_ascii=False)


def write(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of a CSV file with a header.

    Lists and mappings are written as JSON, None as an empty cell.
    """
    for row in chain([columns], rows):
        line = io.StringIO()
        csv.writer(line).writerow([_cell(value) for value in row])
        yield line.getvalue()


def read(data: bytes, known: Sequence[str], required: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Read a CSV file in UTF-8: its rows as column → cell.

    Raises InvalidInput if it is not UTF-8, has a column that is not `known`, lacks a `required`
    one, or has a row with too many or too few fields; the message gives the line.
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
        if set(required) - set(columns) or set(columns) - set(known):
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
            yield {name: unescape_formula(cell) for name, cell in row.items()}
    except csv.Error as error:
        raise InvalidInput(f"Line {reader.line_num} of the CSV file: {error}") from error
