"""Evaluate a bundle, or a table of predictions, on labelled exams: figures, page, tables.

Into the directory of the report go ``report.html`` (one file, opens offline), ``report.json``
(every figure of it), ``predictions.npz``, ``submission.csv`` (the challenge's table), and ``work/``
with one small file for each exam, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pe_triage import __version__
from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL
from pe_triage.errors import InputError, PermanentError
from pe_triage.infer.predictor import Predictor
from pe_triage.model.consistency import count_violations
from pe_triage.model.decisions import PE
from pe_triage.training.calibration import Aim, default_aim
from pe_triage.training.evaluate_calibrate import calibrate_bundle, fitted_on
from pe_triage.training.evaluate_causes import cause_table, trait_table
from pe_triage.training.evaluate_compare import common_exams, comparison_document
from pe_triage.training.evaluate_data import (
    LabelledData,
    LabelledStudy,
    choose,
    exam_truth_sl,
    find_studies,
    slice_truth_k,
)
from pe_triage.training.evaluate_gallery import Case, choose_cases, make_case
from pe_triage.training.evaluate_localisation import Peak, localisation_figures
from pe_triage.training.evaluate_position import position_document
from pe_triage.training.evaluate_report import render
from pe_triage.training.evaluate_run import Run, run_bundle, same_encoder
from pe_triage.training.evaluate_seeds import PUBLISHED
from pe_triage.training.evaluate_subgroups import subgroup_documents
from pe_triage.training.evaluate_tables import all_labels, label_samples, score_document
from pe_triage.training.intervals import DEFAULT_RESAMPLES, Resampler
from pe_triage.training.predictions import Predictions, load_predictions, save_predictions
from pe_triage.training.predictions_submission import from_submission, to_submission

FORMAT: Final = "pe-triage-evaluation/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a person may choose.

    Attributes
    ----------
    split, part
        File of splits and the part of it; ``test`` where there is one of that name.
    compare
        Further bundles, or tables of predictions, set beside the first.
    predictions
        Table (``.npz``) or submission (``.csv``) that is read in place of running a bundle.
    device, runtime, threads
        As the node's settings of these names.
    gallery
        Exams of each kind in the gallery.
    heatmaps
        Whether heatmaps are held against masks and causes; without, it is faster.
    calibrate
        Where to write the bundle with temperatures and thresholds fitted on these studies, and
        with the reference by which exams unlike them are told (`model.reference`).
    aim
        Of the threshold of PE, with `calibrate`; None for `calibration.default_aim`.
    """

    split: Path | None = None
    part: str | None = None
    compare: tuple[Path, ...] = ()
    predictions: Path | None = None
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0
    device: str = "auto"
    runtime: str = "auto"
    threads: int = 2
    gallery: int = 4
    heatmaps: bool = True
    calibrate: Path | None = None
    aim: Aim | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What was found and where it lies."""

    document: Mapping[str, Any]
    html_path: Path
    json_path: Path


def evaluate(
    bundle: Path | None,
    data_dir: Path,
    out: Path,
    options: Options,
    *,
    now: datetime,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate and write the report.

    Parameters
    ----------
    bundle
        Directory of the bundle; None with ``options.predictions``.
    now
        Aware time that the report carries.
    progress
        Called with a study's UID when it is done.

    Raises
    ------
    InputError
        Nothing to evaluate, contradicting options, or `out` cannot be written.
    """
    if (bundle is None) == (options.predictions is None):
        raise InputError("give a bundle, or --predictions FILE in its place")
    if options.calibrate is not None and bundle is None:
        raise InputError("--calibrate needs a bundle")
    if options.calibrate is not None and options.calibrate.exists():
        raise InputError(f"model bundle {options.calibrate}: already exists")
    data = find_studies(data_dir)
    studies = choose(data, options.split, options.part)
    predictor = None
    if bundle is not None:
        predictor = _load(bundle, options)
        others = [_load(path, options) for path in options.compare if path.is_dir()]
        run = run_bundle(
            predictor, studies, out / "work", threads=options.threads, progress=progress,
            beside=[other for other in others if same_encoder(predictor, other)],
            explained=options.heatmaps, embeddings=options.calibrate is not None,
        )  # fmt: skip
    else:
        assert options.predictions is not None
        run = read_run(options.predictions, studies)
    table = run.table
    exam_truth = exam_truth_sl(run.studies)
    slice_truth = slice_truth_k(run.studies, table.sop_instance_uids)
    resampler = Resampler(table.patient_s, resamples=options.resamples, seed=options.seed)
    warnings = _warnings(predictor, table)
    record = None
    if options.calibrate is not None:
        assert bundle is not None
        assert predictor is not None
        fitted = calibrate_bundle(
            bundle, options.calibrate, table, exam_truth, slice_truth,
            options.aim or default_aim(predictor.card.spec),
            resampler=resampler, now=now, feat_szd=run.feat_szd,
        )  # fmt: skip
        table, record = fitted.table, fitted.record
        warnings.append(
            "The figures below are of the bundle just calibrated, on the studies that it was "
            "calibrated on: they flatter. Evaluate it on a test part."
        )
    document = make_document(
        table, run, exam_truth, slice_truth, resampler, data=data, options=options, now=now
    )
    document["warnings"] = warnings
    document["calibration_fit"] = record
    document["comparisons"] = [
        _compare(other, run, table, studies, out, options, progress) for other in options.compare
    ]
    cases, lost = ([], {}) if predictor is None else _cases(run, table, predictor, options)
    document["gallery"] = [{"kind": c.kind, "study_uid": c.study_uid, "pe": c.pe} for c in cases]
    document["gallery_failed"] = lost
    save_predictions(out / "predictions.npz", table)
    to_submission(out / "submission.csv", table)
    page = render(document, table, exam_truth, cases)
    json_path, html_path = out / "report.json", out / "report.html"
    _write(json_path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _write(html_path, page)
    return Evaluation(document=document, html_path=html_path, json_path=json_path)


def _load(bundle: Path, options: Options) -> Predictor:
    return Predictor(bundle, options.device, runtime=options.runtime, threads=options.threads)


def read_run(path: Path, studies: Sequence[LabelledStudy]) -> Run:
    """Predictions from a file, cut to the studies whose truth is known.

    Raises
    ------
    InputError
        Not such a file, or none of the studies is in it.
    """
    if path.suffix.lower() == ".csv":
        table, skipped = from_submission(path, studies)
    else:
        whole = load_predictions(path)
        row = {uid: s for s, uid in enumerate(whole.study_uids)}
        skipped = {s.study_uid: "not in the predictions" for s in studies if s.study_uid not in row}
        kept = [row[s.study_uid] for s in studies if s.study_uid in row]
        if not kept:
            raise InputError(f"{path}: none of the studies is in it")
        table = whole.select(kept)
    used = tuple(s for s in studies if s.study_uid not in skipped)
    facts = tuple({"spacing_z_mm": _spacing(study)} for study in used)
    return Run(table=table, studies=used, facts=facts, peaks_s={}, pointed_s={}, skipped=skipped)


def _spacing(study: LabelledStudy) -> float:
    spacing = study.detail.get("spacing_zyx_mm")
    return float(spacing[0]) if isinstance(spacing, list) and spacing else 0.0


def make_document(
    table: Predictions,
    run: Run,
    exam_truth: NDArray[np.int8],
    slice_truth: NDArray[np.int8],
    resampler: Resampler,
    *,
    data: LabelledData,
    options: Options,
    now: datetime,
) -> dict[str, Any]:
    """Every figure of the report as JSON values, pictures and comparisons apart."""
    samples = label_samples(table, exam_truth, slice_truth, resampler)
    pe = samples[PE]
    called = pe.score_s > table.thresholds.get(PE, 0.5)
    called_s = np.zeros(len(table.study_uids), np.bool_)
    called_s[pe.index_s] = called
    labels = all_labels(samples, table.thresholds, resampler)
    document: dict[str, Any] = {
        "format": FORMAT,
        "program": __version__,
        "created_at": now.isoformat(),
        "model": dict(table.model),
        "settings": {"resamples": options.resamples, "seed": options.seed, "level": 0.95},
        "data": {
            "layout": data.layout,
            "part": options.part or ("test" if options.split else None),
            "exams": len(table.study_uids),
            "patients": resampler.groups,
            "exams_with_pe": int((pe.truth_s == 1).sum()),
            "exams_indeterminate": int((exam_truth[:, 1] == 1).sum()),
            "slices": len(table.sop_instance_uids),
            "slices_with_pe": int((slice_truth == 1).sum()),
            "skipped": dict(run.skipped),
            "problems": dict(data.problems),
        },
        "labels": labels,
        "slice_position_alone": position_document(table, slice_truth, resampler),
        "challenge": score_document(table, exam_truth, slice_truth, resampler),
        "violations": {"by_rule": table.violations(), "exams": _inconsistent(table)},
        "subgroups": subgroup_documents(pe, run.studies, run.facts, called, resampler),
        "false_positives": {
            "by_trait": trait_table(pe, run.studies, called, resampler),
            "by_place": cause_table(pe, run.studies, called, run.pointed_s, resampler),
        },
        "localisation": None,
    }
    if run.peaks_s:
        document["localisation"] = localisation_figures(
            _current(run, table), called_s, table.thresholds.get(IMAGE_LABEL, 0.5), resampler
        )
    document["beside_sources"] = {
        "published": [row.to_json() for row in PUBLISHED],
        "ours": _ours(document),
    }
    return document


def _current(run: Run, table: Predictions) -> dict[int, list[Peak]]:
    """The peaks with the table's probabilities, which a calibration may have changed since."""
    return {
        s: [
            replace(p, probability=float(table.slice_probability_k[table.start_s[s] + p.z]))
            for p in peaks
        ]
        for s, peaks in run.peaks_s.items()
    }


def _inconsistent(table: Predictions) -> int:
    return sum(
        any(count_violations(table.slice_probability_k[table.slices_of(s)], exam_l).values())
        for s, exam_l in enumerate(table.exam_sl)
    )


def _ours(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Our rows for the table of the sources: exams and slices at the stored threshold."""
    rows = []
    for label, unit in ((PE, "exam"), (IMAGE_LABEL, "slice")):
        found = document["labels"][label]
        point = found["thresholds"].get("stored") or found["thresholds"].get("half", {})
        figures = {"auc": found["auc"]["value"]}
        for key in ("sensitivity", "specificity", "ppv", "f1", "accuracy"):
            figures[key] = point[key]["value"] if point else None
        if label == PE:
            score = document["challenge"]
            figures["score"] = None if score is None else score["score"]["value"]
            for name in EXAM_LABELS:
                figures[f"auc:{name}"] = document["labels"][name]["auc"]["value"]
        rows.append(
            {
                "source": "this report",
                "spec": "",
                "system": str(document["model"].get("name") or "predictions"),
                "data": f"{document['data']['layout']}, {document['data']['exams']} exams",
                "unit": unit,
                "figures": figures,
                "note": str(document["model"].get("intended_use") or ""),
            }
        )
    return rows


def _warnings(predictor: Predictor | None, table: Predictions) -> list[str]:
    out = []
    if predictor is not None and fitted_on(predictor.card, table.study_uids):
        out.append("This bundle was calibrated on exactly these studies: the figures flatter.")
    if not table.thresholds:
        out.append("The predictions name no thresholds: 0.5 is used for all.")
    return out


def _compare(
    other: Path, run: Run, table: Predictions, studies: Sequence[LabelledStudy], out: Path,
    options: Options, progress: Callable[[str], None] | None,
) -> dict[str, Any]:  # fmt: skip
    if other.is_dir():
        predictor = _load(other, options)
        second = run_bundle(
            predictor, studies, out / "work", threads=options.threads, progress=progress,
            explained=False,
        ).table  # fmt: skip
    else:
        second = read_run(other, studies).table
    first, second = common_exams([table, second])
    if not first.study_uids:
        raise InputError(f"{other}: no study was answered by both")
    by_uid = {study.study_uid: study for study in run.studies}
    shared = [by_uid[uid] for uid in first.study_uids]
    return comparison_document(
        first,
        second,
        exam_truth_sl(shared),
        slice_truth_k(shared, first.sop_instance_uids),
        Resampler(first.patient_s, resamples=options.resamples, seed=options.seed),
    )


def _cases(
    run: Run, table: Predictions, predictor: Predictor, options: Options
) -> tuple[list[Case], dict[str, str]]:
    truth = np.array([int(study.positive) for study in run.studies], dtype=np.int8)
    called = table.pe_s > table.thresholds.get(PE, 0.5)
    cases: list[Case] = []
    lost: dict[str, str] = {}
    for kind, rows in choose_cases(truth, table.pe_s, called, options.gallery).items():
        for row in rows:
            study = run.studies[row]
            try:
                cases.append(make_case(kind, row, table, study, predictor, threads=options.threads))
            except PermanentError as error:
                lost[study.study_uid] = str(error)
    return cases, lost


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        scratch.unlink(missing_ok=True)
