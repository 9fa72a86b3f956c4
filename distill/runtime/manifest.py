"""`classifier.json`, the manifest of a classifier folder, and the check of the files it lists.

classifier.json           this manifest
image_encoder.onnx        uint8 pixels [batch, 3, size, size] → unit features [batch, dim]
image_encoder.int8.onnx   the same in int8, optional
classifier.onnx           pixels → probabilities of the exported classes, optional
text_encoder.onnx         token ids [batch, context] → unit features [batch, dim]
tokenizer.json            of the text encoder, for the package `tokenizers`
text_bank*.safetensors    unit text features: `tensor` [classes, dim], a row for each entry of
                          `classes`, `attributes` [attributes, dim], a row for each attribute of
                          each class, and `look_alikes` [look-alikes, dim]
photo_statistics.safetensors   mean and covariance of seen photos, for example photos and reasons
README.md, speed.svg      the model card, and its chart of accuracy against time
image_encoder.pt2, image_encoder_openvino.*   other formats of the encoder, optional
open_clip/                the student for open_clip and timm, optional, not in `files`
.classifier.lock          held by a process that writes the folder, not in `files`
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract import Calibration, TestViews, TextStrategy, first_error_line
from distill.data.files.classifier_zip import FOLDER
from distill.data.files.classifier_zip import LOCK as LOCK
from distill.data.files.classifier_zip import MANIFEST as MANIFEST
from distill.errors import ClassifierError

FORMAT_VERSION: Final = 1
ADDED: Final = "added"  # the origin of a class of no release
IMAGE_ENCODER: Final = "image_encoder.onnx"
INT8_ENCODER: Final = "image_encoder.int8.onnx"
BAKED: Final = "classifier.onnx"
TEXT_ENCODER: Final = "text_encoder.onnx"
TOKENIZER: Final = "tokenizer.json"
TEXT_BANK: Final = "text_bank.safetensors"
PHOTO_STATISTICS: Final = "photo_statistics.safetensors"
MODEL_CARD: Final = "README.md"
SPEED_CHART: Final = "speed.svg"
OPEN_CLIP: Final = "open_clip"
READ_ATTEMPTS: Final = 4
AGAIN: Final = "export the classifier again, or copy the whole folder again"

T = TypeVar("T")
TextCleaning = Literal["none", "lower", "whitespace", "canonicalize"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassEntry(_Frozen):
    """One class: row `i` of the text bank belongs to entry `i`."""

    key: Annotated[str, Field(min_length=1, description="Folder name of the class, e.g. a wnid")]
    name: Annotated[str, Field(min_length=1)]
    texts: Annotated[tuple[str, ...], Field(min_length=1, description="Prompts that were encoded")]
    seen: Annotated[bool, Field(description="Whether the student was trained on its images")]
    origin: Annotated[str, Field(description="'release HASH', or 'added'")]
    attributes: Annotated[
        tuple[str, ...], Field(description="Visible attributes, used for reasons")
    ] = ()
    photos: Annotated[int, Field(ge=0, description="Example photos mixed into its features")] = 0
    offset: Annotated[float, Field(description="Added to the cosine; 0 without photos")] = 0.0


class TeacherInfo(_Frozen):
    """The model whose text tower the classifier contains."""

    name: str
    fingerprint: Annotated[str, Field(description="SHA-256 of the teacher's weights")]
    dim: int


class StudentInfo(_Frozen):
    """The distilled image encoder."""

    name: Annotated[str, Field(description="timm model name")]
    parameters: int
    test_views: Annotated[TestViews, Field(description="Crops averaged inside the encoder")]


class Preprocessing(_Frozen):
    """How an image is prepared for the encoder, which normalises the pixels itself."""

    image_size: Annotated[int, Field(ge=1, description="Side of the square in pixels")]
    resize: Literal["shorter side to image_size, bicubic (Pillow)"] = (
        "shorter side to image_size, bicubic (Pillow)"
    )
    crop: Literal["centre"] = "centre"
    colour: Literal["RGB"] = "RGB"


class TextInfo(_Frozen):
    """How the text of a class is built and tokenised."""

    strategy: TextStrategy
    context_length: Annotated[int, Field(ge=2, description="Tokens of the text encoder's input")]
    cleaning: Annotated[TextCleaning, Field(description="open_clip's cleaning before tokenising")]
    prompt: Annotated[str | None, Field(description="Prompt of most texts of the release")] = None
    prompt_version: int | None = None
    context: Annotated[str | None, Field(description="Kind of the classes, e.g. a bird")] = None
    nearest_limit: Annotated[
        float, Field(description="Largest allowed cosine of a new text with that of another class")
    ] = 1.0


class ReleaseInfo(_Frozen):
    """The texts that the student was trained with."""

    name: str
    label_set: str
    hash: str


class FileEntry(_Frozen):
    """Expected size and SHA-256 of a file of the folder."""

    bytes: int
    sha256: str


class Manifest(_Frozen):
    """The content of classifier.json."""

    format: Literal["enrich-distill classifier"] = "enrich-distill classifier"
    version: int = FORMAT_VERSION
    created_at: datetime
    teacher: TeacherInfo
    student: StudentInfo
    release: ReleaseInfo
    preprocessing: Preprocessing
    text: TextInfo
    calibration: Calibration
    accuracies: Annotated[
        dict[str, float], Field(description="Top-1 accuracy in percent on the validation images")
    ] = {}
    latency_ms: Annotated[
        float | None, Field(description="Of one image, on the machine that exported it")
    ] = None
    versions: Annotated[dict[str, str], Field(description="Packages at export")] = {}
    classes: tuple[ClassEntry, ...]
    look_alikes: Annotated[
        tuple[str, ...], Field(description="An image most similar to one of these is unknown")
    ] = ()
    image_encoder: Annotated[str, Field(description="File of the encoder to use")] = IMAGE_ENCODER
    files: dict[str, FileEntry]

    @property
    def text_bank(self) -> str:
        """Name of the file with the text features."""
        return next(name for name in self.files if name.startswith("text_bank"))


def file_entry(content: bytes) -> FileEntry:
    """Size and SHA-256 of `content`."""
    return FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_unchanged(folder: Path, read: Callable[[Manifest], T]) -> T:
    """What `read` makes of the manifest in `folder` and its files.

    Repeated if `read` fails because another process has saved the classifier meanwhile, which
    replaces the manifest and then deletes the old text bank.

    Raises:
        ClassifierError: raised by `read`, or there is no readable manifest.
    """
    manifest = read_manifest(folder)
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return read(manifest)
        except ClassifierError:
            before, manifest = manifest, read_manifest(folder)
            if manifest == before:
                raise
    return read(manifest)


def check_folder(folder: Path, hash_later: Collection[str] = ()) -> Manifest:
    """Check each file of a classifier folder, and return the manifest.

    For files in `hash_later` only the size is checked; `read_file` checks their SHA-256.

    Raises:
        ClassifierError: there is no classifier, it has another format version, or a file is
            missing, truncated or changed.
    """
    return read_unchanged(folder, lambda manifest: check_files(folder, manifest, hash_later))


def check_files(folder: Path, manifest: Manifest, hash_later: Collection[str] = ()) -> Manifest:
    """Like `check_folder`, for a `manifest` that was read already."""
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise ClassifierError(f"{folder / MANIFEST} lists a file outside its folder: {AGAIN}")
        with _open(folder, name) as file:
            if name in hash_later:
                found = expected.model_copy(update={"bytes": os.fstat(file.fileno()).st_size})
            else:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                found = FileEntry(sha256=sha256, bytes=file.tell())
        _check_file(folder / name, found, expected)
    return manifest


def read_file(folder: Path, manifest: Manifest, name: str) -> bytes:
    """The content of the file `name` of a classifier folder.

    Raises:
        ClassifierError: the manifest does not list it, or it is missing, truncated or changed.
    """
    if name not in manifest.files:
        raise ClassifierError(f"{folder} lists no {name}: export the classifier again")
    with _open(folder, name) as file:
        content = file.read()
    _check_file(folder / name, file_entry(content), manifest.files[name])
    return content


@contextmanager
def _open(folder: Path, name: str) -> Iterator[BufferedReader]:
    try:
        with (folder / name).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ClassifierError(f"{folder} has no file {name}: {AGAIN}") from None
    except OSError as error:
        raise ClassifierError(f"cannot read {folder / name} ({error.strerror})") from None


def _check_file(path: Path, found: FileEntry, expected: FileEntry) -> None:
    if found.bytes < expected.bytes:
        raise ClassifierError(f"{path} is truncated: {AGAIN}")
    if found != expected:
        raise ClassifierError(f"{path} is not the file that was exported: {AGAIN}")


def read_manifest(folder: Path) -> Manifest:
    """The content of `classifier.json` in `folder`; the other files are not read.

    Raises:
        ClassifierError: it is missing, truncated, of another format version or not a manifest.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except NotADirectoryError:
        raise ClassifierError(
            f"{folder} is not a folder: give the folder that contains {MANIFEST}"
        ) from None
    except FileNotFoundError:
        if (folder / FOLDER / MANIFEST).is_file():
            raise ClassifierError(
                f"{folder} is not a classifier folder: its classifier is {folder / FOLDER}"
            ) from None
        raise ClassifierError(
            f"{folder} is not a classifier folder (it has no {MANIFEST}): make one with "
            "`distill export RUN --out FOLDER`"
        ) from None
    except OSError as error:
        raise ClassifierError(f"cannot read {path} ({error.strerror})") from None
    try:
        document = json.loads(content)
    except ValueError:
        raise ClassifierError(
            f"{path} is truncated or damaged: export the classifier again"
        ) from None
    version = document.get("version") if isinstance(document, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise ClassifierError(
            f"{folder} has the format version {version}, and this program reads "
            f"{FORMAT_VERSION}: export the classifier again, or install the version that wrote it"
        )
    try:
        manifest = Manifest.model_validate(document)
        _ = manifest.text_bank
    except ValidationError as error:
        raise ClassifierError(
            f"{path} is not a classifier manifest ({first_error_line(error)}): export it again"
        ) from None
    except StopIteration:
        raise ClassifierError(f"{path} lists no text bank: export the classifier again") from None
    return manifest
