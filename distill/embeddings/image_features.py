"""The teacher's image features, computed once per teacher, images and transform or views.

Notable:
- On a CPU the batches are small, so that the output of a layer is still in the processor's cache
  when the next layer reads it. Measured: batches of 8 images are twice as fast as batches of 64.
- Features are written in shards as they come, and read memory-mapped. A computation that was
  killed continues with the shards that are there.
- The next images are decoded in threads while the teacher encodes the current ones.
- Features of each precision are cached separately: bfloat16 differs from float32 by up to 1e-2 in
  cosine. The device is not part of the key: at equal precision, devices differ only by rounding.
- On a GPU, crops are copied from pinned memory while the previous batch is computed. The features
  of a batch are fetched after the next one has been started. Batches are as large as fits.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from contract import PixelMode
from distill.data.augment import apply_views, sample_views
from distill.data.files.image_file import DECODING
from distill.data.files.packed_image import ImagePath
from distill.data.files.row_shards import CachedRows
from distill.data.pixels import Progress, open_pixels
from distill.data.read_ahead import decode_ahead, find_unreadable
from distill.data.splits import Split
from distill.data.streamed_pixels import Pixels, read_batches
from distill.errors import UnreadableImages
from distill.models.devices import FittingBatches, dtype_name
from distill.models.teacher import Teacher, preprocessing

CPU_BATCH: Final = 8
GPU_BATCH: Final = 512  # at most
VIEWS_SEED: Final = 0


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
    safetensors under a key of the teacher's weights, its transform and precision, and the images'
    names, sizes and times, and memory-mapped unless they are normalised; a damaged file is rebuilt.

    Raises:
        UnreadableImages: some cannot be read; the error names all of them.
        DataError: the cache folder cannot be written.
    """
    if cache is None:
        encoded = list(_encode(teacher, split.paths, [range(len(split))], progress))
        features = torch.cat(encoded)
    else:
        features = image_feature_rows(teacher, split, cache=cache, progress=progress).read()
    return F.normalize(features, dim=-1) if normalize else features


def image_feature_rows(
    teacher: Teacher, split: Split, *, cache: Path, progress: Progress | None = None
) -> CachedRows:
    """The raw features [images, dim] of `image_features` in `cache`, whether computed or not."""
    return CachedRows(
        cache / f"features-{split.name}-{_key(teacher, split)}.safetensors",
        "feature",
        (len(split), teacher.dim),
        lambda rows: _encode(teacher, split.paths, rows, progress),
    )


def view_feature_rows(
    teacher: Teacher,
    split: Split,
    views: int,
    *,
    cache: Path,
    pixel_mode: PixelMode = "auto",
    progress: Progress | None = None,
) -> tuple[Tensor, CachedRows]:
    """View parameters [images, views, 6] for `augment.apply_views`, and the teacher's raw features
    of those views [images, views, dim] in `cache`, whether computed or not.

    The teacher encodes each view at its own image size, cropped from the centre square that the
    student uses. The views do not depend on a run's seed, so that they are encoded only once.
    """
    generator = torch.Generator().manual_seed(VIEWS_SEED)
    view_params = sample_views(len(split) * views, generator).view(len(split), views, -1)
    params_hash = hashlib.sha256(view_params.numpy().data).hexdigest()

    def encode(rows: Sequence[range]) -> Iterator[Tensor]:
        pixels = open_pixels(split, teacher.image_size, cache, pixel_mode)
        return _encode_views(teacher, pixels, view_params, rows, progress)

    path = cache / f"views-{split.name}-{_key(teacher, split, params_hash)}.safetensors"
    return view_params, CachedRows(path, "feature", (len(split), views, teacher.dim), encode)


def _key(teacher: Teacher, split: Split, params_hash: str = "") -> str:
    """A hash of all that the features depend on. `params_hash` is that of view parameters."""
    content = [
        DECODING,
        teacher.fingerprint,
        preprocessing(teacher),
        dtype_name(teacher.dtype),
        split.fingerprint,
        params_hash,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _encode_views(
    teacher: Teacher,
    pixels: Pixels,
    view_params: Tensor,
    rows: Sequence[range],
    progress: Progress | None,
) -> Iterator[Tensor]:
    """Raw features [images, views, dim] of the views of the images `rows`, a few at a time.

    `view_params` [images, views, 6] are those of all images.
    """
    mean, std = teacher.mean_and_std
    views = view_params.shape[1]
    size = _batch_size(teacher)
    fitting = FittingBatches(size)
    parts = _batches(rows, max(1, size // views))
    done = len(pixels) - sum(map(len, rows))
    read = read_batches(pixels, (torch.arange(part.start, part.stop) for part in parts))
    for part, images in zip(parts, read, strict=True):
        params = view_params[part.start : part.stop].flatten(0, 1)

        def encode(numbers: Tensor, images: Tensor = images, params: Tensor = params) -> Tensor:
            crops = apply_views(images[numbers // views].to(teacher.device), params[numbers])
            return teacher.encode_image((crops - mean) / std, normalize=False)

        yield fitting(encode, torch.arange(len(params))).view(len(part), views, -1)
        done += len(part)
        if progress:
            progress(done, len(pixels))


def _batch_size(teacher: Teacher) -> int:
    return CPU_BATCH if teacher.device.type == "cpu" else GPU_BATCH


def _encode(
    teacher: Teacher, paths: Sequence[ImagePath], rows: Sequence[range], progress: Progress | None
) -> Iterator[Tensor]:
    """Raw features [batch, dim] of the images `rows` of `paths`, batch by batch."""
    batches = _batches(rows, _batch_size(teacher))
    fitting = FittingBatches(_batch_size(teacher))
    done = len(paths) - sum(map(len, rows))
    decoded = 0  # batches

    def show(encoded: Tensor) -> Tensor:
        nonlocal done
        encoded = encoded.cpu()  # waits for the device, which has the next batch to go on with
        done += len(encoded)
        if progress:
            progress(done, len(paths))
        return encoded

    running: Tensor | None = None
    crops_of = decoded_crops(teacher, ([paths[row] for row in batch] for batch in batches))
    try:
        for crops in crops_of:
            decoded += 1
            started = fitting(teacher.encode_crops, crops)
            if running is not None:
                yield show(running)
            running = started
    except UnreadableImages as error:
        rest = [paths[row] for batch in batches[decoded + 1 :] for row in batch]
        raise UnreadableImages([*error.images, *find_unreadable(rest)]) from None
    if running is not None:
        yield show(running)


def _batches(rows: Sequence[range], size: int) -> list[range]:
    """The ranges, each divided into batches of `size`."""
    return [part[start : start + size] for part in rows for start in range(0, len(part), size)]


def decoded_crops(teacher: Teacher, batches: Iterable[Sequence[ImagePath]]) -> Iterator[Tensor]:
    """Crops uint8 [batch, 3, height, width] of the images, decoded ahead; pinned for a GPU."""
    for crops in decode_ahead(batches, lambda image: teacher.crop(image).numpy()):
        yield crops.pin_memory() if teacher.device.type == "cuda" else crops
