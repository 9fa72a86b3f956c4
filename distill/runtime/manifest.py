"""`classifier.json`: what a classifier folder holds, and the check that all of it is there.

classifier.json           this
image_encoder.onnx        uint8 pixels [batch, 3, size, size] → unit features [batch, dim]
image_encoder.int8.onnx   the same in 8 bits, if asked for
classifier.onnx           pixels → probabilities of the exported classes, if asked for
text_encoder.onnx         token ids [batch, context] → unit features [batch, dim]
tokenizer.json            of the text encoder, for the package `tokenizers`
text_bank*.safetensors    unit text features: `tensor` [classes, dim], a row for each entry of
                          `classes`, `attributes` [attributes, dim], a row for each of theirs,
                          and `look_alikes` [look-alikes, dim]
photo_statistics.safetensors   of seen photos: for classes described by photos too, and for reasons
README.md, speed.svg      the model card, and its chart of accuracy against time
image_encoder.pt2, image_encoder_openvino.*   other formats of the encoder, if asked for
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract import Calibration, TestViews, TextStrategy, first_error_line
from distill.data.files.classifier_zip import MANIFEST as MANIFEST
from distill.errors import ClassifierError

FORMAT_VERSION: Final = 1
IMAGE_ENCODER: Final = "image_encoder.onnx"
INT8_ENCODER: Final = "image_encoder.int8.onnx"
BAKED: Final = "classifier.onnx"
TEXT_ENCODER: Final = "text_encoder.onnx"
TOKENIZER: Final = "tokenizer.json"
TEXT_BANK: Final = "text_bank.safetensors"
PHOTO_STATISTICS: Final = "photo_statistics.safetensors"
MODEL_CARD: Final = "README.md"
SPEED_CHART: Final = "speed.svg"
AGAIN: Final = "export the classifier again, or copy the whole folder again"

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
        tuple[str, ...], Field(description="What an image can show of it, for reasons")
    ] = ()
    photos: Annotated[int, Field(ge=0, description="That its row was made with, besides texts")] = 0
    offset: Annotated[float, Field(description="Added to the cosine; not 0 with photos")] = 0.0


class TeacherInfo(_Frozen):
    """The model whose text tower the classifier carries."""

    name: str
    fingerprint: Annotated[str, Field(description="SHA-256 over the teacher's weights")]
    dim: int


class StudentInfo(_Frozen):
    """The distilled image encoder."""

    name: Annotated[str, Field(description="timm model name")]
    parameters: int
    test_views: Annotated[TestViews, Field(description="Crops of an image, made in the encoder")]


class Preprocessing(_Frozen):
    """What is done to an image before the encoder, which normalises it itself."""

    image_size: Annotated[int, Field(ge=1, description="Pixels, square")]
    resize: Literal["shorter side to image_size, bicubic (Pillow)"] = (
        "shorter side to image_size, bicubic (Pillow)"
    )
    crop: Literal["centre"] = "centre"
    colour: Literal["RGB"] = "RGB"


class TextInfo(_Frozen):
    """How a class becomes text, and a text tokens."""

    strategy: TextStrategy
    context_length: Annotated[int, Field(ge=2, description="Tokens of the text encoder's input")]
    cleaning: Annotated[TextCleaning, Field(description="open_clip's cleaning before tokens")]
    prompt: Annotated[str | None, Field(description="Of most texts of the release")] = None
    prompt_version: int | None = None
    context: Annotated[str | None, Field(description="What kind of thing the classes are")] = None
    nearest_limit: Annotated[
        float, Field(description="Largest cosine of a new class's text with another class's")
    ] = 1.0


class ReleaseInfo(_Frozen):
    """The texts that the student was trained with."""

    name: str
    label_set: str
    hash: str


class FileEntry(_Frozen):
    """What a file of the folder must be."""

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
        dict[str, float], Field(description="Percent, on the validation images of the run")
    ] = {}
    latency_ms: Annotated[
        float | None, Field(description="Of one image, on the machine that wrote it")
    ] = None
    versions: Annotated[dict[str, str], Field(description="Of the packages that wrote it")] = {}
    classes: tuple[ClassEntry, ...]
    look_alikes: Annotated[
        tuple[str, ...], Field(description="An image most like one of these is of no class")
    ] = ()
    image_encoder: Annotated[str, Field(description="File of the encoder in use")] = IMAGE_ENCODER
    files: dict[str, FileEntry]

    @property
    def text_bank(self) -> str:
        """Name of the file with the text features."""
        return next(name for name in self.files if name.startswith("text_bank"))


def file_entry(content: bytes) -> FileEntry:
    """Length and SHA-256 of `content`."""
    return FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def check_folder(folder: Path, hash_later: Collection[str] = ()) -> Manifest:
    """The manifest of a classifier folder, after each of its files was checked.

    Of the files in `hash_later` only the length is; `read_file` checks the rest.

    Raises:
        ClassifierError: there is no classifier, it has another format version, or a file is
            missing, cut off or changed.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        if Path(name).name != name:
            raise ClassifierError(f"{folder / MANIFEST} names a file outside its folder: {AGAIN}")
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
        ClassifierError: the manifest does not list it, or it is missing, cut off or changed.
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
        raise ClassifierError(f"{path} is cut off: {AGAIN}")
    if found != expected:
        raise ClassifierError(f"{path} is not the file that was exported: {AGAIN}")


def read_manifest(folder: Path) -> Manifest:
    """The content of `classifier.json` in `folder`; the other files are not looked at.

    Raises:
        ClassifierError: it is missing, cut off, of another format version or no manifest.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ClassifierError(
            f"{folder} is no classifier folder (it has no {MANIFEST}): make one with "
            "`distill export RUN --out FOLDER`"
        ) from None
    except OSError as error:
        raise ClassifierError(f"cannot read {path} ({error.strerror})") from None
    try:
        document = json.loads(content)
    except ValueError:
        raise ClassifierError(
            f"{path} is cut off or damaged: export the classifier again"
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
        raise ClassifierError(f"{path} names no text bank: export the classifier again") from None
    return manifest
