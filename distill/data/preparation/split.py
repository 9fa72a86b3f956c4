"""A new division of a data set into train, validation (seen) and, if wanted, unseen classes."""

import csv
import json
import os
import random
import re
import secrets
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from contract import SplitName
from distill.data.files.packed_image import PackedImage, location
from distill.data.pixels import Progress
from distill.data.sources.labelled_image import LabelledImage
from distill.data.splits import SPLITS
from distill.errors import DataError, some

MANIFESTS: Final = (".csv", ".jsonl")
OTHER_FILES: Final = (".tsv", ".parquet", ".json", ".txt", ".xlsx", ".tar", ".zip")  # not written
Division = Mapping[SplitName, Sequence[LabelledImage]]


def choose_unseen(keys: Collection[str], wanted: str, seed: int) -> frozenset[str]:
    """The classes that `wanted` asks for: a number of random ones, or KEY,KEY,….

    Raises:
        DataError: a class does not exist, or fewer than two would be left to train on.
    """
    if wanted.isdecimal():
        chosen = frozenset(random.Random(seed).sample(sorted(keys), min(int(wanted), len(keys))))
    else:
        chosen = frozenset(key.strip() for key in wanted.split(",") if key.strip())
    if unknown := sorted(chosen - set(keys)):
        raise DataError(f"there is no class {some(unknown)} to hold out: give keys of classes")
    if len(keys) - len(chosen) < 2 and chosen:
        raise DataError(
            f"{len(keys)} classes, less {len(chosen)} unseen ones, leave fewer than two to train "
            "on: hold out fewer"
        )
    return chosen


def divide(
    images: Sequence[LabelledImage],
    groups: Iterable[Sequence[int]],
    *,
    validation: float,
    unseen: Collection[str],
    seed: int,
) -> tuple[Division, list[LabelledImage]]:
    """The images by split, and those that are left out.

    All images of the classes `unseen` are of that split. Of each other class about the share
    `validation` goes to seen, at random by `seed`. The indices of each of the `groups` stay
    together; seen images in a group with unseen ones are left out.
    """
    splits: dict[SplitName, list[LabelledImage]] = {name: [] for name in SPLITS}
    left_out: list[LabelledImage] = []
    free: list[list[LabelledImage]] = []
    for unit in _units(images, groups):
        if any(image.key in unseen for image in unit):
            for image in unit:
                (splits["unseen"] if image.key in unseen else left_out).append(image)
        else:
            free.append(unit)
    random.Random(seed).shuffle(free)
    counts = Counter(image.key for unit in free for image in unit)
    taken: Counter[str] = Counter()
    for unit in free:
        after = taken + Counter(image.key for image in unit)
        fits = all(
            after[image.key] <= max(1, round(validation * counts[image.key]))
            and after[image.key] < counts[image.key]
            for image in unit
        )
        taken = after if fits else taken
        splits["seen" if fits else "train"] += unit
    return {name: own for name, own in splits.items() if own}, left_out


def _units(
    images: Sequence[LabelledImage], groups: Iterable[Sequence[int]]
) -> list[list[LabelledImage]]:
    """The images that stay together: those of each group, and each of the others alone."""
    grouped = [[images[index] for index in group] for group in groups]
    together = {id(image) for group in grouped for image in group}
    return grouped + [[image] for image in images if id(image) not in together]


def with_crops_of_one_photo(
    groups: Iterable[Sequence[int]], images: Sequence[LabelledImage]
) -> list[list[int]]:
    """The `groups` of indices, joined where they share a photo that `images` were cut out of."""
    members: dict[int, list[int]] = {}  # by the first index; all groups have disjoint indices
    group_of: dict[int, int] = {}
    by_photo: dict[str, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if image.photo is not None:
            by_photo[image.photo].append(index)
    for group in [*groups, *by_photo.values()]:
        joined = {group_of.get(index, index) for index in group}
        first = min(joined)
        merged = {index for other in joined for index in members.pop(other, [other])}
        members[first] = sorted(merged.union(group))
        group_of.update(dict.fromkeys(members[first], first))
    return [group for group in members.values() if len(group) > 1]


def check_out(out: Path, source: str, keys: Iterable[str]) -> None:
    """Check that a division of `source`, which has the classes `keys`, can be written to `out`.

    Raises:
        DataError: `out` has the suffix of a file that is not written; or it is a folder within the
            folder `source`, or two classes would share a folder in it.
    """
    if out.suffix.lower() in OTHER_FILES:
        raise DataError(
            f"cannot write {out}: give --out a {' or '.join(MANIFESTS)} file, or a folder"
        )
    if out.suffix.lower() in MANIFESTS:
        return
    if Path(source).is_dir() and out.resolve().is_relative_to(Path(source).resolve()):
        raise DataError(
            f"{out} is inside the data folder {source}, where it would become part of the data: "
            "choose another --out"
        )
    by_folder: dict[str, str] = {}
    for key in keys:
        if (other := by_folder.setdefault(folder_name(key), key)) != key:
            raise DataError(
                f"the classes {other!r} and {key!r} would share the folder {folder_name(key)!r}: "
                f"rename one of them, or write a list with --out {out.name}.csv"
            )


def write_manifest(path: Path, division: Division, cache: Path) -> None:
    """Write the division as CSV or JSON lines, with paths relative to the folder of `path`.

    Raises:
        DataError: it cannot be written, or images are packed or only in the folder `cache`.
    """
    folder = path.parent.resolve()
    rows = [
        {
            "path": os.path.relpath(image.path.resolve(), folder),
            "label": image.key,
            "split": SPLITS[split],
        }
        for split, images in division.items()
        for image in images
        if isinstance(image.path, Path) and not _is_in(cache, image.path)
    ]
    if len(rows) < sum(map(len, division.values())):
        raise DataError(
            f"{path} cannot list images that are packed in tar or Arrow files or were cut out of "
            "photos: give a folder with --out, which gets copies"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="") as file:
            if path.suffix.lower() == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, ["path", "label", "split"], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    except FileExistsError:
        raise DataError(f"{path} exists already: remove it or choose another --out") from None
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}): choose another --out") from None


def write_folders(
    out: Path,
    division: Division,
    cache: Path,
    *,
    copy: bool,
    progress: Progress | None = None,
) -> None:
    """Create the folder `out` with train/, val_on_train/ and val/, of links or copies.

    Images in tar and Arrow files and in the folder `cache` are always copied.

    Raises:
        DataError: it exists, or cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists already: remove it or choose another --out")
    partial = out.with_name(f"{out.name}.{secrets.token_hex(4)}.partial")
    total, done = sum(map(len, division.values())), 0
    try:
        for split, images in division.items():
            for image in images:
                folder = partial / SPLITS[split] / folder_name(image.key)
                folder.mkdir(parents=True, exist_ok=True)
                target = _free_name(folder / location(image.path).name)
                if isinstance(image.path, PackedImage):
                    target.write_bytes(image.path.read_bytes())
                elif copy or _is_in(cache, image.path):
                    shutil.copy2(image.path, target)
                else:
                    target.symlink_to(image.path.resolve())
                done += 1
                if progress and (done % 256 == 0 or done == total):
                    progress(done, total)
        partial.replace(out)
    except OSError as error:
        raise DataError(
            f"cannot write {out} ({error.strerror}): free some space or choose another --out"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_in(folder: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def folder_name(key: str) -> str:
    """The name of the folder of the class `key`."""
    return re.sub(r"^\.+|[/\\\x00-\x1f]", "_", key)


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free
