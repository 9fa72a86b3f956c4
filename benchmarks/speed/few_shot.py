"""Few-shot finetuning of the whole network compared with finetuning of only the projection.

The first trains the network for 5 epochs on each support, with an evaluation after each epoch; the
second is `distill few-shot --method finetune`. Both finetune the student of a finished run, by
default the demo's, with the same supports. Prints CPU time and accuracies.

    python -m benchmarks.speed.few_shot [--student RUN] [--cache FOLDER] [-k 1 5] [--seeds 1]
"""

import argparse
import sys
import time
from copy import deepcopy
from pathlib import Path

import torch

from benchmarks._photos import ROOT
from contract import TrainConfig
from distill.data.releases import read_release
from distill.data.splits import SPLITS, scan_splits
from distill.evaluation.accuracy import predict, score
from distill.evaluation.report.training_report import read_report
from distill.models.student import FILE, Student, load_student
from distill.models.teacher import load_teacher
from distill.pipeline.few_shot import sample_support
from distill.pipeline.finetune import SEEN_IMAGES, EvaluationImages, Finetuner, Images
from distill.pipeline.inputs import Inputs
from distill.training.distributed import connect
from distill.training.loop import Callbacks, TrainingData, train

EPOCHS, LEARNING_RATE_FACTOR = 5, 0.1  # of the whole network
RUN = ROOT / "demo-out" / "work" / "jobs-2" / "job-2"


def train_network(
    config: TrainConfig, student: Student, splits: dict[str, Images], support: torch.Tensor
) -> Student:
    """A copy of `student` trained on `support` and at least SEEN_IMAGES training images."""
    seen, unseen, held_out = (splits[name] for name in ("train", "unseen", "seen"))
    kept = torch.randperm(len(seen.pixels))[: max(SEEN_IMAGES, len(support))]
    changes = {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE_FACTOR * config.learning_rate,
        "warmup_epochs": 0.0,
        "accumulate": 1,
    }
    new = unseen.targets[support] + len(seen.text)
    data = TrainingData(
        pixels=torch.cat([seen.pixels[kept], unseen.pixels[support]]),
        targets=torch.cat([seen.targets[kept], new]),
        teacher=torch.cat([seen.teacher[kept], unseen.teacher[support]]),
        text=torch.cat([seen.text, unseen.text]),
        seen_pixels=held_out.pixels,
        seen_targets=held_out.targets,
        seen_text=held_out.text,
    )
    student = deepcopy(student)
    train(config.model_copy(update=changes), student, data, callbacks=Callbacks())
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, default=RUN, help="folder of a training run")
    parser.add_argument("--cache", type=Path, default=ROOT / "demo-out" / "work" / "cache")
    parser.add_argument("-k", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    if not (options.student / "report.json").is_file():
        print(f"few_shot: skipped, no run in {options.student}: run `make demo` first")
        sys.exit(0)
    config = read_report(options.student).config
    release = read_release(options.student / "release.json")
    student, _ = load_student(options.student / FILE)
    connect(config.device)
    keys = {label.key for label in release.labels}
    scanned = scan_splits(config.data, keys, tuple(SPLITS), cache=options.cache)
    inputs = Inputs(scanned, load_teacher(config.teacher), options.cache, lambda _: lambda *_: None)
    splits = {
        name: Images(
            inputs.pixels(name, config.image_size),
            split.targets,
            inputs.teacher_features(name),
            inputs.text_bank(release, config.text_strategy, split.keys).features,
        )
        for name, split in scanned.items()
    }
    unseen, names = splits["unseen"], scanned["unseen"].keys
    supports = {
        (k, seed): sample_support(unseen.targets, names, k, seed)
        for k in options.k
        for seed in range(options.seeds)
    }
    began = time.process_time()
    finetuner = Finetuner.prepare(config, student, splits["train"], unseen, list(supports.values()))
    tested = EvaluationImages.encode(student, unseen.pixels, student.test_views)
    seen = EvaluationImages.encode(student, splits["seen"].pixels, student.single_view)
    seconds = {"network": 0.0, "projection": time.process_time() - began}
    print(f"encoding once: {seconds['projection']:.1f} s of CPU time")
    for (k, seed), support in supports.items():
        rest = torch.ones(len(unseen.pixels), dtype=torch.bool)
        rest[support] = False
        for method in seconds:
            began = time.process_time()
            if method == "network":
                trained = train_network(config, student, splits, support)
                features = trained.encode(unseen.pixels)
            else:
                head = finetuner.fit(support, seed)
                features = tested.through(head)
                predict(seen.through(head), splits["seen"].text)
            took = time.process_time() - began
            seconds[method] += took
            top1, _ = score(predict(features[rest], unseen.text), unseen.targets[rest], len(names))
            print(f"k = {k}, seed {seed}, {method}: {took:.1f} s, unseen {top1:.1f} %", flush=True)
    ratio = seconds["network"] / seconds["projection"]
    print(f"{len(supports)} trials: the projection alone is {ratio:.1f} times as fast, in CPU time")


if __name__ == "__main__":
    main()
