from __future__ import annotations

from pathlib import Path

import pytest

from pe_triage.config import Settings, load_settings
from pe_triage.errors import ConfigurationError

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('aet = "FILE"\nquiet_s = 1.5\nport = 1\nsend_to = ["A@h:1"]\n')
    settings = load_settings(
        {"port": 3, "send_to": ()},
        config_file=file,
        environ={"PE_TRIAGE_PORT": "2", "PE_TRIAGE_AET": "ENV", "OTHER": "x"},
    )
    assert (settings.aet, settings.quiet_s, settings.port) == ("ENV", 1.5, 3)
    assert [str(d) for d in settings.peers] == ["A@h:1"]


def test_environment_lists_are_separated_by_commas() -> None:
    settings = load_settings({}, environ={"PE_TRIAGE_SEND_TO": "A@h:1, B@[::1]:2"})
    assert [(d.aet, d.host, d.port) for d in settings.peers] == [
        ("A", "h", 1),
        ("B", "::1", 2),
    ]


@pytest.mark.parametrize(
    ("flags", "environ", "file", "names"),
    [
        ({"port": 70000}, {}, "", "--port"),
        ({"quiet_s": 0.0}, {}, "", "--quiet-s"),
        ({"send_to": ("PACS",)}, {}, "", "--send-to"),
        ({"aet": "A" * 17}, {}, "", "--aet"),
        ({}, {"PE_TRIAGE_QUITE_S": "1"}, "", "PE_TRIAGE_QUITE_S"),
        ({}, {"PE_TRIAGE_PORT": "dicom"}, "", "PE_TRIAGE_PORT"),
        ({}, {"PE_TRIAGE_ELIGIBILITY": "{}"}, "", "PE_TRIAGE_ELIGIBILITY"),
        ({}, {}, "quite_s = 1", "quite_s"),
        ({}, {}, 'workers = "many"', "workers"),
        ({}, {}, "not toml", "node.toml"),
        ({}, {}, 'send_to = ["A@h:1", "A@h:1"]', "send_to"),
        ({}, {}, '[query]\npacs = "PACS"', "query.pacs"),
        ({}, {}, "[query]\npacz = 1", "query.pacz"),
        ({}, {}, "[watch]\nwindow = 1", "watch.window"),
        ({}, {}, '[watch]\nmetrics_file = "x.txt"', "watch.metrics_file"),
        ({}, {}, "[watch]\nbaseline_since = 2026-01-01T00:00:00", "watch.baseline_since"),
        ({}, {}, '[reconcile]\nat = "25:00"', "reconcile.at"),
        ({}, {}, '[[senders]]\naet = "A"\n[[senders]]\naet = "A"', "senders"),
        ({}, {}, '[[senders]]\naet = "A"\nquiet_s = 0', "senders[1].quiet_s"),
        ({}, {"PE_TRIAGE_QUERY": "PACS@h:1"}, "", "PE_TRIAGE_QUERY"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_key(
    flags: dict[str, object], environ: dict[str, str], file: str, names: str, tmp_path: Path
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(file)
    with pytest.raises(ConfigurationError) as raised:
        load_settings(flags, config_file=path, environ=environ)
    assert names in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_configuration_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not found"):
        load_settings({}, config_file=tmp_path / "none.toml", environ={})


def test_every_setting_is_documented_with_its_default() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{name}` ")), None)
        assert row is not None, f"docs/configuration.md does not document {name}"
        assert (field.description or "?") in row, f"docs/configuration.md is outdated on {name}"
        if field.default_factory is None:
            assert f"`{field.default!r}`" in row, f"wrong default of {name} in the docs"


def toml_blocks() -> dict[str, dict[str, object]]:
    import re
    import tomllib

    found: dict[str, dict[str, object]] = {}
    for block in re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S):
        found.update(tomllib.loads(block))
    return found


def test_the_documented_tables_are_the_ones_that_are_read() -> None:
    import dataclasses

    from pe_triage.assemble.rules import EligibilityRules
    from pe_triage.domain import Decision
    from pe_triage.report.policy import TriagePolicy
    from pe_triage.report.settings import ReportSettings

    tables = toml_blocks()
    documented = EligibilityRules.from_table(tables["eligibility"])
    assert documented == EligibilityRules(), "docs state other defaults"
    keys = {f.name for f in dataclasses.fields(EligibilityRules)} - {
        "lung_or_bone_kernels",
        "derived_words",
    }
    assert set(tables["eligibility"]) == keys
    policy = TriagePolicy.from_table(tables["policy"])
    for labels in ({"rv_lv_ratio_gte_1"}, {"central_pe"}, {"leftsided_pe"}, {"chronic_pe"}):
        findings = dict.fromkeys(labels, Decision.PRESENT)
        assert policy.priority_of(findings)[0] is TriagePolicy().priority_of(findings)[0]
    settings = ReportSettings.from_table(tables["report"])
    assert dataclasses.replace(settings) == ReportSettings()
