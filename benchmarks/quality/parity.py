"""Compares an exported classifier with PyTorch, photo by photo.

A student is trained for one epoch on a few images of each class and exported. Then each validation
photo of the real photos (5,400) and of the demo (1,500) is classified twice: by the student in
PyTorch, as in `distill evaluate`, and by `distill.runtime.Classifier` from the image file.

Most of the time is spent on the teacher's features of the real photos, some minutes on two cores.
Features, images and finished runs are stored in --out, so that a stopped benchmark can continue.

    python -m benchmarks.quality.parity [--student mobilenetv3_small_100] [--out bench-out/parity]
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from benchmarks._photos import DATA, ROOT, TEACHER, skip_without_photos
from contract import Release, TrainConfig
from demo.measure import recorded_descriptions
from demo.world import charms, write_world
from distill.data.releases import release_from_pairs
from distill.evaluation.accuracy import predict
from distill.evaluation.figures import EvaluatedSplit, joint_accuracy
from distill.export.finished_run import EVALUATED, FinishedRun, load_run
from distill.pipeline.job import run_job
from distill.runtime import Classifier

TRAINED = 5  # images a class: a good student is not needed


@dataclass(frozen=True)
class Outcome:
    """One side of the comparison: correct images, and joint accuracies in percent."""

    right: dict[EvaluatedSplit, int]
    joint: tuple[float, float, float]  # seen, unseen, harmonic mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="mobilenetv3_small_100")
    parser.add_argument("--out", type=Path, default=ROOT / "bench-out" / "parity")
    options = parser.parse_args()
    skip_without_photos("parity")
    release = release_from_pairs(DATA / "label2text.txt", DATA / "chatgpt.txt")
    worlds = {
        "photos": (once(options.out / "photos", partial(few_images, DATA)), TEACHER, release),
        "demo": (once(options.out / "demo", charm_images), f"local-dir:{ROOT}/demo/teacher", None),
    }
    table = Table("images", "split", "photos", "right, PyTorch", "right, ONNX")
    equal = True
    for name, (data, teacher, texts) in worlds.items():
        texts = texts or charm_release(data)
        folder = train(data, teacher, texts, options.student, options.out)
        equal &= compare(name, folder, options.out / "cache", table)
    Console().print(table)
    if not equal:
        sys.exit("parity: the classifier and PyTorch differ")


def few_images(data: Path, out: Path) -> None:
    """Write the first TRAINED training images of each class, and links to the others."""
    for split in ("val_on_train", "val"):
        (out / split).symlink_to(data.resolve() / split)
    for folder in sorted((data / "train").iterdir()):
        (out / "train" / folder.name).mkdir(parents=True)
        for image in sorted(path for path in folder.rglob("*") if path.is_file())[:TRAINED]:
            (out / "train" / folder.name / image.name).symlink_to(image.resolve())


def charm_images(out: Path) -> None:
    """Write the demo's world with few training images."""
    write_world(out, train=TRAINED)


def once(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write` unless an earlier run has done so."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        partial.rename(folder)
    return folder


def charm_release(data: Path) -> Release:
    """The demo's classes with their recorded descriptions."""
    texts = recorded_descriptions()
    lines = data / "descriptions.txt"
    lines.write_text("".join(f"{texts[charm.name]}\n" for charm in charms()))
    return release_from_pairs(data / "label2text.txt", lines)


def train(data: Path, teacher: str, release: Release, student: str, out: Path) -> Path:
    """Train for an epoch and export, unless an earlier run has. Returns the folder of the run."""
    run = out / f"{data.name}-{student}"
    if (run / "classifier").exists():
        return run
    config = TrainConfig(
        data=str(data), teacher=teacher, student=student, epochs=1, batch_size=64, image_size=64
    )
    run_job(
        config,
        release,
        run,
        cache=out / "cache",
        on_event=lambda kind, data: print(data.get("message", ""), end="\n" * ("message" in data)),
        should_stop=lambda: False,
        resume=(run / "checkpoint.safetensors").exists(),
    )
    return run


def compare(name: str, folder: Path, cache: Path, table: Table) -> bool:
    """Add the rows of one run to `table`. Returns whether both sides are equal."""
    run = load_run(folder, cache=cache, bar=lambda _: lambda *_: None)
    classifier = Classifier.load(folder / "classifier")
    by_torch = {
        split: normalize(run.student.encode(run.pixels[split]), dim=1) for split in EVALUATED
    }
    by_onnx = {
        split: torch.from_numpy(classifier.encode(run.splits[split].paths)) for split in EVALUATED
    }
    torch_side, onnx_side = (outcome(run, features) for features in (by_torch, by_onnx))
    for split in EVALUATED:
        images = f"{len(run.splits[split]):,}"
        table.add_row(name, split, images, *(str(x.right[split]) for x in (torch_side, onnx_side)))
    difference = max(float((by_torch[s] - by_onnx[s]).abs().max()) for s in EVALUATED)
    print(
        f"{name}: features differ by {difference:.1e} at most; joint accuracy (seen, unseen, "
        f"harmonic mean) {torch_side.joint} by PyTorch, {onnx_side.joint} by the classifier"
    )
    return torch_side == onnx_side


def outcome(run: FinishedRun, features: dict[EvaluatedSplit, torch.Tensor]) -> Outcome:
    """The accuracies of the features [images, dim] of both splits."""
    calibration = run.report.calibration
    together = joint_accuracy(
        "student", features, run.splits, run.bank, bias=calibration.seen_bias if calibration else 0
    )
    right = {}
    for split in EVALUATED:
        images = run.splits[split]
        predicted = predict(features[split], run.bank.select(images.keys).features)
        right[split] = int((predicted == images.targets).sum())
    joint = (together.seen, together.unseen, together.harmonic_mean)
    return Outcome(right, tuple(round(value, 4) for value in joint))


if __name__ == "__main__":
    main()
