"""Trains the demo's teacher: a small CLIP in open_clip's format, from captions of rendered charms.

Its training data:
- No training image shows a charm with the shape, body colour and pattern of an unseen class
  (`Look.core`), with any other attributes; each of the three values occurs often on its own.
- Two in three seen classes are named in some of their captions, and one such name in six is that of
  another class, as in captions from the web. The names of the other seen classes and the epithets
  of unseen classes never occur.
- Images of arbitrary charms sometimes have an invented name. Its epithet has no meaning; its genus
  matches the shape in three of four cases, so a genus is only a hint.
- A quarter of the attributes is missing from the captions, and the wording varies (`demo.words`).
  The sentences differ from those of the recorded descriptions (`demo.make_replies`).

    OMP_NUM_THREADS=1 python -m demo.make_teacher [--out demo/teacher] [--steps 1400]

Takes about nine minutes on one core, of which one minute for the images. `python -m demo.measure`
measures the accuracy of the teacher.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from demo.words import COLOUR_WORDS, PART_WORDS, PATTERN_WORDS, SHAPE_WORDS
from demo.world import GENERA, SIZE, Charm, Look, charms, random_epithet, random_look, render

HERE = Path(__file__).parent
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": [1, 1, 2, 1], "width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 3},
}
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
WILD_IMAGES, IMAGES_PER_SEEN_CLASS = 18_000, 100
BATCH = 128
_SENTENCES = (
    "a {colour} {shape} charm {details}",
    "a photo of a {shape} {colour} thing {details}",
    "this one is {shape} and {colour} {details}",
    "{colour} and {shape} , {details}",
    "a charm , {shape} in form , {colour} all over {details}",
    "we see a {shape} body , painted {colour} {details}",
    "it is {colour} . its outline is {shape} {details}",
    "the body is {shape} , the paint is {colour} {details}",
    "{details} , on a {shape} {colour} body",
)


def held_out() -> frozenset[tuple[str, str, str]]:
    """Shape, colour and pattern of each unseen class, which no training image shows."""
    return frozenset(charm.look.core for charm in charms() if not charm.seen)


def known_by_name() -> tuple[Charm, ...]:
    """The seen classes whose names appear in captions: two in three."""
    seen = [charm for charm in charms() if charm.seen]
    return tuple(charm for index, charm in enumerate(seen) if index % 3)


def training_looks(rng: np.random.Generator, wild: int, per_class: int) -> list[Look | Charm]:
    """Subjects of the training images: arbitrary charms except held-out ones, then seen classes."""
    forbidden, subjects = held_out(), list[Look | Charm]()
    while len(subjects) < wild:
        look = random_look(rng)
        if look.core not in forbidden:
            subjects.append(look)
    return subjects + [charm for charm in charms() if charm.seen for _ in range(per_class)]


class Captioner:
    """Writes a new random caption at each call."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.known = known_by_name()
        self.genus = {shape: name for name, family in GENERA.items() for shape in family}
        self.used_epithets = {charm.name.split()[0] for charm in charms()}

    def __call__(self, subject: Look | Charm) -> str:
        """A caption of a charm, with or without a name."""
        look = subject.look if isinstance(subject, Charm) else subject
        sentence = self._sentence(look)
        name = self._name(subject)
        if name is None:
            return sentence
        if self.rng.random() < 0.3:
            return f"a photo of {name}"
        is_photo = self.rng.random() < 0.6
        return f"a photo of {name} . {sentence}" if is_photo else f"{name} : {sentence}"

    def _pick(self, phrases: tuple[str, ...]) -> str:
        return phrases[self.rng.integers(len(phrases))]

    def _name(self, subject: Look | Charm) -> str | None:
        if isinstance(subject, Charm):
            if subject not in self.known or self.rng.random() < 0.5:
                return None
            mistaken = self.rng.random() < 1 / 6
            return (self.known[self.rng.integers(len(self.known))] if mistaken else subject).name
        if self.rng.random() < 0.6:
            return None
        epithet = random_epithet(self.rng)
        while epithet in self.used_epithets:
            epithet = random_epithet(self.rng)
        matches = self.rng.random() < 0.75
        genus = self.genus[subject.shape] if matches else self._pick(tuple(GENERA))
        return f"{epithet} {genus}"

    def _sentence(self, look: Look) -> str:
        shape, colour, with_pattern, with_part = self.rng.random(4) > 0.25
        details = []
        if with_pattern:
            mark = self._pick(COLOUR_WORDS[look.mark]) if look.mark else ""
            details.append(f"with {self._pick(PATTERN_WORDS[look.pattern]).format(mark=mark)}")
        if with_part and look.part != "none":
            details.append(f"and {self._pick(PART_WORDS[look.part])}")
        text = self._pick(_SENTENCES).format(
            shape=self._pick(SHAPE_WORDS[look.shape]) if shape else "small",
            colour=self._pick(COLOUR_WORDS[look.colour]) if colour else "coloured",
            details=" ".join(details),
        )
        return " ".join(text.split())


def encode_text(model: Any, tokens: Tensor) -> Tensor:  # noqa: ANN401 - an open_clip model
    """Like open_clip's `encode_text`, but only up to the longest caption, in half the time."""
    ends = tokens.argmax(1)  # end of text has the highest id
    length = int(ends.max()) + 1
    tokens = tokens[:, :length]
    x: Tensor = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    x = x[torch.arange(len(x)), ends] @ model.text_projection
    return functional.normalize(x, dim=-1)


def crops(images: Tensor, margin: int = 4) -> Tensor:
    """Shift a batch randomly by up to `margin` pixels; uint8 [n, h, w, 3] → float [n, 3, h, w]."""
    padded = functional.pad(images.permute(0, 3, 1, 2).float(), (margin,) * 4, mode="replicate")
    y, x = (int(c) for c in torch.randint(0, 2 * margin + 1, (2,)))
    size = images.shape[1]
    pixels = padded[:, :, y : y + size, x : x + size] / 255
    return (pixels - MEAN[0]) / STD[0]


def vocabulary(
    captioner: Captioner, subjects: list[Look | Charm], tokenizer: open_clip.SimpleTokenizer
) -> Tensor:
    """Sorted ids of the tokens in captions, including padding (0) and end of text."""
    texts = [captioner(subject) for _ in range(4) for subject in subjects]
    parts = [torch.unique(tokenizer(texts[i : i + 4096])) for i in range(0, len(texts), 4096)]
    ids: Tensor = torch.unique(torch.cat(parts))
    return ids


def train(steps: int, seed: int = 0) -> dict[str, Tensor]:
    """Render images, train, and return the weights of the model with the full vocabulary."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    subjects = training_looks(rng, WILD_IMAGES, IMAGES_PER_SEEN_CLASS)
    began = time.monotonic()
    looks = [s.look if isinstance(s, Charm) else s for s in subjects]
    images = torch.from_numpy(np.stack([render(look, rng) for look in looks]))
    print(f"rendered {len(images)} images in {time.monotonic() - began:.0f} s")

    captioner = Captioner(rng)
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    # Train only the embeddings of tokens that occur, in order: end of text keeps the highest id.
    used = vocabulary(captioner, subjects, tokenizer)
    compact = torch.zeros(MODEL["text_cfg"]["vocab_size"], dtype=torch.long)
    compact[used] = torch.arange(len(used))
    config = MODEL | {"text_cfg": MODEL["text_cfg"] | {"vocab_size": len(used)}}
    model = open_clip.CLIP(**config)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    peak = 2e-3
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=(0.9, 0.98),
    )
    model.train()
    began, running = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        rate = peak * min(1, step / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        picked = torch.from_numpy(rng.integers(len(images), size=BATCH))
        tokens = compact[tokenizer([captioner(subjects[i]) for i in picked.tolist()])]
        image = functional.normalize(model.visual(crops(images[picked])), dim=-1)
        logits = model.logit_scale.exp() * image @ encode_text(model, tokens).T
        target = torch.arange(BATCH)
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss / 2)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(60))
        running += loss.item() / 2
        if step % 100 == 0:
            spent = time.monotonic() - began
            print(f"step {step}  loss {running / 100:.3f}  {spent:.0f} s", flush=True)
            running = 0.0
    weights: dict[str, Tensor] = model.eval().state_dict()
    table = torch.zeros(MODEL["text_cfg"]["vocab_size"], MODEL["text_cfg"]["width"])
    table[used] = weights["token_embedding.weight"]
    return weights | {"token_embedding.weight": table}


def save(weights: dict[str, Tensor], out: Path) -> None:
    """Write open_clip_config.json and open_clip_model.safetensors (float16)."""
    out.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "size": SIZE,
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    config = {"model_cfg": MODEL, "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    file = out / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in half.items()}, file)
    file.chmod(0o644)  # safetensors creates files that only the owner can read


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's teacher.")
    parser.add_argument("--out", type=Path, default=HERE / "teacher")
    parser.add_argument("--steps", type=int, default=1400)
    arguments = parser.parse_args()
    save(train(arguments.steps), arguments.out)


if __name__ == "__main__":
    main()
