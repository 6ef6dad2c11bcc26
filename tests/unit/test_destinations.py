from __future__ import annotations

from pathlib import Path

import pytest

from pe_triage.config import Settings, load_settings
from pe_triage.domain import Outcome, ResultKind
from pe_triage.errors import ConfigurationError
from pe_triage.routing import DICOM_KINDS

SECRET = "hunter2-hunter2-hunter2-hunter2"


def load(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return load_settings({}, config_file=path, environ={})


def test_a_site_with_every_road(tmp_path: Path) -> None:
    settings = load(
        """
        send_to = ["PACS@pacs:104"]
        [[destinations]]
        name = "reading"
        type = "dicom"
        address = "VIEW@10.0.0.7:104"
        kinds = ["SUMMARY"]
        [[destinations]]
        name = "ris"
        type = "hl7"
        address = "ris.example:2575"
        [[destinations]]
        name = "ehr"
        type = "fhir"
        url = "https://ehr.example/fhir/"
        authorization_env = "EHR_TOKEN"
        [[destinations]]
        name = "pager"
        type = "webhook"
        url = "https://pager.example/hook"
        secret_file = "/etc/pager"
        outcomes = ["POSITIVE"]
        [[destinations]]
        name = "ups"
        type = "ups"
        url = "http://127.0.0.1:8080/dicom-web"
        """,
        tmp_path,
    )
    routes = {route.name: route for route in settings.routes}
    assert list(routes) == ["PACS@pacs:104", "reading", "ris", "ehr", "pager", "ups"]
    assert routes["PACS@pacs:104"].kinds == DICOM_KINDS
    assert routes["reading"].kinds == {ResultKind.SUMMARY}
    assert routes["pager"].kinds == {ResultKind.WEBHOOK}
    assert routes["pager"].outcomes == {Outcome.POSITIVE}
    assert routes["ris"].outcomes == frozenset(Outcome)
    encrypted = {table.name: table.encrypted for table in settings.destinations}
    assert encrypted == {"reading": False, "ris": False, "ehr": True, "pager": True, "ups": False}


HEAD = '[[destinations]]\nname = "x"\n'


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (HEAD, "destinations[1]: the key type is missing"),
        (f'{HEAD}type = "fax"', "destinations[1]: type is none of"),
        (f'{HEAD}type = "hl7"', "destinations[1].address"),
        (f'{HEAD}type = "hl7"\naddress = "ris"', "the port is missing; expected HOST:PORT"),
        (f'{HEAD}type = "hl7"\naddress = "r:1"\ncharacter_set = "EBCDIC"', ".character_set"),
        (f'{HEAD}type = "dicom"\naddress = "A@h:1"\nkinds = ["HL7"]', "HL7 is no DICOM kind"),
        (f'{HEAD}type = "dicom"\naddress = "A@h:1"\nkinds = ["PDF"]', "destinations[1].kinds"),
        (f'{HEAD}type = "fhir"\nurl = "ftp://h/"', "destinations[1].url"),
        (f'{HEAD}type = "fhir"\nurl = "http://h/"\ntoken = "{SECRET}"', ".token: unknown key"),
        (f'{HEAD}type = "fhir"\nurl = "http://u:{SECRET}@h/"', "must hold no credentials"),
        (f'{HEAD}type = "fhir"\nurl = "http://h/?k={SECRET}"', "must hold no query"),
        (f'{HEAD}type = "fhir"\nurl = "http://[{SECRET}"', "is no URL"),
        (f'{HEAD}type = "webhook"\nurl = "http://h/"', "give exactly one"),
        (f'{HEAD}type = "webhook"\nurl = "http://h/"\nsecret = "{SECRET}"', "unknown key"),
        ('[[destinations]]\nname = "a@b"\ntype = "hl7"\naddress = "h:1"', "destinations[1].name"),
        (2 * f'{HEAD}type = "hl7"\naddress = "h:1"\n', "the name 'x' is given twice"),
        (f'{HEAD}type = "ups"\nurl = "http://h"\ntimeout_s = 0', "destinations[1].timeout_s"),
        ('destinations = "HL7"', "destinations"),
    ],
)
def test_a_wrong_table_is_one_line_that_names_its_key(
    text: str, names: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        load(text, tmp_path)
    line = str(raised.value)
    assert names in line
    assert "\n" not in line
    assert "node.toml" in line
    assert SECRET not in line


def test_tables_are_not_taken_from_the_environment() -> None:
    with pytest.raises(ConfigurationError, match="PE_TRIAGE_DESTINATIONS"):
        load_settings({}, environ={"PE_TRIAGE_DESTINATIONS": "[]"})


@pytest.mark.parametrize("content", [None, "", "two\nlines of it, and long enough", "tooshort"])
def test_an_unusable_secret_stops_the_start_and_is_not_told(
    content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    settings = load(f'{HEAD}type = "webhook"\nurl = "http://h"\nsecret_file = "{file}"', tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        settings.destinations[0].check_secrets()
    assert "destination 'x'" in str(raised.value)
    assert "secret" in str(raised.value)
    assert not content or content not in str(raised.value)


def test_a_secret_is_in_no_dump_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", SECRET)
    settings = load(f'{HEAD}type = "webhook"\nurl = "http://h"\nsecret_env = "HOOK"', tmp_path)
    (table,) = settings.destinations
    table.check_secrets()
    assert table.secret() == SECRET  # type: ignore[union-attr]
    assert SECRET not in repr(settings) + settings.model_dump_json()
