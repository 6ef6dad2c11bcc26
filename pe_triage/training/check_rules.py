"""Count where a file of predictions breaks the label rules, and repair it where asked to.

    python -m pe_triage.training.check_rules FILE [--exams TABLE] [--repair OUT]

``FILE`` is a submission of the challenge (``id,label``), or an evaluation's ``predictions.npz``. A
submission does not say which images belong to which exam: ``TABLE`` does, a CSV with the columns
StudyInstanceUID and SOPInstanceUID (RSPECT's ``train.csv`` or ``test.csv``). No truth is needed.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError
from pe_triage.training.predictions import load_predictions
from pe_triage.training.repair import repair
from pe_triage.training.rspect import UID_COLUMNS
from pe_triage.training.submission import (
    SubmissionCheck,
    check_submission,
    read_submission,
    write_submission,
)

Exams = Sequence[tuple[str, Sequence[str]]]
"""(Study Instance UID, SOP Instance UIDs) of each exam."""


def read_exams(path: Path) -> Exams:
    """Read which images belong to which exam, from a table with a header.

    Raises
    ------
    InputError
        Not such a table.
    """
    study, _, image = UID_COLUMNS
    found: dict[str, list[str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {study, image} <= set(reader.fieldnames or ()):
                raise InputError(f"{path}: expected the columns {study} and {image}")
            for row in reader:
                if not row[study] or not row[image]:
                    raise InputError(f"{path}: row {reader.line_num}: a UID is missing")
                found.setdefault(row[study], []).append(row[image])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a CSV table ({error})") from None
    return list(found.items())


def read_rows(path: Path, table: Path | None) -> tuple[dict[str, float], Exams]:
    """Read a file of predictions as a submission's rows, and the exams it speaks of.

    Raises
    ------
    InputError
        Not such a file, or a submission without a table of exams.
    """
    if path.suffix.lower() != ".npz":
        if table is None:
            raise InputError("a submission does not say which images make an exam: give --exams")
        return read_submission(path), read_exams(table)
    found = load_predictions(path)
    rows: dict[str, float] = {}
    exams = []
    for s, study_uid in enumerate(found.study_uids):
        uids = found.sop_instance_uids[found.slices_of(s)]
        rows |= {
            f"{study_uid}_{label}": value
            for label, value in zip(EXAM_LABELS, found.exam_sl[s].tolist(), strict=True)
        }
        values = found.slice_probability_k[found.slices_of(s)].tolist()
        rows |= dict(zip(uids, values, strict=True))
        exams.append((study_uid, uids))
    return rows, exams


def repaired(rows: dict[str, float], exams: Exams) -> dict[str, float]:
    """Return the rows with every exam made to obey (`repair`).

    Raises
    ------
    InputError
        A row is missing, or is no probability: nothing may hide that.
    """
    out = dict(rows)
    for study_uid, uids in exams:
        keys = [f"{study_uid}_{label}" for label in EXAM_LABELS]
        missing = [key for key in (*keys, *uids) if key not in rows]
        if missing:
            raise InputError(f"study {study_uid}: {len(missing)} rows are missing, so no repair")
        image, exam = (np.array([rows[key] for key in part]) for part in (uids, keys))
        try:
            image, exam = repair(image, exam)
        except ValueError as error:
            raise InputError(f"study {study_uid}: {error}") from None
        out |= dict(zip(uids, image.tolist(), strict=True))
        out |= dict(zip(keys, exam.tolist(), strict=True))
    return out


def _say(found: SubmissionCheck) -> None:
    click.echo(f"{found.inconsistent_exams} of {found.exams} exams break a label rule")
    for rule, count in found.violations.items():
        click.echo(f"  {count:6d}  {rule}")
    if found.missing or found.unknown:
        click.echo(f"{found.missing} rows are missing, {found.unknown} belong to no exam")


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option(
    "--exams", "table", type=click.Path(path_type=Path),
    help="CSV that says which images make an exam; needed for a submission.",
)  # fmt: skip
@click.option(
    "--repair", "out", type=click.Path(path_type=Path),
    help="Write a submission here in which every exam obeys.",
)  # fmt: skip
def main(predictions: Path, table: Path | None, out: Path | None) -> None:
    """Count the exams whose predictions break a label rule; --repair writes a table that obeys."""
    try:
        _run(predictions, table, out)
    except InputError as error:
        raise click.ClickException(str(error)) from None


def _run(predictions: Path, table: Path | None, out: Path | None) -> None:
    if out is not None and out.exists():
        raise InputError(f"{out} exists already")
    rows, exams = read_rows(predictions, table)
    _say(check_submission(rows, exams))
    if out is None:
        return
    better = repaired(rows, exams)
    changed = sum(better[key] != value for key, value in rows.items())
    written = (
        (study, {label: better[f"{study}_{label}"] for label in EXAM_LABELS}, uids,
         [better[uid] for uid in uids])
        for study, uids in exams
    )  # fmt: skip
    try:
        write_submission(out, written)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from None
    click.echo(f"{changed} of {len(rows)} rows changed; written to {out}:")
    _say(check_submission(read_submission(out), exams))


if __name__ == "__main__":
    main()
