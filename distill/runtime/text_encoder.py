"""The teacher's text tower as an ONNX model with its tokenizer: texts to unit features.

The features equal those of the teacher in open_clip, also for texts that are longer than the
context (`distill.embeddings.class_prompts`). Does not import torch.
"""

import html
import os
import string
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from distill.embeddings.class_prompts import within_context
from distill.runtime.manifest import TextCleaning

# From version 1.29, ONNX Runtime sends telemetry about each model unless this is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

Features = NDArray[np.float32]
BATCH: Final = 32


class TextEncoder:
    """Encodes texts with `model` (ONNX) and `tokenizer` (JSON of the package tokenizers).

    `model` may be a function that reads it when the first text is encoded: most classifiers never
    encode a text, and the model of a large teacher takes hundreds of megabytes.
    """

    def __init__(
        self,
        model: bytes | Callable[[], bytes],
        tokenizer: bytes,
        *,
        context_length: int,
        cleaning: TextCleaning,
        threads: int | None = None,
    ) -> None:
        self._model, self._tokenizer_json, self._threads = model, tokenizer, threads
        self._context_length, self._cleaning = context_length, cleaning

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of a text, including start and end tokens."""
        return self._context_length

    @cached_property
    def _session(self) -> ort.InferenceSession:
        model = self._model if isinstance(self._model, bytes) else self._model()
        return open_session(model, self._threads)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """Pads and truncates to the context length."""
        return Tokenizer.from_buffer(self._tokenizer_json)

    @cached_property
    def _counter(self) -> Tokenizer:
        """Neither pads nor truncates."""
        tokenizer = Tokenizer.from_buffer(self._tokenizer_json)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def token_count(self, text: str) -> int:
        """Number of tokens of `text` with start and end tokens, before truncation."""
        return len(self._counter.encode(clean(text, self._cleaning)).ids)

    def tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids [texts, context_length]."""
        cleaned = [clean(text, self._cleaning) for text in texts]
        return np.array([x.ids for x in self._tokenizer.encode_batch(cleaned)], dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> Features:
        """Unit features [texts, dim] float32. Texts are truncated to the context."""
        tokens = self.tokens(texts)
        batches = [tokens[start : start + BATCH] for start in range(0, len(tokens), BATCH)]
        return np.concatenate([self._session.run(None, {"tokens": x})[0] for x in batches])

    def encode_class(self, texts: Sequence[str], prefix: str) -> Features:
        """The normalised mean of the features of a class's texts: unit features [dim].

        Each text starts with `prefix`. A text longer than the context is split into sentences, and
        `prefix` is repeated before each.
        """
        return _mean(list(self.encode_each(texts, prefix)))

    def encode_each(self, texts: Sequence[str], prefix: str = "") -> Features:
        """Unit features [texts, dim]; a text longer than the context is the mean over its parts."""
        pieces = [within_context(self, text, prefix) for text in texts]
        encoded = iter(self.encode([piece for text in pieces for piece in text]))
        return np.stack([_mean([next(encoded) for _ in text]) for text in pieces])


def open_session(model: bytes | Path, threads: int | None = None) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU that logs only errors.

    `threads` is the number of threads, by default one per core. If it is given, as in a server,
    idle threads sleep instead of spinning, and no memory is kept between runs.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
    source = str(model) if isinstance(model, Path) else model
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def clean(text: str, cleaning: TextCleaning) -> str:
    """Clean a text as open_clip's tokenizer does before tokenising."""
    if cleaning == "none":
        return text
    from ftfy import fix_text  # takes half a second to import, and only new classes need it

    text = html.unescape(html.unescape(fix_text(text)))
    if cleaning == "canonicalize":
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()


def _mean(features: Sequence[Features]) -> Features:
    """The normalised mean [dim] of unit features, each [dim]."""
    mean = np.mean(np.stack(features), axis=0)
    unit: Features = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return unit
