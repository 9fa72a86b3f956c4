"""Finetuning of a student on a few images of new classes.

The backbone is frozen and only the projection is trained, so each image is encoded once for all
supports. Training images of seen classes are replayed against forgetting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from contract import TestViews, TrainConfig
from distill.data.augment import apply_views, fixed_views, sample_views
from distill.data.pixels import Progress
from distill.data.streamed_pixels import Pixels, read_in_order
from distill.models.student import EVALUATION_BATCH, Student
from distill.training.head import HeadImages, OnStep, batches, fit_head

EPOCHS: Final = 10
LEARNING_RATE: Final = 0.04  # of AdamW; stable for a single layer, and Muon's steps are slower
SEEN_IMAGES: Final = 1024  # minimum number of replayed images
VIEWS: Final = 5  # random views per image
SEED: Final = 0  # of the views and of the replayed images


@dataclass(frozen=True)
class Images:
    """The images of a split and the texts of its classes."""

    pixels: Pixels  # [images, 3, size, size] uint8
    targets: Tensor  # [images] rows of `text`
    teacher: Tensor  # [images, dim] unit features
    text: Tensor  # [classes, dim]


@dataclass(frozen=True)
class Finetuner:
    """Finetunes the projection of a student on supports whose images are already encoded."""

    config: TrainConfig  # of finetuning; the seed is set in `fit`
    head: nn.Linear  # the projection after training
    replayed: HeadImages
    pool: HeadImages  # the images of all supports
    pool_rows: Tensor  # from the index of an unseen image to its row in `pool`, −1 for none
    text: Tensor  # [classes, dim] of all classes, seen ones first

    @classmethod
    def prepare(
        cls,
        config: TrainConfig,
        student: Student,
        train: Images,
        unseen: Images,
        supports: Sequence[Tensor],
        *,
        progress: Progress = lambda _done, _total: None,
    ) -> "Finetuner":
        """Encode random views of the images of all `supports`, which are indices of unseen images.

        `config` is that of the run. `progress` is called with (views encoded, total views).
        """
        generator = torch.Generator().manual_seed(SEED)
        replayed_images = max(SEEN_IMAGES, *map(len, supports))
        kept = torch.randperm(len(train.pixels), generator=generator)[:replayed_images]
        rows = torch.unique(torch.cat(list(supports)))
        pool_rows = torch.full((len(unseen.pixels),), -1)
        pool_rows[rows] = torch.arange(len(rows))
        pixels = torch.cat([train.pixels[kept], unseen.pixels[rows]])
        features = _encode_views(student, pixels, generator, progress)
        device = features.device

        def images(part: Tensor, source: Images, chosen: Tensor, first: int) -> HeadImages:
            targets, teacher = source.targets[chosen] + first, source.teacher[chosen]
            return HeadImages(part, targets.to(device), teacher.to(device))

        return cls(
            config=finetuning_config(config),
            head=student.projection,
            replayed=images(features[: len(kept)], train, kept, 0),
            pool=images(features[len(kept) :], unseen, rows, len(train.text)),
            pool_rows=pool_rows,
            text=torch.cat([train.text, unseen.text]).to(device),
        )

    def fit(self, support: Tensor, seed: int, *, on_step: OnStep = lambda _step: None) -> nn.Linear:
        """Train the projection on `support`, one of those given to `prepare`, and return it.

        Raises:
            UserError: the training diverged.
        """
        config = self.config.model_copy(update={"seed": seed})
        new = self.pool.select(self.pool_rows[support])
        return fit_head(config, self.head, self._replayed(new), new, self.text, on_step=on_step)

    def steps(self, support: Tensor) -> int:
        """The number of steps of `fit`."""
        new = self.pool.select(self.pool_rows[support])
        return self.config.epochs * batches(self.config, len(self._replayed(new)), len(new))[1]

    def _replayed(self, new: HeadImages) -> HeadImages:
        return self.replayed.select(slice(max(len(new), SEEN_IMAGES)))


def finetuning_config(config: TrainConfig) -> TrainConfig:
    """The configuration for finetuning the student of a run with `config`."""
    changes = {
        "epochs": EPOCHS,
        "optimiser": "adamw",
        "learning_rate": LEARNING_RATE,
        "warmup_epochs": 0.0,
        # Support images have no captions.
        "losses": config.losses.model_copy(update={"cap": 0.0}),
    }
    return config.model_copy(update=changes)


@torch.inference_mode()
def _encode_views(
    student: Student, pixels: Tensor, generator: torch.Generator, progress: Progress
) -> Tensor:
    """Backbone features [images, VIEWS, width] of random views, on the student's device."""
    student.eval()
    device = student.projection.weight.device
    features: list[Tensor] = []
    for batch in torch.split(pixels, EVALUATION_BATCH):
        images = batch.to(device)
        views = [
            student.backbone_features(apply_views(images, sample_views(len(batch), generator)))
            for _ in range(VIEWS)
        ]
        features.append(torch.stack(views, dim=1).float())
        progress(VIEWS * sum(map(len, features)), VIEWS * len(pixels))
    return torch.cat(features).clone()  # a normal tensor, which autograd accepts


@dataclass(frozen=True)
class EvaluationImages:
    """Backbone features of images in the student's evaluation views."""

    features: Tensor  # [images, views, width]

    @classmethod
    @torch.inference_mode()
    def encode(cls, student: Student, pixels: Pixels, views: TestViews) -> "EvaluationImages":
        """Encode `pixels` [images, 3, size, size] uint8 with the backbone."""
        student.eval()
        device = student.projection.weight.device
        batches = [
            torch.stack(
                [student.backbone_features(v) for v in fixed_views(batch.to(device), views)], dim=1
            )
            for batch in read_in_order(pixels, EVALUATION_BATCH)
        ]
        return cls(torch.cat(batches).float())

    @torch.inference_mode()
    def through(self, head: nn.Linear) -> Tensor:
        """Features [images, dim] with the projection `head`, as in `Student.encode`, on the CPU."""
        features: Tensor = head(self.features)
        if features.shape[1] > 1:
            features = normalize(features, dim=2)
        return features.mean(dim=1).cpu()
