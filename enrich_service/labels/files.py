"""Labels from files: CSV and TSV from spreadsheet programs, or one name per line.

Encoding and delimiter are detected. All errors are reported at once, with line numbers: rows that
do not match the columns here, labels that are invalid when the label set is created.
"""

import csv
import io
from collections.abc import Sequence
from typing import Final, NamedTuple

from enrich_service.core.errors import InvalidInput
from enrich_service.core.spreadsheet import MAX_CELL, unescape_formula
from enrich_service.core.text import shortened
from enrich_service.labels.schemas import LabelIn

COLUMNS: Final = ("key", "name", "context")
DELIMITERS: Final = (",", ";", "\t", "|")
HEADERS: Final = ("name", "names", "label", "labels", "class", "classes")  # of a list of names
BOMS: Final = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
OTHER_FILES: Final = {  # first bytes → kind of file
    b"PK\x03\x04": "an Excel file or another zip file",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"%PDF": "a PDF file",
}


class LabelTable(NamedTuple):
    """The labels of a file, the line of each ("Line 3"), and what is wrong with other lines."""

    labels: list[LabelIn]
    origins: list[str]
    errors: list[str]


def from_table(data: bytes) -> LabelTable:
    """Parse a CSV or TSV file or a list of names.

    Raises:
        InvalidInput: it is not text, or has no name column.
    """
    text = decoded(data)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not first:
        raise InvalidInput(
            f"The file is empty: it needs a first line with the columns {','.join(COLUMNS)}, or "
            "one name per line"
        )
    delimiter = next((candidate for candidate in DELIMITERS if _columns(first, candidate)), None)
    if delimiter is None and any(candidate in first for candidate in DELIMITERS):
        raise InvalidInput(
            f"The file needs a first line with the columns {','.join(COLUMNS)} (only name is "
            f"required); it has {shortened(first)}"
        )
    if delimiter is None:
        return _names(lines)
    return _table(text, delimiter)


def decoded(data: bytes) -> str:
    """Decode `data`: UTF-8, UTF-16 or, as in Excel's CSV files, Windows-1252.

    Raises:
        InvalidInput: none of these encodings fits, or it is a file of another kind.
    """
    for start, kind in OTHER_FILES.items():
        if data.startswith(start):
            raise InvalidInput(f"The file is {kind}: save it as CSV")
    encodings = ["utf-8", "cp1252"]
    if b"\0" in data[:200]:  # UTF-16 without a byte order mark: ASCII characters have a zero byte
        encodings = ["utf-16-le" if data[1:2] == b"\0" else "utf-16-be"]
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            encodings = [encoding]
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InvalidInput("The file is not text in UTF-8, UTF-16 or Windows-1252: save it as UTF-8")


def problems(messages: Sequence[str], limit: int = 10) -> InvalidInput:
    """One error with the first `limit` messages and the number of further ones."""
    more = f"; and {len(messages) - limit} more" if len(messages) > limit else ""
    return InvalidInput("; ".join(messages[:limit]) + more)


def _columns(line: str, delimiter: str) -> list[str]:
    """The columns named by a header line; empty if the line is not a header."""
    cells = [cell.strip().strip('"').lower() for cell in line.split(delimiter)]
    return cells if "name" in cells and set(cells) <= set(COLUMNS) else []


def _names(lines: Sequence[str]) -> LabelTable:
    labels: list[LabelIn] = []
    origins: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = unescape_formula(line.strip()).strip('"')
        if not name or (not labels and name.lower() in HEADERS):
            continue
        labels.append(LabelIn(name=name))
        origins.append(f"Line {number}")
    return LabelTable(labels, origins, [])


def _table(text: str, delimiter: str) -> LabelTable:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    labels: list[LabelIn] = []
    origins: list[str] = []
    errors: list[str] = []
    columns: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip().lower() for cell in cells]
                continue
            origin = f"Line {reader.line_num}"
            if len(cells) != len(columns):
                errors.append(
                    f"{origin} does not have {len(columns)} fields: put fields with {delimiter!r} "
                    'in "quotes"'
                )
                continue
            row = dict(zip(columns, map(unescape_formula, cells), strict=True))
            labels.append(
                LabelIn(
                    key=row.get("key") or None,
                    name=row["name"],
                    context=row.get("context") or None,
                )
            )
            origins.append(origin)
    except csv.Error as error:
        errors.append(f"Line {reader.line_num}: {error}")
    return LabelTable(labels, origins, errors)
