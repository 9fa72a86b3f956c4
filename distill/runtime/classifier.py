"""`Classifier` loads a classifier folder, classifies photos, and adds and removes classes."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from contract import ReleaseLabel
from contract.images import upright_rgb
from distill.data.files.image_file import open_image
from distill.embeddings.attributes import clauses
from distill.embeddings.class_prompts import prefix_of
from distill.embeddings.look_alikes import plain_spelling
from distill.errors import (
    ClassExists,
    ClassifierError,
    UnknownClass,
    UnreadableImages,
    counted,
)
from distill.runtime.image_encoder import ImageEncoder, Pixels
from distill.runtime.manifest import (
    ADDED,
    BAKED,
    MANIFEST,
    PHOTO_STATISTICS,
    TEXT_BANK,
    TEXT_ENCODER,
    TOKENIZER,
    ClassEntry,
    Manifest,
    check_files,
    file_entry,
    read_file,
    read_unchanged,
)
from distill.runtime.photo_class import PhotoStatistics
from distill.runtime.reasons import DescribedClass, Reasons, find_reasons
from distill.runtime.text_encoder import Features, TextEncoder
from distill.runtime.write_folder import save_in_place, write_folder

BATCH: Final = 32
Photo = str | Path | Image.Image


@dataclass(frozen=True)
class Candidate:
    """One class for one image.

    `cosine` is the cosine of the image features and the class's text features; `seen` is whether
    the student was trained on images of the class.
    """

    key: str
    name: str
    probability: float
    cosine: float
    seen: bool


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, best first.

    `unknown` is True if the image is probably of none of the classes: the best score is below the
    classifier's threshold or below that of a look-alike. `reasons` is set if requested and if the
    classes have texts.
    """

    candidates: tuple[Candidate, ...]
    unknown: bool
    reasons: Reasons | None = None

    @property
    def best(self) -> Candidate:
        """The likeliest class."""
        return self.candidates[0]


class Classifier:
    """A loaded classifier folder. Row `bank[i]` [dim] has the features of `manifest.classes[i]`.

    `attributes` [attributes, dim] are the text features of all attributes, in the order of the
    classes, and `look_alikes` [look-alikes, dim] those of `manifest.look_alikes`.
    """

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.manifest, self._folder = manifest, folder
        self._saved = manifest  # as it is in the folder
        self.image_encoder = ImageEncoder(
            folder / manifest.image_encoder, manifest.preprocessing.image_size, threads
        )
        self._changed = False  # whether the classes changed since the export or load
        self.bank, self.attributes, self.look_alikes = _read_bank(folder, manifest)
        self._photo_statistics = _read_photo_statistics(folder, manifest)
        self._texts = TextEncoder(
            lambda: read_file(folder, manifest, TEXT_ENCODER),
            read_file(folder, manifest, TOKENIZER),
            context_length=manifest.text.context_length,
            cleaning=manifest.text.cleaning,
            threads=threads,
        )

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> Self:
        """Load the classifier in `folder` and check its files against their SHA-256.

        The text encoder, which is large, is loaded and checked when the first text is encoded.
        `threads` is the number of threads that encode images, by default one per core.

        Raises:
            ClassifierError: `folder` has no classifier or one of another format version, or a file
                is missing, truncated or changed.
        """
        path = Path(folder)
        return read_unchanged(path, lambda manifest: cls._read(path, manifest, threads))

    @classmethod
    def _read(cls, folder: Path, manifest: Manifest, threads: int | None) -> Self:
        check_files(folder, manifest, hash_later={TEXT_ENCODER})
        for name in (manifest.image_encoder, TEXT_ENCODER):
            if name not in manifest.files:
                raise ClassifierError(f"{folder} lists no {name}: export the classifier again")
        return cls(folder, manifest, threads)

    def prepare_texts(self) -> None:
        """Load the text encoder, which takes up to some seconds, before a class is added.

        Raises:
            ClassifierError: the text encoder is missing, truncated or changed.
        """
        self._texts.encode([""])

    def copy(self) -> Self:
        """A copy whose classes change independently; it shares the encoders."""
        return copy(self)

    @property
    def classes(self) -> tuple[ClassEntry, ...]:
        """All classes, in the order of the bank."""
        return self.manifest.classes

    def encode(self, photos: Photo | Sequence[Photo]) -> Features:
        """Unit features [photos, dim] of one or several photos: paths, or Pillow images.

        Raises:
            UnreadableImages: a file is missing, truncated or not an image.
            TypeError: a photo is neither a path nor a Pillow image.
        """
        encoded = [
            self.image_encoder.encode(np.stack(list(batch)))
            for batch in _batches(self._pixels(_as_list(photos)))
        ]
        return np.concatenate(encoded) if encoded else self.bank[:0]

    def _pixels(self, photos: Sequence[Photo]) -> Iterator[Pixels]:
        for photo in photos:
            if isinstance(photo, Image.Image):
                if 0 in photo.size:
                    width, height = photo.size
                    raise UnreadableImages([f"of {width} × {height} pixels (it is empty)"])
                yield self.image_encoder.pixels(upright_rgb(photo))
            else:
                yield self.image_encoder.pixels(open_image(Path(photo)))

    @property
    def has_reasons(self) -> bool:
        """Whether predictions can have reasons: some class has attributes."""
        return self._photo_statistics is not None and any(x.attributes for x in self.classes)

    def classify(
        self,
        photos: Photo | Sequence[Photo],
        top: int = 5,
        *,
        among: Sequence[str] | None = None,
        reasons: bool = False,
    ) -> list[Prediction]:
        """The `top` likeliest classes of each photo, best first.

        `photos` are paths or Pillow images; one photo gives a list of one prediction. `among`
        restricts the classes to those with these keys. With `reasons`, each prediction has
        the attributes that support its best class and the differences from the runner-up, or None
        if no class has a text.

        Raises:
            UnreadableImages: a file is missing, truncated or not an image.
            ClassifierError: the classifier has no classes, or no class with one of the keys;
                `among` is empty or has a key twice; or `top` is less than 1.
            TypeError: a photo is neither a path nor a Pillow image.
        """
        _check_top(top)  # before the photos are read
        self._rows(among)
        return self.rank(self.encode(photos), top, among=among, reasons=reasons)

    def rank(
        self,
        features: Features,
        top: int = 5,
        *,
        among: Sequence[str] | None = None,
        reasons: bool = False,
    ) -> list[Prediction]:
        """Like `classify`, for unit image features [images, dim] instead of photos.

        Raises:
            ClassifierError: the classifier has no classes, or no class with one of the keys;
                `among` is empty or has a key twice; or `top` is less than 1.
        """
        _check_top(top)
        rows = self._rows(among)
        offsets = np.array([self.classes[row].offset for row in rows], np.float32)
        cosines = features @ self.bank[rows].T + offsets
        probabilities = self._probabilities(cosines, rows)
        unknown = self._unknown(features, cosines, rows)
        predictions = [
            self._prediction(rows, *row, top)
            for row in zip(cosines, probabilities, unknown, strict=True)
        ]
        if not (reasons and self.has_reasons):
            return predictions
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :2]
        return [
            replace(prediction, reasons=self._reasons(image, [rows[i] for i in top_two]))
            for prediction, image, top_two in zip(predictions, features, best, strict=True)
        ]

    def _reasons(self, image: Features, rows: Sequence[int]) -> Reasons | None:
        """Reasons for one image; `rows` has the best class and, if there is one, the runner-up."""
        if self._photo_statistics is None:
            return None
        best, *others = map(self._described, rows)
        return find_reasons(image, best, others[0] if others else None, self._photo_statistics)

    def _described(self, row: int) -> DescribedClass:
        entry = self.classes[row]
        features = self.attributes[self._attribute_rows(row)]
        return DescribedClass(entry.key, entry.name, entry.attributes, features, self.bank[row])

    def _attribute_rows(self, row: int) -> slice:
        start = sum(len(entry.attributes) for entry in self.classes[:row])
        return slice(start, start + len(self.classes[row].attributes))

    def _rows(self, among: Sequence[str] | None) -> list[int]:
        row_of_key = {entry.key: row for row, entry in enumerate(self.classes)}
        if not row_of_key:
            raise ClassifierError("the classifier has no class: add one with a name and a text")
        if among is None:
            return list(row_of_key.values())
        missing = [key for key in among if key not in row_of_key]
        if missing:
            raise UnknownClass(f"the classifier has no class with the key {missing[0]!r}")
        if len(set(among)) < len(among) or not among:
            raise ClassifierError(
                "among must have at least one key, each once: None means all classes"
            )
        return [row_of_key[key] for key in among]

    def _probabilities(self, cosines: Features, rows: Sequence[int]) -> NDArray[np.float64]:
        """softmax((cosine − seen_bias · seen) / temperature), [photos, classes]."""
        biased = self._biased(cosines, rows)
        scores = biased / self.manifest.calibration.temperature
        exps = np.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = exps / exps.sum(axis=1, keepdims=True)
        return probabilities

    def _biased(self, cosines: Features, rows: Sequence[int]) -> NDArray[np.float64]:
        """Cosines [photos, classes] minus the seen bias of the classes trained on."""
        seen = np.array([self.classes[row].seen for row in rows])
        biased: NDArray[np.float64] = cosines - self.manifest.calibration.seen_bias * seen
        return biased

    def _unknown(
        self, features: Features, cosines: Features, rows: Sequence[int]
    ) -> NDArray[np.bool_]:
        """Whether each photo is probably of none of the classes at `rows`, [photos]."""
        threshold = self.manifest.calibration.unknown_threshold
        unknown = np.zeros(len(features), bool)
        if threshold is not None:
            unknown |= cosines.max(axis=1) < threshold
        if len(self.look_alikes):
            best_look_alike = (features @ self.look_alikes.T).max(axis=1)
            unknown |= best_look_alike > self._biased(cosines, rows).max(axis=1)
        return unknown

    def _prediction(
        self,
        rows: Sequence[int],
        cosines: Features,
        probabilities: NDArray[np.float64],
        unknown: bool,
        top: int,
    ) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")[:top]
        candidates = tuple(
            Candidate(
                self.classes[rows[i]].key,
                self.classes[rows[i]].name,
                float(probabilities[i]),
                float(cosines[i]),
                self.classes[rows[i]].seen,
            )
            for i in order
        )
        return Prediction(candidates, bool(unknown))

    def add(
        self,
        name: str,
        text: str | Sequence[str] | None = None,
        *,
        key: str | None = None,
        allow_near: bool = False,
    ) -> ClassEntry:
        """Add the class `name`, described by one or several texts.

        Without `text`, the prompt "a photo of NAME" is used. `key` defaults to the name.
        `allow_near` accepts a text that is more similar to that of another class than the
        classifier's limit.

        Raises:
            ClassifierError: the name or a text is empty, the class exists already, maybe in another
                spelling, or its text is too similar to that of another class.
        """
        name = self.check_name(name, key)
        texts = (text,) if isinstance(text, str) else text
        if texts is not None and not (texts and all(text.strip() for text in texts)):
            raise ClassifierError(f"the text of the new class {name!r} is empty: describe it")
        prefix, prompts = self._prompts(name, texts)
        features = self._texts.encode_class(prompts, prefix)
        if not allow_near:
            self._check_near(name, features)
        attributes = self._attributes_in(name, texts or ())
        added = ClassEntry(
            key=key or name,
            name=name,
            texts=prompts,
            seen=False,
            origin=ADDED,
            attributes=attributes,
        )
        if attributes:
            encoded = self._texts.encode_each(attributes)
            self.attributes = np.concatenate([self.attributes, encoded])
        self._drop_look_alike(name)
        self._replace((*self.classes, added), np.concatenate([self.bank, features[None]]))
        return added

    def _drop_look_alike(self, name: str) -> None:
        """Remove the look-alike that has become a class, so that it no longer rejects images."""
        names = self.manifest.look_alikes
        kept = [
            row
            for row, look_alike in enumerate(names)
            if plain_spelling(look_alike) != plain_spelling(name)
        ]
        self.look_alikes = self.look_alikes[kept]
        self.manifest = self.manifest.model_copy(
            update={"look_alikes": tuple(names[row] for row in kept)}
        )

    def _attributes_in(self, name: str, texts: Sequence[str]) -> tuple[str, ...]:
        """The visible attributes in the `texts` of a new class."""
        is_list = self.manifest.text.strategy == "attributes"  # each text is one attribute
        return (
            tuple(dict.fromkeys(" ".join(x.split()) for x in texts))
            if is_list
            else clauses(name, texts)
        )

    def add_photos(self, name: str, photos: Photo | Sequence[Photo]) -> ClassEntry:
        """Combine the class with this name or key with example photos, without training.

        Raises:
            UnreadableImages: a file is missing, truncated or not an image.
            ClassifierError: there is no such class, it has photos already, or `photos` is empty.
            TypeError: a photo is neither a path nor a Pillow image.
        """
        photos = _as_list(photos)
        row = self._row_of(name)
        entry = self.classes[row]
        if entry.photos:
            raise ClassExists(
                f"the class {entry.name!r} has {counted(entry.photos, 'photo')} already: remove "
                "it and add it again, with all its photos"
            )
        if not photos:
            raise ClassifierError(f"no photos for the class {entry.name!r}: give at least one")
        if self._photo_statistics is None:
            raise ClassifierError(
                f"{self._folder} lists no {PHOTO_STATISTICS}: export the classifier again"
            )
        mixed, offset = self._photo_statistics.mix(
            self.bank[row], self.encode(photos), self.manifest.calibration.text_photos
        )
        changed = entry.model_copy(update={"photos": len(photos), "offset": offset})
        bank = self.bank.copy()
        bank[row] = mixed
        self._replace((*self.classes[:row], changed, *self.classes[row + 1 :]), bank)
        return changed

    def check_name(self, name: str, key: str | None = None) -> str:
        """`name` with single spaces, after checking that a class with it and `key` can be added.

        Raises:
            ClassifierError: the name is empty, or exists already, maybe in another spelling.
        """
        name = " ".join(name.split())
        if not name:
            raise ClassifierError("a new class needs a name: none was given")
        spelling = plain_spelling(name)
        for entry in self.classes:
            same = spelling in (plain_spelling(entry.name), plain_spelling(entry.key))
            if same or (key or name) == entry.key:
                raise ClassExists(
                    f"the class {name!r} exists already, as {entry.name!r}: remove it first "
                    "(--remove on the command line), or choose another name"
                )
        return name

    def _prompts(self, name: str, texts: Sequence[str] | None) -> tuple[str, tuple[str, ...]]:
        """The prompt prefix and the full prompts, built as in training."""
        if texts is None:
            return "", (f"a photo of {name}",)
        strategy = self.manifest.text.strategy
        described = "name+description" if strategy == "name" else strategy
        prefix = prefix_of(ReleaseLabel(key=name, name=name), described)
        return prefix, tuple(prefix + " ".join(text.split()) for text in texts)

    def _check_near(self, name: str, features: Features) -> None:
        if not len(self.bank):
            return
        cosines = self.bank @ features
        nearest, limit = int(cosines.argmax()), self.manifest.text.nearest_limit
        if cosines[nearest] > limit:
            raise ClassExists(
                f"the text of {name!r} is too similar to that of "
                f"{self.classes[nearest].name!r} (cosine {cosines[nearest]:.4f}, limit "
                f"{limit:.4f}): describe how they differ, or add it anyway (--allow-near; "
                "allow_near in Python and REST)"
            )

    def remove(self, name: str) -> ClassEntry:
        """Remove the class with this name or key, and return it.

        Raises:
            UnknownClass: there is no such class.
        """
        row = self._row_of(name)
        removed = self.classes[row]
        others = (*self.classes[:row], *self.classes[row + 1 :])
        self.attributes = np.delete(self.attributes, self._attribute_rows(row), axis=0)
        self._replace(others, np.delete(self.bank, row, axis=0))
        return removed

    def _row_of(self, name: str) -> int:
        spelling = plain_spelling(name)
        for row, entry in enumerate(self.classes):
            if name == entry.key or spelling == plain_spelling(entry.name):
                return row
        raise UnknownClass(f"the classifier has no class {name!r}")

    def _replace(self, classes: tuple[ClassEntry, ...], bank: Features) -> None:
        self.manifest = self.manifest.model_copy(update={"classes": classes})
        self.bank = bank
        self._changed = True

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the classifier with its current classes to `folder`, by default its own folder.

        The write is atomic: a kill leaves either the old classifier or the new one.

        Raises:
            ClassifierChanged: another program has saved the classifier since it was loaded.
            ClassifierError: the folder cannot be written, or another folder than the classifier's
                own has other files.
        """
        target = self._folder if folder is None else Path(folder)
        in_place = folder is None or target.resolve() == self._folder.resolve()
        tensors = {
            "tensor": self.bank,
            "attributes": self.attributes,
            "look_alikes": self.look_alikes,
        }
        bank = save_tensors({name: np.ascontiguousarray(x) for name, x in tensors.items()})
        # In place, two banks may exist; the manifest, which is replaced last, names the valid one.
        bank_name = (
            f"text_bank-{file_entry(bank).sha256[:12]}.safetensors" if in_place else TEXT_BANK
        )
        stale = {self.manifest.text_bank}
        if self._changed:  # the baked model has the old classes
            stale.add(BAKED)
        others = [name for name in self.manifest.files if name not in stale]
        entries = {name: self.manifest.files[name] for name in others}
        manifest = self.manifest.model_copy(
            update={"files": entries | {bank_name: file_entry(bank)}}
        )
        if in_place:
            save_in_place(target, manifest, bank, replaces=self._saved)
        else:
            files = {name: read_file(self._folder, self.manifest, name) for name in others}
            write_folder(target, manifest, files | {bank_name: bank})
        self.manifest, self._saved, self._folder = manifest, manifest, target
        return target


def _read_bank(folder: Path, manifest: Manifest) -> tuple[Features, Features, Features]:
    """Text features [rows, dim] of the classes, of their attributes and of the look-alikes."""
    content = read_file(folder, manifest, manifest.text_bank)
    try:
        tensors: dict[str, Features] = load_tensors(content)
    except SafetensorError:
        tensors = {}
    counts = {
        "tensor": len(manifest.classes),
        "attributes": sum(len(entry.attributes) for entry in manifest.classes),
        "look_alikes": len(manifest.look_alikes),
    }
    empty = np.empty((0, manifest.teacher.dim), np.float32)
    features = {name: tensors.get(name, empty) for name in counts}
    if any(features[name].shape != (counts[name], manifest.teacher.dim) for name in counts):
        raise ClassifierError(
            f"{folder / manifest.text_bank} does not fit {MANIFEST}: export the classifier again"
        )
    return features["tensor"], features["attributes"], features["look_alikes"]


def _read_photo_statistics(folder: Path, manifest: Manifest) -> PhotoStatistics | None:
    if PHOTO_STATISTICS not in manifest.files:
        return None
    return PhotoStatistics.read(read_file(folder, manifest, PHOTO_STATISTICS))


def _as_list(photos: Photo | Sequence[Photo]) -> list[Photo]:
    """`photos`, or the only photo, as a list.

    Raises:
        TypeError: a photo is neither a path nor a Pillow image.
    """
    several = isinstance(photos, Sequence) and not isinstance(photos, str | bytes | bytearray)
    listed = list(cast(Sequence[Photo], photos)) if several else [cast(Photo, photos)]
    for photo in listed:
        if not isinstance(photo, str | Path | Image.Image):
            raise TypeError(
                f"a photo must be a path or a Pillow image, not {type(photo).__name__}: open bytes "
                "with PIL.Image.open(io.BytesIO(photo)), arrays with PIL.Image.fromarray(photo)"
            )
    return listed


def _check_top(top: int) -> None:
    if top < 1:
        raise ClassifierError(f"top must be at least 1, the number of classes, not {top}")


def _batches(pixels: Iterator[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.uint8]]]:
    while batch := list(islice(pixels, BATCH)):
        yield batch
