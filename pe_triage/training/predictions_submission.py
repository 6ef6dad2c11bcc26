"""Between our table of predictions and the challenge's submission (``id,label``).

A submission has no row for PE in the exam; it is taken as 1 - P(negative) - P(indeterminate), held
within [0, 1]. It knows no attention, logits, bag features or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.training.evaluate_data import LabelledStudy
from pe_triage.training.predictions import Predictions
from pe_triage.training.submission import read_submission, write_submission


def to_submission(path: Path, table: Predictions) -> int:
    """Write the table as a submission; return the number of rows.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    exams = (
        (
            uid,
            dict(zip(EXAM_LABELS, table.exam_sl[s].tolist(), strict=True)),
            table.sop_instance_uids[table.slices_of(s)],
            table.slice_probability_k[table.slices_of(s)].tolist(),
        )
        for s, uid in enumerate(table.study_uids)
    )
    try:
        return write_submission(path, exams)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def from_submission(
    path: Path, studies: Sequence[LabelledStudy]
) -> tuple[Predictions, dict[str, str]]:
    """Read the studies' predictions from a submission.

    Slices stand in the order of the truth. Every study counts as a patient of its own, since a
    submission does not say whose it is.

    Returns
    -------
    tuple
        The table of the studies whose rows are all there, and why the others are left out.

    Raises
    ------
    InputError
        Not a submission, or no study is whole in it.
    """
    rows = read_submission(path)
    used: list[LabelledStudy] = []
    skipped: dict[str, str] = {}
    for study in studies:
        wanted = [*(f"{study.study_uid}_{label}" for label in EXAM_LABELS), *study.slice_truth]
        missing = sum(key not in rows for key in wanted)
        if missing:
            skipped[study.study_uid] = f"{missing} of {len(wanted)} rows are not in the submission"
        else:
            used.append(study)
    if not used:
        raise InputError(f"{path}: no study is whole in it")
    exam_sl = np.array([[rows[f"{s.study_uid}_{label}"] for label in EXAM_LABELS] for s in used])
    uids = tuple(uid for s in used for uid in s.slice_truth)
    counts = [len(s.slice_truth) for s in used]
    table = Predictions(
        model={},
        thresholds={},
        study_uids=tuple(s.study_uid for s in used),
        series_uids=("",) * len(used),
        patient_s=np.arange(len(used), dtype=np.int64),
        start_s=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        sop_instance_uids=uids,
        slice_probability_k=np.array([rows[uid] for uid in uids]),
        attention_k=np.full(len(uids), np.nan),
        exam_sl=exam_sl,
        pe_s=np.clip(1 - exam_sl[:, 0] - exam_sl[:, 1], 0, 1),
        image_logit_k=np.full(len(uids), np.nan),
        exam_logit_sl=np.full(exam_sl.shape, np.nan),
    )
    return table, skipped
