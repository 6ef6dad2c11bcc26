"""From what ``pe-triage phantom`` writes to a tree in RSPECT's layout, for tests and practice.

    python -m pe_triage.training.make_tree PHANTOMS --out TREE

Reads ``PHANTOMS/dicom/<Study>/*.dcm``, ``PHANTOMS/truth/<Study>.json`` and, where they are there,
the clot masks ``PHANTOMS/truth/<Study>.nii.gz``, which become ``masks/<Study>.nii.gz``; nothing
of the phantom's code is imported. Files are hard-linked where the file system allows, else copied.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import click

from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.errors import InputError
from pe_triage.imaging.facts import read_instance
from pe_triage.training.rspect import (
    COLUMNS,
    IMAGES_NAME,
    MASK_SUFFIX,
    MASKS_NAME,
    QA_LABELS,
    SUFFIX,
    TABLE_NAME,
    UID_COLUMNS,
)


def make_tree(phantoms: Path, out: Path) -> int:
    """Write ``train.csv``, ``train/`` and ``masks/`` under `out`; return the number of exams.

    Raises
    ------
    InputError
        Not a directory of phantoms, `out` holds a table already, or it cannot be written.
    """
    truths = sorted((phantoms / "truth").glob("*.json"))
    if not truths:
        raise InputError(f"{phantoms}: no truth/*.json; expected what `pe-triage phantom` writes")
    table = out / TABLE_NAME
    if table.exists():
        raise InputError(f"{table} exists already")
    try:
        out.mkdir(parents=True, exist_ok=True)
        partial = table.with_suffix(".partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for path in truths:
                writer.writerows(_exam(path, phantoms, out))
        partial.rename(table)
    except OSError as error:
        raise InputError(f"{error.filename or out}: {error.strerror or error}") from None
    return len(truths)


def _exam(truth_path: Path, phantoms: Path, out: Path) -> list[list[str]]:
    try:
        truth: dict[str, Any] = json.loads(truth_path.read_text(encoding="utf-8"))
        exam = {label: int(truth["exam"][label]) for label in EXAM_LABELS}
        pe = {entry["sop_instance_uid"]: int(entry["pe"]) for entry in truth["slices"]}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{truth_path}: not a phantom's truth") from None
    values = {**exam, **_qa(truth)}
    rows = []
    mask = truth_path.with_suffix(MASK_SUFFIX)
    if mask.is_file():
        (out / MASKS_NAME).mkdir(exist_ok=True)
        _link(mask, out / MASKS_NAME / mask.name)
    for path in sorted((phantoms / "dicom" / truth_path.stem).glob("*.dcm")):
        record = read_instance(path)
        folder = out / IMAGES_NAME / record.study_uid / record.series_uid
        folder.mkdir(parents=True, exist_ok=True)
        _link(path, folder / f"{record.sop_instance_uid}{SUFFIX}")
        row = {
            **dict(
                zip(
                    UID_COLUMNS,
                    (record.study_uid, record.series_uid, record.sop_instance_uid),
                    strict=True,
                )
            ),
            IMAGE_LABEL: pe[record.sop_instance_uid],
            **values,
        }
        rows.append([str(row[column]) for column in COLUMNS])
    return rows


def _qa(truth: dict[str, Any]) -> dict[str, int]:
    """Return the readers' remarks as far as the truth says why an exam is indeterminate."""
    cause = str((truth.get("drawn") or {}).get("indeterminate_cause") or "")
    remarks = dict.fromkeys(QA_LABELS, 0)
    remarks["qa_motion"] = int("motion" in cause)
    remarks["qa_contrast"] = int("contrast" in cause)
    return remarks


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@click.command()
@click.argument("phantoms", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The tree to make.")
def main(phantoms: Path, out: Path) -> None:
    """Turn the output of `pe-triage phantom` into a tree in RSPECT's layout."""
    try:
        click.echo(f"{make_tree(phantoms, out)} exams in {out}")
    except InputError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
