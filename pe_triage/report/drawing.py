"""A small drawing board over Pillow: text with a bundled font, shapes that say what colour says.

Pillow's bundled scalable font holds Latin letters only; what it lacks is drawn (≥) or written in
ASCII. No file of the machine is read, so a capture looks the same everywhere.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pe_triage.domain import Outcome, Priority

Color = tuple[int, int, int]

BACKGROUND: Color = (13, 16, 21)
PANEL: Color = (24, 29, 37)
GRID: Color = (62, 70, 82)
FAINT: Color = (172, 179, 190)
TEXT: Color = (232, 236, 241)
INK: Color = (12, 12, 14)
# Okabe and Ito's colours, told apart by the colour-blind; here also by lightness.
VERMILLION: Color = (224, 104, 28)
ORANGE: Color = (236, 164, 20)
YELLOW: Color = (240, 224, 96)
SKY: Color = (112, 190, 236)

GE = "\N{GREATER-THAN OR EQUAL TO}"
_ASCII = str.maketrans(
    {
        "\N{LESS-THAN OR EQUAL TO}": "<=",
        "\N{EN DASH}": "-",
        "\N{EM DASH}": "-",
        "\N{MINUS SIGN}": "-",
        "\N{MULTIPLICATION SIGN}": "x",
        "\N{RIGHTWARDS ARROW}": "->",
        "\N{LEFT SINGLE QUOTATION MARK}": "'",
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{LEFT DOUBLE QUOTATION MARK}": '"',
        "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
        "\N{NO-BREAK SPACE}": " ",
    }
)
_DRAWABLE = frozenset("°±·…" + GE)


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's bundled font at `size` pixels.

    Raises
    ------
    RuntimeError
        If this Pillow was built without FreeType.
    """
    found = ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow without FreeType cannot draw the captures")
    return found


def drawable(text: str) -> str:
    """Return `text` in characters that the font has; accents are dropped, the rest becomes '?'."""
    out = []
    for char in text.translate(_ASCII):
        if char in _DRAWABLE or " " <= char <= "~":
            out.append(char)
            continue
        base = unicodedata.normalize("NFKD", char)[:1]
        out.append(base if " " <= base <= "~" else "?")
    return "".join(out)


class Board:
    """An RGB picture under construction; coordinates are pixels from the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def text(
        self,
        xy: tuple[float, float],
        text: str,
        size: int,
        fill: Color = TEXT,
        *,
        anchor: str = "la",
        bold: bool = False,
        halo: Color | None = None,
    ) -> float:
        """Write one line and return its width.

        `anchor` is Pillow's: l, m, r by a (ascender), m (middle), s (baseline).
        """
        face = font(size)
        ascent, descent = face.getmetrics()
        line = drawable(text)
        width = self.width(line, size, bold=bold)
        x = xy[0] - {"l": 0.0, "m": width / 2, "r": width}[anchor[0]]
        y = xy[1] + {"a": float(ascent), "m": (ascent - descent) / 2, "s": 0.0}[anchor[1]]
        stroke = 0.6 if bold else 0
        for index, part in enumerate(line.split(GE)):
            if index:
                x += self._greater_equal(x, y, size, fill, stroke=stroke)
            if halo is not None:
                self.draw.text(
                    (x, y), part, halo, face, anchor="ls", stroke_width=2, stroke_fill=halo
                )
            self.draw.text((x, y), part, fill, face, anchor="ls", stroke_width=stroke)
            x += face.getlength(part)
        return width

    def _greater_equal(self, x: float, y: float, size: int, fill: Color, *, stroke: float) -> float:
        face = font(size)
        width = face.getlength(">")
        self.draw.text((x, y - size * 0.08), ">", fill, face, anchor="ls", stroke_width=stroke)
        thick = max(1, round(size / 14 + stroke))
        self.draw.line([(x + width * 0.1, y), (x + width * 0.9, y)], fill=fill, width=thick)
        return float(width)

    def width(self, text: str, size: int, *, bold: bool = False) -> float:
        """Return the width of one line in pixels."""
        line = drawable(text).replace(GE, ">")
        return float(font(size).getlength(line)) + (1.2 if bold else 0.0)

    def wrap(self, text: str, size: int, width: float, lines: int) -> list[str]:
        """Break `text` into at most `lines` lines that fit `width`; what is left out shows as …."""
        out: list[str] = []
        current = ""
        for word in drawable(text).split():
            longer = f"{current} {word}".strip()
            if not current or self.width(longer, size) <= width:
                current = longer
            else:
                out.append(current)
                current = word
        if current:
            out.append(current)
        if len(out) > lines:
            out = out[:lines]
            out[-1] += " …"
        return [self.fit(line, size, width) for line in out]

    def fit(self, text: str, size: int, width: float) -> str:
        """Cut one line to `width`, with … where something was cut."""
        line = drawable(text)
        if self.width(line, size) <= width:
            return line
        while line and self.width(line + "…", size) > width:
            line = line[:-1]
        return line.rstrip() + "…"

    def paragraph(
        self,
        xy: tuple[float, float],
        text: str,
        size: int,
        width: float,
        *,
        lines: int = 3,
        fill: Color = TEXT,
        bold: bool = False,
    ) -> float:
        """Write wrapped lines downwards and return the y below them."""
        x, y = xy
        for line in self.wrap(text, size, width, lines):
            self.text((x, y), line, size, fill, bold=bold)
            y += size * 1.32
        return y

    def box(self, box: tuple[float, float, float, float], **kwargs: Any) -> None:
        """Draw a rectangle (Pillow's arguments)."""
        self.draw.rectangle(box, **kwargs)

    def dashed(
        self, start: tuple[float, float], end: tuple[float, float], fill: Color, *, width: int = 1
    ) -> None:
        """Draw a dashed horizontal or vertical line."""
        (x0, y0), (x1, y1) = start, end
        length = max(abs(x1 - x0), abs(y1 - y0))
        steps = int(length // 8) or 1
        for step in range(steps):
            a, b = step / steps, (step + 0.5) / steps
            self.draw.line(
                [
                    (x0 + (x1 - x0) * a, y0 + (y1 - y0) * a),
                    (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b),
                ],
                fill=fill,
                width=width,
            )

    def hatch(self, box: tuple[int, int, int, int], fill: Color, *, step: int = 14) -> None:
        """Fill a box with diagonal lines: unmistakable in grey."""
        x0, y0, x1, y1 = box
        tile = Image.new("RGB", (x1 - x0, y1 - y0), BACKGROUND)
        pen = ImageDraw.Draw(tile)
        height = y1 - y0
        for x in range(-height, x1 - x0, step):
            pen.line([(x, height), (x + height, 0)], fill=fill, width=2)
        self.image.paste(tile, (x0, y0))

    def outcome_mark(self, center: tuple[float, float], radius: float, outcome: Outcome,
                     fill: Color, ink: Color) -> None:  # fmt: skip
        """Draw the outcome's shape: each outcome has its own, so that colour is not needed."""
        x, y = center
        r = radius
        pen = self.draw
        width = max(2, round(r / 8))
        if outcome is Outcome.POSITIVE:
            pen.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=fill)
            self.text((x, y + r * 0.25), "!", round(r * 1.3), ink, anchor="mm", bold=True)
        elif outcome is Outcome.NEGATIVE:
            pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=width)
            pen.line([(x - r * 0.5, y), (x + r * 0.5, y)], fill=fill, width=width)
        elif outcome is Outcome.INDETERMINATE:
            pen.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], outline=fill, width=width)
            self.text((x, y), "?", round(r * 1.1), fill, anchor="mm", bold=True)
        else:
            pen.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), outline=fill,
                          width=width)  # fmt: skip
            for sign in (-1, 1):
                pen.line([(x - r * 0.5, y - sign * r * 0.5), (x + r * 0.5, y + sign * r * 0.5)],
                         fill=fill, width=width)  # fmt: skip

    def sides(
        self, xy: tuple[float, float], extent: tuple[int, int], size: int, *, letters: str = "RLAP"
    ) -> None:
        """Mark right, left, front and back of a slice in anatomical order, seen from the feet.

        `xy` and `extent` (w, h) are the picture's place; `letters` are those to write.
        """
        (x, y), (w, h) = xy, extent
        inset, edge = size * 0.36, size * 0.73
        places = {
            "R": ((x + inset, y + h / 2), "lm"),
            "L": ((x + w - inset, y + h / 2), "rm"),
            "A": ((x + w / 2, y + edge), "mm"),
            "P": ((x + w / 2, y + h - edge), "mm"),
        }
        for letter in letters:
            at, anchor = places[letter]
            self.text(at, letter, size, TEXT, anchor=anchor, bold=True, halo=INK)

    def priority_bars(
        self, xy: tuple[float, float], height: float, priority: Priority, fill: Color
    ) -> float:
        """Draw three rising bars, filled as far as the priority goes; return their width."""
        filled = {Priority.LOW: 1, Priority.MEDIUM: 2, Priority.HIGH: 3}[priority]
        x, y = xy
        bar, gap = height * 0.26, height * 0.12
        for index in range(3):
            top = y + height * (1 - (index + 1.2) / 3.2)
            left = x + index * (bar + gap)
            self.draw.rectangle(
                (left, top, left + bar, y + height),
                fill=fill if index < filled else None,
                outline=fill,
                width=2,
            )
        return 3 * bar + 2 * gap
