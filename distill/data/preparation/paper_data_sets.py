"""Arranges the paper's six data sets in the layout train/, val_on_train/, val/.

The images are downloaded from their authors (or by torchvision). The paper's split lists assign
them: `train_data.txt`, `val_on_train_data.txt` and `val_data.txt`, one `SPLIT/CLASS/IMAGE` per
line. `label2text.txt` and `chatgpt.txt` in the same folder are copied.

- Everything is checked before anything is written, and the folder is created atomically.
- `prepared.json` records the SHA-256 of the three lists, concatenated:
  `cat train_data.txt val_on_train_data.txt val_data.txt | sha256sum`.
"""

import hashlib
import secrets
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from contract import error_line
from distill.data.pixels import Progress
from distill.data.releases import release_from_pairs
from distill.data.splits import SPLITS
from distill.errors import DataError

RECORD: Final = "prepared.json"
TEXTS: Final = ("label2text.txt", "chatgpt.txt")


@dataclass(frozen=True)
class Layout:
    """The folder layout of a downloaded data set."""

    title: str
    page: str  # download page
    paths: tuple[str, ...]  # path templates of an image; the first that exists is used
    torchvision: str | None = None  # the torchvision class that can download it
    class_file: tuple[str, ...] = ()  # lines like '/a/abbey/inner', the folder of abbey_inner


LAYOUTS: Final[dict[str, Layout]] = {
    "CaltechBirds": Layout(
        "CUB-200-2011",
        "https://data.caltech.edu/records/65de6-vp158",
        ("CUB_200_2011/images/{folder}/{image}", "images/{folder}/{image}"),
    ),
    "StanfordCars": Layout(
        "Stanford Cars (cars_train)",
        "https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset",
        ("cars_train/{image}", "cars_train/cars_train/{image}", "stanford_cars/cars_train/{image}"),
    ),
    "Flower102": Layout(
        "Flowers-102",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        ("flowers-102/jpg/{image}", "jpg/{image}"),
        torchvision="Flowers102",
    ),
    "Food101": Layout(
        "Food-101",
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        ("food-101/images/{folder}/{image}", "images/{folder}/{image}"),
        torchvision="Food101",
    ),
    "SUN397": Layout(
        "SUN397",
        "https://vision.princeton.edu/projects/2010/SUN/",
        ("SUN397/{folder}/{image}", "{folder}/{image}"),
        torchvision="SUN397",
        class_file=("SUN397/ClassName.txt", "ClassName.txt"),
    ),
    "tiered-ImageNet": Layout(
        "tiered-ImageNet",
        "https://lyy.mpi-inf.mpg.de/mtl/download/",
        tuple(
            f"{top}{part}/{{folder}}/{{image}}"
            for top in ("tiered_imagenet/", "")
            for part in ("train", "val", "test")
        ),
    ),
}


class Prepared(BaseModel):
    """The prepared data set, and the SHA-256 of its lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    folder: str
    lists_sha256: str
    images: dict[str, int]  # by split
    classes: dict[str, int]
    copied: bool  # False: symbolic links


def prepare(
    name: str,
    root: Path,
    lists: Path,
    out: Path,
    *,
    sha256: str | None = None,
    copy: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Arrange the data set `name` in `root` by the split `lists` in the new folder `out`.

    Images are linked, or copied with `copy`. With `sha256`, the lists must have this hash.

    Raises:
        DataError: the name is unknown, the lists have another hash or are inconsistent, an image
            or a label is missing, or `out` exists or cannot be written.
        TextError: the labels next to the lists are malformed.
    """
    layout = _layout(name)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out} exists already: remove it or choose another --out")
    splits, found_sha256 = _read_lists(lists)
    if sha256 is not None and sha256.strip().lower() != found_sha256:
        raise DataError(
            f"the lists in {lists} have the SHA-256 {found_sha256}, not the given one: download "
            "them again, or correct --sha256"
        )
    _check_splits(lists, splits)
    _check_labels(lists, splits)
    sources = _find(layout, root, splits)
    result = Prepared(
        name=name,
        folder=str(out),
        lists_sha256=found_sha256,
        images={split: len(images) for split, images in splits.items()},
        classes={split: len({key for key, _ in images}) for split, images in splits.items()},
        copied=copy,
    )
    _write_folder(result, sources, lists, progress)
    return result


def _write_folder(
    result: Prepared, sources: dict[str, Path], lists: Path, progress: Progress | None
) -> None:
    """Create the folder with its images, texts and record atomically."""
    out = Path(result.folder)
    partial = out.with_name(f"{out.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        for done, (target, source) in enumerate(sources.items(), start=1):
            path = partial / target
            path.parent.mkdir(parents=True, exist_ok=True)
            if result.copied:
                shutil.copy2(source, path)
            else:
                path.symlink_to(source.resolve())
            if progress and (done % 256 == 0 or done == len(sources)):
                progress(done, len(sources))
        for text in TEXTS:
            if (lists / text).is_file():
                shutil.copyfile(lists / text, partial / text)
        (partial / RECORD).write_text(result.model_dump_json(indent=1) + "\n")
        partial.replace(out)
    except OSError as error:
        raise DataError(
            f"cannot write {out} ({error.strerror}): free some space or choose another --out"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def download(name: str, root: Path) -> None:
    """Download the data set `name` to `root` with torchvision, unless it exists.

    Raises:
        DataError: torchvision does not support the data set, or the download failed.
    """
    layout = _layout(name)
    if layout.torchvision is None:
        raise DataError(
            f"torchvision cannot download {layout.title}: download it from {layout.page} and "
            f"extract it in {root}"
        )
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(datasets, layout.torchvision)(root, download=True)
    except ModuleNotFoundError:
        pass  # after the download, Flowers102 needs scipy to read labels, which are not used
    except (OSError, RuntimeError, ValueError) as error:
        reason = error_line(error)
        raise DataError(
            f"cannot download {layout.title} ({reason}): try again, or download it from "
            f"{layout.page} and extract it in {root}"
        ) from None


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise DataError(f"there is no data set {name!r}: choose {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


Images = tuple[tuple[str, str], ...]  # (class, image) pairs


def _read_lists(lists: Path) -> tuple[dict[str, Images], str]:
    """The images by split folder, and the SHA-256 of the three concatenated files."""
    digest = hashlib.sha256()
    splits: dict[str, Images] = {}
    for split in SPLITS.values():
        path = lists / f"{split}_data.txt"
        try:
            content = path.read_bytes()
            lines = content.decode().splitlines()
        except OSError as error:
            raise DataError(
                f"cannot read the list {path} ({error.strerror}): --lists is the folder of the "
                "paper's split lists for this data set"
            ) from None
        except UnicodeDecodeError:
            raise DataError(f"{path} is not UTF-8 text: get the list again") from None
        digest.update(content)
        images = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            folder, *parts = line.strip().split("/")
            if folder != split or len(parts) != 2 or {"", ".", ".."} & set(parts):
                raise DataError(
                    f"{path}, line {number}: expected '{split}/CLASS/IMAGE', found {line[:80]!r}"
                )
            images.append((parts[0], parts[1]))
        if not images:
            raise DataError(f"the list {path} is empty: get it again")
        splits[split] = tuple(images)
    return splits, digest.hexdigest()


def _check_splits(lists: Path, splits: dict[str, Images]) -> None:
    counts = Counter(image for images in splits.values() for image in images)
    (key, image), most = counts.most_common(1)[0]
    if most > 1:
        raise DataError(f"the lists in {lists} have {key}/{image} twice: get them again")
    train, seen, unseen = ({key for key, _ in splits[split]} for split in SPLITS.values())
    if untrained := sorted(seen - train):
        name = untrained[0]
        raise DataError(
            f"{lists}/val_on_train_data.txt has the class {name!r}, which is not in train: get the "
            "lists again"
        )
    if both := sorted(unseen & train):
        raise DataError(
            f"{lists}/val_data.txt has the class {both[0]!r}, which is also in train: get the "
            "lists again"
        )


def _check_labels(lists: Path, splits: dict[str, Images]) -> None:
    """Check that every class has a label, if there are labels next to the lists."""
    labels, texts = (lists / name for name in TEXTS)
    if not labels.is_file():
        return
    release = release_from_pairs(labels, texts if texts.is_file() else None)
    known = {label.key for label in release.labels}
    classes = {key for images in splits.values() for key, _ in images}
    if missing := sorted(classes - known):
        raise DataError(f"{labels} has no line for the class {missing[0]!r}: get it again")


def _find(layout: Layout, root: Path, splits: dict[str, Images]) -> dict[str, Path]:
    """The source file of each image in the lists, by its path in the new folder."""
    folders = _class_folders(layout, root)
    sources: dict[str, Path] = {}
    missing: list[str] = []
    for split, images in splits.items():
        for key, image in images:
            paths = [
                root / path.format(folder=folders.get(key, key), image=image)
                for path in layout.paths
            ]
            source = next((path for path in paths if path.is_file()), None)
            if source is None:
                missing.append(str(paths[0]))
            else:
                sources[f"{split}/{key}/{image}"] = source
    if missing:
        total = len(sources) + len(missing)
        raise DataError(
            f"{len(missing)} of {total} images are missing, the first is {missing[0]}: download "
            f"{layout.title} from {layout.page}"
            + (" (or with --download)" if layout.torchvision else "")
            + f" and extract it in {root}"
        )
    return sources


def _class_folders(layout: Layout, root: Path) -> dict[str, str]:
    """The folder of each class whose folder name differs from the class name."""
    for name in layout.class_file:
        if (root / name).is_file():
            lines = (root / name).read_text(encoding="utf-8").split()
            paths = [line.strip("/") for line in lines]
            return {"_".join(path.split("/")[1:]): path for path in paths}
    if layout.class_file:
        raise DataError(
            f"there is no {root / layout.class_file[0]}: download {layout.title} from "
            f"{layout.page} and extract it in {root}"
        )
    return {}
