from __future__ import annotations

import pytest
from pydicom.uid import UID

from pe_triage.addresses import parse_accept_from
from pe_triage.receive.access import (
    FRESH_S,
    RETRY_S,
    AccessPolicy,
    ResolverCache,
    decide,
    is_loopback,
    resolve_host,
)
from pe_triage.receive.contexts import (
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    is_storage_class,
    supported_contexts,
)

HOSTS = {"scanner": frozenset({"10.0.0.5", "fd00::5"}), "other": frozenset({"10.0.0.6"})}


def ask(policy: AccessPolicy, called: str, calling: str, host: str) -> tuple[int, ...] | None:
    rejection = decide(
        policy,
        called_aet=called,
        calling_aet=calling,
        peer_host=host,
        resolve=HOSTS.get,
    )
    return rejection and (rejection.result, rejection.source, rejection.reason)


CALLED_UNKNOWN = (1, 1, 7)
CALLING_UNKNOWN = (1, 1, 3)
TRY_AGAIN = (2, 3, 1)


def policy(*rules: str, insecure: bool = False) -> AccessPolicy:
    return AccessPolicy(
        aet="PETRIAGE", accept_from=tuple(map(parse_accept_from, rules)), insecure=insecure
    )


@pytest.mark.parametrize(
    ("rules", "insecure", "called", "calling", "host", "expected"),
    [
        ((), False, "PETRIAGE", "ANY", "127.0.0.1", None),
        ((), False, "PETRIAGE ", "ANY", "127.4.5.6", None),
        ((), False, "PETRIAGE", "ANY", "::1", None),
        ((), False, "PETRIAGE", "ANY", "::ffff:127.0.0.1", None),
        ((), False, "PETRIAGE", "ANY", "10.0.0.5", CALLING_UNKNOWN),
        ((), False, "PETRIAGE", "ANY", "::ffff:10.0.0.5", CALLING_UNKNOWN),
        ((), True, "PETRIAGE", "ANY", "10.0.0.5", None),
        ((), True, "OTHER", "ANY", "10.0.0.5", CALLED_UNKNOWN),
        ((), False, "petriage", "ANY", "127.0.0.1", CALLED_UNKNOWN),
        ((), False, "", "ANY", "127.0.0.1", CALLED_UNKNOWN),
        (("CT1",), False, "PETRIAGE", "CT1 ", "192.168.1.1", None),
        (("CT1",), False, "PETRIAGE", "CT2", "127.0.0.1", CALLING_UNKNOWN),
        # A list is a list: --insecure does not widen it.
        (("CT1",), True, "PETRIAGE", "CT2", "127.0.0.1", CALLING_UNKNOWN),
        (("CT1@10.0.0.5",), False, "PETRIAGE", "CT1", "10.0.0.5", None),
        (("CT1@10.0.0.5",), False, "PETRIAGE", "CT1", "::ffff:10.0.0.5", None),
        (("CT1@10.0.0.5",), False, "PETRIAGE", "CT1", "10.0.0.6", CALLING_UNKNOWN),
        (("CT1@scanner",), False, "PETRIAGE", "CT1", "10.0.0.5", None),
        (("CT1@scanner",), False, "PETRIAGE", "CT1", "fd00:0::5", None),
        (("CT1@scanner",), False, "PETRIAGE", "CT1", "10.0.0.6", CALLING_UNKNOWN),
        # The name server is away: the scanner may try again.
        (("CT1@nowhere",), False, "PETRIAGE", "CT1", "10.0.0.6", TRY_AGAIN),
        (("CT1@nowhere", "CT1@scanner"), False, "PETRIAGE", "CT1", "10.0.0.5", None),
        (("CT1@nowhere", "CT1@scanner"), False, "PETRIAGE", "CT1", "10.0.0.6", TRY_AGAIN),
        (("CT1@nowhere",), False, "PETRIAGE", "CT2", "10.0.0.6", CALLING_UNKNOWN),
        (("CT1@other", "CT1@scanner"), False, "PETRIAGE", "CT1", "10.0.0.5", None),
    ],
)
def test_decision(
    rules: tuple[str, ...],
    insecure: bool,
    called: str,
    calling: str,
    host: str,
    expected: tuple[int, ...] | None,
) -> None:
    assert ask(policy(*rules, insecure=insecure), called, calling, host) == expected


def test_loopback_and_resolution() -> None:
    assert is_loopback("127.0.0.1")
    assert not is_loopback("localhost.example.org")
    assert not is_loopback("0.0.0.0")
    assert "127.0.0.1" in resolve_host("127.0.0.1")
    assert resolve_host("no such host") is None
    assert resolve_host("a" * 300) is None


def test_what_a_ct_sender_may_propose_is_accepted() -> None:
    for uid in (
        "1.2.840.10008.5.1.4.1.1.2",  # CT
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.5.1.4.1.1.7.4",  # Multi-frame True Color SC
        "1.2.840.10008.5.1.4.1.1.88.67",  # X-Ray Radiation Dose SR
        "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
        "1.2.840.10008.5.1.4.1.1.11.1",  # Grayscale Softcopy Presentation State
        "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
        "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
        "1.2.840.10008.5.1.4.1.1.66",  # Raw Data
        "1.2.840.10008.5.1.4.1.1.9",  # Standalone Curve, retired
        "1.3.12.2.1107.5.9.1",  # a vendor's own class
    ):
        assert is_storage_class(uid), uid
    for uid in (
        "1.2.840.10008.1.1",
        "1.2.840.10008.1.3.10",
        "1.2.840.10008.5.1.4.1.2.2.1",
        "1.2.840.10008.5.1.4.31",
        "1.2.840.10008.5.1.4.1.1.201.2",
    ):
        assert not is_storage_class(uid), uid
    assert len(STORAGE_CLASSES) > 150


def test_contexts_answer_what_was_proposed() -> None:
    contexts = supported_contexts(
        ["1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.2.2.1"]
    )
    assert [str(c.abstract_syntax) for c in contexts] == [
        "1.2.840.10008.1.1",
        "1.2.840.10008.5.1.4.1.1.2",
    ]
    names = {UID(uid).name for uid in TRANSFER_SYNTAXES}
    assert len(names) == len(TRANSFER_SYNTAXES) == 12
    assert "1.2.840.10008.1.2.1.99" not in TRANSFER_SYNTAXES
    assert supported_contexts([]) == []


def test_addresses_are_remembered_and_outlive_the_name_server() -> None:
    asked: list[str] = []
    answers: dict[str, frozenset[str]] = {}
    now_s = [0.0]

    def resolve(name: str) -> frozenset[str] | None:
        asked.append(name)
        return answers.get(name)

    cached = ResolverCache(resolve, lambda: now_s[0])
    assert cached("ct") is None
    answers["ct"] = frozenset({"10.0.0.5"})
    assert cached("ct") is None
    now_s[0] += RETRY_S
    assert cached("ct") == {"10.0.0.5"}
    assert cached("ct") == {"10.0.0.5"}
    assert len(asked) == 2
    now_s[0] += FRESH_S
    del answers["ct"]
    assert cached("ct") == {"10.0.0.5"}
    assert len(asked) == 3
    now_s[0] += RETRY_S
    answers["ct"] = frozenset({"10.0.0.9"})
    assert cached("ct") == {"10.0.0.9"}
