"""Files are never deleted while one is filed away."""

from __future__ import annotations

import threading
from pathlib import Path

from pe_triage.node.indexer import Indexer
from pe_triage.receive.spool import Spool


class _Assembler:
    def note_drained(self, _started_s: float) -> None:
        pass


def test_the_indexer_waits_while_files_are_deleted(tmp_path: Path) -> None:
    guard, done = threading.Lock(), threading.Event()
    indexer = Indexer(
        spool=Spool(tmp_path / "spool"),
        studies=None,  # type: ignore[arg-type]
        quarantine=None,  # type: ignore[arg-type]
        assembler=_Assembler(),  # type: ignore[arg-type]
        data_dir=tmp_path,
        guard=guard,
    )

    def step() -> None:
        indexer.step()
        done.set()

    thread = threading.Thread(target=step)
    with guard:
        thread.start()
        assert not done.wait(0.2)
    assert done.wait(20)
    thread.join()
    assert not guard.locked()
