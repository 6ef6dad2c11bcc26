"""A run that is made again after a restore: the same UID never means other bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pe_triage.answering import analysis_options
from pe_triage.config import load_settings
from pe_triage.node.backup import settle
from pe_triage.node.indexer import Indexer
from pe_triage.node.worker import Worker, WorkerOptions
from pe_triage.receive.part10 import FileMetaTemplate
from pe_triage.receive.spool import Spool
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from pe_triage.store.jobs import JobQueue
from pe_triage.store.migrate import upgrade
from pe_triage.store.quarantine import Quarantine
from pe_triage.store.retention import RetentionStore
from pe_triage.store.studies import StudyStore
from tests.campaign.standin import StandIn
from tests.campaign.studies import SLICES, TRANSFER_SYNTAX, make_study, write_config
from tests.campaign.test_check import PACS, Quiet

NAME = "pe-triage.sqlite3"
THEN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
Objects = dict[str, str]
"""SOP Instance UID to the SHA-256 of its file."""


class Node:
    """As much of a node as takes images in and answers, on a clock of its own."""

    def __init__(self, data_dir: Path, now: datetime) -> None:
        self.data_dir, self.now = data_dir, now
        self.engine = open_engine(f"sqlite:///{data_dir / NAME}")
        self.spool = Spool(data_dir / "spool")
        self.studies = StudyStore(self.engine, data_dir)
        self.queue = JobQueue(self.engine, clock=lambda: self.now)

    def index(self) -> None:
        quiet: Any = Quiet()
        quarantine = Quarantine(self.engine)
        settle(RetentionStore(self.engine), quarantine, self.spool, self.data_dir)
        Indexer(
            spool=self.spool, studies=self.studies, quarantine=quarantine, assembler=quiet,
            data_dir=self.data_dir,
        ).step()  # fmt: skip

    def enqueue(self, *, forced: bool = False) -> None:
        self.queue.enqueue(STUDY.study_uid, self.studies.manifest(STUDY.study_uid).digest,
                           forced=forced)  # fmt: skip

    def answer(self) -> Objects:
        """Let a worker do what waits; the newest run's objects."""
        config = write_config(self.data_dir / "node.toml", [PACS])
        settings = load_settings({"data_dir": self.data_dir}, config_file=config, environ={})
        stand_in: Any = StandIn(0.0)
        worker = Worker(
            queue=self.queue, studies=self.studies, predictor=stand_in,
            analysis=analysis_options(settings),
            options=WorkerOptions(
                owner="node/worker-1/2/", data_dir=self.data_dir, routes=settings.routes,
                lease_s=30.0,
            ),
            clock=lambda: self.now,
        )  # fmt: skip
        assert worker.step()
        results, jobs = schema.results, schema.jobs
        newest = select(jobs.c.job_id).order_by(jobs.c.run.desc()).limit(1).scalar_subquery()
        with self.engine.connect() as connection:
            rows = connection.execute(select(results).where(results.c.job_id == newest)).all()
        self.engine.dispose()
        assert len(rows) >= 2
        return {row.sop_instance_uid: row.sha256 for row in rows}


STUDY = make_study(1)


@pytest.fixture
def received(tmp_path: Path) -> Path:
    """Images in the spool, nothing indexed yet."""
    data_dir = tmp_path / "node"
    data_dir.mkdir()
    upgrade(f"sqlite:///{data_dir / NAME}")
    spool = Spool(data_dir / "spool")
    meta = FileMetaTemplate(transfer_syntax_uid=TRANSFER_SYNTAX, calling_aet="SCANNER")
    for sequence, image in enumerate(STUDY.images):
        header = meta.header(
            sop_class_uid=image.sop_class_uid, sop_instance_uid=image.sop_instance_uid
        )
        spool.store([header, image.encoded], association=1, sequence=sequence)
    assert len(spool.incoming_entries()) == SLICES
    return data_dir


@pytest.fixture
def restored(tmp_path: Path) -> Callable[[Path, Path], Path]:
    def restore(database: Path, files: Path) -> Path:
        """A node of files as they were late, and of a database as it was early."""
        target = tmp_path / "restored"
        shutil.copytree(files, target)
        shutil.rmtree(target / "results", ignore_errors=True)
        shutil.copyfile(database, target / NAME)
        return target

    return restore


def saved(data_dir: Path) -> Path:
    target = data_dir.parent / "backup.sqlite3"
    shutil.copyfile(data_dir / NAME, target)
    return target


@pytest.mark.parametrize("queued", [True, False], ids=["queued", "not-even-indexed"])
def test_the_first_run_is_made_again_to_the_byte(
    received: Path, restored: Callable[[Path, Path], Path], queued: bool
) -> None:
    """An archive knows these objects already, and they are what it knows."""
    if not queued:
        database = saved(received)
    node = Node(received, THEN)
    node.index()
    node.enqueue()
    if queued:
        database = saved(received)
    sent = node.answer()
    again = Node(restored(database, received), THEN + timedelta(days=2, hours=5))
    if not queued:
        again.index()
        again.enqueue()
    assert again.answer() == sent


def test_a_later_run_that_was_asked_for_again_has_uids_of_its_own(
    received: Path, restored: Callable[[Path, Path], Path]
) -> None:
    node = Node(received, THEN)
    node.index()
    node.enqueue()
    node.answer()
    database = saved(received)
    node.enqueue(forced=True)
    sent = node.answer()
    again = Node(restored(database, received), THEN + timedelta(days=2))
    shutil.copytree(received / "results", again.data_dir / "results")
    again.enqueue(forced=True)
    assert not again.answer().keys() & sent.keys()


def test_a_later_run_is_dated_after_the_first(received: Path) -> None:
    """By their dates a reader sees which report is the newer one."""
    from pydicom import dcmread

    node = Node(received, datetime.now(UTC) + timedelta(minutes=5))
    node.index()
    dates: list[str] = []
    for forced in (False, True):
        node.enqueue(forced=forced)
        node.answer()
        (path,) = node.data_dir.glob(f"results/*/*/run-00{len(dates) + 1}-1/sr.dcm")
        ds = dcmread(path)
        dates.append(ds.ContentDate + ds.ContentTime)
        node.now += timedelta(days=1)
    assert dates[0] < dates[1]
