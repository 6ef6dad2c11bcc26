"""Whether stage 1 sees an exam as it saw the exams that its bundle was calibrated on.

A network answers on anything: an MR series gives it numbers as a CTPA does. What tells the two
apart is where stage 1's embeddings lie. From the calibration exams a bundle may keep a *reference*:
mean and spread of each exam's embeddings, their principal axes, and how far exams of the same kind
lie from the rest (each measured by a fit without it). It is a Mahalanobis distance with a low-rank
covariance (Lee et al. 2018 use a full one; a few hundred exams do not determine that).

Axes: ``n`` exams, ``z`` units of one exam, ``d`` features of a unit, ``f`` figures of an exam
(2 d: mean and log spread of each feature), ``k`` principal axes.

It says "unlike", never "wrong": what is unlike may be answered well, and what is alike wrongly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.errors import BundleError

REFERENCE_NAME: Final = "reference.safetensors"
FEWEST_EXAMS: Final = 40
"""With fewer a reference is not made: its limit would be one of a few exams."""
MOST_UNITS: Final = 32
"""Units of an exam that are looked at, evenly spread, in making and in serving alike."""
MOST_AXES: Final = 32
EXAMS_PER_AXIS: Final = 5
FOLDS: Final = 5
FALSE_ALARM: Final = 0.01
"""Share of exams like the reference's that may lie beyond the limit (split conformal prediction,
Vovk et al. 2005: it holds where the exams served are drawn as the calibration's were)."""
_FLOOR: Final = 1e-6
_TENSORS: Final = ("mean_f", "std_f", "axes_kf", "variance_k", "scale")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingReference:
    """Where the embeddings of the calibration exams lie.

    Attributes
    ----------
    mean_f, std_f
        Of each figure, float32.
    axes_kf
        Orthonormal, of the standardised figures.
    variance_k
        Along each axis.
    scale
        (4,): variance beyond the axes; the usual distance along and beyond the axes; the limit, as
        a multiple of the usual.
    exams
        Exams that it was made of.
    """

    mean_f: NDArray[np.float32]
    std_f: NDArray[np.float32]
    axes_kf: NDArray[np.float32]
    variance_k: NDArray[np.float32]
    scale: NDArray[np.float64]
    exams: int

    @property
    def embedding_dim(self) -> int:
        """Features of a unit that it can judge."""
        return len(self.mean_f) // 2

    def distance(self, feat_zd: NDArray[np.float32]) -> float:
        """Return how far an exam lies, in units of the limit: above 1 it is unlike.

        Parameters
        ----------
        feat_zd
            Embeddings of all units of one exam, foot to head.

        Raises
        ------
        ValueError
            Embeddings of another width.
        """
        if feat_zd.ndim != 2 or feat_zd.shape[1] != self.embedding_dim:
            raise ValueError(f"expected (units, {self.embedding_dim}), got {feat_zd.shape}")
        along, beyond = self._parts(figures(feat_zd))
        usual = max(along / float(self.scale[1]), beyond / float(self.scale[2]))
        return usual / float(self.scale[3])

    def _parts(self, figures_f: NDArray[np.float64]) -> tuple[float, float]:
        """Root mean square of the distance along the axes and of that beyond them."""
        unit_f = (figures_f - self.mean_f) / self.std_f
        along_k = self.axes_kf @ unit_f
        rest_f = unit_f - along_k @ self.axes_kf
        freedom = max(1, len(unit_f) - len(along_k))
        return (
            float(np.sqrt((along_k**2 / self.variance_k).mean())),
            float(np.sqrt((rest_f**2).sum() / freedom / float(self.scale[0]))),
        )

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays as `from_tensors` takes them."""
        return {name: getattr(self, name) for name in _TENSORS}

    def to_bytes(self) -> bytes:
        """Return the content of `REFERENCE_NAME`."""
        from safetensors.numpy import save

        return save(
            {name: np.ascontiguousarray(array) for name, array in self.tensors().items()},
            metadata={"format": "np"},
        )

    def describe(self, content: bytes) -> dict[str, Any]:
        """Return what a card says of it, given `to_bytes`."""
        return {
            "sha256": hashlib.sha256(content).hexdigest(),
            "exams": self.exams,
            "false_alarm": FALSE_ALARM,
            "method": "exam means and log spreads, low-rank Gaussian/1",
        }

    @staticmethod
    def from_bytes(content: bytes, described: Mapping[str, Any]) -> EmbeddingReference:
        """Read what `to_bytes` wrote and check it against what the card says of it.

        Raises
        ------
        BundleError
            Another file than the card describes, or arrays that do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        digest = hashlib.sha256(content).hexdigest()
        if digest != described.get("sha256"):
            raise BundleError(
                f"{REFERENCE_NAME} has SHA-256 {digest[:12]}…, the card says "
                f"{str(described.get('sha256'))[:12]}…"
            )
        try:
            found = load(content)
        except (SafetensorError, KeyError, ValueError) as error:
            line = (str(error) or type(error).__name__).splitlines()[0]
            raise BundleError(f"{REFERENCE_NAME} cannot be read ({line})") from None
        if set(found) != set(_TENSORS):
            raise BundleError(f"{REFERENCE_NAME} lacks or adds arrays")
        f, k = found["mean_f"].size, found["variance_k"].size
        shapes = {"mean_f": (f,), "std_f": (f,), "axes_kf": (k, f), "variance_k": (k,)}
        sound = all(found[name].shape == shape for name, shape in shapes.items())
        sound = sound and found["scale"].shape == (4,) and f % 2 == 0 and f > 0 and k > 0
        sound = sound and all(bool(np.isfinite(a).all()) for a in found.values())
        for name in ("std_f", "variance_k", "scale"):
            sound = sound and bool((found[name] > 0).all())
        if not sound:
            raise BundleError(f"{REFERENCE_NAME} holds arrays that do not belong together")
        return EmbeddingReference(exams=int(described.get("exams", 0)), **found)


def thinned(feat_zd: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return at most `MOST_UNITS` units of an exam, evenly spread."""
    count = len(feat_zd)
    if count <= MOST_UNITS:
        return feat_zd
    kept = np.linspace(0, count - 1, MOST_UNITS).round().astype(np.intp)
    return feat_zd[kept]


def figures(feat_zd: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return an exam's figures (2 d,): mean and log spread of each feature over its units."""
    some = thinned(feat_zd).astype(np.float64)
    return np.concatenate([some.mean(axis=0), np.log(some.std(axis=0) + 1e-3)])


def fit_reference(exams: Sequence[NDArray[np.float32]]) -> EmbeddingReference | None:
    """Make a reference of the embeddings (units, d) of calibration exams.

    Each exam's own distance, from which the limit follows, is measured by a fit on four fifths of
    the exams that do not hold it.

    Returns
    -------
    EmbeddingReference or None
        None for fewer than `FEWEST_EXAMS`.
    """
    if len(exams) < FEWEST_EXAMS:
        return None
    figures_nf = np.stack([figures(feat_zd) for feat_zd in exams])
    n, f = figures_nf.shape
    # As many axes in every fit, or distances along them would not compare.
    axes = max(1, min(MOST_AXES, n * (FOLDS - 1) // FOLDS // EXAMS_PER_AXIS, f - 1))
    fold_n = np.arange(n) % FOLDS
    parts_n2 = np.zeros((n, 2))
    for fold in range(FOLDS):
        fit = _gaussian(figures_nf[fold_n != fold], axes)
        for held in np.flatnonzero(fold_n == fold):
            parts_n2[held] = fit._parts(figures_nf[held])
    usual_2 = np.maximum(np.median(parts_n2, axis=0), _FLOOR)
    distance_n = np.sort((parts_n2 / usual_2).max(axis=1))
    rank = min(n, math.ceil((n + 1) * (1 - FALSE_ALARM)))
    whole = _gaussian(figures_nf, axes)
    scale = np.array([whole.scale[0], *usual_2, distance_n[rank - 1]], dtype=np.float64)
    return EmbeddingReference(
        mean_f=whole.mean_f,
        std_f=whole.std_f,
        axes_kf=whole.axes_kf,
        variance_k=whole.variance_k,
        scale=scale,
        exams=n,
    )


def _gaussian(figures_nf: NDArray[np.float64], kept: int) -> EmbeddingReference:
    mean_f, std_f = figures_nf.mean(axis=0), np.maximum(figures_nf.std(axis=0), _FLOOR)
    n, f = figures_nf.shape
    _, singular, axes_kf = np.linalg.svd((figures_nf - mean_f) / std_f, full_matrices=False)
    variance_k = singular**2 / n
    rest = float(variance_k[kept:].sum()) / max(1, f - kept)
    return EmbeddingReference(
        mean_f=mean_f.astype(np.float32),
        std_f=std_f.astype(np.float32),
        axes_kf=axes_kf[:kept].astype(np.float32),
        variance_k=np.maximum(variance_k[:kept], _FLOOR).astype(np.float32),
        scale=np.array([max(rest, _FLOOR), 1.0, 1.0, 1.0]),
        exams=n,
    )
