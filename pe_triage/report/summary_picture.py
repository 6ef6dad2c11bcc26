"""The summary capture's picture: the answer in five seconds, the grounds for it below.

From top to bottom: banner (outcome, priority, why), what the weights are for, exam labels with
their thresholds beside the scan from foot to head, key slices, and who said so and when. Drawn
for a grey-scale station: shape, position and brightness carry the meaning, colour repeats it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pe_triage.domain import (
    EXAM_LABELS,
    IMAGE_LABEL,
    NOTICE,
    CtVolume,
    Decision,
    ExamPrediction,
    IntendedUse,
    Outcome,
    Priority,
    TriageResult,
)
from pe_triage.report import drawing as d
from pe_triage.report.colormaps import heat_colors
from pe_triage.report.concepts import LABEL_CONCEPTS
from pe_triage.report.slices import overlay_slice, plain_slice, position_mm
from pe_triage.report.wording import HEADLINES, model_words, time_words, use_banner

WIDTH, HEIGHT = 1280, 1024
_MARGIN = 28
_BODY_TOP, _STRIP_TOP, _FOOT_TOP = 196, 618, 936
_LEFT = (_MARGIN, 500)
_RIGHT = (556, WIDTH - _MARGIN)
_FILLS: Mapping[Priority, d.Color] = {
    Priority.HIGH: d.VERMILLION,
    Priority.MEDIUM: d.ORANGE,
    Priority.LOW: d.YELLOW,
}
_OUTLINES: Mapping[Outcome, d.Color] = {
    Outcome.POSITIVE: d.VERMILLION,
    Outcome.NEGATIVE: d.SKY,
    Outcome.INDETERMINATE: d.TEXT,
    Outcome.NOT_EVALUATED: d.TEXT,
}
_WORDS: Mapping[Decision, str] = {
    Decision.PRESENT: "PRESENT",
    Decision.ABSENT: "absent",
    Decision.UNDETERMINED: "undetermined",
}
_EXPLANATIONS: Mapping[Outcome, tuple[str, str]] = {
    Outcome.NOT_EVALUATED: (
        "This study was not analysed.",
        "No network result exists for it. This says nothing about pulmonary embolism: read the "
        "study in its usual place.",
    ),
    Outcome.INDETERMINATE: (
        "The network's result is withheld.",
        "It is not shown on patients' images because of what the weights are for. This says "
        "nothing about pulmonary embolism: read the study in its usual place.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlace:
    """Where a slice is found in the archive: numbers that a person can type, no identity."""

    series_number: str = ""
    instance_number: str = ""
    frame_number: str = ""
    """Of a multi-frame image."""

    def __str__(self) -> str:
        parts = [
            ("series", self.series_number),
            ("image", self.instance_number),
            ("frame", self.frame_number),
        ]
        return ", ".join(f"{name} {value}" for name, value in parts if value)


def summary_picture(
    *,
    result: TriageResult,
    volume: CtVolume | None,
    places: Mapping[str, SourcePlace],
    run: int,
    when: datetime,
    software: str,
) -> Image.Image:
    """Draw the summary, RGB, `WIDTH` by `HEIGHT` pixels."""
    board = d.Board(WIDTH, HEIGHT)
    draw_banner(board, result)
    prediction = result.prediction
    if prediction is None:
        _explanation(board, result)
    else:
        _labels(board, prediction)
        _scan(board, result, prediction)
        _strip(board, result, volume, places)
    draw_footer(board, result, run=run, when=when, software=software)
    return board.image


def draw_banner(board: d.Board, result: TriageResult, *, height: int = 132) -> None:
    """Draw outcome, priority and reason, and below it what the weights are for."""
    width = board.size[0]
    filled = result.priority is not None
    fill = _FILLS[result.priority] if result.priority else d.PANEL
    ink = d.INK if filled else d.TEXT
    outline = _OUTLINES[result.outcome]
    board.box((0, 0, width, height), fill=fill)
    if not filled:
        board.box((2, 2, width - 3, height - 3), outline=outline, width=4)
    middle = height / 2
    board.outcome_mark((_MARGIN + 48, middle), height * 0.33, result.outcome,
                       ink if filled else outline, fill)  # fmt: skip
    left = _MARGIN + 120
    right = width - _MARGIN - (310 if filled else 0)
    title = round(height * 0.34)
    reason_size = 20
    lines = board.wrap(result.reason or "", reason_size, right - left, 2 if height > 100 else 1)
    # Centred as a block, however many lines the reason takes.
    block = title * 1.18 + reason_size * 1.32 * len(lines)
    y = max(4.0, middle - block / 2)
    board.text((left, y), HEADLINES[result.outcome], title, ink, bold=True)
    y += title * 1.18
    for line in lines:
        board.text((left, y), line, reason_size, ink)
        y += reason_size * 1.32
    if result.priority:
        x = width - _MARGIN - 280
        board.draw.line([(x - 20, 18), (x - 20, height - 18)], fill=ink, width=2)
        board.text((x, height * 0.16), "PRIORITY", 22, ink)
        board.text((x, height * 0.38), result.priority.value, round(height * 0.34), ink, bold=True)
        bars = height * 0.52
        board.priority_bars((width - _MARGIN - bars, height * 0.24), bars, result.priority, ink)
    _use_strip(board, result, height)


def _use_strip(board: d.Board, result: TriageResult, top: int) -> None:
    width = board.size[0]
    bottom = top + 38
    model = result.model
    if model is not None and model.intended_use is not IntendedUse.RESEARCH:
        board.hatch((0, top, width, bottom), (96, 88, 40))
        text = use_banner(model)
        half = board.width(text, 19, bold=True) / 2 + 14
        board.box((width / 2 - half, top + 3, width / 2 + half, bottom - 3), fill=d.BACKGROUND)
        board.text((width / 2, top + 19), text, 19, d.YELLOW, anchor="mm", bold=True)
    else:
        board.text((width / 2, top + 19), use_banner(model), 19, d.FAINT, anchor="mm")


def _labels(board: d.Board, prediction: ExamPrediction) -> None:
    """Draw a bar for the exam and each label, with its threshold as a tick."""
    left, right = _LEFT
    board.text((left, _BODY_TOP - 6), "Exam", 22, bold=True)
    note = "calibrated probability" if prediction.model.calibrated else "score, not calibrated"
    board.text((right, _BODY_TOP - 2), f"{note}; tick: threshold", 16, d.FAINT, anchor="ra")
    present = {
        label: prediction.findings.get(label, Decision.UNDETERMINED) for label in EXAM_LABELS
    }
    y = _BODY_TOP + 30.0
    y = _bar(board, y, "Pulmonary embolism", prediction.pe_probability,
             prediction.thresholds.get("pe"), None, tall=True)  # fmt: skip
    for label in EXAM_LABELS:
        y = _bar(board, y, LABEL_CONCEPTS[label].words, prediction.exam_probability[label],
                 prediction.thresholds.get(label), present[label])  # fmt: skip


def _bar(
    board: d.Board,
    y: float,
    words: str,
    value: float,
    threshold: float | None,
    decision: Decision | None,
    *,
    tall: bool = False,
) -> float:
    left, right = _LEFT
    bar_left, bar_right = left + 196, right - 124
    height = 24 if tall else 17
    strong = tall or decision is Decision.PRESENT
    middle = y + height / 2
    board.text((left, middle), words, 19 if tall else 17, d.TEXT if strong else d.FAINT,
               anchor="lm", bold=strong)  # fmt: skip
    board.box((bar_left, y, bar_right, y + height), fill=d.PANEL, outline=d.GRID)
    length = (bar_right - bar_left) * float(np.clip(value, 0.0, 1.0))
    if length >= 1:
        fill = d.TEXT if strong else (118, 128, 142)
        board.box((bar_left, y, bar_left + length, y + height), fill=fill)
    if threshold is not None:
        x = bar_left + (bar_right - bar_left) * float(np.clip(threshold, 0.0, 1.0))
        board.draw.line([(x, y - 4), (x, y + height + 4)], fill=d.INK, width=5)
        board.draw.line([(x, y - 4), (x, y + height + 4)], fill=d.YELLOW, width=2)
    board.text((bar_right + 8, middle), f"{value:.2f}", 18 if tall else 16,
               d.TEXT if strong else d.FAINT, anchor="lm", bold=strong)  # fmt: skip
    if decision is not None:
        word = _WORDS[decision]
        board.text((right, middle), word if word != "undetermined" else "undet.", 15,
                   d.TEXT if strong else d.FAINT, anchor="rm", bold=strong)  # fmt: skip
    return y + (44 if tall else 36)


def _scan(board: d.Board, result: TriageResult, prediction: ExamPrediction) -> None:
    """Draw probability and attention from foot to head, key slices numbered."""
    left, right = _RIGHT
    board.text((left, _BODY_TOP - 6), "Along the scan", 22, bold=True)
    count = len(prediction.slice_probability_z)
    board.text((right, _BODY_TOP - 2), f"{count} slices", 16, d.FAINT, anchor="ra")
    threshold = prediction.thresholds.get(IMAGE_LABEL)
    top = _BODY_TOP + 52
    first = (left, top, right, top + 170)
    second = (left, top + 204, right, top + 312)
    peak = float(prediction.attention_z.max(initial=0.0)) or 1.0
    _curve(board, first, prediction.slice_probability_z, 1.0, "PE on slice", ("0", "1"))
    _curve(board, second, prediction.attention_z, peak, "Attention", ("0", f"{peak:.2g}"))
    if threshold is not None:
        y = first[3] - (first[3] - first[1]) * float(np.clip(threshold, 0.0, 1.0))
        board.dashed((left, y), (right, y), d.YELLOW, width=2)
    last_end = -1e9
    for number, key in sorted(enumerate(result.key_slices, start=1), key=lambda pair: pair[1].z):
        x = left + (right - left) * (key.z + 0.5) / max(1, count)
        board.dashed((x, first[1]), (x, second[3]), d.SKY, width=2)
        # A number that would cover its neighbour moves to the side.
        at = max(x, last_end + 20)
        _number_mark(board, (at, first[1] - 14), number)
        last_end = at
    y = second[3] + 8
    board.text((left, y), "foot", 17, d.FAINT)
    board.text((right, y), "head", 17, d.FAINT, anchor="ra")


def _curve(
    board: d.Board,
    box: tuple[int, int, int, int],
    values_z: NDArray[np.float32],
    top_value: float,
    title: str,
    ticks: tuple[str, str],
) -> None:
    left, top, right, bottom = box
    board.box(box, fill=d.PANEL, outline=d.GRID)
    board.draw.line([(left, (top + bottom) / 2), (right, (top + bottom) / 2)], fill=d.GRID)
    count = len(values_z)
    if count:
        heights = np.clip(np.nan_to_num(values_z) / top_value, 0.0, 1.0) * (bottom - top - 2)
        edges = left + 1 + (right - left - 2) * np.arange(count + 1) / count
        for height, x0, x1 in zip(heights, edges[:-1], edges[1:], strict=True):
            if height >= 1:
                board.box((round(x0), bottom - 1 - height, max(round(x1) - 1, round(x0)),
                           bottom - 1), fill=(170, 180, 194))  # fmt: skip
    board.text((left - 8, bottom), ticks[0], 15, d.FAINT, anchor="rm")
    board.text((left - 8, top), ticks[1], 15, d.FAINT, anchor="rm")
    board.text((left + 10, top + 6), title, 17, d.TEXT, halo=d.PANEL)


def _number_mark(board: d.Board, center: tuple[float, float], number: int) -> None:
    x, y = center
    board.draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=d.SKY)
    board.text((x, y), str(number), 15, d.INK, anchor="mm", bold=True)


def _strip(
    board: d.Board,
    result: TriageResult,
    volume: CtVolume | None,
    places: Mapping[str, SourcePlace],
) -> None:
    """Draw the key slices in a row; without any, what was analysed."""
    keys = result.key_slices
    if volume is None:
        return
    if not keys:
        _overview(board, volume)
        return
    board.text((_MARGIN, _STRIP_TOP), "Key slices", 22, bold=True)
    words = board.text((WIDTH - _MARGIN, _STRIP_TOP + 4),
                       "heatmap: where the network looked; not an outline of a clot", 16, d.FAINT,
                       anchor="ra")  # fmt: skip
    _color_bar(board, WIDTH - _MARGIN - round(words) - 44)
    gap = 12
    room = (WIDTH - 2 * _MARGIN + gap) // max(len(keys), 1) - gap
    limit = (min(room, 340), 226)
    x = float(_MARGIN)
    small = room < 170
    for number, key in enumerate(keys, start=1):
        picture = overlay_slice(volume, key, limit)
        top = _STRIP_TOP + 36
        board.image.paste(picture, (round(x), top))
        board.sides((round(x), top), picture.size, 15, letters="RL")
        _number_mark(board, (x + 14, top + 14), number)
        width = max(picture.width, min(room, 150))
        place = str(places.get(key.sop_instance_uid, ""))
        lines = [
            f"{key.probability:.2f} at {position_mm(volume, key.z):.0f} mm",
            place.replace("series ", "se ").replace("image ", "im ") if small else place,
        ]
        for index, line in enumerate(lines):
            board.text((x, top + picture.height + 4 + 20 * index),
                       board.fit(line, 15, width + gap - 2), 15,
                       d.FAINT if index else d.TEXT)  # fmt: skip
        x += width + gap


def _color_bar(board: d.Board, right: int) -> None:
    """Draw the heatmaps' colours from 0 to 1, its right end at `right`."""
    ramp = np.linspace(0.0, 1.0, 120)[None, :].repeat(14, axis=0)
    left, top = right - ramp.shape[1], _STRIP_TOP + 8
    board.image.paste(Image.fromarray(heat_colors(ramp)), (left, top))
    board.box((left - 1, top - 1, right, top + ramp.shape[0]), outline=d.GRID)
    board.text((left - 8, top + 7), "0", 15, d.FAINT, anchor="rm")
    board.text((right + 8, top + 7), "1", 15, d.FAINT, anchor="lm")


def _overview(board: d.Board, volume: CtVolume) -> None:
    """Draw plain slices evenly through the volume: what was looked at, with nothing marked."""
    board.text((_MARGIN, _STRIP_TOP), "Analysed volume", 22, bold=True)
    board.text((WIDTH - _MARGIN, _STRIP_TOP + 4), "no slice is brought forward for this exam", 16,
               d.FAINT, anchor="ra")  # fmt: skip
    count = volume.hu_zyx.shape[0]
    shown = min(5, count)
    gap = 12
    room = (WIDTH - 2 * _MARGIN + gap) // 5 - gap
    for index in range(shown):
        z = int((index + 0.5) * count / shown)
        picture = plain_slice(volume, z, (room, 226))
        x = _MARGIN + index * (room + gap)
        board.image.paste(picture, (x, _STRIP_TOP + 36))
        board.sides((x, _STRIP_TOP + 36), picture.size, 15, letters="RL")
        words = f"{position_mm(volume, z):.0f} mm"
        if index in (0, shown - 1) and shown > 1:
            words += " (foot end)" if index == 0 else " (head end)"
        board.text((x, _STRIP_TOP + 40 + picture.height), words, 15, d.FAINT)


def _explanation(board: d.Board, result: TriageResult) -> None:
    """Fill the body where there is no prediction to show."""
    title, words = _EXPLANATIONS[
        result.outcome if result.outcome in _EXPLANATIONS else Outcome.INDETERMINATE
    ]
    box = (_MARGIN, _BODY_TOP + 10, WIDTH - _MARGIN, _FOOT_TOP - 40)
    board.box(box, fill=d.PANEL, outline=d.GRID)
    middle = (box[1] + box[3]) / 2
    board.outcome_mark((_MARGIN + 150, middle), 84, result.outcome, d.FAINT, d.PANEL)
    left, width = _MARGIN + 300, WIDTH - 2 * _MARGIN - 360
    y = board.paragraph((left, middle - 150), title, 36, width, lines=2, bold=True)
    if result.reason:
        y = board.paragraph((left, y + 12), f"Reason: {result.reason}", 24, width, lines=5)
    board.paragraph((left, y + 16), words, 22, width, lines=4, fill=d.FAINT)


def draw_footer(
    board: d.Board, result: TriageResult, *, run: int, when: datetime, software: str
) -> None:
    """Draw the notice, and who said so when."""
    width, height = board.size
    top = height - 84
    board.draw.line([(_MARGIN, top), (width - _MARGIN, top)], fill=d.GRID, width=1)
    board.text((_MARGIN, top + 10), NOTICE, 20, d.TEXT, bold=True)
    text = f"{software}   ·   {model_words(result.model)}   ·   run {run}   ·   {time_words(when)}"
    board.text((_MARGIN, top + 44), board.fit(text, 16, width - 2 * _MARGIN), 16, d.FAINT)
