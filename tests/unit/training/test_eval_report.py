"""From phantoms to a report, with a network small enough for a test."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from sklearn.metrics import roc_auc_score

from pe_triage.cli import main
from pe_triage.domain import EXAM_LABELS, IMAGE_LABEL, IntendedUse
from pe_triage.errors import InputError
from pe_triage.infer.predictor import Predictor
from pe_triage.model import reference
from pe_triage.model.builtin import materialize_untrained
from pe_triage.model.bundle import load_bundle
from pe_triage.model.decisions import PE
from pe_triage.model.spec import ATTENTION_BILSTM
from pe_triage.phantom import find_preset, generate_study, write_study
from pe_triage.training import report_html
from pe_triage.training.calibration import Aim
from pe_triage.training.evaluate import Options, evaluate
from pe_triage.training.evaluate_data import choose, exam_truth_sl, find_studies, load_study
from pe_triage.training.make_tree import make_tree
from pe_triage.training.metrics import DECISION_METRICS
from pe_triage.training.predictions import load_predictions

NOW = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
SPEC = replace(
    ATTENTION_BILSTM,
    name="tiny",
    backbone="test_efficientnet",
    size=64,
    sequence_hidden=8,
    dense_dim=8,
)
OPTIONS = Options(resamples=100, device="cpu", threads=1, gallery=1)
STUDIES = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    for k in range(STUDIES):
        preset = find_preset("pe-acute" if k % 2 else "standard")
        write_study(generate_study(40 + k, preset, size=64, n_slices=12), root)
    return root


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("bundles")
    mean = replace(SPEC, name="tiny-mean", pooling="mean")
    return materialize_untrained(root, SPEC), materialize_untrained(root, mean)


@pytest.fixture(scope="module")
def report(
    data: Path, bundles: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("report")
    # a low threshold, so that the gallery and the heatmaps have true positives
    options = replace(OPTIONS, compare=(bundles[1],), calibrate=out / "calibrated",
                      aim=Aim.parse("sensitivity>=0.9"))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "FEWEST_EXAMS", STUDIES)
        evaluate(bundles[0], data, out, options, now=NOW)
    return out


def test_the_document_agrees_with_its_predictions(report: Path, data: Path) -> None:
    document = json.loads((report / "report.json").read_text())
    table = load_predictions(report / "predictions.npz")
    studies = choose(find_studies(data), None, None)
    assert table.study_uids == tuple(s.study_uid for s in studies)
    truth = np.array([s.positive for s in studies])
    found = document["labels"][PE]["auc"]["value"]
    assert found == pytest.approx(roc_auc_score(truth, table.pe_s), abs=1e-6)
    assert document["data"]["exams"] == document["data"]["patients"] == STUDIES
    assert document["data"]["exams_with_pe"] == truth.sum()
    assert document["violations"]["exams"] == 0
    slices = sum(len(s.slice_truth) for s in studies)
    rows = (report / "submission.csv").read_text().splitlines()
    assert len(rows) == 1 + slices + len(EXAM_LABELS) * STUDIES
    assert len(document["comparisons"]) == 1
    assert document["subgroups"]["clot"]["most proximal place"]
    assert document["localisation"]["all"]["slices"] > 0
    without = document["false_positives"]["by_trait"][0]["exams_without_pe"]
    assert without == STUDIES - truth.sum()
    point = document["labels"][PE]["thresholds"]["stored"]
    assert point["counts"]["tp"] + point["counts"]["fn"] == truth.sum()
    assert point["sensitivity"]["value"] >= 0.9


def test_every_figure_asked_for_stands_there_for_every_label(report: Path) -> None:
    document = json.loads((report / "report.json").read_text())
    labels = document["labels"]
    assert set(labels) == {PE, *EXAM_LABELS, IMAGE_LABEL}
    seen = 0
    for name, found in labels.items():
        figures = [found["auc"], found["auprc"], found["calibration"]["ece"]]
        points = ["stored", "half", "served"]
        if found["auc"]["value"] is not None:  # one class alone has no best threshold
            points.append("youden")
        for point in points:
            at = found["thresholds"][point]
            assert {"tp", "fp", "fn", "tn"} == set(at["counts"]), (name, point)
            figures += [at[key] for key in DECISION_METRICS]
        assert found["thresholds"]["half"]["threshold"] == 0.5
        for figure in figures:
            assert {"value", "low", "high"} <= set(figure), name
            if figure["value"] is not None and figure["low"] is not None:
                seen += 1
                assert figure["low"] <= figure["value"] <= figure["high"]
    assert seen > 100
    assert document["labels"][PE]["roc"]
    assert document["labels"][PE]["pr"]
    assert document["challenge"]["score"]["low"] < document["challenge"]["score"]["high"]
    assert set(document["subgroups"]["scan"]) >= {"manufacturer", "slice thickness"}
    missed = [case for case in document["gallery"] if case["kind"] == "false_negative"]
    table = load_predictions(report / "predictions.npz")
    pe_of = dict(zip(table.study_uids, table.pe_s.tolist(), strict=True))
    for case in missed:
        assert case["pe"] == pytest.approx(pe_of[case["study_uid"]], abs=1e-5)
    assert document["gallery"]
    assert document["gallery_failed"] == {}
    published = {row["spec"] for row in document["beside_sources"]["published"]}
    assert published >= {"attention-bilstm", "r3d18-tcn", "multitask-r3d18-tcn", "plain-cnn"}
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "by t-SNE, perplexity" in page
    assert page.count("Along the scan; triangles mark the slices above") >= len(document["gallery"])


def test_the_page_opens_offline_and_runs_nothing(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "default-src 'none'" in page
    assert page.count('src="data:image/png;base64,') >= 2
    assert page.count('src="data:image/svg+xml;base64,') >= 6
    assert "no meaning, no clinical use" in page
    assert "they flatter" in page  # calibrated on the very studies shown
    for section in ("Calibration", "Subgroups", "Heatmaps against", "Gallery", "source documents"):
        assert f"<h2>{section}" in page or section in page


def test_nobody_is_named_anywhere(report: Path, data: Path) -> None:
    identity = set()
    for folder in (data / "dicom").iterdir():
        ds = dcmread(next(folder.glob("*.dcm")), stop_before_pixels=True)
        identity |= {str(ds.PatientID), str(ds.PatientName), str(ds.get("PatientBirthDate", ""))}
    identity -= {""}
    assert identity
    for path in report.rglob("*"):
        if path.is_file():
            arrays = np.load(path) if path.suffix == ".npz" else None
            text = path.read_bytes().decode("latin-1")
            if arrays is not None:
                text += "".join(str(arrays[name]) for name in arrays.files)
            for value in identity:
                assert value not in text, path.name


def test_what_is_printed_is_escaped() -> None:
    evil = '<img src=x onerror="alert(1)">'
    assert evil not in report_html.page(evil, [(evil, "x")])
    assert evil not in report_html.use_banner(evil)
    assert evil not in report_html.picture(b"x", "png", evil)
    assert evil not in report_html.case_section(
        title=evil, facts=[(evil, evil)], picture_png=b"", scan_svg=b""
    )
    interval = {"value": 0.5, "low": 0.1, "high": 0.9}
    row = {"trait": evil, "exams_without_pe": 1, "false_positives": 0, "rate": interval}
    part = {"part": evil, "exams": 1, "positives": 1, "auc": interval, "sensitivity": interval,
            "specificity": interval}  # fmt: skip
    assert evil not in report_html.subgroup_tables({"scan": {evil: [part]}, "clot": {}})
    place = {"cause": evil, "false_positives": 1, "share_of_false_positives": interval,
             "share_of_all_without_pe": interval}  # fmt: skip
    tables = {"by_trait": [row], "by_place": [place]}
    assert evil not in report_html.false_positive_tables(tables)


def test_numbers_that_do_not_exist_are_dashes() -> None:
    assert report_html.with_interval({"value": None, "low": None, "high": None}) == "—"
    assert report_html.with_interval({"value": 0.5, "low": None, "high": None}) == "0.500§"
    exact = {"value": 1.0, "low": 0.7, "high": 1.0, "note": "exact"}
    assert report_html.with_interval(exact).endswith("]</span>†")


def test_the_calibrated_bundle_answers_as_its_report_says(
    report: Path, data: Path, bundles: tuple[Path, Path]
) -> None:
    table = load_predictions(report / "predictions.npz")
    bundle = load_bundle(report / "calibrated")
    assert bundle.card.version.endswith("+cal")
    assert bundle.card.intended_use is IntendedUse.UNTRAINED  # calibration makes no patient model
    assert bundle.card.sha256 == table.model["sha256"]
    record = bundle.card.metrics["calibration"]
    assert record["aim"] == "sensitivity>=0.9"
    assert record["studies"] == STUDIES
    assert record["reference_exams"] == STUDIES
    original = load_bundle(bundles[0])
    assert bundle.card.weights_sha256 == original.card.weights_sha256
    predictor = Predictor(report / "calibrated", "cpu", threads=1)
    study = find_studies(data).studies[3]
    inference = predictor.predict(load_study(study).volume)
    assert inference.unlikeness is not None  # its limit, of so few exams, means nothing
    said = inference.prediction
    assert said.pe_probability == pytest.approx(table.pe_s[3], abs=1e-5)
    got = [said.exam_probability[label] for label in EXAM_LABELS]
    assert got == pytest.approx(table.exam_sl[3].tolist(), abs=1e-5)
    assert np.allclose(
        said.slice_probability_z, table.slice_probability_k[table.slices_of(3)], atol=1e-5
    )


def test_a_run_goes_on_and_bad_studies_are_named(
    data: Path, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    studies = find_studies(copy).studies
    files = sorted((copy / "dicom" / studies[0].study_uid).glob("*.dcm"))
    files[5].unlink()
    (copy / "dicom" / studies[1].study_uid / "0003.dcm").write_bytes(b"not DICOM")
    asked = []
    predict = Predictor.predict

    def counting(self, volume, **more):
        asked.append(volume.series_uid)
        return predict(self, volume, **more)

    monkeypatch.setattr(Predictor, "predict", counting)
    options = replace(OPTIONS, gallery=0)
    out = tmp_path / "out"
    first = evaluate(bundles[0], copy, out, options, now=NOW).document
    assert len(asked) == STUDIES - 2
    assert set(first["data"]["skipped"]) == {studies[0].study_uid, studies[1].study_uid}
    assert "not there" in first["data"]["skipped"][studies[0].study_uid] or (
        "missing" in first["data"]["skipped"][studies[0].study_uid]
    )
    # again: nothing is predicted twice, but what is broken or corrected is
    shard = next(p for p in sorted((out / "work").rglob("*.npz")))
    shard.write_bytes(shard.read_bytes()[:100])
    truth_path = copy / "truth" / f"{studies[4].study_uid}.json"
    truth = json.loads(truth_path.read_text())
    truth["exam"] = dict.fromkeys(EXAM_LABELS, 0) | {"indeterminate": 1}
    truth["slices"] = [s | {"pe": 0} for s in truth["slices"]]
    truth_path.write_text(json.dumps(truth))
    asked.clear()
    second = evaluate(bundles[0], copy, out, options, now=NOW).document
    assert 1 <= len(asked) <= 2
    assert (
        second["data"]["exams_indeterminate"]
        == 1 + first["data"]["exams_indeterminate"] - (studies[4].exam_truth["indeterminate"])
    )


def test_rspect_layout_gives_the_same_figures(
    data: Path, bundles: tuple[Path, Path], report: Path, tmp_path: Path
) -> None:
    make_tree(data, tmp_path / "tree")
    found = find_studies(tmp_path / "tree")
    direct = find_studies(data)
    assert found.layout == "rspect"
    assert (exam_truth_sl(found.studies) == exam_truth_sl(direct.studies)).all()
    options = replace(OPTIONS, gallery=0)
    out = tmp_path / "out"
    document = evaluate(bundles[0], tmp_path / "tree", out, options, now=NOW).document
    table = load_predictions(out / "predictions.npz")
    raw = load_predictions(report / "predictions.npz")
    assert np.allclose(table.image_logit_k, raw.image_logit_k, atol=1e-4)
    # The tree carries the phantoms' masks along.
    assert all(study.mask_path is not None for study in found.studies)
    assert document["localisation"] is not None
    assert document["data"]["part"] is None


def test_predictions_files_are_scored_without_a_bundle(
    report: Path, data: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split.json"
    uids = [s.study_uid for s in find_studies(data).studies]
    split.write_text(json.dumps({"train": uids[:2], "test": uids[2:]}))
    wanted = json.loads((report / "report.json").read_text())
    for name in ("predictions.npz", "submission.csv"):
        options = replace(OPTIONS, predictions=report / name)
        whole = evaluate(None, data, tmp_path / name, options, now=NOW).document
        score = whole["challenge"]["score"]["value"]
        assert score == pytest.approx(wanted["challenge"]["score"]["value"], abs=1e-4)
    part = evaluate(None, data, tmp_path / "p", replace(options, split=split), now=NOW).document
    assert part["data"]["exams"] == STUDIES - 2
    assert part["data"]["part"] == "test"
    assert any("no thresholds" in w for w in whole["warnings"])


def test_the_command_and_its_exit_codes(
    report: Path, data: Path, bundles: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    out = str(tmp_path / "out")
    table = str(report / "predictions.npz")
    common = ["evaluate", "--data", str(data), "--out", out, "--resamples", "100"]
    assert main([*common, "--predictions", table]) == 0
    said = capsys.readouterr().out
    assert "AUC pe:" in said
    assert (tmp_path / "out" / "report.html").is_file()
    for arguments, words in (
        ([], "give a bundle"),
        ([str(bundles[0]), "--predictions", table], "give a bundle"),
        (["--predictions", str(tmp_path / "none.npz")], "No such file"),
        (["--predictions", table, "--calibrate", str(tmp_path / "c")], "--calibrate needs"),
        (["--predictions", table, "--part", "test"], "--part needs --split"),
        ([str(tmp_path / "nobundle")], "no such directory"),
        ([str(bundles[0]), "--aim", "luck"], "aim 'luck'"),
        ([str(bundles[0]), "--calibrate", str(bundles[1])], "already exists"),
    ):
        assert main([*common, *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.strip().splitlines()) == 1
    assert main(["evaluate", str(bundles[0]), "--data", out, "--out", out]) == 2


def test_no_labelled_data_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither train"):
        find_studies(tmp_path)


def test_bundles_of_one_encoder_share_its_work_and_say_what_each_says_alone(
    data: Path, bundles: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = 0
    embed = Predictor._embed

    def counted(self: Predictor, *args: object) -> object:
        nonlocal embedded
        embedded += 1
        return embed(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "_embed", counted)
    quick = replace(OPTIONS, gallery=0, heatmaps=False)
    both = evaluate(bundles[0], data, tmp_path / "both", replace(quick, compare=(bundles[1],)),
                    now=NOW)  # fmt: skip
    assert embedded == STUDIES
    evaluate(bundles[1], data, tmp_path / "alone", quick, now=NOW)
    assert embedded == 2 * STUDIES
    alone = load_predictions(tmp_path / "alone" / "predictions.npz")
    evaluate(bundles[1], data, tmp_path / "both", quick, now=NOW)
    assert embedded == 2 * STUDIES
    beside = load_predictions(tmp_path / "both" / "predictions.npz")
    np.testing.assert_array_equal(beside.exam_sl, alone.exam_sl)
    np.testing.assert_array_equal(beside.slice_probability_k, alone.slice_probability_k)
    assert both.document["gallery"] == []
