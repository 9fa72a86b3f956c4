"""Few-shot on unseen classes: k labelled images of each are the support, the others the test.

    retrieval   nothing is trained: the support features are a cache that votes beside the texts
                (Tip-Adapter, arXiv 2111.03930)
    finetune    the student is trained on, at most half of each batch from the support set and
                the others from the seen training set, by the losses of its run

Notable:
- A seed draws the support of every model and method alike; its k = 1 is part of its k = 5.
- Nothing is chosen on the test images: alpha, beta and scale are Tip-Adapter's defaults, and what
  finetuning ends with is what is tested.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from contract import FewShot, FewShotMethod, FewShotRow, Release, TrainConfig
from distill.data.pixels import Progress, load_pixels
from distill.data.splits import scan_split
from distill.embeddings.image_features import image_features
from distill.embeddings.text_bank import build_text_bank
from distill.errors import DataError, ModelError, UserError
from distill.evaluation.accuracy import predict, score
from distill.models.student import Student
from distill.models.teacher import load_teacher
from distill.training.loop import TrainingData, train

ALPHA: Final = 1.0  # weight of the cache beside the texts
BETA: Final = 5.5  # how sharply a vote falls with the distance
SCALE: Final = 100.0  # of the text cosines: CLIP's own, for which alpha and beta are made
EPOCHS: Final = 5
RATE: Final = 0.1  # of the learning rate of the run
SEEN_IMAGES: Final = 1024  # at least so many keep the student from forgetting

Model = Literal["teacher", "student"]


def draw_support(targets: Tensor, keys: Sequence[str], k: int, seed: int) -> Tensor:
    """Indices [classes · k] of k images of each class, class after class.

    `targets` [images] index `keys`. A larger k adds to what a smaller one draws.

    Raises:
        DataError: a class has no image, or k leaves none of it to test on.
    """
    counts = torch.bincount(targets, minlength=len(keys))
    fewest = int(counts.argmin())
    most = int(counts[fewest]) - 1
    if most < 0:
        raise DataError(f"the class {keys[fewest]!r} has no image: add some or leave it out")
    if k < 1:
        raise DataError(f"k is {k}: at least 1 image of each class is needed")
    if k > most:
        advice = f"choose k up to {most}" if most else "add some"
        raise DataError(
            f"k = {k} leaves nothing to test on: the class {keys[fewest]!r} has {most + 1} "
            f"image{'s' if most else ''}, {advice}"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = [(targets == index).nonzero()[:, 0] for index in range(len(keys))]
    return torch.cat([own[torch.randperm(len(own), generator=generator)[:k]] for own in rows])


def retrieval_logits(
    features: Tensor,
    text: Tensor,
    support: Tensor,
    support_targets: Tensor,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    scale: float = SCALE,
) -> Tensor:
    """Logits [images, classes] of Tip-Adapter (arXiv 2111.03930, Eq. 3 to 6), training-free.

    alpha · exp(−beta (1 − f F^T)) L + scale · f W^T: each support feature votes for its class, the
    more the nearer it is, beside the cosines with the texts. features f [images, dim], text W
    [classes, dim], support F [support, dim] with the classes L [support]; none need be normalised.
    """
    f, cache = normalize(features, dim=1), normalize(support, dim=1)
    votes = torch.exp(-beta * (1 - f @ cache.T)) @ one_hot(support_targets, len(text)).to(f)
    return alpha * votes + scale * f @ normalize(text, dim=1).T


@dataclass(frozen=True)
class Support:
    """The drawn images of the unseen classes, and what the teacher says of them."""

    pixels: Tensor  # [support, 3, size, size] uint8
    targets: Tensor  # [support] indices into `text`
    teacher: Tensor  # [support, dim]
    text: Tensor  # [unseen classes, dim]


def finetune(
    config: TrainConfig, student: Student, seen: TrainingData, support: Support
) -> tuple[Student, float]:
    """A copy of `student` trained on from `support`, and its accuracy on seen images in percent.

    `config` says for how long, how fast and by which seed. Each batch takes up to half of its
    images from the support set and the others from `seen`; none comes twice in one batch. All
    classes, seen and unseen, compete in the losses.

    Raises:
        UserError: the training diverged.
    """
    new = len(support.pixels)
    old = min(len(seen.pixels), max(new, SEEN_IMAGES))
    generator = torch.Generator().manual_seed(config.seed)
    kept = torch.randperm(len(seen.pixels), generator=generator)[:old]
    size = min(config.batch_size, 2 * old, old + new)
    share = min(size // 2, new)

    def mixed(generator: torch.Generator) -> Tensor:
        """Indices of an epoch's images, batch after batch: the seen ones come first in `data`."""
        return torch.cat(
            [
                part
                for _ in range((old + new) // size)
                for part in (
                    torch.randperm(old, generator=generator)[: size - share],
                    torch.randperm(new, generator=generator)[:share] + old,
                )
            ]
        )

    data = replace(
        seen,
        pixels=torch.cat([seen.pixels[kept], support.pixels]),
        targets=torch.cat([seen.targets[kept], support.targets + len(seen.text)]),
        teacher=torch.cat([seen.teacher[kept], support.teacher]),
        text=torch.cat([seen.text, support.text]),
    )
    student = deepcopy(student)
    epochs = train(
        config.model_copy(update={"batch_size": size}),
        student,
        data,
        checkpoint=None,
        on_epoch=lambda _: None,
        should_stop=lambda: False,
        order=mixed,
    )
    return student, epochs[-1].seen_top1


@dataclass(frozen=True)
class _Trial:
    """One seed's draw, tested: accuracies in percent."""

    top1: float
    mean_per_class: float
    text_only: float
    images: int
    seen: float | None


def few_shot(
    config: TrainConfig,
    student: Student,
    release: Release,
    *,
    method: FewShotMethod,
    ks: Sequence[int],
    seeds: Sequence[int],
    cache: Path,
    progress: Callable[[str], Progress],
) -> FewShot:
    """Accuracy on the unseen images of `config.data` with each k, over the seeds.

    `config` is that of the run that trained `student`. Retrieval gives rows of teacher and student,
    finetuning of the student alone.

    Raises:
        DataError: a k is larger than a class allows, an image cannot be read or a split is missing.
        ModelError: the teacher cannot be loaded, or is not the one that the student learned from.
        TextError: a class lacks the text that the strategy needs.
        UserError: there is no k or no seed, or finetuning diverged.
    """
    if not ks or not seeds:
        raise UserError("few-shot needs at least one k and one seed: give -k 1 --seeds 1")
    known = {label.key for label in release.labels}
    words = ("unseen",) if method == "retrieval" else ("unseen", "train", "seen")
    splits = {word: scan_split(Path(config.data), word, known) for word in words}
    unseen = splits["unseen"]
    supports = {
        (k, seed): draw_support(unseen.targets, unseen.keys, k, seed) for k in ks for seed in seeds
    }  # before any model is loaded: it says whether a k is too large
    teacher = load_teacher(config.teacher)
    if student.projection.out_features != teacher.dim:
        raise ModelError(
            f"the student gives {student.projection.out_features} dimensions and the teacher "
            f"{teacher.name} has {teacher.dim}: give the teacher that the student learned from"
        )
    strategy = config.text_strategy
    text = {
        word: build_text_bank(teacher, release, strategy, keys=split.keys, cache=cache).features
        for word, split in splits.items()
    }

    def teacher_features(word: str) -> Tensor:
        title = f"Teacher features, {word}"
        return image_features(teacher, splits[word], cache=cache, progress=progress(title))

    def pixels(word: str) -> Tensor:
        bar = progress(f"Pixels, {word}")
        return torch.from_numpy(load_pixels(splits[word], config.image_size, cache, bar))

    unseen_pixels, unseen_teacher = pixels("unseen"), teacher_features("unseen")
    features: dict[Model, Tensor] = {"student": student.encode(unseen_pixels)}

    if method == "retrieval":
        features = {"teacher": unseen_teacher, **features}
        settings = {"alpha": ALPHA, "beta": BETA, "scale": SCALE}
    else:
        rate = RATE * config.learning_rate
        settings = {"epochs": EPOCHS, "learning_rate": rate}
        # The support set has no captions of its own.
        without_captions = config.losses.model_copy(update={"cap": 0.0})
        changes = {
            "epochs": EPOCHS,
            "learning_rate": rate,
            "warmup_epochs": 0.0,
            "losses": without_captions,
        }
        seen = TrainingData(
            pixels=pixels("train"),
            targets=splits["train"].targets,
            teacher=teacher_features("train"),
            text=text["train"],
            seen_pixels=pixels("seen"),
            seen_targets=splits["seen"].targets,
            seen_text=text["seen"],
        )

    def trial(model: Model, k: int, seed: int) -> _Trial:
        support = supports[k, seed]
        rest = torch.ones(len(unseen), dtype=torch.bool)
        rest[support] = False
        alone = predict(features[model][rest], text["unseen"])
        seen_top1 = None
        if method == "retrieval":
            cached = features[model][support], unseen.targets[support]
            found = retrieval_logits(features[model][rest], text["unseen"], *cached).argmax(dim=1)
        else:
            drawn = Support(
                unseen_pixels[support],
                unseen.targets[support],
                unseen_teacher[support],
                text["unseen"],
            )
            tuned = config.model_copy(update={**changes, "seed": seed})
            learned, seen_top1 = finetune(tuned, student, seen, drawn)
            found = predict(learned.encode(unseen_pixels[rest]), text["unseen"])
        targets, classes = unseen.targets[rest], len(unseen.keys)
        text_only, _ = score(alone, targets, classes)
        return _Trial(*score(found, targets, classes), text_only, len(targets), seen_top1)

    rows: list[FewShotRow] = []
    tell = progress("Few-shot")
    for model in features:
        for k in ks:
            trials = []
            for seed in seeds:
                trials.append(trial(model, k, seed))
                tell(len(rows) * len(seeds) + len(trials), len(features) * len(ks) * len(seeds))
            rows.append(_row(model, k, trials))
    return FewShot(
        method=method,
        student=config.student,
        teacher=teacher.name,
        text=strategy,
        release_hash=release.hash,
        classes=len(unseen.keys),
        seeds=tuple(seeds),
        settings=settings,
        rows=tuple(rows),
    )


def _row(model: Model, k: int, trials: Sequence[_Trial]) -> FewShotRow:
    """Means and deviations over the trials of all seeds."""
    top1 = [trial.top1 for trial in trials]
    per_class = [trial.mean_per_class for trial in trials]
    seen = [trial.seen for trial in trials if trial.seen is not None]
    several = len(trials) > 1
    return FewShotRow(
        model=model,
        k=k,
        top1=mean(top1),
        top1_deviation=stdev(top1) if several else None,
        mean_per_class=mean(per_class),
        mean_per_class_deviation=stdev(per_class) if several else None,
        text_only_top1=mean(trial.text_only for trial in trials),
        seen_top1=mean(seen) if seen else None,
        images=trials[0].images,
    )
