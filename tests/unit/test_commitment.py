"""Requests and reports as values: what is read, what is refused, what is never taken for a yes."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from pe_triage.archive import CommitmentTable
from pe_triage.commitment import (
    ALL_COMMITTED,
    FAILURES_EXIST,
    MAX_REFERENCES,
    NO_SUCH_INSTANCE,
    PROCESSING_FAILURE,
    CommitmentReport,
    CommitmentRequest,
    MalformedCommitmentError,
    Reference,
    Remedy,
    failure_rule,
    from_json,
    read_report,
    read_request,
    report_dataset,
    request_dataset,
    to_json,
)
from pe_triage.config import load_settings
from pe_triage.errors import ConfigurationError
from pe_triage.receive.commitments import CommitmentAccess

ONE, TWO = (Reference(sop_class_uid="1.2.3", sop_instance_uid=f"1.2.{n}") for n in (1, 2))
REQUEST = CommitmentRequest(transaction_uid="2.25.1", references=(ONE, TWO))
REPORT = CommitmentReport(
    transaction_uid="2.25.1", committed=(ONE,), failed=((TWO, NO_SUCH_INSTANCE),)
)


def test_what_is_written_is_read() -> None:
    assert read_request(request_dataset(REQUEST)) == REQUEST
    assert read_report(report_dataset(REPORT)) == REPORT
    assert REPORT.event_type == FAILURES_EXIST
    everything = CommitmentReport(transaction_uid="2.25.1", committed=(ONE, TWO))
    assert everything.event_type == ALL_COMMITTED
    assert "FailedSOPSequence" not in report_dataset(everything)
    for value in (REQUEST, REPORT):
        assert from_json(to_json(value)) == value


def test_an_instance_in_both_lists_has_failed() -> None:
    ds = report_dataset(REPORT)
    ds.ReferencedSOPSequence = [*ds.ReferencedSOPSequence, ds.FailedSOPSequence[0]]
    assert read_report(ds) == REPORT


def test_a_failure_without_a_reason_is_one() -> None:
    ds = report_dataset(REPORT)
    del ds.FailedSOPSequence[0].FailureReason
    assert read_report(ds).failed == ((TWO, PROCESSING_FAILURE),)


def without(ds: Dataset, keyword: str) -> Dataset:
    delattr(ds, keyword)
    return ds


def item_without(keyword: str) -> Dataset:
    ds = request_dataset(REQUEST)
    delattr(ds.ReferencedSOPSequence[1], keyword)
    return ds


@pytest.mark.parametrize(
    "ds",
    [
        Dataset(),
        without(request_dataset(REQUEST), "TransactionUID"),
        without(request_dataset(REQUEST), "ReferencedSOPSequence"),
        item_without("ReferencedSOPClassUID"),
        item_without("ReferencedSOPInstanceUID"),
        request_dataset(
            CommitmentRequest(transaction_uid="2.25.1", references=(ONE,) * (MAX_REFERENCES + 1))
        ),
    ],
)
def test_what_cannot_be_understood(ds: Dataset) -> None:
    with pytest.raises(MalformedCommitmentError):
        read_request(ds)


def test_an_unknown_reason_is_no_commitment() -> None:
    assert failure_rule(0xC123).remedy is Remedy.ASK_AGAIN


def test_who_may_speak() -> None:
    access = CommitmentAccess(requesters=frozenset({"CT1"}), reporters=frozenset({"PACS"}))
    assert access.contexts("STRANGER") == []
    assert CommitmentAccess().contexts("CT1") == []
    for title in ("CT1", "PACS"):
        (context,) = access.contexts(title)
        assert (context.scu_role, context.scp_role) == (True, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[commitment]\nof = ["PACS@h:104"]', "no send_to"),
        ('[commitment]\nrequesters = ["CT1@h:104"]', "nobody could confirm"),
        ('[commitment]\nrequesters = ["CT1"]', "requesters"),
        (
            '[commitment]\narchive = "P@h:1"\nrequesters = ["CT1@h:104", "CT1@i:104"]',
            "given twice",
        ),
        ('[commitment]\nat = {"X@h:1" = "Y@h:2"}', "not in commitment.of"),
        ("[commitment]\nredeliveries = -1", "redeliveries"),
        ("[commitment]\nwhatever = 1", "unknown key"),
        ('[retrieve]\nby = "magic"', "retrieve.by"),
    ],
)
def test_settings_that_are_refused(tmp_path: Any, text: str, words: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        load_settings({}, config_file=path, environ={})


def test_nothing_is_asked_or_offered_by_default(tmp_path: Any) -> None:
    settings = load_settings({}, environ={})
    assert settings.commitment == CommitmentTable()
    assert settings.commitment_peers == {}
    assert settings.retrieve_from is None
    path = tmp_path / "node.toml"
    path.write_text(
        'send_to = ["PACS@h:104"]\n[commitment]\nof = ["PACS@h:104"]\n'
        'at = {"PACS@h:104" = "COMMIT@h:105"}\n'
    )
    settings = load_settings({}, config_file=path, environ={})
    ((name, peer),) = settings.commitment_peers.items()
    assert (name, peer.aet, peer.port) == ("PACS@h:104", "COMMIT", 105)
