"""Few-shot evaluation on unseen classes: k labelled support images per class, tested on the others.

    prototypes  training-free: a class is represented by the mean support features and its text, as
                in a classifier (see `evaluation.left_out.photo_weight`)
    finetune    training of the student's projection continues with the losses of its run; at most
                half of each batch is support images, the others are seen training images

- A seed samples the same support for every model and method, and its k = 1 is a subset of its
  k = 5. The same images are tested for every k: those in no support of the seed.
- Nothing is tuned on the test images: the weight of the text is chosen on seen classes, and the
  state after the last finetuning step is tested.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import normalize

from contract import Release, SplitName, TrainConfig
from distill.data.pixels import Progress
from distill.data.splits import NO_UNSEEN, SPLITS, Split, scan_splits
from distill.data.streamed_pixels import Pixels
from distill.errors import DataError, ModelError, UserError
from distill.evaluation.accuracy import predict, score
from distill.evaluation.left_out.photo_weight import DEFAULT, class_means, fuse
from distill.models.student import Student
from distill.models.teacher import Teacher, load_teacher
from distill.pipeline.finetune import EvaluationImages, Finetuner, Images, finetuning_config
from distill.pipeline.inputs import Inputs
from distill.training.distributed import connect
from distill.training.head import OnStep, Step

FewShotMethod = Literal["prototypes", "finetune"]
StatusLine = Callable[[int, int, str], None]  # done, total, a note on the current step
Model = Literal["teacher", "student"]


def sample_support(targets: Tensor, keys: Sequence[str], k: int, seed: int) -> Tensor:
    """Indices [classes · k] of k random images of each class, in the order of the classes.

    `targets` [images] index `keys`. The sample for a smaller k is a subset of that for a larger k.

    Raises:
        DataError: a class has no image, or no image left to test on.
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
    by_class = [(targets == index).nonzero()[:, 0] for index in range(len(keys))]
    return torch.cat(
        [rows[torch.randperm(len(rows), generator=generator)[:k]] for rows in by_class]
    )


@dataclass(frozen=True)
class Sampling:
    """Which supports are sampled: k images of each class, for each k and seed.

    `text_photos` is the weight of a class's text in photos, from the run's calibration.
    """

    ks: Sequence[int]
    seeds: Sequence[int]
    text_photos: float = DEFAULT


class FewShotRow(BaseModel):
    """One model with k images per class: means over the seeds, and deviations."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Model
    k: Annotated[int, Field(ge=1, description="Support images per class")]
    top1: float
    top1_deviation: Annotated[
        float | None, Field(description="Sample standard deviation over seeds; null for one seed")
    ]
    mean_per_class: float
    mean_per_class_deviation: float | None
    text_only_top1: Annotated[
        float, Field(description="Without support images, on the same images")
    ]
    photos_only_top1: Annotated[
        float | None, Field(description="With support images only; null for finetuning")
    ] = None
    seen_top1: Annotated[
        float | None, Field(description="Of the finetuned student, to show forgetting")
    ] = None
    images: Annotated[int, Field(description="Test images per seed")]


class FewShot(BaseModel):
    """Few-shot accuracies (percent) on the unseen images that were not sampled as support."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: FewShotMethod
    student: str
    teacher: str
    text: Annotated[str, Field(description="Text strategy")]
    release_hash: str
    classes: int
    seeds: tuple[int, ...]
    settings: Annotated[
        dict[str, float], Field(description="text_photos; or epochs, learning_rate")
    ]
    rows: tuple[FewShotRow, ...]


@dataclass(frozen=True)
class Finetuned:
    """A finetuned student with its inputs and support images."""

    student: Student
    inputs: Inputs
    support: Tensor  # indices of unseen images


@dataclass(frozen=True)
class FinetuningCallbacks:
    """Callbacks of finetuning.

    `status` shows the steps of all trials and the current trial. `on_finetuned` is called with the
    student that was finetuned with the largest k and the first seed.
    """

    status: StatusLine = lambda _done, _total, _note: None
    on_finetuned: Callable[[Finetuned], object] = lambda _: None


def few_shot(  # noqa: PLR0913 - what to measure, and callbacks
    config: TrainConfig,
    student: Student,
    release: Release,
    *,
    method: FewShotMethod,
    sampling: Sampling,
    cache: Path,
    progress: Callable[[str], Progress],
    on_finetuning: FinetuningCallbacks | None = None,
) -> FewShot:
    """Accuracy on the unseen images of `config.data` with each k, over the seeds.

    `config` is that of the run that trained `student`. Prototypes give rows for teacher and
    student, finetuning only for the student.

    Raises:
        DataError: a class has too few images for a k, an image cannot be read, or a split is
            missing.
        ModelError: the teacher cannot be loaded, or is not the student's.
        TextError: a class has no text for the strategy.
        UserError: there is no k or no seed, or finetuning diverged.
    """
    if not sampling.ks or not sampling.seeds:
        raise UserError("few-shot needs at least one k and one seed: give -k 1 --seeds 1")
    names: tuple[SplitName, ...] = ("unseen",) if method == "prototypes" else tuple(SPLITS)
    keys = {label.key for label in release.labels}
    splits = scan_splits(config.data, keys, names, cache=cache)
    if "unseen" not in splits:
        raise DataError(f"{config.data}: {NO_UNSEEN}")
    unseen = splits["unseen"]
    supports = {  # before any model is loaded: this raises if a k is too large
        (k, seed): sample_support(unseen.targets, unseen.keys, k, seed)
        for k in sampling.ks
        for seed in sampling.seeds
    }
    device = connect(config.device).device
    teacher = load_teacher(config.teacher, device=device, precision=config.precision)
    student = student.to(device)
    inputs = Inputs(splits, teacher, cache, progress, config.pixels)
    _check_dimensions(student, inputs.teacher)
    task = _Task(
        config=config,
        student=student,
        inputs=inputs,
        text={
            name: inputs.text_bank(release, config.text_strategy, split.keys).features
            for name, split in splits.items()
        },
        pixels=inputs.pixels("unseen", config.image_size),
        teacher=inputs.teacher_features("unseen"),
        sampling=sampling,
        supports=supports,
    )
    if method == "prototypes":
        settings, rows = _prototypes(task)
    else:
        settings, rows = _finetuning(task, on_finetuning or FinetuningCallbacks())
    return FewShot(
        method=method,
        student=config.student,
        teacher=inputs.teacher.name,
        text=config.text_strategy,
        release_hash=release.hash,
        classes=len(unseen.keys),
        seeds=tuple(sampling.seeds),
        settings=settings,
        rows=rows,
    )


def _check_dimensions(student: Student, teacher: Teacher) -> None:
    dim = student.projection.out_features
    if dim != teacher.dim:
        raise ModelError(
            f"the student has {dim} dimensions and the teacher {teacher.name} has {teacher.dim}: "
            "give the teacher that the student was trained with"
        )


@dataclass(frozen=True)
class _Trial:
    """Accuracies in percent with the support of one seed."""

    top1: float
    mean_per_class: float
    text_only: float
    images: int
    photos_only: float | None
    seen: float | None


@dataclass(frozen=True)
class _Predicted:
    """Predicted classes [test images] with support and text, and with the support only.

    `seen` is the accuracy on seen images in percent, if the model changed.
    """

    classes: Tensor
    by_photos: Tensor | None = None
    seen: float | None = None


# Arguments: model, support indices, mask of the test images, seed.
Predict = Callable[[Model, Tensor, Tensor, int], _Predicted]


@dataclass(frozen=True)
class _Task:
    """The unseen images, their features and the sampled supports."""

    config: TrainConfig
    student: Student
    inputs: Inputs
    text: Mapping[SplitName, Tensor]  # [classes, dim] of each split
    pixels: Pixels  # of the unseen images
    teacher: Tensor  # unit features of the unseen images
    sampling: Sampling
    supports: Mapping[tuple[int, int], Tensor]  # by k and seed: indices of unseen images

    @property
    def unseen(self) -> Split:
        return self.inputs.splits["unseen"]

    def rows(
        self, features: Mapping[Model, Tensor], predict_tested: Predict
    ) -> tuple[FewShotRow, ...]:
        """A row for each model and k. `features` [images, dim] are those of the unseen images."""
        return tuple(
            _row(
                model,
                k,
                [
                    self._trial(model, model_features, (k, seed), predict_tested)
                    for seed in self.sampling.seeds
                ],
            )
            for model, model_features in features.items()
            for k in self.sampling.ks
        )

    def _trial(
        self, model: Model, features: Tensor, key: tuple[int, int], predict_tested: Predict
    ) -> _Trial:
        support = self.supports[key]
        tested = torch.ones(len(self.unseen), dtype=torch.bool)
        for (_, seed), indices in self.supports.items():
            if seed == key[1]:
                tested[indices] = False
        targets, classes = self.unseen.targets[tested], len(self.unseen.keys)
        text_only, _ = score(predict(features[tested], self.text["unseen"]), targets, classes)
        predicted = predict_tested(model, support, tested, key[1])
        photos_only = (
            None if predicted.by_photos is None else score(predicted.by_photos, targets, classes)[0]
        )
        top1, mean_per_class = score(predicted.classes, targets, classes)
        return _Trial(top1, mean_per_class, text_only, len(targets), photos_only, predicted.seen)


def _prototypes(task: _Task) -> tuple[dict[str, float], tuple[FewShotRow, ...]]:
    """Settings and rows of class means fused with texts, for the teacher and the student."""
    text_photos = task.sampling.text_photos
    text, targets = task.text["unseen"], task.unseen.targets
    features: dict[Model, Tensor] = {
        "teacher": task.teacher,
        "student": task.student.encode(task.pixels),
    }

    def predict_tested(model: Model, support: Tensor, tested: Tensor, _seed: int) -> _Predicted:
        images = features[model]
        means = class_means(images[support], targets[support], len(text))
        fused = fuse(normalize(text, dim=1), means, len(support) // len(text), text_photos)
        return _Predicted(predict(images[tested], fused), predict(images[tested], means))

    return {"text_photos": text_photos}, task.rows(features, predict_tested)


def _finetuning(
    task: _Task, callbacks: FinetuningCallbacks
) -> tuple[dict[str, float], tuple[FewShotRow, ...]]:
    """Settings and rows of the student finetuned on each support."""
    inputs, student, unseen = task.inputs, task.student, task.unseen
    settings = finetuning_config(task.config)
    unseen_images = Images(task.pixels, unseen.targets, task.teacher, task.text["unseen"])
    finetuner = Finetuner.prepare(
        task.config,
        student,
        Images(
            inputs.pixels("train", task.config.image_size),
            inputs.splits["train"].targets,
            inputs.teacher_features("train"),
            task.text["train"],
        ),
        unseen_images,
        list(task.supports.values()),
        progress=inputs.progress("Encoding views"),
    )
    encoded = EvaluationImages.encode(student, task.pixels, student.test_views)
    pixels = inputs.pixels("seen", task.config.image_size)
    seen = EvaluationImages.encode(student, pixels, student.single_view)
    status = _TrialStatus(callbacks.status, [finetuner.steps(s) for s in task.supports.values()])
    kept = max(task.sampling.ks), task.sampling.seeds[0]

    def predict_tested(_model: Model, support: Tensor, tested: Tensor, seed: int) -> _Predicted:
        head = finetuner.fit(support, seed, on_step=status.next_trial())
        if (len(support) // len(unseen.keys), seed) == kept:
            finetuned = deepcopy(student)
            finetuned.projection = head
            callbacks.on_finetuned(Finetuned(finetuned, inputs, support))
        hits = predict(seen.through(head), task.text["seen"]) == inputs.splits["seen"].targets
        return _Predicted(
            predict(encoded.through(head)[tested], unseen_images.text),
            seen=100 * float(hits.double().mean()),
        )

    rows = task.rows({"student": encoded.through(student.projection)}, predict_tested)
    return {"epochs": settings.epochs, "learning_rate": settings.learning_rate}, rows


class _TrialStatus:
    """Shows the progress over all trials on a `StatusLine`; `steps` has the steps of each trial."""

    def __init__(self, show: StatusLine, steps: Sequence[int]) -> None:
        self._show, self._steps, self._trial = show, steps, 0

    def next_trial(self) -> OnStep:
        """The callback for the steps of the next trial."""
        before, total = sum(self._steps[: self._trial]), sum(self._steps)
        self._trial += 1
        trial, started = f"trial {self._trial} of {len(self._steps)}", time.monotonic()

        def update(step: Step) -> None:
            rate = step.images / max(time.monotonic() - started, 1e-9)
            epochs = f"epoch {step.epoch} of {step.epochs}"
            self._show(before + step.done, total, f"{trial}, {epochs}, {rate:,.0f} images/s")

        return update


def _row(model: Model, k: int, trials: Sequence[_Trial]) -> FewShotRow:
    """Means and standard deviations over the trials of all seeds."""
    top1 = [trial.top1 for trial in trials]
    per_class = [trial.mean_per_class for trial in trials]
    seen = [trial.seen for trial in trials if trial.seen is not None]
    photos = [trial.photos_only for trial in trials if trial.photos_only is not None]
    several = len(trials) > 1
    return FewShotRow(
        model=model,
        k=k,
        top1=mean(top1),
        top1_deviation=stdev(top1) if several else None,
        mean_per_class=mean(per_class),
        mean_per_class_deviation=stdev(per_class) if several else None,
        text_only_top1=mean(trial.text_only for trial in trials),
        photos_only_top1=mean(photos) if photos else None,
        seen_top1=mean(seen) if seen else None,
        images=trials[0].images,
    )
