"""The report's pictures, by matplotlib without a display; each function returns one file's bytes.

Charts are SVG with text as paths (they look the same offline and without fonts), pictures of slices
PNG. The same figures give the same bytes: no date, no random names.

matplotlib belongs to the optional extra ``train``; it is imported here and nowhere else.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.imaging.windows import Window

try:
    # By name, so that type checking does not depend on the extra being installed.
    mpl: Any = importlib.import_module("matplotlib")
    Figure: Any = importlib.import_module("matplotlib.figure").Figure
except ImportError as error:  # pragma: no cover - the extra is there wherever tests run
    raise InputError(
        "reports need matplotlib and scikit-learn: install pe-triage[train]"
    ) from error

WINDOW: Final = Window(level_hu=100, width_hu=700)
_STYLE: Final[Mapping[str, Any]] = {
    "svg.hashsalt": "pe-triage",
    "svg.fonttype": "path",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
# Okabe and Ito's palette: told apart by the colour-blind; line styles help beyond.
_COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: Final = ("-", "--", ":", "-.")


@contextmanager
def _figure(width_in: float, height_in: float) -> Iterator[Any]:
    with mpl.rc_context(dict(_STYLE)):
        yield Figure(figsize=(width_in, height_in), layout="constrained")


def _svg(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _line(i: int) -> dict[str, Any]:
    return {
        "color": _COLORS[i % len(_COLORS)],
        "linestyle": _STYLES[(i // len(_COLORS)) % len(_STYLES)],
        "linewidth": 1.6,
    }


def curves(
    series: Mapping[str, tuple[Sequence[Sequence[float]], float | None]], kind: str
) -> bytes | None:
    """ROC (``kind="roc"``) or precision-recall (``"pr"``) curves in one chart.

    Parameters
    ----------
    series
        Name to its points (x, y) and its area. Empty ones are left out.

    Returns
    -------
    bytes or None
        None where no series has points.
    """
    drawn = {name: value for name, value in series.items() if len(value[0])}
    if not drawn:
        return None
    with _figure(5.6, 4.2) as figure:
        axes = figure.add_subplot()
        for i, (name, (points, area)) in enumerate(drawn.items()):
            x, y = np.asarray(points, dtype=np.float64).T
            label = name if area is None else f"{name}  {area:.3f}"
            where = {"drawstyle": "steps-pre"} if kind == "pr" else {}
            axes.plot(x, y, label=label, **where, **_line(i))
        if kind == "roc":
            axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
            axes.set(xlabel="1 - specificity", ylabel="sensitivity")
        else:
            axes.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.03))
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), title="AUC" if kind == "roc" else "AUPRC"
        )
        return _svg(figure)


def reliability_chart(labels: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Reliability diagrams side by side, with how many samples each bin holds below.

    Parameters
    ----------
    labels
        Name to a label's document (`evaluate_tables.label_document`).
    """
    drawn = {name: d for name, d in labels.items() if d["samples"]}
    if not drawn:
        return None
    with _figure(3.1 * len(drawn), 4.0) as figure:
        grid = figure.subplots(
            2, len(drawn), squeeze=False, gridspec_kw={"height_ratios": (3, 1)}, sharex="col"
        )
        for i, (name, document) in enumerate(drawn.items()):
            bins = [b for b in document["calibration"]["bins"] if b["count"]]
            top, bottom = grid[0][i], grid[1][i]
            top.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
            top.plot(
                [b["predicted"] for b in bins], [b["observed"] for b in bins], marker="o",
                markersize=4, **_line(0),
            )  # fmt: skip
            ece = document["calibration"]["ece"]["value"]
            top.set(title=name if ece is None else f"{name}\nECE {ece:.3f}", ylim=(-0.03, 1.03))
            width = bins[0]["high"] - bins[0]["low"]
            bottom.bar([b["low"] for b in bins], [b["count"] for b in bins], width, align="edge",
                       color=_COLORS[5])  # fmt: skip
            bottom.set(xlabel="probability", xlim=(-0.01, 1.01), yscale="log")
            bottom.minorticks_off()
        grid[0][0].set_ylabel("share with the finding")
        grid[1][0].set_ylabel("samples")
        return _svg(figure)


def scatter(
    xy_s2: NDArray[np.float64], group_s: Sequence[str], *, title: str, order: Sequence[str]
) -> bytes:
    """Exams as points in the plane, coloured by group."""
    markers = "osD^vPX*"
    with _figure(5.6, 4.2) as figure:
        axes = figure.add_subplot()
        for i, name in enumerate(order):
            here = np.array([g == name for g in group_s], dtype=np.bool_)
            if here.any():
                axes.scatter(
                    *xy_s2[here].T, s=14, alpha=0.75, label=f"{name} ({int(here.sum())})",
                    color=_COLORS[i % len(_COLORS)], marker=markers[i % len(markers)],
                    linewidths=0,
                )  # fmt: skip
        axes.set(title=title, xticks=[], yticks=[])
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        return _svg(figure)


def along_the_scan(
    probability_z: NDArray[np.float64],
    attention_z: NDArray[np.float64],
    truth_z: NDArray[np.int8],
    spacing_mm: float,
    shown: Sequence[int],
) -> bytes:
    """Slice probability and attention, foot to head; slices with PE shaded, shown ones marked."""
    z_mm = np.arange(len(probability_z)) * spacing_mm
    with _figure(6.2, 2.2) as figure:
        axes = figure.add_subplot()
        axes.fill_between(
            z_mm, 0, 1, where=truth_z == 1, step="mid", color="#F2C6C0", linewidth=0,
            label="slices with PE",
        )  # fmt: skip
        axes.plot(z_mm, probability_z, label="slice probability", **_line(0))
        axes.plot(z_mm[list(shown)], probability_z[list(shown)], "v", color="#000000", markersize=5)
        axes.set(xlabel="mm from the lowest slice (foot to head)", ylabel="probability",
                 ylim=(0, 1.02))  # fmt: skip
        if np.isfinite(attention_z).all():
            other = axes.twinx()
            other.plot(z_mm, attention_z, label="attention", **_line(1))
            other.set_ylabel("attention")
            other.grid(visible=False)
            other.set_ylim(bottom=0)
            handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        else:
            handles = axes.get_legend_handles_labels()[0]
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, 1.25), ncols=3)
        return _svg(figure)


def slices_with_heatmaps(
    slices: Sequence[Mapping[str, Any]], spacing_yx_mm: tuple[float, float]
) -> bytes:
    """Slices in pairs: plain above, with heatmap, clot outline and peak below.

    Parameters
    ----------
    slices
        Each with ``hu_yx``, ``heatmap_yx``, ``mask_yx`` (or None), ``peak_yx`` and ``title``.
    """
    with _figure(2.5 * len(slices), 5.2) as figure:
        grid = figure.subplots(2, len(slices), squeeze=False)
        for i, item in enumerate(slices):
            image = WINDOW.apply(np.asarray(item["hu_yx"], dtype=np.float32))
            rows, columns = image.shape
            aspect = spacing_yx_mm[0] / spacing_yx_mm[1]
            for axes in (grid[0][i], grid[1][i]):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=aspect)
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
            below = grid[1][i]
            heat = np.asarray(item["heatmap_yx"])
            extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
            below.imshow(
                heat, cmap="inferno", alpha=np.clip(heat * 0.7, 0, 0.7), vmin=0, vmax=1,
                extent=extent, interpolation="bilinear", aspect=aspect,
            )  # fmt: skip
            mask = item["mask_yx"]
            if mask is not None and mask.any() and not mask.all():
                below.contour(mask.astype(float), levels=[0.5], colors="#00E5FF", linewidths=0.9)
            if heat.any():
                y, x = item["peak_yx"]
                below.plot(x, y, "+", color="#FFFFFF", markersize=9, markeredgewidth=1.4)
            below.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
            grid[0][i].set_title(item["title"], fontsize=8)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=80, metadata={"Software": None})
        return out.getvalue()


def nice_name(label: str) -> str:
    """A label's name as the report prints it."""
    special = {IMAGE_LABEL: "PE on slice", "pe": "PE in exam"}
    return special.get(label, label.replace("_", " "))
