"""A list of images: CSV, TSV, JSON lines or Parquet with the columns path, label and, maybe, split.

Paths are relative to the folder of the list.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError, some

SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".parquet")
DELIMITERS: Final = (",", ";", "\t")
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
            name, key = str(row.get("path") or "").strip(), str(row.get("label") or "").strip()
            if not name or not key:
                raise DataError(
                    f"{self.path}, row {number} has no path or no label: the columns are {COLUMNS}"
                )
            image = self.path.parent / name
            if not image.is_file():
                missing.append(name)
            count += 1
            yield LabelledImage(str(row.get("split") or "").strip() or None, key, image)
        if missing:
            raise DataError(
                f"{self.path} lists {len(missing)} images that do not exist ({some(missing)}): "
                "paths are relative to the folder of the file"
            )
        if not count:
            raise DataError(f"{self.path} lists no images: the columns are {COLUMNS}")

    def _rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Each row with its number in the file."""
        try:
            if self.path.suffix.lower() == ".parquet":
                yield from enumerate(_parquet_rows(self.path), start=1)
            else:
                with self.path.open(encoding="utf-8-sig", newline="") as file:
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
        header = file.readline().rstrip("\r\n")
        file.seek(0)
        fits = (sign for sign in DELIMITERS if {"path", "label"} <= set(header.split(sign)))
        reader = csv.DictReader(file, delimiter=next(fits, ","))
        columns = reader.fieldnames or []
        if absent := [name for name in ("path", "label") if name not in columns]:
            raise DataError(
                f"{self.path} has no column {absent[0]!r} (it has {', '.join(columns) or 'none'}): "
                f"the columns are {COLUMNS}"
            )
        for row in reader:
            yield reader.line_num, row

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
