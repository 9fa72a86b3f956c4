"""The teacher's image features, computed once per teacher, images and transform."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.data import Progress, Split, open_image
from distill.errors import DataError
from distill.teacher import Teacher, preprocessing

BATCH: Final = 64


def image_features(
    teacher: Teacher, split: Split, *, cache: Path | None, progress: Progress | None = None
) -> Tensor:
    """Unit features [images, dim] float32 of the clean images of `split`, in its order.

    With `cache`, a folder, they are kept in safetensors under a key of the teacher's weights, its
    transform and the images' names, sizes and times; a damaged file there is rebuilt.

    Raises:
        DataError: an image cannot be read, or the cache folder cannot be written.
    """
    if cache is None:
        return _encode(teacher, split, progress)
    content = json.dumps([teacher.fingerprint, preprocessing(teacher), split.fingerprint()])
    key = hashlib.sha256(content.encode()).hexdigest()[:24]
    path = cache / f"features-{split.name}-{key}.safetensors"
    if path.is_file():
        try:
            features = load_file(path)["features"]
            if features.shape == (len(split), teacher.dim) and bool(features.isfinite().all()):
                return features
        except (SafetensorError, KeyError):
            pass  # cut off or foreign: rebuilt below
    features = _encode(teacher, split, progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file({"features": features}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"cannot write the feature cache {path} ({error}): free some space or choose another "
            "cache folder"
        ) from None
    return features


def _encode(teacher: Teacher, split: Split, progress: Progress | None) -> Tensor:
    rows: list[Tensor] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(split), BATCH):
            batch = split.paths[start : start + BATCH]
            images = list(pool.map(lambda path: teacher.preprocess(open_image(path)), batch))
            rows.append(teacher.encode_image(torch.stack(images)))
            if progress:
                progress(sum(len(row) for row in rows), len(split))
    return torch.cat(rows)
