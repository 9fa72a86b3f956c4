"""A Hugging Face dataset: a folder that `save_to_disk` wrote, or a name on the hub (`hf:NAME`)."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contract import error_line
from distill.data.sources.arrow_images import NotInPlace, rows_in_place
from distill.data.sources.image_store import EncodedImage, files_identity, stored_images
from distill.data.sources.labelled_image import LabelledImage, Progress
from distill.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

SCHEME: Final = "hf:"
FILES: Final = ("dataset_dict.json", "state.json")  # of a folder that save_to_disk wrote
UNLABELLED: Final = -1  # the label of images without one on the hub, often of a test split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HuggingFaceDataset:
    """A dataset with a column of images and one of labels.

    `name` is a folder, or hf:ORGANISATION/NAME, or hf:ORGANISATION/NAME@CONFIGURATION.
    """

    name: str

    def images(self, cache: Path, progress: Progress | None = None) -> list[LabelledImage]:
        """The images of all splits, in the order of the rows; in place where that is possible.

        A split other than train is left out if none of its images has a label.
        """
        parts = self._labelled(self._load())
        try:
            return list(self._images_in_place(parts))
        except NotInPlace:
            return self._unpacked(parts, cache, progress)

    def _images_in_place(self, parts: Mapping[str, "Dataset"]) -> Iterator[LabelledImage]:
        for split, part in parts.items():
            image_column, label_column = self._columns(part)
            files = [Path(file["filename"]) for file in part.cache_files]
            rows = rows_in_place(files, image_column, label_column)
            if len(rows) != len(part):
                raise NotInPlace("the dataset is a selection from its files, or is in memory")
            label = part.features[label_column]
            for row in rows:
                yield LabelledImage(split or None, _key(label, row.label), row.image)

    def _unpacked(
        self, parts: Mapping[str, "Dataset"], cache: Path, progress: Progress | None
    ) -> list[LabelledImage]:
        files = sorted(
            Path(file["filename"]) for part in parts.values() for file in part.cache_files
        )
        identity = [self.name, *files_identity(files)]
        rows = sum(len(part) for part in parts.values())
        return stored_images(
            cache,
            identity,
            rows,
            lambda start: ([row] for row in islice(self._rows(parts), start, None)),
            progress,
        )

    def _load(self) -> Mapping[str, "Dataset"]:
        try:
            import datasets
        except ModuleNotFoundError:
            raise DataError(
                f"{self.name} needs the package datasets: pip install 'enrich-distill[hf]'"
            ) from None
        try:
            loaded = (
                datasets.load_dataset(*_hub_name(self.name))
                if self.name.startswith(SCHEME)
                else datasets.load_from_disk(self.name)
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = error_line(error)
            raise DataError(f"cannot load the dataset {self.name} ({reason})") from None
        return loaded if isinstance(loaded, dict) else {"": loaded}

    def _labelled(self, parts: Mapping[str, "Dataset"]) -> Mapping[str, "Dataset"]:
        """The splits whose images have labels.

        Raises:
            DataError: an image of another split has no label, or no split is left.
        """
        labelled: dict[str, Dataset] = {}
        for split, part in parts.items():
            column = self._columns(part)[1]
            values = part.select_columns([column])[:][column]
            if split not in ("", "train") and all(value in (None, UNLABELLED) for value in values):
                log.warning("the split %r of %s has no labels: it is left out", split, self.name)
                continue
            self._check_labels(split, part.features[column], values)
            labelled[split] = part
        if not labelled:
            raise DataError(f"the dataset {self.name} has no split with labels: label its images")
        return labelled

    def _check_labels(self, split: str, label: Any, values: Sequence[Any]) -> None:  # noqa: ANN401
        """Check that all `values` of the feature `label` name a class."""
        classes = getattr(label, "num_classes", None)
        for row, value in enumerate(values):
            if value is None or value == "" or (classes and value == UNLABELLED):
                problem = f"has no label ({value}): remove the row"
            elif classes and not 0 <= value < classes:
                problem = f"has the label {value}, but there are only {classes} classes"
            else:
                continue
            place = f"the split {split!r}, " if split else ""
            raise DataError(f"the dataset {self.name}, {place}row {row} {problem}")

    def _rows(self, parts: Mapping[str, "Dataset"]) -> Iterator[EncodedImage]:
        from datasets import Image

        for split, part in parts.items():
            image_column, label_column = self._columns(part)
            label = part.features[label_column]
            for row in part.cast_column(image_column, Image(decode=False)):
                image, key = row[image_column], _key(label, row[label_column])
                content = image["bytes"] or Path(image["path"]).read_bytes()
                yield EncodedImage(split or None, key, image["path"] or "", content)

    def _columns(self, part: "Dataset") -> tuple[str, str]:
        """The columns with images and with labels."""
        from datasets import ClassLabel, Image

        features: dict[str, Any] = dict(part.features)
        images = [name for name, kind in features.items() if isinstance(kind, Image)]
        labels = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
        labels = ["label"] if "label" in features else labels
        if not images or not labels:
            raise DataError(
                f"the dataset {self.name} has no column of {'labels' if images else 'images'} (it "
                f"has {', '.join(features)}): it needs a column of type Image and one called label"
            )
        return images[0], labels[0]


def _key(label: Any, value: Any) -> str:  # noqa: ANN401 - a feature of datasets, and its value
    """The class of a stored label."""
    return str(label.int2str(value) if hasattr(label, "int2str") else value)


def _hub_name(name: str) -> list[str]:
    """The arguments of `load_dataset`, which would read a folder of that name as well."""
    path, _, configuration = name.removeprefix(SCHEME).partition("@")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) or Path(path).exists():
        raise DataError(f"{name} is no name of a dataset on the hub: give hf:ORGANISATION/NAME")
    return [path, configuration] if configuration else [path]
