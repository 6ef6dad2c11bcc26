"""Every refusal has advice, and the page that lists them says what the rules say."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import fields
from pathlib import Path

from pe_triage import stack
from pe_triage.assemble.advice import ADVICE
from pe_triage.assemble.choice import STACK_PROBLEMS, TIE_RULE
from pe_triage.assemble.measure_rules import CAUTION_RULES, MEASURE_RULES
from pe_triage.assemble.predicates import PLANE_PROBLEMS
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.series_rules import SERIES_RULES
from pe_triage.node.selection import PIXEL_RULE

DOCS = Path(__file__).resolve().parents[3] / "docs"


def rule_names():
    named = {rule.name for rule in SERIES_RULES} - {"orientation", "geometry"}
    named |= PLANE_PROBLEMS | STACK_PROBLEMS | {PIXEL_RULE, TIE_RULE}
    return named | {rule.name for rule in (*MEASURE_RULES, *CAUTION_RULES)}


def test_every_rule_has_advice_and_no_advice_is_without_a_rule():
    assert rule_names() == set(ADVICE)


def test_every_problem_of_a_stack_is_listed():
    tree = ast.parse(Path(stack.__file__).read_text(encoding="utf-8"))
    named = {
        keyword.value.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Problem"
        for keyword in call.keywords
        if keyword.arg == "rule" and isinstance(keyword.value, ast.Constant)
    }
    known = PLANE_PROBLEMS | STACK_PROBLEMS | {rule.name for rule in SERIES_RULES}
    assert named <= known
    assert named >= PLANE_PROBLEMS | STACK_PROBLEMS


def test_the_page_of_refusals_is_what_the_rules_say():
    spec = importlib.util.spec_from_file_location("make_refusals", DOCS / "make_refusals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (DOCS / "refusals.md").read_text(encoding="utf-8")
    assert written == module.document(), "run: PYTHONPATH=. python docs/make_refusals.py"
    for name in rule_names():
        assert f"| `{name}` |" in written


def test_every_limit_is_in_the_configuration_page():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for field in fields(EligibilityRules):
        assert field.name in text, field.name
