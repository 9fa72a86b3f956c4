"""A list of images: CSV, TSV, JSON lines or Parquet with the columns path, label and, maybe, split.

- Paths are relative to the folder of the list; they may have the backslashes of Windows.
- CSV and TSV files are read as spreadsheet programs save them: in UTF-8 or UTF-16, with any of
  DELIMITERS, with quotes, and maybe with a first line `sep=;`.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError, some

SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".parquet")
DELIMITERS: Final = (",", ";", "\t")
SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # for Excel
COLUMNS: Final = "path, label and optionally split"


@dataclass(frozen=True)
class ManifestFile:
    """A manifest with one image per row."""

    path: Path

    def images(self, cache: Path, progress: Progress | None = None) -> Iterator[LabelledImage]:
        """The images in the order of the rows. Raises DataError at the end if some are missing."""
        missing: list[str] = []
        count = 0
        for number, row in self._rows():
            name, key, split = (_text(row.get(column)) for column in ("path", "label", "split"))
            if not name or not key:
                raise DataError(
                    f"{self.path}, row {number} has no path or no label: the columns are {COLUMNS}"
                )
            image = self._find(name)
            if not image.is_file():
                missing.append(name)
            count += 1
            yield LabelledImage(split or None, key, image)
        if missing:
            raise DataError(
                f"{self.path} lists {len(missing)} images that do not exist ({some(missing)}): "
                "paths are relative to the folder of the file"
            )
        if not count:
            raise DataError(f"{self.path} lists no images: the columns are {COLUMNS}")

    def _find(self, name: str) -> Path:
        """The image called `name`; with its backslashes as slashes if only that exists."""
        image = self.path.parent / name
        if "\\" in name and not image.is_file():
            return self.path.parent / name.replace("\\", "/")
        return image

    def _rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Each row with its number in the file."""
        try:
            if self.path.suffix.lower() == ".parquet":
                yield from enumerate(_parquet_rows(self.path), start=1)
            else:
                with self.path.open(encoding=_encoding(self.path), newline="") as file:
                    yield from self._text_rows(file)
        except OSError as error:
            raise DataError(f"cannot read {self.path} ({error.strerror or error})") from None
        except UnicodeDecodeError:
            raise DataError(f"{self.path} is not UTF-8 text: save it as UTF-8") from None
        except csv.Error as error:
            raise DataError(f"{self.path} is not a CSV file ({error})") from None

    def _text_rows(self, file: TextIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
        if self.path.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, self._json_row(number, line)
            return
        first, skipped, delimiters = next(file, ""), 0, list(DELIMITERS)
        if separator := SEPARATOR_LINE.fullmatch(first):
            first, skipped, delimiters = next(file, ""), 1, [separator[1]]
        fits = (sign for sign in delimiters if {"path", "label"} <= set(_columns(first, sign)))
        delimiter = next(fits, delimiters[0])
        columns = _columns(first, delimiter)
        if absent := [name for name in ("path", "label") if name not in columns]:
            raise DataError(
                f"{self.path} has no column {absent[0]!r} (it has {', '.join(columns) or 'none'}): "
                f"the columns are {COLUMNS}"
            )
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        for cells in reader:
            if any(cell.strip() for cell in cells):
                row = dict(zip(columns, cells, strict=False))  # too few: a label may be missing
                yield skipped + 1 + reader.line_num, row

    def _json_row(self, number: int, line: str) -> Mapping[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(
                f'{self.path}, line {number}: expected {{"path": …, "label": …}}, found '
                f"{line.strip()[:80]!r}"
            )
        return row


def _text(value: Any) -> str:  # noqa: ANN401 - a value of a JSON or Parquet file
    """A value as text; empty if it is missing, which pandas writes as NaN among numbers."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else str(value).strip()


def _columns(header: str, delimiter: str) -> list[str]:
    """The names of the columns in lower case."""
    cells = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    return [cell.strip().lower() for cell in cells]


def _encoding(path: Path) -> str:
    """UTF-16, as spreadsheet programs save "Unicode text", or UTF-8."""
    with path.open("rb") as file:
        head = file.read(200)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in head:  # without a byte order mark: ASCII characters have a zero byte
        return "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
    return "utf-8-sig"


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise DataError(
            f"{path} needs the package pyarrow: pip install 'enrich-distill[hf]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            if absent := [name for name in ("path", "label") if name not in file.schema.names]:
                raise DataError(f"{path} has no column {absent[0]!r}: the columns are {COLUMNS}")
            wanted = [name for name in ("path", "label", "split") if name in file.schema.names]
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{path} is not a Parquet file ({' '.join(str(error).split())})") from None
