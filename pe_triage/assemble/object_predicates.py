"""What makes objects unfit whatever they show: parts or descriptions missing, pixels changed.

As in `predicates`: values found, or None where the series passes.
"""

from __future__ import annotations

from pe_triage.assemble.compression import changed_by
from pe_triage.assemble.predicates import Found, SeriesView
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.frames import MULTI_FRAME_CT


def functional_groups(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find multi-frame images whose frames cannot be told."""
    for i in view.instances:
        if i.facts.frames_problem is not None:
            kind = MULTI_FRAME_CT.get(i.sop_class_uid, "multi-frame")
            return {"kind": kind, "found": i.facts.frames_problem}
    return None


def concatenation(view: SeriesView, _rules: EligibilityRules) -> Found | None:
    """Find parts that are missing of an image that was split."""
    parts: dict[str, set[int]] = {}
    totals: dict[str, int] = {}
    for f in view.facts:
        if f.concatenation_uid is not None and f.concatenation_number is not None:
            held = parts.setdefault(f.concatenation_uid, set())
            held.add(f.concatenation_number)
            # The total may be left out; the highest number is then the least it can be.
            total = max(f.concatenation_total or 0, *held)
            totals[f.concatenation_uid] = max(total, totals.get(f.concatenation_uid, 0))
    for uid, held in sorted(parts.items()):
        missing = [n for n in range(1, totals[uid] + 1) if n not in held]
        if missing:
            return {"found": ", ".join(map(str, missing[:5])), "total": totals[uid]}
    return None


def lossy(view: SeriesView, rules: EligibilityRules) -> Found | None:
    """Find pixels that a compression has changed."""
    if rules.allow_lossy:
        return None
    found = next(filter(None, map(changed_by, view.instances)), None)
    return {"found": found} if found else None
