"""Triage policy: from a prediction to an outcome and a priority, as pure functions over data.

The rules stand in `DEFAULT_RULES`; the first that matches a positive exam gives its priority, and
where none matches the fallback does. Two principles hold whatever the rules say:

* A positive is never lowered by what is not known. A rule may raise on what is PRESENT; to lower it
  must name what has to be PRESENT *and* what has to be ABSENT, and a label that is missing or
  UNDETERMINED is neither.
* A negative or indeterminate exam has no priority: pushing a study down a reading list on the word
  of a triage aid is not offered.

Why chronic disease alone may be LOW: chronic thromboembolism is not the emergency that the flag is
there to bring forward. Because networks tell chronic from acute poorly (an AUC near 0.7 has been
published), LOW asks for every sign to agree: RV/LV < 1 present, central and acute-and-chronic
absent. Anything less is MEDIUM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from pe_triage.domain import (
    INTENDED_USE_WORDS,
    POSITIVE_LABELS,
    QUALITY_CONTROL_NOTE,
    Decision,
    ExamPrediction,
    IntendedUse,
    KeySlice,
    ModelIdentity,
    Outcome,
    Priority,
    TriageResult,
)
from pe_triage.errors import ConfigurationError
from pe_triage.report import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityRule:
    """One line of the policy; every non-empty condition must hold.

    Attributes
    ----------
    words
        Said as the reason, in front of a radiologist.
    any_present, all_present, all_absent
        Labels of `pe_triage.domain.POSITIVE_LABELS`.
    """

    name: str
    priority: Priority
    words: str
    any_present: frozenset[str] = frozenset()
    all_present: frozenset[str] = frozenset()
    all_absent: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for label in self.any_present | self.all_present | self.all_absent:
            if label not in POSITIVE_LABELS:
                raise ValueError(f"priority rule {self.name}: unknown label {label}")

    def matches(self, findings: Mapping[str, Decision]) -> bool:
        """Whether the rule applies to `findings`; an absent key counts as UNDETERMINED."""
        present = {label for label, value in findings.items() if value is Decision.PRESENT}
        absent = {label for label, value in findings.items() if value is Decision.ABSENT}
        return (
            (not self.any_present or bool(self.any_present & present))
            and self.all_present <= present
            and self.all_absent <= absent
        )

    def __str__(self) -> str:
        conditions = [
            f"{word} {'/'.join(sorted(labels))}"
            for word, labels in (
                ("any of", self.any_present),
                ("all of", self.all_present),
                ("none of", self.all_absent),
            )
            if labels
        ]
        return f"{self.name}: {' and '.join(conditions) or 'PE'} -> {self.priority.value}"


DEFAULT_RULES: tuple[PriorityRule, ...] = (
    PriorityRule(
        name="right-heart-strain",
        priority=Priority.HIGH,
        words="PE with RV/LV ratio \N{GREATER-THAN OR EQUAL TO} 1",
        any_present=frozenset({"rv_lv_ratio_gte_1"}),
    ),
    PriorityRule(
        name="central",
        priority=Priority.HIGH,
        words="central PE",
        any_present=frozenset({"central_pe"}),
    ),
    PriorityRule(
        name="chronic-only",
        priority=Priority.LOW,
        words="chronic PE, neither central nor with RV/LV ratio \N{GREATER-THAN OR EQUAL TO} 1",
        all_present=frozenset({"chronic_pe", "rv_lv_ratio_lt_1"}),
        all_absent=frozenset({"central_pe", "acute_and_chronic_pe", "rv_lv_ratio_gte_1"}),
    ),
)

_RANK = {Priority.LOW: 0, Priority.MEDIUM: 1, Priority.HIGH: 2}


def _rule_from_table(where: str, table: Any) -> PriorityRule:
    t.check_keys(where, table, tuple(f.name for f in fields(PriorityRule)))
    for key in ("name", "priority", "words"):
        if key not in table:
            raise ConfigurationError(f"{where}.{key}: is missing")
    conditions = {
        key: t.labels(f"{where}.{key}", table[key], POSITIVE_LABELS)
        for key in ("any_present", "all_present", "all_absent")
        if key in table
    }
    if not any(conditions.values()):
        raise ConfigurationError(f"{where}: a rule needs a condition; policy.fallback has none")
    return PriorityRule(
        name=t.text(f"{where}.name", table["name"]),
        priority=t.priority(f"{where}.priority", table["priority"]),
        words=t.text(f"{where}.words", table["words"], longest=120),
        **conditions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TriagePolicy:
    """Priority rules in the order in which they are tried, and what holds where none matches."""

    name: str = "default-1"
    rules: tuple[PriorityRule, ...] = DEFAULT_RULES
    fallback: Priority = Priority.MEDIUM
    fallback_words: str = "PE; no rule gives it another priority"

    @staticmethod
    def from_table(table: Mapping[str, Any]) -> TriagePolicy:
        """Policy from the configuration's table ``policy``; absent keys take their default.

        Keys: ``name``, ``fallback``, ``fallback_words``, and ``rules``, a list of tables with
        ``name``, ``priority``, ``words`` and at least one of the lists ``any_present``,
        ``all_present``, ``all_absent``. A list of rules replaces the default ones.

        Raises
        ------
        ConfigurationError
            One line naming the key: unknown, malformed, or a policy that lowers a positive because
            of what is not known.
        """
        known = tuple(f.name for f in fields(TriagePolicy))
        t.check_keys("policy", table, known)
        chosen: dict[str, Any] = {
            key: t.text(f"policy.{key}", table[key])
            for key in ("name", "fallback_words")
            if key in table
        }
        if ("rules" in table or "fallback" in table) and "name" not in table:
            raise ConfigurationError("policy.name: a policy of the site's own needs a name")
        if chosen.get("name") == TriagePolicy().name and "rules" in table:
            raise ConfigurationError(f"policy.name: {chosen['name']!r} names the built-in policy")
        if "fallback" in table:
            chosen["fallback"] = t.priority("policy.fallback", table["fallback"])
            if chosen["fallback"] is Priority.LOW:
                raise ConfigurationError(
                    "policy.fallback: LOW would lower every positive whose labels are not known"
                )
        if "rules" in table:
            if not isinstance(table["rules"], list | tuple):
                raise ConfigurationError("policy.rules: a list of tables was expected")
            rules = tuple(
                _rule_from_table(f"policy.rules[{i}]", rule)
                for i, rule in enumerate(table["rules"])
            )
            for i, rule in enumerate(rules):
                if rule.name in {r.name for r in rules[:i]}:
                    raise ConfigurationError(f"policy.rules[{i}].name: {rule.name!r} stands twice")
            chosen["rules"] = rules
        policy = TriagePolicy(**chosen)
        policy.check()
        return policy

    def priority_of(self, findings: Mapping[str, Decision]) -> tuple[Priority, str]:
        """Return the priority of a positive exam and its reason."""
        for rule in self.rules:
            if rule.matches(findings):
                return rule.priority, rule.words
        return self.fallback, self.fallback_words

    def check(self) -> None:
        """Try every combination of labels: forgetting an ABSENT must never lower the priority.

        Raises
        ------
        ConfigurationError
            Naming the label and the two priorities.
        """
        named = sorted(
            set().union(*(r.any_present | r.all_present | r.all_absent for r in self.rules))
        )
        for values in product(Decision, repeat=len(named)):
            findings = dict(zip(named, values, strict=True))
            known, _ = self.priority_of(findings)
            for label in named:
                if findings[label] is not Decision.ABSENT:
                    continue
                unknown, _ = self.priority_of({**findings, label: Decision.UNDETERMINED})
                if _RANK[unknown] < _RANK[known]:
                    raise ConfigurationError(
                        f"policy.rules: a positive would fall from {known.value} to "
                        f"{unknown.value} because {label} is not known; raise on what is present"
                    )

    def document(self) -> dict[str, Any]:
        """Return the policy as the ``policy`` of the `show` document."""
        return {"name": self.name, "rules": list(self.describe())}

    def describe(self) -> tuple[str, ...]:
        """Return the policy in force as lines for a report."""
        return (
            *(str(rule) for rule in self.rules),
            f"any other PE -> {self.fallback.value}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the policy made of a prediction.

    Attributes
    ----------
    withheld
        The prediction must not be shown: the weights were not made for patients and the images
        are not marked as quality control.
    """

    outcome: Outcome
    reason: str | None
    priority: Priority | None
    withheld: bool

    @property
    def shows_key_slices(self) -> bool:
        """Whether key slices and heatmaps belong into the results (worth computing at all)."""
        return not self.withheld and self.outcome in (Outcome.POSITIVE, Outcome.INDETERMINATE)


def decide(
    prediction: ExamPrediction,
    *,
    quality_control: bool,
    allow_on_patients: bool,
    policy: TriagePolicy,
    cautions: tuple[str, ...] = (),
) -> Decided:
    """Turn a prediction into outcome, reason and priority.

    Parameters
    ----------
    quality_control
        Whether the images carry Quality Control Image (0028,0300) YES.
    allow_on_patients
        The site has opted in, by name, to results of demonstration weights on patients' images.
        Untrained weights stay INDETERMINATE and withheld there all the same: there is nothing in
        random numbers that a patient could gain from.
    cautions
        What speaks against the images' quality, in words. A negative answer on such images becomes
        indeterminate, for these reasons; a positive one stays, and says them.
    """
    use = prediction.model.intended_use
    if use is IntendedUse.UNTRAINED:
        withheld = not quality_control
        reason = INTENDED_USE_WORDS[use]
        if withheld:
            reason = f"{reason}; image {QUALITY_CONTROL_NOTE}"
        return _no_priority(Outcome.INDETERMINATE, reason, withheld=withheld)
    if use is IntendedUse.DEMONSTRATION and not quality_control and not allow_on_patients:
        reason = f"{INTENDED_USE_WORDS[use]}; image {QUALITY_CONTROL_NOTE}"
        return _no_priority(Outcome.INDETERMINATE, reason, withheld=True)
    return _with_cautions(_decide_shown(prediction, policy), cautions)


def _with_cautions(decided: Decided, cautions: tuple[str, ...]) -> Decided:
    if not cautions:
        return decided
    outcome = decided.outcome
    if outcome is Outcome.NEGATIVE:
        outcome = Outcome.INDETERMINATE
    reason = "; ".join((*([decided.reason] if decided.reason else []), *cautions))
    return replace(decided, outcome=outcome, reason=reason)


def _decide_shown(prediction: ExamPrediction, policy: TriagePolicy) -> Decided:
    findings = prediction.findings
    threshold = prediction.thresholds.get("pe")
    any_positive = any(findings.get(label) is Decision.PRESENT for label in POSITIVE_LABELS)
    over_threshold = threshold is not None and prediction.pe_probability > threshold
    if any_positive or over_threshold:
        # Either sign is enough: a bundle that contradicts itself must not hide an embolism.
        priority, words = policy.priority_of(findings)
        return _positive(words, priority)
    if findings.get("indeterminate") is Decision.PRESENT:
        return _no_priority(Outcome.INDETERMINATE, "the network calls the exam indeterminate")
    if findings.get("negative_exam_for_pe") is Decision.PRESENT:
        return _no_priority(Outcome.NEGATIVE, None)
    return _no_priority(Outcome.INDETERMINATE, "no label reached a decision")


def _positive(reason: str, priority: Priority) -> Decided:
    return Decided(outcome=Outcome.POSITIVE, reason=reason, priority=priority, withheld=False)


def _no_priority(outcome: Outcome, reason: str | None, *, withheld: bool = False) -> Decided:
    return Decided(outcome=outcome, reason=reason, priority=None, withheld=withheld)


def make_result(
    prediction: ExamPrediction,
    *,
    series_uid: str,
    sop_instance_uids: tuple[str, ...],
    quality_control: bool,
    allow_on_patients: bool = False,
    policy: TriagePolicy | None = None,
    key_slices: tuple[KeySlice, ...] = (),
    cautions: tuple[str, ...] = (),
    frame_numbers: tuple[int | None, ...] = (),
) -> TriageResult:
    """Assemble the answer for an analysed study; drops what the decision forbids to show.

    Key slices of a negative exam are dropped too: there is nothing to look at first.
    """
    decided = decide(
        prediction,
        quality_control=quality_control,
        allow_on_patients=allow_on_patients,
        policy=policy or TriagePolicy(),
        cautions=cautions,
    )
    return TriageResult(
        outcome=decided.outcome,
        reason=decided.reason,
        priority=decided.priority,
        series_uid=series_uid,
        key_slices=key_slices if decided.shows_key_slices else (),
        prediction=None if decided.withheld else prediction,
        model=prediction.model,
        sop_instance_uids=sop_instance_uids,
        frame_numbers=frame_numbers,
    )


def not_evaluated(
    reason: str,
    *,
    series_uid: str | None = None,
    sop_instance_uids: tuple[str, ...] = (),
    model: ModelIdentity | None = None,
) -> TriageResult:
    """Return the answer for a study that could not be analysed; never NEGATIVE.

    Raises
    ------
    ValueError
        If `reason` is empty: nobody could act on it.
    """
    if not reason.strip():
        raise ValueError("NOT_EVALUATED needs a reason")
    return TriageResult(
        outcome=Outcome.NOT_EVALUATED,
        reason=reason,
        priority=None,
        series_uid=series_uid,
        model=model,
        sop_instance_uids=sop_instance_uids,
    )
