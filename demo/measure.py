"""Measures the gain of the demo's teacher by descriptions, in plain open_clip code.

Zero-shot accuracy of the teacher on newly rendered images: with "a photo of {name}", with "a photo
of {name} . {description}", and, as the control, with the same descriptions shuffled over the
classes. Shuffled descriptions are worse than plain names.

    python -m demo.measure [--teacher FOLDER] [--seed N]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from demo.world import Charm, charms, render

HERE = Path(__file__).parent


def recorded_descriptions(path: Path = HERE / "replies.jsonl") -> dict[str, str]:
    """The last recorded description of each class name, which a run accepts."""
    replies = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        reply = json.loads(line)
        if reply["prompt"] == "visual-description":
            replies[reply["label"]] = reply["reply"]
    return {name: json.loads(reply)["description"] for name, reply in replies.items()}


def shuffled(descriptions: dict[str, str], names: list[str], seed: int = 0) -> dict[str, str]:
    """Give each of `names` the description of another."""
    order = np.random.default_rng(seed).permutation(len(names))
    donors = np.roll(order, 1)
    return {names[to]: descriptions[names[of]] for to, of in zip(order, donors, strict=True)}


@torch.inference_mode()
def teacher_accuracies(
    teacher: Path = HERE / "teacher", *, seed: int = 1, images: int = 30
) -> dict[str, dict[str, float]]:
    """Top-1 in percent by text ("name", "name+description", "shuffled") and split.

    `images` images per class are rendered from `seed`. Seen classes compete with seen classes,
    unseen with unseen classes.
    """
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{teacher}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{teacher}")
    model.eval()
    descriptions = recorded_descriptions()
    table: dict[str, dict[str, float]] = {}
    for split in ("seen", "unseen"):
        group = [charm for charm in charms() if charm.seen == (split == "seen")]
        features = _image_features(model, preprocess, group, images, seed)
        names = [charm.name for charm in group]
        wrong = shuffled(descriptions, names, seed)
        prompts = {
            "name": [f"a photo of {name}" for name in names],
            "name+description": [f"a photo of {n} . {descriptions[n]}" for n in names],
            "shuffled": [f"a photo of {n} . {wrong[n]}" for n in names],
        }
        target = torch.arange(len(group)).repeat_interleave(images)
        for text, lines in prompts.items():
            classes = model.encode_text(tokenizer(lines), normalize=True)
            hits = (features @ classes.T).argmax(1) == target
            table.setdefault(text, {})[split] = round(100 * hits.float().mean().item(), 1)
    return table


def _image_features(
    model: open_clip.CLIP,
    preprocess: Callable[[Image.Image], torch.Tensor],
    group: list[Charm],
    images: int,
    seed: int,
) -> torch.Tensor:
    """Unit features [classes · images, dim], in the order of the classes."""
    rng = np.random.default_rng(seed)
    batches = [
        torch.stack([preprocess(Image.fromarray(render(charm.look, rng))) for _ in range(images)])
        for charm in group
    ]
    return torch.cat([model.encode_image(batch, normalize=True) for batch in batches])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the teacher's gain by descriptions.")
    parser.add_argument("--teacher", type=Path, default=HERE / "teacher")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    table = teacher_accuracies(arguments.teacher, seed=arguments.seed)
    print(f"{'text':18} {'seen':>6} {'unseen':>7}")
    for text, row in table.items():
        print(f"{text:18} {row['seen']:6.1f} {row['unseen']:7.1f}")


if __name__ == "__main__":
    main()
