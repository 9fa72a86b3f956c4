"""Reads releases from files: JSON exported by the service, or the paper's pair of text files."""

import random
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from contract import Release, ReleaseLabel, TextSource, first_error_line, release_hash
from distill.data.files.atomic_file import write_atomically
from distill.errors import TextError


def read_release(path: Path) -> Release:
    """Read a release from the JSON file at `path`, exported by the service.

    Raises:
        TextError: the file is missing or invalid, or its hash does not match its labels.
    """
    release = _parse(path)
    if release_hash(release.labels) != release.hash:
        raise TextError(f"the labels in {path} do not match its hash: export the release again")
    return release


def _parse(path: Path) -> Release:
    try:
        return Release.model_validate_json(path.read_bytes())
    except OSError as error:
        raise TextError(f"cannot read the release {path} ({error.strerror})") from None
    except ValidationError as error:
        raise TextError(
            f"{path} is not a release ({first_error_line(error)}): export it with `enrich export`"
        ) from None


def write_release(release: Release, path: Path) -> None:
    """Write `release` as JSON to `path`, unless the file already has this content.

    Raises:
        OSError: the file cannot be written.
    """
    content = release.model_dump_json().encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


def release_from_pairs(labels: Path, descriptions: Path | None = None) -> Release:
    """A release from the paper's `label2text.txt` and, if given, `chatgpt.txt`.

    `labels` has lines `KEY INDEX NAME_WITH_UNDERSCORES`, `descriptions` one text per line in the
    same order.

    Raises:
        TextError: a file is missing, a line is malformed, a key is repeated or the counts differ.
    """
    rows: list[tuple[str, str]] = []
    for number, line in enumerate(_lines(labels), start=1):
        parts = line.split(maxsplit=2)
        if len(parts) != 3:
            raise TextError(f"{labels}, line {number}: expected 'KEY INDEX NAME', found {line!r}")
        rows.append((parts[0], parts[2].replace("_", " ")))
    texts: list[str | None] = [None] * len(rows)
    if descriptions is not None:
        texts = [line.strip() or None for line in _lines(descriptions)]
        if len(texts) != len(rows):
            raise TextError(
                f"{labels} has {len(rows)} labels and {descriptions} has {len(texts)} lines: "
                "they must match line by line"
            )
    entries = tuple(
        ReleaseLabel(key=key, name=name, description=text)
        for (key, name), text in zip(rows, texts, strict=True)
    )
    if len({entry.key for entry in entries}) != len(entries):
        raise TextError(f"{labels} lists a key twice: keep one line for each class folder")
    return Release(
        id=0,
        name=labels.stem,
        label_set=labels.parent.name,
        hash=release_hash(entries),
        created_at=datetime.now(UTC),
        labels=entries,
        sources=tuple(
            TextSource(key=entry.key, field="description", source="import")
            for entry in entries
            if entry.description
        ),
    )


def shuffle_texts(release: Release, seed: int) -> Release:
    """Shuffled descriptions (control): each label keeps its name and gets the texts of another.

    A gain that remains with this control is due to longer prompts, not to their content
    (WaffleCLIP, arXiv 2306.07282). With two or more labels, no label keeps its own texts.
    """
    order = list(range(len(release.labels)))
    random.Random(seed).shuffle(order)
    # A random cycle through all labels: no label is its own successor.
    donor = dict(zip(order, order[1:] + order[:1], strict=True))
    labels = tuple(
        label.model_copy(
            update={
                field: getattr(release.labels[donor[index]], field)
                for field in ("description", "attributes", "sentences", "captions")
            }
        )
        for index, label in enumerate(release.labels)
    )
    return release.model_copy(update={"labels": labels, "hash": release_hash(labels)})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TextError(f"cannot read {path} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text: save it as UTF-8") from None
