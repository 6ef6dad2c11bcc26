from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_triage.domain import (
    EXAM_LABELS,
    POSITIVE_LABELS,
    QUALITY_CONTROL_NOTE,
    Decision,
    IntendedUse,
    Outcome,
    Priority,
)
from pe_triage.report import PriorityRule, TriagePolicy, decide, make_result, not_evaluated

POLICY = TriagePolicy()
RANK = {Priority.LOW: 0, Priority.MEDIUM: 1, Priority.HIGH: 2}


def decided(scene, findings, *, use=IntendedUse.RESEARCH, pe=0.9, qc=False, allow=False):
    prediction = replace(scene.prediction("POSITIVE", use), findings=findings, pe_probability=pe)
    return decide(prediction, quality_control=qc, allow_on_patients=allow, policy=POLICY)


def present(*labels, rest=Decision.ABSENT):
    return dict.fromkeys(EXAM_LABELS, rest) | dict.fromkeys(labels, Decision.PRESENT)


@pytest.mark.parametrize(
    ("labels", "priority"),
    [
        (("rightsided_pe", "rv_lv_ratio_gte_1"), Priority.HIGH),
        (("central_pe", "rv_lv_ratio_lt_1"), Priority.HIGH),
        (("leftsided_pe", "rv_lv_ratio_lt_1"), Priority.MEDIUM),
        (("leftsided_pe", "acute_and_chronic_pe", "rv_lv_ratio_lt_1"), Priority.MEDIUM),
        (("leftsided_pe", "chronic_pe", "rv_lv_ratio_lt_1"), Priority.LOW),
        (("leftsided_pe", "chronic_pe", "rv_lv_ratio_gte_1"), Priority.HIGH),
        (("central_pe", "chronic_pe", "rv_lv_ratio_lt_1"), Priority.HIGH),
    ],
)
def test_priorities_of_the_default_policy(scene, labels, priority):
    answer = decided(scene, present(*labels))
    assert (answer.outcome, answer.priority) == (Outcome.POSITIVE, priority)
    assert answer.reason


@given(
    findings=st.fixed_dictionaries({k: st.sampled_from(Decision) for k in POSITIVE_LABELS}),
    unknown=st.sets(st.sampled_from(POSITIVE_LABELS)),
    forget=st.booleans(),
)
def test_an_unknown_label_never_lowers_a_positive(findings, unknown, forget):
    def priority(values):
        return next((r.priority for r in POLICY.rules if r.matches(values)), POLICY.fallback)

    # Forgetting what was ABSENT (or chronic and RV/LV < 1, which lower) must not lower further.
    blurred = dict(findings)
    for label in unknown:
        if label in ("rv_lv_ratio_gte_1", "central_pe") and findings[label] is Decision.PRESENT:
            continue  # that forgets the very sign that raised it
        if forget:
            del blurred[label]
        else:
            blurred[label] = Decision.UNDETERMINED
    assert RANK[priority(blurred)] >= RANK[priority(findings)]


def test_positive_over_the_threshold_stays_positive_without_any_label(scene):
    answer = decided(scene, {})
    assert (answer.outcome, answer.priority) == (Outcome.POSITIVE, Priority.MEDIUM)


def test_negative_and_indeterminate_have_no_priority(scene):
    negative = decided(scene, present("negative_exam_for_pe"), pe=0.1)
    assert (negative.outcome, negative.priority) == (Outcome.NEGATIVE, None)
    assert not negative.shows_key_slices
    unclear = decided(scene, present("indeterminate"), pe=0.1)
    assert (unclear.outcome, unclear.priority) == (Outcome.INDETERMINATE, None)
    assert unclear.reason


def test_no_decision_at_all_is_not_negative(scene):
    assert decided(scene, {}, pe=0.1).outcome is Outcome.INDETERMINATE


@pytest.mark.parametrize("qc", [True, False])
@pytest.mark.parametrize("allow", [True, False])
def test_untrained_weights_are_always_indeterminate(scene, qc, allow):
    answer = decided(scene, present("central_pe"), use=IntendedUse.UNTRAINED, qc=qc, allow=allow)
    assert (answer.outcome, answer.priority) == (Outcome.INDETERMINATE, None)
    assert "untrained" in answer.reason
    assert answer.withheld is not qc


@pytest.mark.parametrize(
    ("qc", "allow", "full"),
    [(True, False, True), (False, True, True), (True, True, True), (False, False, False)],
)
def test_demonstration_weights_answer_on_phantoms_or_by_opt_in(scene, qc, allow, full):
    answer = decided(
        scene, present("central_pe"), use=IntendedUse.DEMONSTRATION, qc=qc, allow=allow
    )
    if full:
        assert (answer.outcome, answer.priority) == (Outcome.POSITIVE, Priority.HIGH)
    else:
        assert (answer.outcome, answer.priority) == (Outcome.INDETERMINATE, None)
        assert QUALITY_CONTROL_NOTE in answer.reason
    assert answer.withheld is not full


def test_make_result_drops_what_must_not_be_shown(scene):
    def made(use, qc, kind="POSITIVE"):
        return make_result(
            scene.prediction(kind, use),
            series_uid="1.2",
            sop_instance_uids=scene.volume.sop_instance_uids,
            quality_control=qc,
            key_slices=scene.keys(3),
        )

    withheld = made(IntendedUse.DEMONSTRATION, False)
    assert withheld.prediction is None
    assert withheld.key_slices == ()
    assert withheld.model.intended_use is IntendedUse.DEMONSTRATION
    assert made(IntendedUse.UNTRAINED, True).key_slices
    negative = made(IntendedUse.RESEARCH, False, "NEGATIVE")
    assert negative.prediction is not None
    assert negative.key_slices == ()


def test_not_evaluated_needs_words():
    with pytest.raises(ValueError, match="reason"):
        not_evaluated("  ")
    answer = not_evaluated("no CT series")
    assert (answer.outcome, answer.priority, answer.prediction) == (
        Outcome.NOT_EVALUATED, None, None,
    )  # fmt: skip


def test_a_rule_on_an_unknown_label_is_refused():
    with pytest.raises(ValueError, match="centralpe"):
        PriorityRule(
            name="x", priority=Priority.HIGH, words="x", any_present=frozenset({"centralpe"})
        )


CAUTIONS = ("poor contrast in the mediastinal vessels: 120 HU < 150 HU", "noisy images")


@pytest.mark.parametrize(
    ("findings", "outcome"),
    [
        (present("negative_exam_for_pe"), Outcome.INDETERMINATE),
        (present("central_pe"), Outcome.POSITIVE),
        (present("indeterminate"), Outcome.INDETERMINATE),
        (present(), Outcome.INDETERMINATE),
    ],
)
def test_cautions_take_a_negative_its_certainty_and_never_a_positive(scene, findings, outcome):
    prediction = replace(
        scene.prediction("POSITIVE", IntendedUse.RESEARCH), findings=findings, pe_probability=0.0
    )
    options = {"quality_control": False, "allow_on_patients": False, "policy": POLICY}
    plain = decide(prediction, **options)
    warned = decide(prediction, **options, cautions=CAUTIONS)
    assert warned.outcome is outcome
    assert warned.priority is plain.priority
    assert all(caution in warned.reason for caution in CAUTIONS)
    assert (plain.reason or "") in warned.reason


def test_cautions_do_not_show_what_is_withheld(scene):
    prediction = scene.prediction("POSITIVE", IntendedUse.UNTRAINED)
    options = {"quality_control": False, "allow_on_patients": True, "policy": POLICY}
    assert decide(prediction, **options, cautions=CAUTIONS) == decide(prediction, **options)
