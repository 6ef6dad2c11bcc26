from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pe_triage.deliver.acknowledgements import (
    ACKNOWLEDGEMENTS,
    ERROR_CODES,
    Acknowledgement,
    parse_acknowledgement,
)
from pe_triage.deliver.statuses import Verdict

SENT, WARNING, RETRY, PARK = Verdict.SENT, Verdict.WARNING, Verdict.RETRY, Verdict.PARK


@pytest.mark.parametrize(
    ("code", "error", "verdict"),
    [
        ("AA", "", SENT),
        ("CA", "", SENT),
        ("AA", "0", SENT),
        ("AE", "", RETRY),
        ("CE", "", RETRY),
        ("AR", "", PARK),
        ("CR", "", PARK),
        ("AE", "207", RETRY),
        ("AR", "207", RETRY),  # a busy application is no verdict on the message
        ("AR", "206", RETRY),
        ("AE", "204", RETRY),  # the order may come later
        ("AE", "101", PARK),
        ("AE", "103", PARK),
        ("AR", "203", PARK),
        ("AE", "205", WARNING),
        ("AE", "999", RETRY),
        ("AR", "999", PARK),
        ("XX", "", RETRY),
        ("", "", RETRY),
    ],
)
def test_what_an_acknowledgement_means(code: str, error: str, verdict: Verdict) -> None:
    got, words = Acknowledgement(code=code, control_id="1", error_code=error).judge()
    assert got is verdict
    assert words


def test_nothing_but_acceptance_is_ever_taken_for_it() -> None:
    for code in (*ACKNOWLEDGEMENTS, "ZZ"):
        for error in ("", *ERROR_CODES):
            verdict, _ = Acknowledgement(code=code, control_id="1", error_code=error).judge()
            assert (verdict is SENT) == (code in ("AA", "CA"))


HEAD = b"MSH|^~\\&|RIS|H|PE|H|2026||ACK^R01^ACK|9|P|2.5.1"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (HEAD + b"\rMSA|AA|abc\r", ("AA", "abc", "")),
        (HEAD + b"\nMSA|AA|abc", ("AA", "abc", "")),
        (HEAD + b"\r\nMSA|AE|abc|M\xfcller^J\r\nERR|||207^x^HL70357|E", ("AE", "abc", "207")),
        (HEAD + b"\rERR|PID^1^3^204&x&HL70357\rMSA|AE|abc", ("AE", "abc", "204")),
        (HEAD + b"\rMSA|AR|abc\rERR|||101|E\rERR|||207|E", ("AR", "abc", "101")),
        (b"MSH$^~\\&$RIS\rMSA$AA$abc", ("AA", "abc", "")),
        (HEAD, None),
        (HEAD + b"\rMSA|AA", None),
        (b"", None),
        (b"HTTP/1.1 400 Bad Request", None),
    ],
)
def test_reading_one(message: bytes, expected: tuple[str, str, str] | None) -> None:
    got = parse_acknowledgement(message)
    assert (got and (got.code, got.control_id, got.error_code)) == expected


@given(st.binary() | st.binary().map(lambda tail: HEAD + b"\rMSA|" + tail))
def test_no_bytes_break_the_reader(message: bytes) -> None:
    got = parse_acknowledgement(message)
    if got is not None:
        _, words = got.judge()
        assert words.isascii()


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_peers_words_are_not_repeated(code: str, error: str) -> None:
    """It may answer with the patient's name in any field."""
    _, words = Acknowledgement(code=code, control_id="1", error_code=error).judge()
    known = {rule.words for rule in (*ACKNOWLEDGEMENTS.values(), *ERROR_CODES.values())}
    head, _, rest = words.partition(": ")
    assert head in (*ACKNOWLEDGEMENTS, "?")
    assert rest in known or rest == "unknown acknowledgement code" or error in ERROR_CODES
