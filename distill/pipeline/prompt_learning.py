"""Prompt learning (CoOp, arXiv 2109.01134): context vectors in the place of "a photo of".

Notable:
- The teacher stays frozen, text tower included: all that is learned is [tokens, width] numbers,
  shared by all classes, so that classes never seen get a text too.
- The vectors enter where the tower embeds its tokens: a prompt is written with placeholders, and
  what their embedding gives is replaced. That needs nothing of the tower but its embedding, and
  works for CLIP's and for Hugging Face's.
- Only features of the seen classes' training images are looked at.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from contract import ReleaseLabel
from distill.embeddings.prompts import within_context
from distill.errors import DataError, ModelError, TextError
from distill.method.losses import l_cls
from distill.models.teacher import TEXT_BATCH, Teacher

PLACEHOLDER: Final = "x"  # one token in every vocabulary that has letters
START: Final = "a photo of"  # its last tokens are where learning begins
BATCH: Final = 256
LEARNING_RATE: Final = 2e-3


@dataclass(frozen=True)
class Learned:
    """The context [tokens, width], and L_cls over all training images before and after."""

    context: Tensor
    loss_before: float
    loss_after: float


def learn_context(
    teacher: Teacher,
    labels: Sequence[ReleaseLabel],
    features: Tensor,
    targets: Tensor,
    *,
    tokens: int,
    described: bool,
    steps: int,
    seed: int,
) -> Learned:
    """Learn the context on the teacher's image `features` [images, dim] of the seen classes.

    `targets` [images] index `labels`. The loss is L_cls at the teacher's own temperature, over
    batches drawn by `seed`; Adam, its rate falling as half a cosine.

    Raises:
        DataError: there is no image.
        ModelError: the text tower takes no vectors in the place of tokens.
        TextError: a label has no description, or its name is too long behind so many tokens.
    """
    if not len(features):
        raise DataError("there is no image to learn a prompt from: add some to train/")
    device = torch.device(teacher.device)
    features, targets = features.to(device), targets.to(device)
    prompts = _Prompts(teacher, labels, tokens, described)
    generator = torch.Generator().manual_seed(seed)
    context = prompts.start(generator).requires_grad_()
    temperature = 1 / teacher.model.logit_scale.exp().item()  # type: ignore[operator]
    optimiser = torch.optim.Adam([context], lr=LEARNING_RATE)

    @torch.no_grad()
    def loss_over_all() -> float:
        return l_cls(features, prompts.encode(context), targets, temperature=temperature).item()

    before = loss_over_all()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
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
    """Unit text features [labels, dim] float32 behind the learned `context` [tokens, width].

    Raises:
        ModelError, TextError: as `learn_context`.
    """
    prompts = _Prompts(teacher, labels, len(context), described)
    return prompts.encode(context.to(teacher.device)).float().cpu()


class _Prompts:
    """The tokenised prompts of some labels, with placeholders for the context."""

    def __init__(
        self, teacher: Teacher, labels: Sequence[ReleaseLabel], tokens: int, described: bool
    ) -> None:
        places = " ".join([PLACEHOLDER] * tokens)
        texts: list[str] = []
        owners: list[int] = []
        for owner, label in enumerate(labels):
            if described and not label.description:
                raise TextError(
                    f"the label {label.key!r} ({label.name}) has no description: enrich it and "
                    "release again, or learn without descriptions"
                )
            prefix = f"{places} {label.name} . " if described else f"{places} {label.name}"
            pieces = (
                within_context(teacher, f"{prefix}{label.description}", prefix)
                if described
                else (prefix,)
            )
            if any(teacher.token_count(piece) > teacher.context_length for piece in pieces):
                raise TextError(
                    f"the name of {label.key!r} ({label.name}) behind {tokens} learned tokens is "
                    f"longer than the teacher's {teacher.context_length}: learn fewer tokens"
                )
            texts += pieces
            owners += [owner] * len(pieces)
        self.teacher = teacher
        self.tokens = teacher.tokenizer(texts).to(teacher.device)
        self.owners = torch.tensor(owners, device=teacher.device)
        self.embedding = _embedding(teacher)
        # The placeholders stand where prompts of one letter more or less begin to differ.
        first, second = (teacher.tokenizer([text])[0] for text in (PLACEHOLDER, "a"))
        self.place = slice(start := int((first != second).nonzero()[0, 0]), start + tokens)
        if not bool((self.tokens[:, self.place] == first[start].item()).all()):
            raise _no_context(teacher)

    def start(self, generator: torch.Generator) -> Tensor:
        """The first context [tokens, width]: START, with noise before it where there is room."""
        ids = self.teacher.tokenizer([START])[0, self.place.start :]
        words = self.teacher.token_count(START) - (
            self.teacher.token_count(PLACEHOLDER) - 1  # what frames each text
        )
        known = self.embedding(ids[:words].to(self.teacher.device)).detach()
        count = self.place.stop - self.place.start
        noise = torch.randn(count, known.shape[1], generator=generator).to(known)
        noise *= self.embedding.weight.std()
        known = known[-count:]
        noise[count - len(known) :] = known
        return noise

    def encode(self, context: Tensor) -> Tensor:
        """Unit features [labels, dim], differentiable in `context`.

        A text longer than the teacher's context is the mean of its sentences, as in a text bank.
        What a part of the texts needs for its gradient is computed again when that is taken, so
        that a thousand classes fit in memory.
        """

        def part(tokens: Tensor, context: Tensor) -> Tensor:
            with self._replaced(context):
                return normalize(self.teacher.encode_tokens(tokens).float(), dim=1)

        parts = torch.split(self.tokens, TEXT_BATCH)
        pieces = torch.cat([checkpoint(part, each, context, use_reentrant=False) for each in parts])
        sums = pieces.new_zeros(int(self.owners[-1]) + 1, pieces.shape[1])
        return normalize(sums.index_add(0, self.owners, pieces), dim=1)

    @contextmanager
    def _replaced(self, context: Tensor) -> Iterator[None]:
        def replace(_: nn.Module, __: tuple[Tensor, ...], embedded: Tensor) -> Tensor:
            own = context.to(embedded.dtype).expand(len(embedded), -1, -1)
            before, behind = embedded[:, : self.place.start], embedded[:, self.place.stop :]
            return torch.cat([before, own, behind], dim=1)

        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


def _embedding(teacher: Teacher) -> nn.Embedding:
    """The module that turns tokens into vectors."""
    text = getattr(teacher.model, "text", teacher.model)
    found = getattr(text, "token_embedding", None)
    if found is None and hasattr(text, "transformer"):
        found = getattr(text.transformer, "get_input_embeddings", lambda: None)()
    if not isinstance(found, nn.Embedding):
        raise _no_context(teacher)
    return found


def _no_context(teacher: Teacher) -> ModelError:
    return ModelError(
        f"the text tower of the teacher {teacher.name} takes no learned context: choose one of "
        "open_clip's CLIP models, or describe the classes instead"
    )
