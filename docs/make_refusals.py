"""Writes docs/refusals.md from the rules and the advice that goes with them.

Run: PYTHONPATH=. python docs/make_refusals.py
"""

from __future__ import annotations

from pathlib import Path

from pe_triage.assemble.advice import ADVICE
from pe_triage.assemble.choice import STACK_PROBLEMS, TIE_RULE
from pe_triage.assemble.completeness import FORCED
from pe_triage.assemble.measure_rules import CAUTION_RULES, MEASURE_RULES
from pe_triage.assemble.predicates import PLANE_PROBLEMS
from pe_triage.assemble.rules import EligibilityRules
from pe_triage.assemble.series_rules import SERIES_RULES

TARGET = Path(__file__).with_name("refusals.md")

HEAD = """# Why a study was not evaluated, and what to do

<!-- Written by docs/make_refusals.py from the rules themselves; edit pe_triage/assemble/advice.py.
-->

A study that cannot be analysed ends **NOT_EVALUATED** with a reason, in `pe-triage show`, in the
SR and on the summary image. It is read as usual: this program only brings studies forward. The
reason names the value found (shown here as …) and the limit. `pe-triage analyze --explain FOLDER`
prints for every series the rule, the reason, what was measured and what to do; the limits are the
keys of [`[eligibility]`](configuration.md). Every case of `tests/corpus/cases.md` states, in plain
words, what was changed in a series and which answer must follow.

What the pixel measures read on phantoms and on real chests: [quality.md](quality.md).

Where several series remain, the choice is explained as `series_choice` in `show` and in the SR.
"""

GEOMETRY_WORDS = "(says which images, and where)"

OTHER = (
    (
        "the study holds no CT images",
        "Only localizers, reports or secondary captures came, or nothing but objects of another "
        "kind. Send the CT series.",
    ),
    (
        "untrained network with random weights; no meaning, no clinical use",
        "INDETERMINATE: no trained bundle is configured (`model`).",
    ),
    (
        "demonstration on phantoms; no clinical use; image not marked as Quality Control Image",
        "INDETERMINATE: the bundle was made for phantoms; on patients' images it gives no answer.",
    ),
    (
        "the network calls the exam indeterminate",
        "INDETERMINATE: read as usual; motion and poor contrast are the commonest causes.",
    ),
    ("no label reached a decision", "INDETERMINATE: read as usual."),
    (
        "only … of the … images at the PACS had come",
        "The PACS held more of the study when it was closed. A negative answer becomes "
        "INDETERMINATE. Find out at the sender why the rest does not come; once it comes, a run "
        "follows by itself.",
    ),
    (
        FORCED["broken_off"],
        "The sender's association was aborted, or the node itself ended with it open, and it "
        "brought nothing of the study afterwards. A negative answer becomes INDETERMINATE. Send the "
        "study again: what is missing makes a new run. If nothing was missing the answer stays as "
        "it is; read as usual. Where every study of a sender ends so, it aborts associations in "
        "the place of releasing them: have that changed there, or set `query.pacs`, whose count of "
        "images closes a study whatever its associations did.",
    ),
    (
        FORCED["max_wait"],
        "The sender was at work on the study for longer than `max_wait_s`. A negative answer "
        "becomes INDETERMINATE. Look at what the sender repeats, or raise the limit for it.",
    ),
    (
        FORCED["clock_set_back"],
        "The node's clock was set back by more than `quiet_s`. A negative answer becomes "
        "INDETERMINATE. Keep the clock by NTP.",
    ),
    (
        "holds nothing but results that pe-triage itself has made",
        "The PACS sent our own results back. Exclude them from its forwarding rule.",
    ),
)


class _Dots:
    """Stands for a value found, whatever format it is asked for."""

    def __format__(self, _spec: str) -> str:
        return "…"


class _Found(dict[str, object]):
    def __missing__(self, _key: str) -> object:
        return _Dots()


def words(template: str) -> str:
    """The words of a rule with the default limits and … for what is found."""
    return template.format_map(_Found(rules=EligibilityRules()))


def _table(rows: list[tuple[str, str]]) -> list[str]:
    lines = ["| rule | reason | why | what to do |", "|---|---|---|---|"]
    for name, said in rows:
        advice = ADVICE[name]
        cells = (f"`{name}`", said.replace("|", "\\|"), advice.why, advice.do)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def document() -> str:
    """The whole page."""
    series: list[tuple[str, str]] = []
    for rule in SERIES_RULES:
        if rule.name == "orientation":
            series += [(name, GEOMETRY_WORDS) for name in sorted(PLANE_PROBLEMS)]
        elif rule.name == "geometry":
            series += [(name, GEOMETRY_WORDS) for name in sorted(STACK_PROBLEMS)]
        else:
            series.append((rule.name, words(rule.words)))
    pixels = [("pixels", "(says which image, and why it cannot be read)")]
    pixels += [(rule.name, words(rule.words)) for rule in MEASURE_RULES]
    tie = [(TIE_RULE, "… acquisitions are equally suitable: which one is the CTPA cannot be told")]
    cautions = [(rule.name, words(rule.words)) for rule in CAUTION_RULES]
    lines = [HEAD]
    for title, rows in (
        ("## By headers and geometry, in the order in which they are asked", series),
        ("## By the pixels", pixels),
        ("## By the choice among series", tie),
        ("## Analysed, with less certainty", cautions),
    ):
        lines += [title, "", *_table(rows), ""]
    lines += ["## Other reasons", "", "| reason | what it means |", "|---|---|"]
    lines += [f"| {reason} | {meaning} |" for reason, meaning in OTHER]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
