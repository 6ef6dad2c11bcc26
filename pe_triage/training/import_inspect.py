"""INSPECT as external data to judge a bundle on: PE by the report, for each exam.

    python -m pe_triage.training.import_inspect SRC --out DIR --split test

INSPECT (Huang S-C, et al. NeurIPS 2023 Datasets and Benchmarks, arXiv 2311.10798) holds
``CTPA/<image_id>.nii.gz`` in Hounsfield units and tables joined by ``impression_id``:
``labels_*.tsv`` (``pe_positive_nlp``: what a language model read in the report),
``study_mapping_*.tsv`` (``image_id``, ``person_id``) and ``splits_*.tsv`` (``split``). The layout
is that of its second release as its public users describe it; the data were not at hand.

It says whether an exam shows PE, and nothing of slices, sides, ventricles or age of clots. So what
is written is no training tree, but ``DIR/dicom`` and ``DIR/truth`` for ``pe-triage evaluate``, with
-1 for whatever is not known: AUC, sensitivity and specificity of PE come out, the rest stays empty.
An exam without PE is taken to be negative, not indeterminate: the source does not tell them apart.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pe_triage.domain import EXAM_LABELS
from pe_triage.errors import InputError, PeTriageError
from pe_triage.training.converted import BadSourceError, check_hu, source_uid, write_series

INSPECT: Final = "INSPECT"
UNKNOWN: Final = -1
SPLITS: Final = ("train", "valid", "test")
_IMAGE_SUFFIX: Final = ".nii.gz"
_FOLDERS: Final = ("CTPA", "full/CTPA", ".")
_SEPARATORS: Final = {".tsv": "\t", ".csv": ","}
_WORDS: Final[Mapping[str, bool]] = {"true": True, "1": True, "false": False, "0": False}
_AXIAL_COSINE: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectCase:
    """One exam as the tables label it.

    Attributes
    ----------
    image_id
        Name of its volume without suffix.
    person_id
        What tells patients apart.
    has_pe
        None where the label is neither true nor false.
    """

    image_id: str
    person_id: str
    has_pe: bool | None
    path: Path


def inspect_cases(source: Path, split: str | None = None) -> list[InspectCase]:
    """Read the tables under `source`; volumes are not opened.

    Raises
    ------
    InputError
        Not INSPECT's layout, a table that contradicts itself, or no exam in the split.
    """
    images = next(
        (source / n for n in _FOLDERS if any((source / n).glob(f"*{_IMAGE_SUFFIX}"))), None
    )
    if images is None:
        raise InputError(f"{source}: expected INSPECT's CTPA/<image_id>.nii.gz")
    labels = _table(source, "labels", ("impression_id", "pe_positive_nlp"))
    mapping = _table(source, "study_mapping", ("impression_id", "image_id", "person_id"))
    chosen: set[str] | None = None
    if split is not None:
        parts = _table(source, "splits", ("impression_id", "split"))
        chosen = {key for key, row in parts.items() if row["split"].lower() == split}
    cases: dict[str, InspectCase] = {}
    for key, row in mapping.items():
        if key not in labels or (chosen is not None and key not in chosen):
            continue
        name = row["image_id"].removesuffix(_IMAGE_SUFFIX)
        if not name or name in cases or Path(name).name != name:
            raise InputError(f"{source}: image_id {name!r} is empty, unsafe or stands twice")
        cases[name] = InspectCase(
            image_id=name,
            person_id=row["person_id"],
            has_pe=_WORDS.get(labels[key]["pe_positive_nlp"].strip().lower()),
            path=images / f"{name}{_IMAGE_SUFFIX}",
        )
    if not cases:
        raise InputError(
            f"{source}: the tables name no exam{f' in split {split}' if split else ''}"
        )
    return [cases[name] for name in sorted(cases)]


def import_inspect(
    cases: Sequence[InspectCase],
    out: Path,
    *,
    progress: Callable[[str], None] = lambda _line: None,
) -> tuple[int, dict[str, str]]:
    """Write the exams; return their number and, by name, why the others were left out.

    Exams that are there already are kept, so an import that was stopped goes on.

    Raises
    ------
    InputError
        `out` cannot be written, or no exam could be used.
    """
    skipped: dict[str, str] = {}
    done = 0
    for case in cases:
        try:
            images = _import_one(case, out)
        except BadSourceError as error:
            skipped[case.image_id] = str(error)
            progress(f"{case.image_id}: left out: {error}")
            continue
        except OSError as error:
            raise InputError(f"{error.filename or out}: {error.strerror or error}") from None
        done += 1
        progress(f"{case.image_id}: {images} images, {'PE' if case.has_pe else 'no PE'}")
    if not done:
        first = next((f"; {k}: {v}" for k, v in skipped.items()), "")
        raise InputError(f"no exam could be used{first}")
    return done, skipped


def _import_one(case: InspectCase, out: Path) -> int:
    if case.has_pe is None:
        raise BadSourceError("its label is neither true nor false")
    study_uid = source_uid(INSPECT, "study", case.image_id)
    truth = out / "truth" / f"{study_uid}.json"
    if truth.exists():
        document: dict[str, Any] = json.loads(truth.read_text(encoding="utf-8"))
        return len(document["slices"])
    hu_xyz, axes_mm, origin_mm = read_volume(case.path)
    folder, scratch = (out / "dicom" / name for name in (study_uid, f".{study_uid}.partial"))
    for leftover in (folder, scratch):  # of an import that was stopped
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir(parents=True)
    uids = write_series(
        hu_xyz, axes_mm, origin_mm, scratch, source=INSPECT, name=case.image_id,
        patient=f"{INSPECT} {case.person_id}", derivation="Converted from NIfTI",
    )  # fmt: skip
    scratch.replace(folder)
    exam = dict.fromkeys(EXAM_LABELS, UNKNOWN if case.has_pe else 0)
    exam |= {"negative_exam_for_pe": int(not case.has_pe), "indeterminate": 0}
    document = {
        "study_uid": study_uid,
        "source": INSPECT,
        "exam": exam,
        "slices": [{"sop_instance_uid": uid, "pe": UNKNOWN if case.has_pe else 0} for uid in uids],
    }
    truth.parent.mkdir(parents=True, exist_ok=True)
    partial = truth.with_suffix(".partial")
    partial.write_text(json.dumps(document) + "\n", encoding="utf-8")
    partial.replace(truth)
    return len(uids)


def read_volume(path: Path) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Read a NIfTI volume: (x, y, z) whole Hounsfield units, steps (3, 3) and origin, LPS mm.

    NIfTI's coordinates are RAS+, DICOM's LPS: x and y change their sign.

    Raises
    ------
    BadSourceError
        Not there, not readable, not axial, or not in Hounsfield units.
    """
    load: Any = nib.load
    try:
        image = load(path)
        values = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    except FileNotFoundError:
        raise BadSourceError("its volume is not there") from None
    except Exception as error:  # noqa: BLE001  nibabel, gzip and zlib raise what they like
        raise BadSourceError(f"not readable as NIfTI ({type(error).__name__})") from None
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3 or values.shape[2] < 2:
        raise BadSourceError(f"{values.ndim} axes of {values.shape}, not a volume of slices")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadSourceError("values that are no numbers")
        values = np.rint(values).astype(np.int32)
    check_hu(values)
    to_lps = np.array([-1.0, -1.0, 1.0])
    axes_mm = affine[:3, :3].T * to_lps
    length = np.linalg.norm(axes_mm, axis=1)
    if not np.isfinite(affine).all() or not length.all():
        raise BadSourceError("its header does not say where it lies in the patient")
    if abs(axes_mm[2, 2]) < _AXIAL_COSINE * length[2]:
        raise BadSourceError("its slices are not axial")
    return values, axes_mm, affine[:3, 3] * to_lps


def _table(source: Path, name: str, needed: Sequence[str]) -> dict[str, dict[str, str]]:
    """Rows by ``impression_id``; a row that stands twice alike is one."""
    paths = sorted(
        p
        for folder in (source, source / "full")
        for p in folder.glob(f"{name}*")
        if p.suffix in _SEPARATORS
    )
    if not paths:
        raise InputError(f"{source}: expected INSPECT's table {name}_*.tsv")
    path = paths[-1]  # named by date: the latest
    rows: dict[str, dict[str, str]] = {}
    for row in _rows(path, needed):
        key = row["impression_id"]
        if rows.setdefault(key, row) != row:
            raise InputError(f"{path}: impression_id {key} stands twice with different values")
    return rows


def _rows(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=_SEPARATORS[path.suffix])
            missing = [c for c in needed if c not in (reader.fieldnames or [])]
            if missing:
                raise InputError(f"{path}: no column {', '.join(missing)}")
            for row in reader:
                yield {column: (row[column] or "").strip() for column in needed}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or 'not a table'}") from None


@click.command()
@click.argument("folder", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory to make.")
@click.option("--split", type=click.Choice(SPLITS), default=None, help="One part.  [default: all]")
@click.option("--limit", type=click.IntRange(1), default=None, help="So many exams at most.")
def main(folder: Path, out: Path, split: str | None, limit: int | None) -> None:
    """Turn INSPECT, as unpacked in SRC, into DICOM with truth for `pe-triage evaluate`."""
    try:
        cases = inspect_cases(folder, split)[:limit]
        done, skipped = import_inspect(cases, out, progress=click.echo)
    except PeTriageError as error:
        raise click.ClickException(str(error)) from None
    positive = sum(bool(case.has_pe) for case in cases if case.image_id not in skipped)
    click.echo(f"{done} exams in {out}, {positive} with PE; {len(skipped)} left out")


if __name__ == "__main__":
    main()
