"""What was fetched enters the spool whole, or is not taken for whole."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pe_triage.config import Settings, load_settings
from pe_triage.deliver.retrieve_scu import Sent
from pe_triage.domain import Destination
from pe_triage.errors import RetryableError
from pe_triage.receive.spool import AssociationEvent, Spool
from pe_triage.receive.storing import Answer, FreeSpace, StoreSession
from pe_triage.retrieving import _hand_over

PACS = Destination(aet="PACS", host="127.0.0.1", port=104)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"data_dir": tmp_path, "min_free_mb": 1}, environ={})


def fetched(folder: Path) -> list[tuple[Sent, Path]]:
    found = []
    for number in range(3):
        path = folder / f"{number}.raw"
        path.write_bytes(bytes(1000))
        uid = f"1.2.3.{number}"
        sent = Sent(sop_class_uid="1.2", sop_instance_uid=uid, transfer_syntax_uid="1.2", data=b"")
        found.append((sent, path))
    return found


def ends(spool_dir: Path) -> list[AssociationEvent]:
    spool = Spool(spool_dir)
    records = [spool.read_event(e.path) for e in spool.incoming_entries() if e.is_event]
    return [r.event for r in records if r is not None]


@pytest.mark.parametrize(
    ("stored", "end"), [(3, AssociationEvent.RELEASED), (2, AssociationEvent.ABORTED)]
)
def test_a_part_is_never_closed_as_if_it_were_all(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: int,
    end: AssociationEvent,
) -> None:
    """The disk fills up at the third of three: an association that was released ends a study."""
    answers = iter([0x0000] * stored + [0xA700] * 3)
    monkeypatch.setattr(
        StoreSession, "store", lambda *_arguments, **_named: Answer(status=next(answers))
    )

    def hand_over() -> None:
        with ExitStack() as stack:
            _hand_over(settings, PACS, stack, fetched(tmp_path))

    if end is AssociationEvent.RELEASED:
        hand_over()
    else:
        with pytest.raises(RetryableError, match="A700"):
            hand_over()
    assert ends(settings.spool_dir) == [AssociationEvent.OPENED, end]


def test_what_does_not_fit_does_not_enter(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Any] = []
    monkeypatch.setattr(FreeSpace, "bytes", lambda _self: (1 << 20) + 2999)
    monkeypatch.setattr(
        StoreSession, "store", lambda *arguments, **_named: entered.append(arguments)
    )
    with ExitStack() as stack, pytest.raises(RetryableError, match="do not fit"):
        _hand_over(settings, PACS, stack, fetched(tmp_path))
    assert entered == []
