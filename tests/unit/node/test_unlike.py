"""An exam unlike those of the bundle's calibration: what the result then says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pe_triage.assemble.rules import EligibilityRules
from pe_triage.domain import IntendedUse, Outcome, ResultKind
from pe_triage.infer.predictor import Predictor
from pe_triage.model.builtin import untrained_network
from pe_triage.model.bundle import save_bundle
from pe_triage.model.card import BundleCard
from pe_triage.model.decisions import THRESHOLD_KEYS
from pe_triage.model.reference import EmbeddingReference, fit_reference
from pe_triage.model.spec import ATTENTION_BILSTM
from pe_triage.node.analysis import Analysis, AnalysisOptions, analyse_study
from pe_triage.node.document import analysis_document
from pe_triage.report.policy import TriagePolicy
from pe_triage.report.readback import read_sr
from pe_triage.report.settings import ReportSettings
from tests.corpus import recipes

NOW = datetime(2026, 2, 3, tzinfo=UTC)
RULES = EligibilityRules(min_matrix=96, max_pixel_spacing_mm=5.0)
SPEC = replace(
    ATTENTION_BILSTM,
    name="tiny",
    backbone="test_efficientnet",
    size=64,
    sequence_hidden=8,
    dense_dim=8,
)


def analysed(
    tmp_path: Path, reference: EmbeddingReference | None, rules: EligibilityRules = RULES
) -> Analysis:
    """Analyse the faultless phantom by a bundle that calls everything negative."""
    thresholds = dict.fromkeys(THRESHOLD_KEYS, 0.999)
    thresholds["negative_exam_for_pe"] = 0.001
    card = BundleCard(
        name="tiny", version="1", spec=SPEC, thresholds=thresholds,
        intended_use=IntendedUse.RESEARCH, training_data="none", weights_sha256="0" * 64,
    )  # fmt: skip
    bundle = tmp_path / "bundle"
    save_bundle(
        bundle, untrained_network(SPEC).state_dict(), card, created_at=NOW, reference=reference
    )
    received = recipes.write(recipes.series_of("nothing"), tmp_path)
    return analyse_study(
        study_uid=received[0].study_uid,
        run=1,
        identity=received[0].identity,
        instances=received,
        predictor=Predictor(bundle, "cpu", runtime="pytorch", threads=1),
        options=AnalysisOptions(rules=rules, report=ReportSettings()),
        predecessors=(),
        now=NOW,
        beat=lambda: None,
    )


def far_away() -> EmbeddingReference:
    dim = untrained_network(SPEC).embedding_dim
    rng = np.random.default_rng(0)
    made = fit_reference([rng.normal(50.0, 1.0, (40, dim)).astype(np.float32) for _ in range(60)])
    assert made is not None
    return made


def sr_of(analysis: Analysis, tmp_path: Path) -> dict[str, object]:
    (sr,) = (o for o in analysis.objects.objects if o.kind is ResultKind.SR)
    path = tmp_path / "sr.dcm"
    path.write_bytes(sr.encoded)
    return read_sr(path)


def test_a_negative_on_an_unlike_exam_is_indeterminate_and_says_why(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, far_away())
    result = analysis.result
    assert result.outcome is Outcome.INDETERMINATE
    assert "unlike the exams that the model was calibrated on" in result.reason
    assert result.unlikeness > 1
    assert analysis_document(result, TriagePolicy())["unlikeness"] == result.unlikeness
    told = sr_of(analysis, tmp_path)
    assert told["outcome"] == "INDETERMINATE"
    assert told["reason"] == result.reason
    assert told["unlikeness"] == result.unlikeness


def test_the_site_s_limit_decides(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, far_away(), replace(RULES, max_unlikeness=1e4))
    assert analysis.result.outcome is Outcome.NEGATIVE
    assert analysis.result.unlikeness > 1


def test_a_bundle_without_a_reference_answers_and_the_report_says_so(tmp_path: Path) -> None:
    analysis = analysed(tmp_path, None)
    assert analysis.result.outcome is Outcome.NEGATIVE
    assert analysis.result.unlikeness is None
    (sr,) = (o for o in analysis.objects.objects if o.kind is ResultKind.SR)
    assert b"unlikeness=not checked: the bundle holds no reference" in sr.encoded
    assert sr_of(analysis, tmp_path)["unlikeness"] is None
