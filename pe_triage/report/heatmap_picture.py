"""A key slice's picture: left the slice with the heatmap, right the same slice untouched."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from PIL import Image

from pe_triage.domain import CtVolume, TriageResult
from pe_triage.report import drawing as d
from pe_triage.report.colormaps import heat_colors
from pe_triage.report.slices import PE_WINDOW, SlicePictures, plain_slice, position_mm
from pe_triage.report.summary_picture import SourcePlace, draw_banner, draw_footer

WIDTH, HEIGHT = 1280, 900
_MARGIN = 28
_TOP = 168
_PANEL = 560
_BAR = 26
LIMIT = (_PANEL, _PANEL)
"""Width and height that a slice may take, pixels."""


def heatmap_picture(
    *,
    result: TriageResult,
    index: int,
    volume: CtVolume,
    place: SourcePlace,
    run: int,
    when: datetime,
    software: str,
    pictures: SlicePictures,
) -> Image.Image:
    """Draw key slice `index` of the result, RGB, `WIDTH` by `HEIGHT` pixels."""
    key = result.key_slices[index]
    board = d.Board(WIDTH, HEIGHT)
    draw_banner(board, result, height=84)
    left = pictures.overlay(volume, key, LIMIT)
    right = plain_slice(volume, key.z, LIMIT)
    top = _TOP + (_PANEL - left.height) // 2
    x_left = _MARGIN
    x_bar = x_left + _PANEL + 18
    x_right = WIDTH - _MARGIN - _PANEL
    for x, picture in ((x_left, left), (x_right, right)):
        at = x + (_PANEL - picture.width) // 2
        board.image.paste(picture, (at, top))
        board.box((at - 1, top - 1, at + picture.width, top + picture.height), outline=d.GRID)
        board.sides((at, top), picture.size, 22)
    title = "Where the network saw signs of PE (Grad-CAM heatmap)"
    if not key.heatmap_yx.any():
        title = "The heatmap of this slice is empty: no place stands out"
    board.text((x_left, _TOP - 30), title, 18)
    level, width = PE_WINDOW
    board.text((x_right, _TOP - 30), "Same slice, plain", 18)
    board.text((x_right + _PANEL, _TOP - 28), f"level {level:.0f}, width {width:.0f} HU", 16,
               d.FAINT, anchor="ra")  # fmt: skip
    _color_bar(board, x_bar, _TOP + 40, _PANEL - 80)
    _facts(board, result, index, volume, place)
    draw_footer(board, result, run=run, when=when, software=software)
    return board.image


def _color_bar(board: d.Board, x: int, top: int, height: int) -> None:
    ramp = np.linspace(1.0, 0.0, height)[:, None].repeat(_BAR, axis=1)
    board.image.paste(Image.fromarray(heat_colors(ramp)), (x, top))
    board.box((x - 1, top - 1, x + _BAR, top + height), outline=d.GRID)
    for share, words in ((0.0, "0"), (0.5, "0.5"), (1.0, "1")):
        y = top + height * (1 - share)
        board.draw.line([(x + _BAR, y), (x + _BAR + 5, y)], fill=d.FAINT)
        board.text((x + _BAR / 2, y + (14 if share == 0 else -14)) if share != 0.5
                   else (x + _BAR + 8, y), words, 15, d.FAINT,
                   anchor="mm" if share != 0.5 else "lm")  # fmt: skip


def _facts(
    board: d.Board, result: TriageResult, index: int, volume: CtVolume, place: SourcePlace
) -> None:
    key = result.key_slices[index]
    y = _TOP + _PANEL + 14
    count = volume.hu_zyx.shape[0]
    calibrated = result.model is not None and result.model.calibrated
    facts = (
        ("key slice", f"{index + 1} of {len(result.key_slices)}"),
        ("slice", f"{key.z + 1} of {count}, foot to head"),
        ("position (z)", f"{position_mm(volume, key.z):.1f} mm"),
        ("in the archive", str(place) or "-"),
        ("probability" if calibrated else "score", f"{key.probability:.2f}"),
        ("attention", f"{key.attention:.3f}"),
    )
    shares = (0.11, 0.24, 0.14, 0.23, 0.14, 0.14)
    x = float(_MARGIN)
    for (name, value), share in zip(facts, shares, strict=True):
        room = (WIDTH - 2 * _MARGIN) * share
        board.text((x, y), name, 16, d.FAINT)
        board.text((x, y + 22), board.fit(value, 21, room - 10), 21, d.TEXT, bold=True)
        x += room
