"""Several phrases for each attribute value.

The captions that the teacher is trained on and the recorded descriptions use these phrases, in
different sentences.
"""

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "disc": ("round", "circular", "disc-shaped"),
    "star": ("star-shaped", "five-pointed", "starlike"),
    "bar": ("long and narrow", "rod-shaped", "elongated"),
    "square": ("square", "box-shaped", "four-sided"),
    "crescent": ("crescent-shaped", "moon-shaped", "sickle-shaped"),
    "flower": ("flower-shaped", "six-petalled", "lobed"),
    "triangle": ("triangular", "three-cornered", "wedge-shaped"),
    "ring": ("ring-shaped", "hollow and circular", "doughnut-shaped"),
    "drop": ("drop-shaped", "teardrop-shaped", "pear-shaped"),
    "cross": ("cross-shaped", "plus-shaped", "four-armed"),
    "heart": ("heart-shaped", "heartlike", "two-lobed"),
    "hexagon": ("hexagonal", "six-sided", "honeycomb-shaped"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine", "amber"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "leaf green"),
    "blue": ("blue", "azure", "cobalt"),
    "purple": ("purple", "violet", "plum"),
    "pink": ("pink", "rose", "pale pink"),
    "brown": ("brown", "chestnut", "chocolate"),
    "white": ("white", "ivory", "pale"),
    "black": ("black", "ebony", "dark"),
}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {  # used after "with"
    "plain": ("a plain surface", "no markings", "a smooth, even surface"),
    "striped": ("{mark} stripes", "bold {mark} stripes", "{mark} bands across it"),
    "dotted": ("{mark} dots", "round {mark} spots", "{mark} polka dots"),
    "checkered": ("{mark} checks", "a {mark} checkered pattern", "a {mark} chessboard pattern"),
    "ringed": ("{mark} concentric rings", "{mark} rings", "{mark} circles one inside the other"),
}
PART_WORDS: dict[str, tuple[str, ...]] = {  # used after "and"
    "horns": ("two horns", "a pair of pointed horns", "two pointed ears"),
    "tail": ("a tail", "a curved tail", "a long bent tail"),
    "legs": ("legs", "three straight legs", "three thin legs"),
}
