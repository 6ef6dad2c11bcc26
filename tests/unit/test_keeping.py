"""The tables of retention and urgency, and the documents that speak of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydicom import Dataset

from pe_triage.config import load_settings
from pe_triage.errors import ConfigurationError
from pe_triage.node.urgency import texts_in
from pe_triage.retention import RetentionTable, is_on
from pe_triage.urgency import Place, UrgencyRule, place_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


def settings_of(tmp_path: Path, text: str):  # type: ignore[no-untyped-def]
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings({}, config_file=path, environ={})


def test_by_default_files_go_before_images_are_refused(tmp_path: Path) -> None:
    marks = settings_of(tmp_path, "").space_marks
    assert (marks.low, marks.target) == (8 << 30, 12 << 30)
    assert settings_of(tmp_path, "min_free_mb = 20000").space_marks.low == 160000 << 20
    assert settings_of(tmp_path, "min_free_mb = 0").space_marks.low == 1 << 20


@pytest.mark.parametrize(
    ("text", "mib"),
    [("", 1280), ("[retention]\nlow_free_mb = 1100", 1100), ("min_free_mb = 0", 0)],
)
def test_refusing_ends_at_a_mark_that_removal_reaches(tmp_path: Path, text: str, mib: int) -> None:
    """Removal ends at `target_free_mb`, which may lie but a little above the floor."""
    assert settings_of(tmp_path, text).resume_free_bytes == mib << 20


def test_where_results_go_nowhere_files_go_only_if_the_site_says_so() -> None:
    never, later = RetentionTable(), RetentionTable(unsent_days=90)
    assert is_on(never, has_destination=True)
    assert not is_on(never, has_destination=False)
    assert is_on(later, has_destination=False)
    off = RetentionTable(enabled=False, unsent_days=90)
    assert not is_on(off, has_destination=False)
    assert not is_on(off, has_destination=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[retention]\nlow_free_mb = 1000", "low_free_mb: 1000 must be above min_free_mb"),
        ("[retention]\ntarget_free_mb = 2000", "target_free_mb: 2000 is below low_free_mb"),
        ("[retention]\nimages_days = -1", r"retention\.images_days"),
        ("[retention]\ndays = 1", r"retention\.days: unknown key"),
        ('[[urgency]]\nplace = "STAT"', r"urgency\[1\].*match every study"),
        ('[[urgency]]\nattribute = "reason"', "attribute and words go together"),
        ('[[urgency]]\nattribute = "reason"\nwords = [" "]', "empty word"),
        ('[[urgency]]\nsenders = ["A"]\nplace = "NOW"', r"urgency\[1\]\.place"),
        ('[[urgency]]\nsenders = ["TOO_LONG_A_TITLE_"]', r"urgency\[1\]\.senders"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        settings_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_the_first_rule_that_matches_counts() -> None:
    rules = (
        UrgencyRule(place="BACKFILL", attribute="study_description", words=("Research",)),
        UrgencyRule(senders=("CT_ER",)),
        UrgencyRule(senders=("CT_2", "CT_3"), attribute="reason", words=("dyspnoea", "shock")),
    )
    asked: list[str] = []

    def place(sender: str, **texts: str) -> Place:
        def ask(keyword: str) -> list[str]:
            asked.append(keyword)
            return [texts[keyword]] if keyword in texts else []

        return place_of(rules, {sender}, ask)

    assert place("CT_1") is Place.ROUTINE
    assert place("CT_ER") is Place.STAT
    assert place("CT_ER", StudyDescription="RESEARCH 12") is Place.BACKFILL
    assert place("CT_2") is Place.ROUTINE
    assert place("CT_2", ReasonForTheRequestedProcedure="acute Dyspnoea") is Place.STAT
    assert place("CT_1", ReasonForTheRequestedProcedure="acute Dyspnoea") is Place.ROUTINE
    assert place_of((), {"CT_ER"}, lambda _keyword: pytest.fail("nobody asked")) is Place.ROUTINE


def test_the_order_is_looked_for_in_the_request_too() -> None:
    item, ds = Dataset(), Dataset()
    item.RequestedProcedureDescription = "CTPA STAT"
    ds.RequestedProcedureDescription = "CT chest"
    ds.RequestAttributesSequence = [item]
    assert texts_in(ds, "RequestedProcedureDescription") == ["CT chest", "CTPA STAT"]
    assert texts_in(ds, "ProtocolName") == []


@pytest.mark.parametrize("table", [RetentionTable, UrgencyRule], ids=lambda t: t.__name__)
def test_every_key_is_documented(table: type) -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for name, field in table.model_fields.items():  # type: ignore[attr-defined]
        assert f"| `{name}` | `{field.default!r}` | {field.description} |" in text


def test_the_example_can_be_loaded(tmp_path: Path) -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    section = text[text.index("## `[[urgency]]`") :]
    (example,) = re.findall(r"```toml\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    assert len(settings_of(tmp_path, example).urgency) == 3
