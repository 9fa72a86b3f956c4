"""The teacher's image features, computed once per teacher, images and transform or views.

Notable:
- On a CPU the batches are small, so that the output of a layer is still in the processor's cache
  when the next layer reads it. Measured: batches of 8 images are twice as fast as batches of 64.
- Features of stored views are written to their file batch by batch and read memory-mapped.
- The next images are decoded in threads while the teacher encodes the current ones.
- On a GPU, crops are copied from pinned memory while the previous batch is computed. The features
  of a batch are fetched after the next one has been started. Batches are as large as fits.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from contract import PixelMode
from distill.data.augment import apply_views, sample_views
from distill.data.files.image_file import DECODING
from distill.data.files.tensor_file import DamagedFile, cached_tensor, read_tensor, write_rows
from distill.data.pixels import Progress, open_pixels
from distill.data.read_ahead import decode_ahead
from distill.data.splits import Split
from distill.data.streamed_pixels import Pixels, read_batches
from distill.errors import DataError
from distill.models.devices import FittingBatches
from distill.models.teacher import Teacher, preprocessing

CPU_BATCH: Final = 8
GPU_BATCH: Final = 512  # at most
VIEWS_SEED: Final = 0
log = logging.getLogger(__name__)


def image_features(
    teacher: Teacher,
    split: Split,
    *,
    cache: Path | None,
    progress: Progress | None = None,
    normalize: bool = True,
) -> Tensor:
    """Features [images, dim] float32 of the clean images of `split`, in its order.

    Of unit length with `normalize`. With `cache`, a folder, the raw features are kept there in
    safetensors under a key of the teacher's weights, its transform and the images' names, sizes and
    times; a damaged file is rebuilt.

    Raises:
        DataError: an image cannot be read, or the cache folder cannot be written.
    """
    if cache is None:
        features = _encode(teacher, split, progress)
    else:
        content = ["raw", DECODING, teacher.fingerprint, preprocessing(teacher), split.fingerprint]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
        path = cache / f"features-{split.name}-{key}.safetensors"
        features = cached_tensor(path, "feature", lambda: _encode(teacher, split, progress))
    return F.normalize(features, dim=-1) if normalize else features


def view_features(
    teacher: Teacher,
    split: Split,
    views: int,
    *,
    cache: Path,
    pixel_mode: PixelMode = "auto",
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """View parameters [images, views, 6] for `augment.apply_views`, and the teacher's raw features
    of those views [images, views, dim] float32, memory-mapped from `cache`.

    The teacher encodes each view at its own image size, cropped from the centre square that the
    student uses. The views do not depend on a run's seed, so that they are encoded only once.

    Raises:
        DataError: an image cannot be read, or the cache folder cannot be written.
    """
    generator = torch.Generator().manual_seed(VIEWS_SEED)
    view_params = sample_views(len(split) * views, generator).view(len(split), views, -1)
    shape = (len(split), views, teacher.dim)
    params_hash = hashlib.sha256(view_params.numpy().data).hexdigest()
    content = json.dumps(
        [DECODING, params_hash, teacher.fingerprint, preprocessing(teacher), split.fingerprint]
    )
    key = hashlib.sha256(content.encode()).hexdigest()[:24]
    path = cache / f"views-{split.name}-{key}.safetensors"
    if path.exists():
        try:
            return view_params, read_tensor(path)[0]
        except (DamagedFile, OSError) as error:
            log.warning(
                "the cached views in %s are damaged (%s): computing them again", path, error
            )
    pixels = open_pixels(split, teacher.image_size, cache, pixel_mode)
    try:
        write_rows(path, _encode_views(teacher, pixels, view_params, progress), shape)
    except OSError as error:
        raise DataError(
            f"cannot write the feature cache {path} ({error.strerror}): free some space or choose "
            "another cache folder"
        ) from None
    return view_params, read_tensor(path)[0]


def _encode_views(
    teacher: Teacher, pixels: Pixels, view_params: Tensor, progress: Progress | None
) -> Iterator[Tensor]:
    """Raw features [images, views, dim] of the views of each image, a few images at a time.

    `view_params` [images, views, 6].
    """
    mean, std = (value.to(teacher.device) for value in teacher.mean_and_std)
    views = view_params.shape[1]
    size = _batch_size(teacher)
    fitting = FittingBatches(size)
    batches = torch.split(torch.arange(len(pixels)), max(1, size // views))
    for rows, images in zip(batches, read_batches(pixels, batches), strict=True):
        params = view_params[rows].flatten(0, 1)

        def encode(numbers: Tensor, images: Tensor = images, params: Tensor = params) -> Tensor:
            crops = apply_views(images[numbers // views].to(teacher.device), params[numbers])
            return teacher.encode_image((crops - mean) / std, normalize=False)

        yield fitting(encode, torch.arange(len(params))).view(len(rows), views, -1)
        if progress:
            progress(int(rows[-1]) + 1, len(pixels))


def _batch_size(teacher: Teacher) -> int:
    return CPU_BATCH if teacher.device.type == "cpu" else GPU_BATCH


def _encode(teacher: Teacher, split: Split, progress: Progress | None) -> Tensor:
    features = torch.empty(len(split), teacher.dim)
    fitting = FittingBatches(_batch_size(teacher))
    done = 0

    def store(encoded: Tensor) -> None:
        nonlocal done
        features[done : done + len(encoded)] = encoded.cpu()
        done += len(encoded)
        if progress:
            progress(done, len(split))

    running: Tensor | None = None
    for crops in decoded_crops(teacher, split.paths, _batch_size(teacher)):
        started = fitting(teacher.encode_crops, crops)
        if running is not None:
            store(running)  # waits for the device, which has the next batch to go on with
        running = started
    if running is not None:
        store(running)
    return features


def decoded_crops(teacher: Teacher, paths: Sequence[Path], size: int) -> Iterator[Tensor]:
    """Crops uint8 [≤ size, 3, height, width] of the images, decoded ahead; pinned for a GPU."""
    batches = (paths[start : start + size] for start in range(0, len(paths), size))
    for crops in decode_ahead(batches, lambda image: teacher.crop(image).numpy()):
        yield crops.pin_memory() if teacher.device.type == "cuda" else crops
