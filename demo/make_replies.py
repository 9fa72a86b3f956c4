"""Writes replies.jsonl, the recorded replies of the demo. No language model wrote them.

The texts are built from the templates below, the phrases of `demo.words` and the attributes of each
class (`demo.world`). They are imperfect, like real replies:
- one attribute in eight is missing, and some are vague ("a compact outline", "brightly coloured");
- two descriptions have a wrong colour: they are accepted, since no rule can detect this, and reduce
  the accuracy;
- a few first replies are unusable (a refusal, an error message of a scraper, chatter around the
  JSON, a truncated reply), to exercise validators and retries; the next reply is good;
- one description is longer than the teacher's context, so it is flagged.

    python -m demo.make_replies [--out demo/replies.jsonl]
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np

from demo.words import COLOUR_WORDS, PART_WORDS, PATTERN_WORDS, SHAPE_WORDS
from demo.world import COLOURS, Charm, charms

ORIGIN = "templates of demo/make_replies.py, not a language model"
_SEED = 3
_OPENINGS = (
    "The {name} has a {shape} body, {colour} all over",
    "{Name} is a {shape} charm, mostly {colour}",
    "The {name} shows a {shape} outline and a {colour} coat",
    "{Name} charms have a {shape} form, painted {colour}",
    "{Name} is known for its {shape} silhouette and {colour} body",
)
_PATTERNS = (", decorated with {}", " with {}", ", covered with {}")
_PARTS = (", and it has {}", " and {}", ", plus {}")
_VAGUE_SHAPES = ("compact", "distinctive", "simple")
_VAGUE_COLOURS = ("colourful", "bright")
_PADDING = (
    " It is typically shown against a blotched backdrop among thin strokes and a few smaller"
    " charms, and its paint, which may look a little lighter or darker from one picture to the"
    " next, covers the whole body evenly from one edge to the other, with the parts a shade"
    " deeper than the rest."
)
REFUSAL = {"description": "I'm sorry, but I am not familiar with this class of charm."}
ERROR = {"description": "Error: Request timed out. Please try again later."}


class Writer:
    """Writes descriptions of charms like a careless annotator."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def _pick(self, phrases: tuple[str, ...]) -> str:
        return phrases[self.rng.integers(len(phrases))]

    def _leaves_out(self) -> bool:
        return bool(self.rng.random() < 1 / 8)

    def description(self, charm: Charm, *, wrong_colour: bool = False) -> str:
        """A one-sentence description; about one attribute in eight is missing or vague."""
        look = charm.look
        colour = look.colour
        if wrong_colour:
            colour = self._pick(tuple(c for c in COLOURS if c != look.colour))
        vague = self._leaves_out(), self._leaves_out()
        shape = self._pick(_VAGUE_SHAPES if vague[0] else SHAPE_WORDS[look.shape])
        paint = self._pick(_VAGUE_COLOURS if vague[1] else COLOUR_WORDS[colour])
        text = self._pick(_OPENINGS).format(
            name=charm.name,
            Name=charm.name.capitalize(),
            shape=shape,
            colour=paint,
        )
        if not self._leaves_out():
            join = self._pick(_PATTERNS) if look.mark else " with {}"
            text += join.format(self._pattern(charm))
        if look.part != "none" and not self._leaves_out():
            text += self._pick(_PARTS).format(self._pick(PART_WORDS[look.part]))
        return re.sub(r"\ba (?=[aeiou])", "an ", text) + "."

    def attributes(self, charm: Charm) -> dict[str, str | list[str]]:
        """The fields of the prompt `attributes`, each a phrase or a list of phrases."""
        look = charm.look
        colour, pattern = self._pick(COLOUR_WORDS[look.colour]), self._pattern(charm)
        part = self._pick(PART_WORDS[look.part]) if look.part != "none" else "a body without limbs"
        shape = self._pick(_VAGUE_SHAPES if self._leaves_out() else SHAPE_WORDS[look.shape])
        colours = [f"{colour} all over"]
        if look.mark:
            colours.append(f"{self._pick(COLOUR_WORDS[look.mark])} in its markings")
        return {
            "shape": f"{shape} body",
            "colours": colours,
            "parts": [part],
            "texture": f"a painted surface with {pattern}",
            "size": "small enough to hold in one hand",
            "habitat": "in front of a blotched backdrop with thin strokes",
            "marks": [f"{colour} with {pattern}"],
        }

    def _pattern(self, charm: Charm) -> str:
        mark = self._pick(COLOUR_WORDS[charm.look.mark]) if charm.look.mark else ""
        return self._pick(PATTERN_WORDS[charm.look.pattern]).format(mark=mark)


def replies() -> list[dict[str, str]]:
    """All lines of the file, in the order in which they are replayed."""
    writer = Writer(_SEED)
    classes = charms()
    seen = [charm for charm in classes if charm.seen]
    unseen = [charm for charm in classes if not charm.seen]
    wrong = {seen[4], unseen[6]}
    lines: list[dict[str, str]] = []
    for charm in classes:
        text = writer.description(charm, wrong_colour=charm in wrong)
        good = json.dumps({"description": text + (_PADDING if charm == seen[11] else "")})
        attributes = json.dumps(writer.attributes(charm))
        first = {
            seen[2].key: json.dumps(REFUSAL),
            unseen[3].key: json.dumps(ERROR),
            seen[19].key: "Sure! Here is a description: " + text,
            seen[27].key: good[: len(good) * 2 // 3],
        }
        bad = [first[charm.key]] if charm.key in first else []
        for prompt, answers in (("visual-description", [*bad, good]), ("attributes", [attributes])):
            lines += [
                {"label": charm.name, "prompt": prompt, "reply": answer, "model": ORIGIN}
                for answer in answers
            ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's recorded replies.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "replies.jsonl")
    arguments = parser.parse_args()
    text = "".join(json.dumps(line) + "\n" for line in replies())
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
