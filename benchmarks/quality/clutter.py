"""Multi-label recognition of 51 charms in cluttered scenes: two cameras against one, two losses.

A small version of the robotics study of Li et al. (ICCV 2023): each rendered scene shows three
charms that partly hide each other, from two sides. Students are trained on scenes of seen charms
only, with a multi-label loss on cosines with the texts and by imitating the teacher. They are
tested on scenes with seen and unseen charms. The teacher, trained on single charms, is tested too.

    python -m benchmarks.quality.clutter [--scenes 2000] [--epochs 4] [--seeds 1]
                                     [--student resnet10t]
"""

import argparse
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import normalize

from contract import Release, ReleaseLabel, release_hash
from demo.measure import recorded_descriptions
from demo.world import SIZE, charms, render_clutter
from distill.embeddings.text_bank import build_text_bank
from distill.method.losses import l_asl, l_im_cst
from distill.method.metrics import mean_average_precision
from distill.models.precision import training_precision
from distill.models.student import MultiView, build_student
from distill.models.teacher import Teacher, load_teacher

TEACHER = f"local-dir:{Path(__file__).resolve().parents[2] / 'demo' / 'teacher'}"
OBJECTS, VIEWS = 3, 2
BATCH, RATE = 64, 2e-3
LOSSES = {"asymmetric": {}, "binary cross-entropy": {"gamma_negative": 0.0, "margin": 0.0}}
SEEN = torch.tensor([charm.seen for charm in charms()])


def scenes(count: int, candidates: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Pixels [count, views, 3, size, size] uint8, and the charms in each scene [count, 51]."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((count, VIEWS, SIZE, SIZE, 3), np.uint8)
    shown = torch.zeros(count, len(charms()), dtype=torch.bool)
    for index in range(count):
        chosen = rng.choice(candidates, OBJECTS, replace=False)
        pixels[index] = render_clutter([charms()[i].look for i in chosen], rng, VIEWS)
        shown[index, torch.from_numpy(chosen)] = True
    return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous(), shown


def texts(teacher: Teacher) -> Tensor:
    """Unit features [51, dim] of the charms' recorded descriptions."""
    described = recorded_descriptions()
    labels = tuple(
        ReleaseLabel(key=charm.key, name=charm.name, description=described[charm.name])
        for charm in charms()
    )
    release = Release(
        id=0,
        name="charms",
        label_set="charms",
        hash=release_hash(labels),
        created_at=datetime.now(UTC),
        labels=labels,
    )
    return build_text_bank(teacher, release, "name+description").features


def teacher_features(teacher: Teacher, pixels: Tensor) -> Tensor:
    """The teacher's unit features [scenes, dim], averaged over the views."""
    photos = [Image.fromarray(view) for view in pixels.flatten(0, 1).permute(0, 2, 3, 1).numpy()]
    features = [
        teacher.encode_image(
            torch.stack([teacher.preprocess(p) for p in photos[start : start + 64]])
        )
        for start in range(0, len(photos), 64)
    ]
    # Out of inference mode, so that losses may take them.
    return torch.cat(features).clone().view(*pixels.shape[:2], -1).mean(dim=1)


def learn(  # noqa: PLR0913 - what the table varies
    name: str, pixels: Tensor, shown: Tensor, teacher: Tensor, text: Tensor, *,
    shape: dict[str, float], epochs: int, seed: int,
) -> MultiView:  # fmt: skip
    """Train a student on all views in `pixels`, with the targets `shown` [scenes, classes]."""
    torch.manual_seed(seed)
    model = MultiView(build_student(name, text.shape[1], image_size=SIZE))
    threshold = nn.Parameter(torch.tensor(0.0))  # above which cosine an object is there
    parameters = [*model.parameters(), threshold]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05, fused=True)
    steps = epochs * (len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(pixels))
        for start in range(0, len(pixels) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            with training_precision(torch.device("cpu")):
                output = model(pixels[batch])
            output = output.float()
            loss = l_asl(output, text, shown[batch], threshold=threshold, **shape)
            loss = loss + l_im_cst(output, teacher[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
    return model


def precisions(features: Tensor, text: Tensor, shown: Tensor) -> tuple[float, float]:
    """mAP in percent of seen and unseen objects, by the cosines with their texts."""
    scores = normalize(features, dim=1) @ text.T
    seen, unseen = (
        100 * mean_average_precision(scores[:, group], shown[:, group]) for group in (SEEN, ~SEEN)
    )
    return seen, unseen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2000, help="number of training scenes")
    parser.add_argument("--tests", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--student", default="resnet10t")
    options = parser.parse_args()
    began = time.monotonic()
    teacher = load_teacher(TEACHER)
    text = texts(teacher)
    seen = SEEN.nonzero()[:, 0].tolist()
    pixels, shown = scenes(options.scenes, seen, seed=0)
    test_pixels, test_shown = scenes(options.tests, list(range(len(SEEN))), seed=1)

    table = Table(
        "model", "views", "loss", "seen mAP %", "unseen mAP %",
        title=f"{OBJECTS} of {len(SEEN)} charms a scene; {options.scenes} scenes to learn from, "
        f"{options.tests} to test on, {options.epochs} epochs, {options.seeds} seeds",
    )  # fmt: skip
    rates = 100 * test_shown.float().mean(dim=0)
    table.add_row("chance", "", "", f"{rates[SEEN].mean():.1f}", f"{rates[~SEEN].mean():.1f}")
    for views in (1, VIEWS):
        values = precisions(teacher_features(teacher, test_pixels[:, :views]), text, test_shown)
        table.add_row("teacher", str(views), "", *(f"{value:.1f}" for value in values))
    for views, loss in ((1, "asymmetric"), (VIEWS, "asymmetric"), (VIEWS, "binary cross-entropy")):
        guide = teacher_features(teacher, pixels[:, :views])
        results = []
        for seed in range(options.seeds):
            model = learn(
                options.student, pixels[:, :views], shown[:, SEEN], guide, text[SEEN],
                shape=LOSSES[loss], epochs=options.epochs, seed=seed,
            )  # fmt: skip
            results.append(precisions(model.encode(test_pixels[:, :views]), text, test_shown))
        means = (mean(values) for values in zip(*results, strict=True))
        table.add_row(options.student, str(views), loss, *(f"{value:.1f}" for value in means))
    Console().print(table)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
