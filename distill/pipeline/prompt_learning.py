"""Prompt learning (CoOp, arXiv 2109.01134): learned context vectors instead of "a photo of".

- The teacher is frozen, including its text tower: only the context [tokens, width] is learned. All
  classes share it, so that it also applies to unseen classes.
- The vectors are inserted at the token embedding: a prompt contains placeholder tokens, whose
  embeddings are replaced. This needs only the embedding module of the tower, and works for CLIP and
  Hugging Face text towers.
- Learning uses only the training images of the seen classes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from contract import Accuracy, Release, ReleaseLabel
from distill.embeddings.class_prompts import within_context
from distill.embeddings.text_bank import TextBank
from distill.errors import DataError, ModelError, TextError
from distill.evaluation.accuracy import accuracy
from distill.method.losses import l_cls
from distill.models.teacher import TEXT_BATCH, Teacher
from distill.pipeline.inputs import Inputs

PLACEHOLDER: Final = "x"  # a single token in every vocabulary with letters
START: Final = "a photo of"  # its last tokens initialise the context
BATCH: Final = 256
LEARNING_RATE: Final = 2e-3


class PromptLearning(BaseModel):
    """A teacher's accuracy with hand-written and with learned context."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    release_hash: str
    file: Annotated[str, Field(description="The text bank with the learned context")]
    tokens: Annotated[int, Field(description="Learned context tokens")]
    described: Annotated[bool, Field(description="Whether the description follows the name")]
    steps: int
    seed: int
    loss_before: Annotated[float, Field(description="L_cls over all training images")]
    loss_after: float
    accuracies: tuple[Accuracy, ...]


@dataclass(frozen=True)
class Settings:
    """Settings of prompt learning."""

    tokens: int
    described: bool  # whether the description follows the name
    steps: int
    seed: int


def learn_prompt(inputs: Inputs, release: Release, settings: Settings, out: Path) -> PromptLearning:
    """Learn a context on the training images, write its text bank to `out` and evaluate it.

    Raises:
        DataError: a class has no label, or an image cannot be read.
        ModelError, TextError: as in `learn_context`.
    """
    teacher, splits = inputs.teacher, inputs.splits
    labels = {label.key: label for label in release.labels}
    features = {split: inputs.teacher_features(split) for split in splits}
    train = splits["train"]
    learned = learn_context(
        teacher, [labels[key] for key in train.keys], features["train"], train.targets, settings
    )
    names: tuple[Literal["seen", "unseen"], ...] = ("seen", "unseen")
    evaluated = [split for split in names if split in splits]
    keys = tuple(dict.fromkeys(key for split in evaluated for key in splits[split].keys))
    bank = TextBank(
        encode_learned(
            teacher,
            [labels[key] for key in keys],
            learned.context,
            described=settings.described,
        ),
        keys,
        tuple(labels[key].name for key in keys),
        "name+description" if settings.described else "name",
        teacher.name,
        release.hash,
        learned=settings.tokens,
    )
    bank.save(out)
    hand_written = inputs.text_bank(release, bank.strategy, keys)
    return PromptLearning(
        teacher=teacher.name,
        release_hash=release.hash,
        file=str(out),
        tokens=settings.tokens,
        described=settings.described,
        steps=settings.steps,
        seed=settings.seed,
        loss_before=learned.loss_before,
        loss_after=learned.loss_after,
        accuracies=tuple(
            accuracy(
                "teacher",
                split,
                features[split],
                splits[split].targets,
                splits[split].keys,
                texts,
            )
            for texts in (hand_written, bank)
            for split in evaluated
        ),
    )


@dataclass(frozen=True)
class Learned:
    """The learned context [tokens, width], and L_cls over all training images before and after."""

    context: Tensor
    loss_before: float
    loss_after: float


def learn_context(
    teacher: Teacher,
    labels: Sequence[ReleaseLabel],
    features: Tensor,
    targets: Tensor,
    settings: Settings,
) -> Learned:
    """Learn the context on the teacher's image `features` [images, dim] of the seen classes.

    `targets` [images] index `labels`. Minimises L_cls at the teacher's temperature over random
    batches, by Adam with cosine annealing of the learning rate.

    Raises:
        DataError: there is no image.
        ModelError: the text tower does not accept vectors instead of tokens.
        TextError: a label has no description, or its name is too long with so many tokens.
    """
    if not len(features):
        raise DataError("there are no images to learn a prompt from: add some to train/")
    device = torch.device(teacher.device)
    features, targets = features.to(device), targets.to(device)
    prompts = _Prompts(teacher, labels, settings.tokens, settings.described)
    generator = torch.Generator().manual_seed(settings.seed)
    context = prompts.start(generator).requires_grad_()
    temperature = 1 / teacher.model.logit_scale.exp().item()  # type: ignore[operator]
    optimiser = torch.optim.Adam([context], lr=LEARNING_RATE)

    @torch.no_grad()
    def loss_over_all() -> float:
        return l_cls(features, prompts.encode(context), targets, temperature=temperature).item()

    before = loss_over_all()
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        batch = torch.randperm(len(features), generator=generator)[:BATCH]
        text = prompts.encode(context)
        loss = l_cls(features[batch], text, targets[batch], temperature=temperature)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return Learned(context.detach().cpu(), before, loss_over_all())


@torch.no_grad()
def encode_learned(
    teacher: Teacher, labels: Sequence[ReleaseLabel], context: Tensor, *, described: bool
) -> Tensor:
    """Unit text features [labels, dim] float32 with the learned `context` [tokens, width].

    Raises:
        ModelError, TextError: as in `learn_context`.
    """
    prompts = _Prompts(teacher, labels, len(context), described)
    return prompts.encode(context.to(teacher.device)).float().cpu()


class _Prompts:
    """The tokenised prompts of labels, with placeholder tokens for the context."""

    def __init__(
        self, teacher: Teacher, labels: Sequence[ReleaseLabel], tokens: int, described: bool
    ) -> None:
        placeholders = " ".join([PLACEHOLDER] * tokens)
        texts: list[str] = []
        owners: list[int] = []
        for owner, label in enumerate(labels):
            if described and not label.description:
                raise TextError(
                    f"the label {label.key!r} ({label.name}) has no description: enrich it and "
                    "release again, or learn without descriptions"
                )
            prefix = f"{placeholders} {label.name}" + (" . " if described else "")
            pieces = (
                within_context(teacher, f"{prefix}{label.description}", prefix)
                if described
                else (prefix,)
            )
            if any(teacher.token_count(piece) > teacher.context_length for piece in pieces):
                raise TextError(
                    f"the name of {label.key!r} ({label.name}) with {tokens} learned tokens is "
                    f"longer than the teacher's {teacher.context_length}: learn fewer tokens"
                )
            texts += pieces
            owners += [owner] * len(pieces)
        self.teacher = teacher
        self.tokens = teacher.tokenizer(texts).to(teacher.device)
        self.owners = torch.tensor(owners, device=teacher.device)
        self.embedding = _embedding(teacher)
        # The first token in which two one-letter prompts differ is that of the first placeholder.
        first, second = (teacher.tokenizer([text])[0] for text in (PLACEHOLDER, "a"))
        self.slots = slice(start := int((first != second).nonzero()[0, 0]), start + tokens)
        if not bool((self.tokens[:, self.slots] == first[start].item()).all()):
            raise _no_context(teacher)

    def start(self, generator: torch.Generator) -> Tensor:
        """The initial context [tokens, width]: START, after noise if the context is longer."""
        ids = self.teacher.tokenizer([START])[0, self.slots.start :]
        start_tokens = self.teacher.token_count(START) - (
            self.teacher.token_count(PLACEHOLDER) - 1  # the start and end tokens
        )
        known = self.embedding(ids[:start_tokens].to(self.teacher.device)).detach()
        count = self.slots.stop - self.slots.start
        noise = torch.randn(count, known.shape[1], generator=generator).to(known)
        noise *= self.embedding.weight.std()
        known = known[-count:]
        noise[count - len(known) :] = known
        return noise

    def encode(self, context: Tensor) -> Tensor:
        """Unit features [labels, dim], differentiable in `context`.

        A text longer than the teacher's context is the mean of its sentences, as in a text bank.
        Uses activation checkpointing, so that a thousand classes fit in memory.
        """

        def encode_batch(tokens: Tensor, context: Tensor) -> Tensor:
            with self._replaced(context):
                return normalize(self.teacher.encode_tokens(tokens).float(), dim=1)

        batches = torch.split(self.tokens, TEXT_BATCH)
        pieces = torch.cat(
            [checkpoint(encode_batch, batch, context, use_reentrant=False) for batch in batches]
        )
        sums = pieces.new_zeros(int(self.owners[-1]) + 1, pieces.shape[1])
        return normalize(sums.index_add(0, self.owners, pieces), dim=1)

    @contextmanager
    def _replaced(self, context: Tensor) -> Iterator[None]:
        def replace(_: nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            vectors = context.to(embedded.dtype).expand(len(embedded), -1, -1)
            before, after = embedded[:, : self.slots.start], embedded[:, self.slots.stop :]
            return torch.cat([before, vectors, after], dim=1)

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def _embedding(teacher: Teacher) -> nn.Embedding:
    """The token embedding of the text tower."""
    text = getattr(teacher.model, "text", teacher.model)
    embedding = getattr(text, "token_embedding", None)
    if embedding is None and hasattr(text, "transformer"):
        embedding = getattr(text.transformer, "get_input_embeddings", lambda: None)()
    if not isinstance(embedding, nn.Embedding):
        raise _no_context(teacher)
    return embedding


def _no_context(teacher: Teacher) -> ModelError:
    return ModelError(
        f"the text tower of the teacher {teacher.name} does not accept a learned context: choose "
        "a CLIP model of open_clip, or use descriptions instead"
    )
