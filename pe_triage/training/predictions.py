"""What a model said of many exams: one table, one file.

Axes: ``s`` exams, ``k`` slices of all exams together (exam ``s`` owns ``start_s[s]`` to
``start_s[s + 1]``, foot to head), ``l`` the nine labels, ``d`` bag features.

The file is a NumPy ``.npz`` of plain arrays and texts (never pickles): format
``pe-triage-predictions/1``. It holds UIDs, and no patient's name, identifier or date; patients are
counted 0, 1, 2 … within the file.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.model.consistency import RULES, count_violations
from pe_triage.training.metrics import Floats

FORMAT: Final = "pe-triage-predictions/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions of one model on many exams; arrays are not changed by anyone.

    Attributes
    ----------
    model
        Name, version, sha256 and intended use, as a card's identity says; empty where unknown
        (a submission file).
    thresholds
        The bundle's stored thresholds; empty where unknown.
    study_uids, series_uids
        One for each exam.
    patient_s
        Exams of one patient bear one number.
    start_s
        (exams + 1,) where each exam's slices begin.
    sop_instance_uids
        One for each slice.
    slice_probability_k, attention_k
        Attention is NaN where unknown.
    exam_sl, pe_s
        Probabilities.
    image_logit_k, exam_logit_sl
        Raw logits; NaN where unknown. Temperatures are fitted on these.
    bag_sd
        The exam's features z; no columns where unknown.
    """

    model: Mapping[str, Any]
    thresholds: Mapping[str, float]
    study_uids: tuple[str, ...]
    series_uids: tuple[str, ...]
    patient_s: NDArray[np.int64]
    start_s: NDArray[np.int64]
    sop_instance_uids: tuple[str, ...]
    slice_probability_k: Floats
    attention_k: Floats
    exam_sl: Floats
    pe_s: Floats
    image_logit_k: Floats
    exam_logit_sl: Floats
    bag_sd: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        exams, slices = len(self.study_uids), len(self.sop_instance_uids)
        shapes = {
            "series_uids": ((len(self.series_uids),), (exams,)),
            "patient_s": (self.patient_s.shape, (exams,)),
            "start_s": (self.start_s.shape, (exams + 1,)),
            "slice_probability_k": (self.slice_probability_k.shape, (slices,)),
            "attention_k": (self.attention_k.shape, (slices,)),
            "exam_sl": (self.exam_sl.shape, (exams, len(EXAM_LABELS))),
            "pe_s": (self.pe_s.shape, (exams,)),
            "image_logit_k": (self.image_logit_k.shape, (slices,)),
            "exam_logit_sl": (self.exam_logit_sl.shape, (exams, len(EXAM_LABELS))),
        }
        for name, (found, wanted) in shapes.items():
            if found != wanted:
                raise InputError(f"predictions: {name} has shape {found}, not {wanted}")
        if self.start_s[0] != 0 or self.start_s[-1] != slices or (np.diff(self.start_s) < 1).any():
            raise InputError("predictions: start_s does not divide the slices among the exams")
        if len(set(self.study_uids)) != exams or len(set(self.sop_instance_uids)) != slices:
            raise InputError("predictions: a study or an image occurs twice")

    @property
    def exam_of_k(self) -> NDArray[np.int64]:
        """Exam of each slice."""
        return np.repeat(np.arange(len(self.study_uids)), np.diff(self.start_s))

    def slices_of(self, s: int) -> slice:
        """Slices of exam `s`."""
        return slice(int(self.start_s[s]), int(self.start_s[s + 1]))

    def select(self, exams: Sequence[int]) -> Predictions:
        """The same table of these exams, in this order."""
        index = np.asarray(exams, dtype=np.int64)
        empty = np.zeros(0, np.int64)
        k = np.concatenate(
            [empty, *(np.arange(self.start_s[s], self.start_s[s + 1]) for s in index)]
        )
        counts = np.diff(self.start_s)[index]
        return Predictions(
            model=self.model,
            thresholds=self.thresholds,
            study_uids=tuple(self.study_uids[s] for s in index),
            series_uids=tuple(self.series_uids[s] for s in index),
            patient_s=self.patient_s[index],
            start_s=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            sop_instance_uids=tuple(self.sop_instance_uids[i] for i in k),
            slice_probability_k=self.slice_probability_k[k],
            attention_k=self.attention_k[k],
            exam_sl=self.exam_sl[index],
            pe_s=self.pe_s[index],
            image_logit_k=self.image_logit_k[k],
            exam_logit_sl=self.exam_logit_sl[index],
            bag_sd=self.bag_sd[index] if self.bag_sd.size else self.bag_sd,
        )

    def violations(self) -> dict[str, int]:
        """Exams that break each of RSPECT's label rules; every rule is a key."""
        total = dict.fromkeys(RULES, 0)
        for s in range(len(self.study_uids)):
            broken = count_violations(self.slice_probability_k[self.slices_of(s)], self.exam_sl[s])
            for rule, count in broken.items():
                total[rule] += count
        return total


_ARRAYS: Final = ("patient_s", "start_s", "slice_probability_k", "attention_k", "exam_sl", "pe_s",
                  "image_logit_k", "exam_logit_sl", "bag_sd")  # fmt: skip
_TEXTS: Final = ("study_uids", "series_uids", "sop_instance_uids")


def save_predictions(path: Path, table: Predictions) -> None:
    """Write the table, whole or not at all.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    arrays: dict[str, Any] = {name: getattr(table, name) for name in _ARRAYS}
    for name in _TEXTS:
        values = getattr(table, name)
        arrays[name] = np.array(values) if values else np.zeros(0, "U1")
    head = {"format": FORMAT, "model": dict(table.model), "thresholds": dict(table.thresholds)}
    arrays["head"] = np.array(json.dumps(head))
    write_npz(path, arrays)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as ``.npz`` under a temporary name, then rename.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        scratch.unlink(missing_ok=True)


def load_predictions(path: Path) -> Predictions:
    """Read a table written by `save_predictions`.

    Raises
    ------
    InputError
        Missing, not such a file, or contradicting itself.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            head = json.loads(str(file["head"]))
            if head.get("format") != FORMAT:
                raise InputError(f"{path}: format {head.get('format')!r} is not {FORMAT}")
            values: dict[str, Any] = {name: file[name] for name in _ARRAYS}
            values.update({name: tuple(str(v) for v in file[name]) for name in _TEXTS})
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'not a predictions file'}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{path}: not a predictions file of format {FORMAT}") from None
    return Predictions(model=head["model"], thresholds=head["thresholds"], **values)
