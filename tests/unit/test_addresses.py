from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_triage.addresses import AcceptRule, parse_accept_from, parse_aet, parse_destination
from pe_triage.domain import Destination
from pe_triage.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "destination"),
    [
        ("PACS@localhost:104", Destination(aet="PACS", host="localhost", port=104)),
        (" PACS@10.0.0.1:11112 ", Destination(aet="PACS", host="10.0.0.1", port=11112)),
        ("PACS@[::1]:104", Destination(aet="PACS", host="::1", port=104)),
        ("MY PACS@pacs.example.org:4242", Destination(aet="MY PACS", host="pacs.example.org",
                                                      port=4242)),
        ("A@B@host:1", Destination(aet="A@B", host="host", port=1)),
    ],
)  # fmt: skip
def test_destination_is_parsed(text: str, destination: Destination) -> None:
    assert parse_destination(text) == destination


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PACS", "expected AET@HOST:PORT"),
        ("PACS@host", "port is missing"),
        ("PACS@host:", "port is missing"),
        ("PACS@host:0", "not in 1 to 65535"),
        ("PACS@host:65536", "not in 1 to 65535"),
        ("PACS@host:１０", "not a number"),
        ("PACS@host:-1", "not a number"),
        ("@host:104", "AE title is empty"),
        ("  @host:104", "AE title is empty"),
        ("ABCDEFGHIJKLMNOPQ@host:104", "17 characters"),
        ("PA\\CS@host:104", "backslash"),
        ("PÄCS@host:104", "ASCII"),
        ("PACS@:104", "host is missing"),
        ("PACS@ho st:104", "no host name"),
        ("PACS@::1:104", "brackets"),
        ("PACS@[::1:104", "not closed"),
        ("PACS@[::g]:104", "no IPv6"),
        ("PACS@[::1]104", "after the closing bracket"),
        ("PACS@[::1]", "port is missing"),
        ("PACS@300.1.1.1:104", "no IPv4"),
    ],
)
def test_malformed_destination_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_destination(text)
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_accept_from() -> None:
    assert parse_accept_from("CT1") == AcceptRule(aet="CT1")
    assert parse_accept_from("CT1@10.1.2.3") == AcceptRule(aet="CT1", host="10.1.2.3")
    assert parse_accept_from("CT1@[fe80::1]") == AcceptRule(aet="CT1", host="fe80::1")
    assert str(parse_accept_from("CT1@scanner")) == "CT1@scanner"
    for text in ("", "@host", "CT1@", "CT1@ho st", "X" * 17):
        with pytest.raises(ConfigurationError):
            parse_accept_from(text)
    assert parse_aet(" CT 1 ") == "CT 1"


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused_in_one_error(text: str) -> None:
    for parse in (parse_destination, parse_accept_from, parse_aet):
        try:
            parse(text)
        except ConfigurationError as error:
            assert repr(text) in str(error)  # noqa: PT017


@given(
    st.from_regex(r"[A-Z][A-Z0-9_]{0,15}", fullmatch=True),
    st.sampled_from(["localhost", "10.0.0.7", "pacs.example.org"]),
    st.integers(1, 65535),
)
def test_destination_round_trips(aet: str, host: str, port: int) -> None:
    assert str(parse_destination(f"{aet}@{host}:{port}")) == f"{aet}@{host}:{port}"
