"""Captions of single images, for L_cap: a JSONL file, and the teacher's features of its texts.

    {"image": "train/n01440764/12.jpg", "caption": "a long green fish held by a boy"}

`image` is relative to the data folder or to train/. Features of several captions of one image are
averaged. `enrich export captions` writes such a file.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from contract import ImageCaption
from distill.data.files.packed_image import location
from distill.data.files.tensor_file import cached_tensor
from distill.data.pixels import Progress
from distill.data.splits import Split
from distill.embeddings.text_bank import encode_groups
from distill.errors import TextError
from distill.models.teacher import Teacher


def read_captions(path: Path, root: Path, split: Split) -> tuple[tuple[str, ...], ...]:
    """The captions in the JSONL file `path` of each image of `split` below the data folder `root`.

    Captions of images outside the split are ignored.

    Raises:
        TextError: the file is missing or malformed, or has a caption for no image of the split.
    """
    positions = {location(image): index for index, image in enumerate(split.paths)}
    folder = location(split.paths[0]).parents[1]
    captions: list[list[str]] = [[] for _ in split.paths]
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                try:
                    line = ImageCaption.model_validate_json(text)
                except ValidationError:
                    raise TextError(
                        f'{path}, line {number}: expected {{"image": …, "caption": …}}, found '
                        f"{text.strip()[:80]!r}"
                    ) from None
                index = positions.get(root / line.image, positions.get(folder / line.image))
                if index is not None and line.caption.strip():
                    captions[index].append(line.caption.strip())
    except OSError as error:
        raise TextError(
            f"cannot read the captions {path} ({error.strerror}): correct `captions`, or set "
            "losses.cap to 0"
        ) from None
    except UnicodeDecodeError:
        raise TextError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    if not any(captions):
        raise TextError(
            f"{path} has no caption for any image in {folder}: give paths relative to the data "
            "folder, such as train/CLASS/IMAGE.jpg"
        )
    return tuple(tuple(texts) for texts in captions)


def caption_features(
    teacher: Teacher,
    captions: Sequence[Sequence[str]],
    *,
    cache: Path,
    progress: Progress | None = None,
) -> Tensor:
    """Unit features [images, dim] float32 of each image's captions, zeros where it has none.

    Cached in `cache` under a key of the teacher's weights and the texts; a damaged file is rebuilt.

    Raises:
        DataError: the cache folder cannot be written.
    """
    content = json.dumps([teacher.fingerprint, [list(texts) for texts in captions]])
    key = hashlib.sha256(content.encode()).hexdigest()[:24]
    path = cache / f"captions-{key}.safetensors"

    def encode() -> Tensor:
        features = torch.zeros(len(captions), teacher.dim)
        captioned = [index for index, texts in enumerate(captions) if texts]
        groups = [(captions[index], "") for index in captioned]
        features[captioned] = encode_groups(teacher, groups, progress)
        return features

    return cached_tensor(path, "caption", encode)
