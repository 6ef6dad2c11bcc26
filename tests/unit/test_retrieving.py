"""What was fetched enters the spool whole, or is not taken for whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pe_triage.config import Settings, load_settings
from pe_triage.deliver.retrieve_scu import Sent
from pe_triage.domain import Destination
from pe_triage.errors import RetryableError
from pe_triage.node.associations import Associations
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


KILLED = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from pe_triage.receive.storing import Answer, StoreSession
from pe_triage.retrieving import _hand_over
from tests.unit.test_retrieving import PACS, fetched, load_settings

def store(self, *_arguments, **named):
    if named["sop_instance_uid"].endswith(".1"):
        os.kill(os.getpid(), signal.SIGKILL)
    return Answer(status=0)

StoreSession.store = store
folder = Path(sys.argv[1])
settings = load_settings({"data_dir": folder, "min_free_mb": 1}, environ={})
with ExitStack() as stack:
    _hand_over(settings, PACS, stack, fetched(folder))
"""


def test_killed_midway_it_holds_up_nothing_else_of_that_pacs(
    settings: Settings, tmp_path: Path
) -> None:
    """What it had opened would count as open for ever: nobody announces another in its place."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    spool = Spool(settings.spool_dir)
    (entry,) = spool.incoming_entries()
    record = spool.read_event(entry.path)
    assert record is not None
    associations = Associations()
    associations.note(entry.association_id, record)
    assert associations.end_orphans(spool.lives.boots()) == [], "it may only be slow"
    for announced in (settings.spool_dir / "receivers").iterdir():
        os.utime(announced, (time.time() - 20,) * 2)
    assert associations.end_orphans(spool.lives.boots()) == [entry.association_id]
    spool.lives.forget(None, older_than_s=10)
    assert list((settings.spool_dir / "receivers").iterdir()) == []


def test_what_does_not_fit_does_not_enter(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Any] = []
    monkeypatch.setattr(FreeSpace, "bytes", lambda *_: (1 << 20) + 2999)
    monkeypatch.setattr(
        StoreSession, "store", lambda *arguments, **_named: entered.append(arguments)
    )
    with ExitStack() as stack, pytest.raises(RetryableError, match="do not fit"):
        _hand_over(settings, PACS, stack, fetched(tmp_path))
    assert entered == []
