"""Text banks: the teacher's class text features for one release and one text strategy.

The prompts of each class are those of `distill.embeddings.class_prompts`.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from contract import Release, TextStrategy
from distill.data.files.tensor_file import DamagedFile, read_tensor, write_tensor
from distill.data.pixels import Progress
from distill.embeddings.class_prompts import prefix_of, prompts_of, within_context
from distill.errors import TextError, some
from distill.models.teacher import Teacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextBank:
    """Unit features [classes, dim] float32, in the order of `keys`."""

    features: Tensor
    keys: tuple[str, ...]
    names: tuple[str, ...]
    strategy: TextStrategy
    teacher: str
    release_hash: str
    flagged: tuple[str, ...] = ()  # keys of labels with a text longer than the teacher's context
    learned: int = 0  # number of learned context tokens that replace "a photo of"

    @property
    def title(self) -> str:
        """The strategy, and the number of learned context tokens, if any."""
        return f"{self.strategy}, {self.learned} learned" if self.learned else self.strategy

    def select(self, keys: Sequence[str]) -> "TextBank":
        """The bank of only `keys`, in their order.

        Raises:
            TextError: a key is not in the bank.
        """
        rows_by_key = {key: row for row, key in enumerate(self.keys)}
        if missing := [key for key in keys if key not in rows_by_key]:
            raise TextError(f"the text bank has no text for {some(missing)}")
        rows = [rows_by_key[key] for key in keys]
        return TextBank(
            self.features[rows],
            tuple(keys),
            tuple(self.names[row] for row in rows),
            self.strategy,
            self.teacher,
            self.release_hash,
            tuple(key for key in self.flagged if key in set(keys)),
            self.learned,
        )

    def save(self, path: Path) -> None:
        """Write the bank as safetensors, with names and provenance in the header.

        Raises:
            TextError: the file cannot be written.
        """
        metadata = {
            "keys": json.dumps(self.keys),
            "names": json.dumps(self.names),
            "strategy": self.strategy,
            "teacher": self.teacher,
            "release_hash": self.release_hash,
            "flagged": json.dumps(self.flagged),
            "learned": str(self.learned),
        }
        try:
            write_tensor(path, self.features, metadata)
        except OSError as error:
            raise TextError(
                f"cannot write the text bank {path} ({error.strerror}): free some space or choose "
                "another folder"
            ) from None

    @classmethod
    def load(cls, path: Path) -> "TextBank":
        """The bank at `path`.

        Raises:
            TextError: the file is missing, damaged or not a text bank.
        """
        try:
            features, metadata = read_tensor(path)
            return cls(
                features,
                tuple(json.loads(metadata["keys"])),
                tuple(json.loads(metadata["names"])),
                TypeAdapter[TextStrategy](TextStrategy).validate_python(metadata["strategy"]),
                metadata["teacher"],
                metadata["release_hash"],
                tuple(json.loads(metadata["flagged"])),
                int(metadata.get("learned", 0)),
            )
        except FileNotFoundError:
            raise TextError(
                f"there is no text bank {path}: make it with `distill text-bank`"
            ) from None
        except (DamagedFile, KeyError, ValueError, OSError):
            raise TextError(
                f"{path} is damaged or not a text bank: make it again with `distill text-bank`"
            ) from None


def build_text_bank(
    teacher: Teacher,
    release: Release,
    strategy: TextStrategy,
    *,
    keys: Sequence[str] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> TextBank:
    """The bank of `release` (or of its labels `keys`, in that order) under `strategy`.

    With `cache`, a folder, the bank is computed once per teacher, texts and strategy; a damaged
    file there is rebuilt.

    Raises:
        TextError: a key is not in the release, or its label lacks a text for the strategy.
    """
    labels = {label.key: label for label in release.labels}
    keys = tuple(labels if keys is None else keys)
    if missing := [key for key in keys if key not in labels]:
        raise TextError(
            f"the release {release.name!r} has no label {some(missing)}: add it to the label set "
            "and release again"
        )
    prompts = [prompts_of(labels[key], strategy) for key in keys]
    path = None
    if cache is not None:
        content = json.dumps([teacher.fingerprint, strategy, keys, prompts])
        path = cache / f"text-bank-{hashlib.sha256(content.encode()).hexdigest()[:24]}.safetensors"
        if path.is_file():
            try:
                return TextBank.load(path)
            except TextError as error:
                log.warning("%s; it is only a cache and is computed again", error)
    flagged = [
        key
        for key, texts in zip(keys, prompts, strict=True)
        if any(teacher.token_count(text) > teacher.context_length for text in texts)
    ]
    groups = [
        (texts, prefix_of(labels[key], strategy)) for key, texts in zip(keys, prompts, strict=True)
    ]
    bank = TextBank(
        encode_groups(teacher, groups, progress),
        keys,
        tuple(labels[key].name for key in keys),
        strategy,
        teacher.name,
        release.hash,
        tuple(flagged),
    )
    if path is not None:
        bank.save(path)
    return bank


def encode_groups(
    teacher: Teacher,
    groups: Sequence[tuple[Sequence[str], str]],
    progress: Progress | None = None,
) -> Tensor:
    """The normalised mean over the texts of each group: unit features [groups, dim].

    A group is its texts and their common prefix, which is repeated before each sentence of a text
    that is longer than the teacher's context.
    """
    parts = [[within_context(teacher, text, prefix) for text in texts] for texts, prefix in groups]
    flat = [piece for texts in parts for pieces in texts for piece in pieces]
    encoded = iter(teacher.encode_text(flat, progress))
    rows = [
        _mean(
            torch.stack([_mean(torch.stack([next(encoded) for _ in pieces])) for pieces in texts])
        )
        for texts in parts
    ]
    return torch.stack(rows)


def _mean(features: Tensor) -> Tensor:
    """The normalised mean [dim] of unit features [texts, dim]."""
    return F.normalize(features.mean(dim=0), dim=-1)
