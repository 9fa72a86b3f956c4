"""Contact sheets: thumbnails of many photos as HTML or PNG, with predictions if given."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from distill.runtime.classifier import Prediction
from distill.runtime.photo_files import printable
from distill.runtime.reasons import Reasons

SIDE: Final = 200  # pixels of a thumbnail
QUALITY: Final = 80  # of its JPEG

STYLE: Final = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #1a1a1a; background: #fff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1.5rem; }
figure { margin: 0; } img { width: 200px; height: 200px; object-fit: contain; background: #f0f0f0; }
figcaption { overflow-wrap: anywhere; color: #555; font-size: 12px; }
ol { list-style: none; margin: 0; padding: 0; } li { position: relative; padding: 1px 4px; }
li span { position: relative; } li i { position: absolute; inset: 0 auto 0 0; background: #cfe3f7; }
.unknown { color: #8a4b00; } .why { margin: 2px 0; font-size: 12px; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #16181b; }
  img { background: #24272b; } li i { background: #24496b; } figcaption { color: #aaa; }
  .unknown { color: #ffb765; } }
"""


@dataclass(frozen=True)
class Tile:
    """One photo of the sheet; `thumbnail` is a JPEG."""

    name: str
    thumbnail: bytes
    prediction: Prediction | None = None


def thumbnail(image: Image.Image) -> bytes:
    """`image` as a JPEG of at most SIDE × SIDE pixels."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def contact_sheet(title: str, tiles: Sequence[Tile]) -> str:
    """A self-contained HTML page."""
    shown = "\n".join(map(_figure, tiles))
    title = html.escape(printable(title))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<main>\n{shown}\n</main></body></html>\n"
    )


def contact_sheet_png(tiles: Sequence[Tile], columns: int) -> bytes:
    """The tiles as one PNG with `columns` columns, each thumbnail above its name."""
    line = 16  # height of a name in pixels
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * SIDE, max(rows, 1) * (SIDE + line)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left, top = index % columns * SIDE, index // columns * (SIDE + line)
        with Image.open(io.BytesIO(tile.thumbnail)) as image:
            sheet.paste(image, (left, top))
        name = tile.name.encode("latin-1", "replace").decode(
            "latin-1"
        )  # the font has no other characters
        draw.text((left + 2, top + SIDE + 2), name[:32], fill="black")
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _figure(tile: Tile) -> str:
    data = base64.b64encode(tile.thumbnail).decode()
    name = html.escape(printable(tile.name))
    if tile.prediction is None:
        return (
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    rows = "".join(
        f'<li><i style="width:{100 * candidate.probability:.1f}%"></i>'
        f"<span>{html.escape(candidate.name)} {100 * candidate.probability:.0f} %</span></li>"
        for candidate in tile.prediction.candidates
    )
    unknown = '<div class="unknown">probably none of the classes</div>'
    why = "" if tile.prediction.reasons is None else _why(tile.prediction.reasons)
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name}">'
        f"{unknown if tile.prediction.unknown else ''}<ol>{rows}</ol>{why}"
        f"<figcaption>{name}</figcaption></figure>"
    )


def _why(reasons: Reasons) -> str:
    """Attributes that support the best class, and its differences from the runner-up."""
    supporting = [f"{x.text} ({x.evidence:+.1f})" for x in reasons.attributes if x.supports]
    lines = ["Supporting: " + "; ".join(supporting)] if supporting else []
    differences = [f"{x.text} ({x.name}, {x.evidence:+.1f})" for x in reasons.differences]
    if differences:
        lines.append("Differences: " + "; ".join(differences))
    return "".join(f'<div class="why">{html.escape(line)}</div>' for line in lines)
