"""Exports the student in every chosen format, verifies and measures each, and names the fastest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from distill.data.files.image_file import open_image
from distill.data.splits import Split
from distill.errors import ModelError
from distill.evaluation.figures import EvaluatedSplit
from distill.export import Format
from distill.export.finished_run import FinishedRun
from distill.export.formats import (
    EncoderFormat,
    onnx_format,
    openvino_format,
    torch_export_format,
)
from distill.export.onnx import image_encoder
from distill.export.quantise import check_drop, quantise, recommend
from distill.export.resize import with_resize
from distill.export.table import encoder_row
from distill.export.verify import FormatRow, check_features
from distill.runtime.manifest import IMAGE_ENCODER, INT8_ENCODER

MAX_CHANGE: Final = 0.2  # percentage points of top-1, from resizing inside the encoder
Features = Mapping[EvaluatedSplit, Tensor]


@dataclass(frozen=True)
class FormatOptions:
    """Which image encoders an export writes. ONNX is always written."""

    formats: tuple[Format, ...] = (Format.ONNX,)
    resize_inside: bool = False  # the ONNX encoder takes photos of any size
    int8: bool = False
    max_drop: float = 1.0  # percentage points of top-1 that int8 may lose on a split


@dataclass(frozen=True)
class ImageEncoders:
    """The files of all formats, with their measured speed and accuracy."""

    files: dict[str, bytes]
    rows: tuple[FormatRow, ...]  # PyTorch first
    used: str  # the file that `distill.runtime` uses
    measured: FormatRow  # of that file
    difference: float  # largest difference of a feature from PyTorch's, except int8
    remarks: tuple[str, ...]


def export_encoders(
    run: FinishedRun,
    eager: Features,
    options: FormatOptions,
) -> ImageEncoders:
    """Export the student in each chosen format.

    `eager` has PyTorch's features [images, dim] of the validation images, by split.

    Raises:
        ModelError: a format cannot be written, differs from PyTorch, or loses too much accuracy.
    """
    rows = [encoder_row("PyTorch eager", None, run.student.encode, eager, run)]
    files: dict[str, bytes] = {}
    resizing: list[FormatRow] = []
    difference = 0.0
    for encoder in _formats(run, options):
        features = {name: encoder.encode(pixels) for name, pixels in run.pixels.items()}
        row = encoder_row(encoder.title, encoder.size, encoder.encode, features, run)
        if encoder.int8:
            check_drop(rows[0], row, options.max_drop)
        else:
            difference = max(difference, _check(encoder.title, eager, features, run))
        rows.append(row)
        files |= encoder.files
        if options.resize_inside and IMAGE_ENCODER in encoder.files:
            resizing.append(_resizing_row(encoder, row, run))
    by_title = {row.name: row for row in rows}
    used, measured = IMAGE_ENCODER, by_title["ONNX Runtime"]
    remarks: list[str] = []
    if options.int8:
        is_faster, remark = recommend(measured, by_title["ONNX Runtime, int8"])
        remarks.append(remark)
        if is_faster:
            used, measured = INT8_ENCODER, by_title["ONNX Runtime, int8"]
    if len(rows) > 2:
        remarks.append(fastest(rows[1:], measured))
    return ImageEncoders(files, (*rows, *resizing), used, measured, difference, tuple(remarks))


def _formats(run: FinishedRun, options: FormatOptions) -> list[EncoderFormat]:
    size = run.pixels["seen"].shape[-1]
    model = image_encoder(run.student, size)

    def onnx(model: bytes, file: str, *, int8: bool = False) -> EncoderFormat:
        resizing = with_resize(model, size) if options.resize_inside else model
        return onnx_format(resizing, file, int8=int8)

    encoders = [onnx(model, IMAGE_ENCODER)]
    if Format.OPENVINO in options.formats:
        encoders.append(openvino_format(model))
    if Format.TORCH_EXPORT in options.formats:
        encoders.append(torch_export_format(run.student, size))
    if options.int8:
        quantised = quantise(model, run.train, size)
        encoders.append(onnx(quantised, INT8_ENCODER, int8=True))
        if Format.OPENVINO in options.formats:
            encoders.append(openvino_format(quantised, int8=True))
    return encoders


def _resizing_row(encoder: EncoderFormat, resized: FormatRow, run: FinishedRun) -> FormatRow:
    """The row of `encoder` with photos of their original size, one at a time.

    Raises:
        ModelError: its top-1 differs by more than MAX_CHANGE from `resized`, the row of photos
            resized by Pillow.
    """

    def photos(split: Split) -> Iterator[Tensor]:
        for path in split.paths:
            yield torch.from_numpy(np.array(open_image(path)).transpose(2, 0, 1)).unsqueeze(0)

    features = {
        name: torch.cat([encoder.encode(photo) for photo in photos(split)])
        for name, split in run.splits.items()
    }
    photo = next(photos(run.splits["seen"])).contiguous()
    row = encoder_row(
        f"{encoder.title}, resizing", encoder.size, encoder.encode, features, run, images=photo
    )
    change = max(abs(row.seen - resized.seen), abs((row.unseen or 0) - (resized.unseen or 0)))
    if change > MAX_CHANGE:
        raise ModelError(
            f"--resize-inside changes top-1 by {change:.2f} percentage points, more than "
            f"{MAX_CHANGE}: export without it"
        )
    return row


def _check(title: str, eager: Features, features: Features, run: FinishedRun) -> float:
    return max(
        check_features(
            eager[name],
            features[name],
            run.bank.select(split.keys).features,
            name,
            model_name=f"the student in {title}",
        )
        for name, split in run.splits.items()
    )


def fastest(rows: Sequence[FormatRow], used: FormatRow) -> str:
    """A line that names the fastest of `rows` on this machine, for one image and in batches."""
    single = min(rows, key=lambda row: row.speed.ms)
    batched = max(rows, key=lambda row: row.speed.images_per_second)
    line = f"fastest here: {single.name} for one image, {batched.name} in batches"
    if single is used:
        return line
    times = f"{used.speed.ms / single.speed.ms:.1f}"
    pace = "is as fast for one image" if times == "1.0" else f"takes {times} times as long"
    return f"{line}; the classifier uses {used.name}, which {pace}"
