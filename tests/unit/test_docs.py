"""The documents that speak of the code say what the code does."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from pe_triage.archive import ARCHIVE_TABLES
from pe_triage.config import load_settings
from pe_triage.destinations import TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_conformance_statement_is_what_the_code_does() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = script("make_conformance").document()
    written = (DOCS / "conformance.md").read_text(encoding="utf-8")
    missing = [line for line in expected.splitlines() if line not in written.splitlines()]
    again = "run: PYTHONPATH=. python docs/make_conformance.py > docs/conformance.md"
    assert written == expected, (
        f"docs/conformance.md is outdated; {again}; new lines: {missing[:9]}"
    )


def test_the_statement_names_only_tests_that_exist() -> None:
    root = DOCS.parent
    for *_, shown_by in script("make_conformance").AIR:
        path = root
        for name in re.findall(r"[\w/]+\.py|tests/viewers|`\w+`", shown_by):
            if name.startswith("`"):
                assert f"def {name.strip('`')}(" in path.read_text(encoding="utf-8"), name
                continue
            path = root / name if "/" in name else path.parent / name
            assert path.exists(), name


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_every_key_of_a_destination_is_documented(table: type) -> None:
    text = (DOCS / "integration.md").read_text(encoding="utf-8")
    start = text.index(f'### `type = "{script("make_integration").type_of(table)}"`')
    section = text[start:].split("\n### ")[0]
    for row in script("make_integration").rows(table):
        assert row in section, "run: PYTHONPATH=. python docs/make_integration.py"


@pytest.mark.parametrize("name", ARCHIVE_TABLES)
def test_every_key_of_archives_is_documented(name: str) -> None:
    text = (DOCS / "integration.md").read_text(encoding="utf-8")
    section = text[text.index(f"### `{name}`") :].split("\n### ")[0]
    for row in script("make_integration").rows(ARCHIVE_TABLES[name]):
        assert row in section, "run: PYTHONPATH=. python docs/make_integration.py"


def test_the_examples_of_archives_can_be_loaded(tmp_path: Path) -> None:
    text = (DOCS / "integration.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml archive\n(.*?)```", text, flags=re.DOTALL)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(example, encoding="utf-8")
        settings = load_settings({}, config_file=path, environ={})
        assert settings.commitment.of or settings.retrieve_from is not None


def test_every_key_and_alarm_of_watching_is_documented() -> None:
    text = (DOCS / "watching.md").read_text(encoding="utf-8")
    make = script("make_watching")
    for name, table in make.MONITORING_TABLES.items():
        section = text[text.index(f"### `{name}`") :].split("\n### ")[0]
        for row in make.rows(table):
            assert row in section, "run: PYTHONPATH=. python docs/make_watching.py"
    for row in make.alarm_rows():
        assert row in text, "run: PYTHONPATH=. python docs/make_watching.py"


def test_the_example_of_watching_can_be_loaded(tmp_path: Path) -> None:
    (example,) = re.findall(
        r"```toml\n(.*?)```", (DOCS / "watching.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    path = tmp_path / "site.toml"
    path.write_text(example, encoding="utf-8")
    settings = load_settings({}, config_file=path, environ={})
    assert settings.query.peer is not None
    assert settings.senders[0].quiet_s == 180


def test_the_examples_of_integration_can_be_loaded(tmp_path: Path) -> None:
    text = (DOCS / "integration.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)
    assert examples
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.toml"
        path.write_text(example, encoding="utf-8")
        settings = load_settings({}, config_file=path, environ={})
        assert {table.type for table in settings.destinations} == {
            "dicom",
            "hl7",
            "fhir",
            "webhook",
            "ups",
        }
