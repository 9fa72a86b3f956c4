"""Renders the demo's images: painted charms (shapes × colours × patterns) with invented names.

- A class is a combination of five attributes. Its name has an invented epithet and a genus that it
  shares with the classes of its shape family: as with "harlequin duck", the name has little
  information (a quarter of the shapes), the description nearly all.
- Seen and unseen classes have the same attribute values in different combinations.
- Background, clutter, distractors, rotation, size, position, light and noise are independent of the
  class.
- The same seed gives the same pixels.

    python -m demo.world FOLDER [--sheet FILE.png]
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # side of a finished image in pixels
_CANVAS = 2 * SIZE  # images are drawn at twice the size and averaged down
CONTEXT = "a painted charm"
SEEN, UNSEEN = 36, 15
IMAGES = {"train": 80, "val_on_train": 25, "val": 40}  # per class
_CLASS_SEED = 7

# The three shapes of a genus are not similar.
GENERA: dict[str, tuple[str, ...]] = {
    "brell": ("disc", "star", "bar"),
    "vask": ("square", "crescent", "flower"),
    "ondle": ("triangle", "ring", "drop"),
    "fimmet": ("cross", "heart", "hexagon"),
}
SHAPES = tuple(shape for family in GENERA.values() for shape in family)
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 40),
    "orange": (240, 135, 30),
    "yellow": (240, 215, 50),
    "green": (50, 150, 60),
    "blue": (45, 85, 200),
    "purple": (125, 55, 165),
    "pink": (240, 140, 185),
    "brown": (120, 75, 40),
    "white": (238, 238, 235),
    "black": (35, 35, 40),
}
PATTERNS = ("plain", "striped", "dotted", "checkered", "ringed")
MARKS = ("white", "black", "yellow")  # colours of a pattern
PARTS = ("none", "horns", "tail", "legs")


@dataclass(frozen=True)
class Look:
    """The attributes of a charm; `mark` is None if the pattern is plain."""

    shape: str
    colour: str
    pattern: str
    mark: str | None
    part: str

    @property
    def core(self) -> tuple[str, str, str]:
        """Shape, colour and pattern; the teacher is not trained on those of unseen classes."""
        return (self.shape, self.colour, self.pattern)


@dataclass(frozen=True)
class Charm:
    """A class of the demo."""

    key: str
    name: str
    look: Look
    seen: bool


def random_look(rng: np.random.Generator) -> Look:
    """A uniformly random combination of attributes."""
    colour = str(rng.choice(list(COLOURS)))
    pattern = str(rng.choice(PATTERNS))
    marks = [mark for mark in MARKS if mark != colour]
    return Look(
        shape=str(rng.choice(SHAPES)),
        colour=colour,
        pattern=pattern,
        mark=None if pattern == "plain" else str(rng.choice(marks)),
        part=str(rng.choice(PARTS)),
    )


def random_epithet(rng: np.random.Generator) -> str:
    """An invented word with two syllables."""
    onset = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "dr", "gr", "tr"]
    vowel, coda = ["a", "e", "i", "o", "u"], ["l", "m", "n", "r", "s", "t", "sk", "rn", "ld", "th"]
    parts = (onset, vowel, onset, vowel, coda)
    return "".join(str(rng.choice(part)) for part in parts)


@cache
def charms() -> tuple[Charm, ...]:
    """All classes, seen and unseen shuffled; no two have the same shape, colour and pattern.

    Shapes and colours alternate, so that all occur about equally often in both groups. No unseen
    class is plain: the small charms in the background are plain, so they never show a held-out
    combination.
    """
    rng = np.random.default_rng(_CLASS_SEED)
    looks: list[tuple[Look, bool]] = []
    taken: set[tuple[str, str, str]] = set()
    for count, seen in ((SEEN, True), (UNSEEN, False)):
        shapes = list(rng.permutation(SHAPES)) * count
        colours = list(rng.permutation(list(COLOURS))) * count
        for shape, colour in zip(shapes[:count], colours[:count], strict=True):
            look = random_look(rng)
            while (
                (look.shape, look.colour) != (shape, colour)
                or look.core in taken
                or not (seen or look.mark)
            ):
                look = random_look(rng)
            taken.add(look.core)
            looks.append((look, seen))
    genus = {shape: name for name, family in GENERA.items() for shape in family}
    epithets: dict[str, None] = {}
    while len(epithets) < len(looks):
        epithets[random_epithet(rng)] = None
    order = rng.permutation(len(looks))
    return tuple(
        Charm(f"charm{number:02d}", f"{epithet} {genus[looks[i][0].shape]}", *looks[i])
        for number, (i, epithet) in enumerate(zip(order, epithets, strict=True), start=1)
    )


# Not in `charms`: a class that is added after training.
NEW_CLASS = Charm(
    "charm52", "talun fimmet", Look("heart", "blue", "dotted", "yellow", "horns"), seen=False
)


def render(look: Look, rng: np.random.Generator) -> np.ndarray:
    """An image of a charm at a random position, uint8 [64, 64, 3]."""
    canvas = _scene(rng)
    _paint(canvas, look, _Pose.random(rng, radius=(0.23, 0.34), spread=0.12), rng)
    return _photograph(canvas, rng)


def render_clutter(looks: Sequence[Look], rng: np.random.Generator, views: int = 2) -> np.ndarray:
    """A table with several charms, photographed from around it: uint8 [views, 64, 64, 3].

    Charms are upright and face the camera. Nearer charms hide those behind them, so that a charm
    hidden from one camera may be visible to another.
    """
    angles = rng.uniform(0, 2 * np.pi) + np.arange(len(looks)) * 2 * np.pi / len(looks)
    reach = rng.uniform(0.1, 0.26, len(looks))  # from the centre, as a fraction of the width
    table = np.stack([np.cos(angles), np.sin(angles)], -1) * reach[:, None]
    sizes = rng.uniform(0.17, 0.22, len(looks))
    photos = []
    for view in range(views):
        turn = view * 2 * np.pi / max(views, 3) + rng.uniform(-0.2, 0.2)
        side = table[:, 0] * np.cos(turn) - table[:, 1] * np.sin(turn)
        near = table[:, 0] * np.sin(turn) + table[:, 1] * np.cos(turn)
        canvas = _scene(rng)
        for index in np.argsort(near):
            size = float(sizes[index] * (1 + 0.6 * near[index]))
            pose = _Pose.random(rng, radius=(size, size), spread=0)
            centre = (0.5 + np.array([side[index], 0.6 * near[index]])) * _CANVAS
            _paint(canvas, looks[index], replace(pose, centre=centre), rng)
        photos.append(_photograph(canvas, rng))
    return np.stack(photos)


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The canvas averaged down, with random light and noise: uint8 [64, 64, 3]."""
    full_size = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    image = np.asarray(full_size.reduce(_CANVAS // SIZE)).astype(np.float32)
    image = (image - 128) * rng.uniform(0.75, 1.1) + 128 + rng.uniform(-22, 22)
    image += rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 12)
    return np.clip(image, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Pose:
    """Position of a charm: from its own coordinates (unit circle, y down) to pixels."""

    turn: np.ndarray  # rotation matrix [2, 2]
    centre: np.ndarray  # pixels
    size: float  # pixels per unit
    stretch: float

    @classmethod
    def random(
        cls, rng: np.random.Generator, radius: tuple[float, float], spread: float
    ) -> "_Pose":
        """`radius` and `spread` (from the centre) are fractions of the image width."""
        angle = np.deg2rad(rng.uniform(-25, 25))
        return cls(
            turn=np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]),
            centre=(0.5 + rng.uniform(-spread, spread, 2)) * _CANVAS,
            size=rng.uniform(*radius) * _CANVAS,
            stretch=rng.uniform(0.9, 1.1),
        )

    def place(self, points: np.ndarray) -> list[tuple[float, float]]:
        """Points [n, 2] in the charm's coordinates to pixels."""
        stretched = points * [self.stretch, 1]
        return [(x, y) for x, y in stretched @ self.turn.T * self.size + self.centre]


def _scene(rng: np.random.Generator) -> np.ndarray:
    """A background of soft blotches, strokes and small plain charms; float32 canvas."""
    cells = int(rng.integers(2, 7))
    blend = Image.fromarray(rng.random((cells, cells), np.float32))
    blend = blend.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)
    first, second = rng.uniform(50, 215, (2, 3)).astype(np.float32)
    grey = np.float32(rng.uniform(0.3, 0.8))  # desaturation
    first, second = (c * (1 - grey) + c.mean() * grey for c in (first, second))
    ground = first + np.asarray(blend)[..., None] * (second - first)
    picture = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 8)):
        stroke = tuple(int(c) for c in rng.uniform(30, 230, 3))
        ends = [float(c) for c in rng.uniform(0, _CANVAS, 4)]
        draw.line(ends, fill=stroke, width=int(rng.integers(1, 5)))
    for _ in range(rng.integers(1, 4)):
        other = random_look(rng)
        outline, _hole = _OUTLINES[other.shape]
        pose = _Pose.random(rng, radius=(0.10, 0.17), spread=0.42)
        fill = tuple(int(c) for c in _tint(other.colour, rng))
        draw.polygon(pose.place(outline), fill=fill)
    return np.asarray(picture).astype(np.float32)


def _paint(canvas: np.ndarray, look: Look, pose: _Pose, rng: np.random.Generator) -> None:
    """Paint a charm onto the canvas: its parts, then the body with its pattern."""
    parts = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(parts)
    for limb in _LIMBS[look.part]:
        pen.polygon(pose.place(limb), fill=255)
    body = Image.new("L", (_CANVAS, _CANVAS))
    pen = ImageDraw.Draw(body)
    outline, hole = _OUTLINES[look.shape]
    pen.polygon(pose.place(outline), fill=255)
    if hole is not None:
        pen.polygon(pose.place(hole), fill=0)

    paint = _tint(look.colour, rng)
    canvas[np.asarray(parts) > 0] = paint * 0.75
    inside = np.asarray(body) > 0
    rows, columns = np.nonzero(inside)
    pixels = np.stack([columns, rows], -1)
    u, v = ((pixels - pose.centre) @ pose.turn / pose.size).T
    colours = np.broadcast_to(paint, (*pixels.shape[:1], 3))
    if look.mark is not None:
        marked = _FIELDS[look.pattern](u, v, rng.uniform(0.85, 1.15), rng.uniform(0, 1))
        colours = np.where(marked[:, None], _tint(look.mark, rng), colours)
    light = 1 + rng.uniform(-0.18, 0.18) * u + rng.uniform(-0.18, 0.18) * v
    canvas[inside] = colours * light[:, None]


def _tint(colour: str, rng: np.random.Generator) -> np.ndarray:
    """The named colour with a small random deviation."""
    tint: np.ndarray = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 11, 3), 0, 255)
    return tint


def _polar(radii: np.ndarray) -> np.ndarray:
    """Points at equal angles, starting at the top; radii [n] → [n, 2]."""
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False) - np.pi / 2
    points: np.ndarray = np.stack([np.cos(angles), np.sin(angles)], -1) * radii[:, None]
    return points


def _shapes() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Outline and hole of each shape, each [n, 2] in the unit circle."""
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    disc = _polar(np.full(60, 0.9))
    arm = 0.32
    cross = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    cross += [(-x, -y) for x, y in cross]
    outer, inner = np.deg2rad(np.linspace(35, 325, 40)), np.deg2rad(np.linspace(300, 60, 40))
    crescent = np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], -1),
            np.stack([0.36 + 0.74 * np.cos(inner), 0.74 * np.sin(inner)], -1),
        ]
    )
    heart = np.stack(
        [
            16 * np.sin(t) ** 3,
            -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2,
        ],
        -1,
    )
    drop = np.stack([0.72 * np.sin(t) * np.sin(t / 2) ** 1.4, -np.cos(t)], -1)
    return {
        "disc": (disc, None),
        "star": (_polar(np.tile([1.1, 0.45], 5)), None),
        "bar": (np.array([(-1.15, -0.3), (1.15, -0.3), (1.15, 0.3), (-1.15, 0.3)]), None),
        "square": (np.array([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]), None),
        "crescent": (crescent, None),
        "flower": (_polar(0.78 + 0.26 * np.cos(6 * t)), None),
        "triangle": (_polar(np.full(3, 1.1)), None),
        "ring": (disc * 1.1, disc * 0.52),
        "drop": (drop, None),
        "cross": (np.array(cross), None),
        "heart": (heart / 16.5, None),
        "hexagon": (_polar(np.full(6, 1.0)), None),
    }


def _limbs() -> dict[str, tuple[np.ndarray, ...]]:
    """Polygons of each part, drawn behind the body."""
    horn = np.array([(0.1, -0.55), (0.75, -0.3), (0.8, -1.5)])
    leg = np.array([(-0.12, 0.1), (0.12, 0.1), (0.12, 1.45), (-0.12, 1.45)])
    bend = np.linspace(0, 1, 12)
    spine = np.stack([0.2 + 1.45 * bend, 0.35 + 0.45 * np.sin(4.2 * bend)], -1)
    tail = np.concatenate([spine - [0, 0.13], (spine - [0, -0.13])[::-1]])
    return {
        "none": (),
        "horns": (horn, horn * [-1, 1]),
        "tail": (tail,),
        "legs": (leg - [0.5, 0], leg, leg - [-0.5, 0]),
    }


Field = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


def _grid(u: np.ndarray, v: np.ndarray, scale: float, shift: float) -> np.ndarray:
    """Distance to the nearest point of a square grid."""
    x, y = ((c * 1.75 * scale + shift) % 1 - 0.5 for c in (u, v))
    return np.hypot(x, y)


_OUTLINES = _shapes()
_LIMBS = _limbs()
_FIELDS: dict[str, Field] = {  # where the pattern has the colour of the mark
    "striped": lambda u, v, scale, shift: (v * 1.9 * scale + shift) % 1 < 0.45,
    "dotted": lambda u, v, scale, shift: _grid(u, v, scale, shift) < 0.29,
    "checkered": lambda u, v, scale, shift: (
        (np.floor(u * 2.3 * scale + shift) + np.floor(v * 2.3 * scale + shift)) % 2 == 0
    ),
    "ringed": lambda u, v, scale, shift: (np.hypot(u, v) * 2.4 * scale + shift / 2) % 1 < 0.45,
}


def write_world(
    root: Path,
    *,
    seed: int = 0,
    train: int = IMAGES["train"],
    val_on_train: int = IMAGES["val_on_train"],
    val: int = IMAGES["val"],
) -> None:
    """Write images and labels to `root` in the paper's layout.

    train/ and val_on_train/ have the seen classes, val/ the unseen classes, with the given number
    of PNG images per class; `labels.json` (key, name, context) and `label2text.txt` list all
    classes.
    """
    for charm in charms():
        amounts = {"train": train, "val_on_train": val_on_train} if charm.seen else {"val": val}
        for split, amount in amounts.items():
            folder = root / split / charm.key
            folder.mkdir(parents=True, exist_ok=True)
            stream = hashlib.sha256(f"{seed} {split} {charm.key}".encode()).digest()
            rng = np.random.default_rng(int.from_bytes(stream[:8], "little"))
            for number in range(amount):
                image = Image.fromarray(render(charm.look, rng))
                image.save(folder / f"{number:03d}.png", compress_level=1)
    labels = [{"key": c.key, "name": c.name, "context": CONTEXT} for c in charms()]
    (root / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")
    lines = [
        f"{charm.key} {number} {charm.name.replace(' ', '_')}\n"
        for number, charm in enumerate(charms(), start=1)
    ]
    (root / "label2text.txt").write_text("".join(lines))


def image_count() -> int:
    """The number of images that `write_world` writes by default."""
    return SEEN * (IMAGES["train"] + IMAGES["val_on_train"]) + UNSEEN * IMAGES["val"]


def contact_sheet(columns: int = 10, zoom: int = 2) -> Image.Image:
    """A row for each class (seen classes first) with `columns` images."""
    rng = np.random.default_rng(0)
    ordered = sorted(charms(), key=lambda charm: not charm.seen)
    rows = [np.concatenate([render(c.look, rng) for _ in range(columns)], 1) for c in ordered]
    sheet = Image.fromarray(np.concatenate(rows))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the images of the demo.")
    parser.add_argument("folder", type=Path, help="folder to write the images to")
    parser.add_argument("--sheet", type=Path, help="contact sheet to write, a PNG file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_world(arguments.folder, seed=arguments.seed)
    if arguments.sheet:
        contact_sheet().save(arguments.sheet)


if __name__ == "__main__":
    main()
