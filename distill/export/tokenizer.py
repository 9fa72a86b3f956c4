"""Converts the teacher's tokenizer to `tokenizer.json`, which the package tokenizers reads."""

from typing import Any, Final

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from distill.errors import ModelError
from distill.models.teacher import Teacher
from distill.runtime.manifest import TextCleaning

CLEANING: Final[dict[str, TextCleaning]] = {
    "_clean_lower": "lower",
    "_clean_whitespace": "whitespace",
    "_clean_canonicalize": "canonicalize",
}
# The word pattern of the CLIP tokenizer (open_clip/tokenizer.py), without special tokens.
CLIP_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer_json(teacher: Teacher) -> tuple[bytes, TextCleaning]:
    """The tokenizer of `teacher` as JSON, which truncates and pads to its context, and the text
    cleaning to apply before it.

    Raises:
        ModelError: the package tokenizers does not support the tokenizer.
    """
    tokenizer: Any = teacher.tokenizer
    cleaning = CLEANING.get(getattr(getattr(tokenizer, "clean_fn", None), "__name__", ""))
    unknown = ModelError(
        f"the teacher {teacher.name} has a tokenizer that cannot be exported "
        f"({type(tokenizer).__name__}): choose a teacher with CLIP's tokenizer or one of "
        "Hugging Face's fast tokenizers"
    )
    if cleaning is None:
        raise unknown
    if isinstance(tokenizer, SimpleTokenizer):
        exported = _clip_tokenizer(tokenizer, lower=cleaning != "whitespace")
        pad_id, pad_token, side = 0, tokenizer.decoder[0], "right"
    elif isinstance(tokenizer, HFTokenizer) and hasattr(tokenizer.tokenizer, "backend_tokenizer"):
        if tokenizer.strip_sep_token or tokenizer.tokenizer_mode:
            raise unknown
        inner = tokenizer.tokenizer
        exported = Tokenizer.from_str(inner.backend_tokenizer.to_str())
        pad_id, pad_token, side = inner.pad_token_id, inner.pad_token, inner.padding_side
    else:
        raise unknown
    exported.enable_truncation(teacher.context_length)
    exported.enable_padding(
        length=teacher.context_length, pad_id=pad_id, pad_token=pad_token, direction=side
    )
    return exported.to_str().encode(), cleaning


def _clip_tokenizer(tokenizer: SimpleTokenizer, *, lower: bool) -> Tokenizer:
    """CLIP's byte-pair encoding with the same word pattern, merges and special tokens."""
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    exported = Tokenizer(models.BPE(tokenizer.encoder, merges, end_of_word_suffix="</w>"))
    steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " ")]
    exported.normalizer = normalizers.Sequence(
        [*steps, normalizers.Lowercase()] if lower else steps
    )
    exported.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (tokenizer.decoder[i] for i in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    exported.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)],
    )
    return exported
