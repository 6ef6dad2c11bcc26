"""What may be removed, what never, and what a crash in the middle leaves."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from pe_triage.app import requeue
from pe_triage.cli.tables import not_held
from pe_triage.domain import DeliveryState, InstanceRole, Outcome, PatientIdentity, StudyState
from pe_triage.errors import ImagesNotHeldError
from pe_triage.node.retention import LONGEST_REST_S, Retention
from pe_triage.receive.spool import Spool
from pe_triage.retention import Marks, RetentionTable
from pe_triage.routing import Route
from pe_triage.store import schema
from pe_triage.store.abandoning import abandon
from pe_triage.store.alarms import AlarmStore
from pe_triage.store.documents import show
from pe_triage.store.engine import db_now
from pe_triage.store.recording import RecordStatus
from pe_triage.store.retention import RetentionStore, Why
from pe_triage.store.runs import NOT_HELD
from tests.support.store import PACS, STUDY, StoreUnderTest, instance, sha

MIB = 1 << 20
DAY = 86400.0


class House:
    """A store, real files, and a disk whose free space the test sets."""

    def __init__(self, store: StoreUnderTest, table: RetentionTable) -> None:
        self.store = store
        store.data_dir.mkdir(exist_ok=True)
        self.spool = Spool(store.data_dir / "spool", boot_id="1" * 21)
        self.free = 100 * MIB
        self.per_file = 1 * MIB
        self.kept = RetentionStore(store.engine, clock=store.clock)
        self.alarms = AlarmStore(store.engine)
        self.table = table

    def retention(self, **changes: Any) -> Retention:
        values: dict[str, Any] = {
            "store": self.kept,
            "spool": self.spool,
            "data_dir": self.store.data_dir,
            "table": self.table,
            "marks": Marks(low=10 * MIB, target=14 * MIB),
            "guard": threading.Lock(),
            "clock": self.store.clock,
            "alarms": self.alarms,
            # A busy machine must not end a look before its time.
            "budget_s": 600.0,
            # Here days pass while no node is there.
            "longest_rest_s": math.inf,
            "free": lambda _path: self.free + self.per_file * self.missing,
        }
        return Retention(**values | changes)

    written = 0

    @property
    def missing(self) -> int:
        return self.written - sum(p.is_file() for p in self.store.data_dir.rglob("*.dcm"))

    def images(self, study_uid: str = STUDY, count: int = 2, first: int = 1) -> list[Path]:
        """Files of a study where the indexer puts them, recorded."""
        paths = []
        for number in range(first, first + count):
            uid = f"{study_uid}.{number}"
            path = self.spool.final_path(study_uid, uid)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(uid.encode())
            self.written += 1
            paths.append(path)
            moment = self.store.clock.now
            self.store.record(
                instance(study_uid, number, self.store.data_dir, path=path, received_at=moment)
            )
        return paths

    def answered(
        self, study_uid: str = STUDY, *, count: int = 2, delivered: bool = True
    ) -> list[Path]:
        """A study with its answer; results are written where their rows say."""
        paths = self.images(study_uid, count)
        assert self.store.enqueue(study_uid) is not None
        self.store.finish(self.store.claimed())
        self.write_results()
        if delivered:
            self.deliver()
        return paths

    def write_results(self) -> None:
        with self.store.engine.begin() as connection:
            held = select(schema.results.c.path).where(schema.results.c.path.is_not(None))
            for (path,) in connection.execute(held):
                target = self.store.data_dir / path
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(b"result")
                    self.written += 1

    def deliver(self) -> None:
        for item in self.store.outbox.due(PACS, 100):
            self.store.outbox.mark(item.delivery_id, DeliveryState.SENT)

    def doc(self, study_uid: str = STUDY) -> dict[str, Any]:
        return show(self.store.engine, study_uid, self.store.data_dir)

    def agree(self) -> None:
        """No row promises a file that is gone."""
        for _study, _uid, path in self.kept.held_files():
            assert (self.store.data_dir / path).is_file()


@pytest.fixture
def house(store: StoreUnderTest) -> House:
    return House(store, RetentionTable())


def test_by_age_the_images_go_and_the_answer_stays(house: House) -> None:
    paths = house.answered()
    house.store.clock.forward(29 * DAY)
    assert house.retention().tick().studies == 0
    house.store.clock.forward(2 * DAY)
    assert house.retention().tick().studies == 1
    assert not any(path.exists() for path in paths)
    assert not paths[0].parent.exists()
    doc = house.doc()
    assert (doc["state"], doc["outcome"], doc["priority"]) == ("DONE", "POSITIVE", "HIGH")
    assert (doc["instances"], doc["instances_held"], doc["images_removed_why"]) == (2, 0, "AGE")
    assert doc["images_removed_at"] == house.store.clock.now.isoformat()
    assert "2 of 2, removed by age" in (not_held(doc) or "")
    assert all(Path(result["path"]).is_file() for result in doc["results"])
    assert house.kept.interrupted() == []
    assert house.kept.kept().studies == 0


def test_for_space_the_oldest_go_and_no_more_than_needed(house: House) -> None:
    for number in range(4):
        house.answered(f"1.2.{number}", count=3)
        house.store.clock.forward(3600)
    house.store.clock.forward(3600)
    house.free = 9 * MIB
    removed = house.retention().tick()
    # 9 of 14 MiB are there: two studies of 3 MiB make it.
    assert removed.studies == 2
    assert [house.doc(f"1.2.{n}")["instances_held"] for n in range(4)] == [0, 0, 3, 3]
    house.agree()
    assert house.alarms.standing() == ()


def test_a_study_of_the_last_hour_is_left_alone(house: House) -> None:
    house.answered()
    house.store.clock.forward(3500)
    house.free = 0
    assert house.retention().tick().studies == 0
    house.store.clock.forward(200)
    assert house.retention().tick().studies == 1


def _waits(house: House) -> None:
    house.answered(delivered=False)


def _parked(house: House) -> None:
    house.answered(delivered=False)
    for item in house.store.outbox.due(PACS, 10):
        house.store.outbox.mark(item.delivery_id, DeliveryState.PARKED, error="refused")


def _one_of_two(house: House) -> None:
    house.answered(delivered=False)
    house.store.outbox.mark(house.store.outbox.due(PACS, 1)[0].delivery_id, DeliveryState.SENT)


def _uncommitted(house: House) -> None:
    house.answered()
    with house.store.engine.begin() as connection:
        connection.execute(update(schema.deliveries).values(commit_since=1.0))


def _sent_nowhere(house: House) -> None:
    house.images()
    house.store.enqueue()
    house.store.finish(house.store.claimed(), destinations=())
    house.write_results()


def _receiving(house: House) -> None:
    house.images()


def _queued_again(house: House) -> None:
    house.answered()
    requeue(house.store.engine, STUDY, rank=None)


def _running_again(house: House) -> None:
    _queued_again(house)
    house.store.claimed()


def _failed(house: House) -> None:
    house.images()
    house.store.enqueue()
    house.store.queue.fail(house.store.claimed(), "broken", retry=False)


def _in_doubt(house: House) -> None:
    house.answered()
    stranger = PatientIdentity(patient_id="OTHER")
    house.store.record(instance(STUDY, 9, house.store.data_dir, identity=stranger))


def _other_content(house: House) -> None:
    house.answered()
    changed = dataclasses.replace(instance(STUDY, 1, house.store.data_dir), sha256=sha("x"))
    house.store.record(changed)


NEVER: list[Callable[[House], None]] = [
    _waits, _parked, _one_of_two, _uncommitted, _sent_nowhere, _receiving, _queued_again,
    _running_again, _failed, _in_doubt, _other_content,
]  # fmt: skip


@pytest.mark.parametrize("situation", NEVER, ids=lambda f: f.__name__.strip("_"))
def test_never_for_want_of_space(house: House, situation: Callable[[House], None]) -> None:
    """Nor by age, but for a study that FAILED, which has an age of its own."""
    situation(house)
    house.store.clock.forward(80 * DAY)
    house.free = 0
    before = sorted(house.store.data_dir.rglob("*.dcm"))
    assert house.retention().tick().studies == 0
    assert sorted(house.store.data_dir.rglob("*.dcm")) == before
    house.agree()
    (alarm,) = house.alarms.standing()
    assert alarm.name == "watch.space"
    assert "nothing more can be removed" in alarm.message
    # It clears by itself.
    house.free = 50 * MIB
    house.retention().tick()
    assert house.alarms.standing() == ()


def test_a_failed_study_goes_after_its_own_age(house: House) -> None:
    _failed(house)
    house.store.clock.forward(91 * DAY)
    assert house.retention().tick().studies == 1
    assert house.doc()["state"] == "FAILED"


def test_a_person_may_give_a_destination_up(house: House) -> None:
    _parked(house)
    house.store.clock.forward(40 * DAY)
    decision: dict[str, Any] = {"by": "physicist", "why": "decommissioned"}
    count = abandon(
        house.store.engine, destination=PACS, study_uid=None, at=house.store.clock.now, **decision
    )
    assert count == 2
    assert house.store.outbox.undelivered() == []
    # Taken back, it is owed again.
    assert house.store.outbox.requeue_parked() == 2
    assert house.retention().tick().studies == 0
    abandon(
        house.store.engine, destination=None, study_uid=STUDY, at=house.store.clock.now, **decision
    )
    assert house.retention().tick().studies == 1


def test_the_sites_limit_ends_the_wait_for_a_commitment(house: House) -> None:
    house.answered()
    with house.store.engine.begin() as connection:
        connection.execute(update(schema.deliveries).values(commit_since=db_now() - 3 * DAY))
    house.store.clock.forward(31 * DAY)
    for limit_s, removed in ((None, 0), (4 * DAY, 0), (2 * DAY, 1)):
        house.kept = RetentionStore(
            house.store.engine, clock=house.store.clock, commit_limit_s=limit_s
        )
        assert house.retention().tick().studies == removed


def test_what_was_sent_nowhere_is_kept_and_said_until_the_sites_limit(house: House) -> None:
    """`worker --no-send`: nobody was told to take it, so nothing says that it arrived."""
    _sent_nowhere(house)
    house.store.clock.forward(31 * DAY)
    house.free = 0
    assert house.retention().tick().studies == 0
    kept = house.kept.kept()
    assert (kept.studies, kept.unsent, kept.undelivered) == (1, 1, 0)
    (alarm,) = house.alarms.standing()
    assert "1 sent nowhere on purpose (retention.unsent_days)" in alarm.message
    for limit_s, removed in ((32 * DAY, (0, 0)), (30 * DAY, (1, 1))):
        house.kept = RetentionStore(
            house.store.engine, clock=house.store.clock, unsent_limit_s=limit_s
        )
        done = house.retention().tick()
        assert (done.studies, done.runs) == removed
    assert house.kept.kept().unsent == 0


def test_a_later_answer_that_was_delivered_ends_what_was_sent_nowhere(house: House) -> None:
    _sent_nowhere(house)
    requeue(house.store.engine, STUDY, rank=None)
    house.store.finish(house.store.claimed())
    house.write_results()
    house.store.clock.forward(31 * DAY)
    assert house.retention().tick().studies == 0
    house.deliver()
    assert house.kept.kept().unsent == 0
    assert house.retention().tick().studies == 1


def test_what_no_destination_wants_is_not_kept_for_one(house: House) -> None:
    """A destination that takes positive answers only is not owed a negative one."""
    house.images()
    house.store.enqueue()
    house.store.finish(
        house.store.claimed(),
        outcome=Outcome.NEGATIVE,
        destinations=(Route(name=PACS, outcomes=frozenset({Outcome.POSITIVE})),),
    )
    house.write_results()
    house.store.clock.forward(31 * DAY)
    assert house.retention().tick().studies == 1


def test_off_is_off(house: House) -> None:
    house.answered()
    house.store.clock.forward(400 * DAY)
    house.free = 0
    house.table = RetentionTable(enabled=False)
    assert house.retention().tick() == dataclasses.replace(house.retention().tick(), studies=0)
    assert house.doc()["instances_held"] == 2


def test_results_go_after_their_age_but_the_report_stays(house: House) -> None:
    """A later run's report names it as its predecessor."""
    house.answered()
    house.store.clock.forward(366 * DAY)
    assert house.retention().tick().runs == 1
    sr, summary = house.doc()["results"]
    assert Path(sr["path"]).is_file()
    assert summary["path"] is None
    assert summary["deliveries"][0]["state"] == "SENT"
    assert house.kept.interrupted_results() == []
    assert house.retention().tick().runs == 0


def test_only_what_frees_the_disk_that_is_full_goes(house: House) -> None:
    """Spool and results may be mounts of their own; images do not free the database's disk."""
    house.answered()
    house.store.clock.forward(7200)
    free = dict.fromkeys(("spool", "results", ""), 50 * MIB)

    def of(path: Path) -> int:
        (part, *_) = (*path.relative_to(house.store.data_dir).parts, "")
        return free[part]

    def removed() -> tuple[int, int]:
        done = house.retention(free=of).tick()
        return done.studies, done.runs

    free[""] = 0
    assert removed() == (0, 0)
    (alarm,) = house.alarms.standing()
    assert alarm.name == "watch.space"
    free |= {"": 50 * MIB, "results": 0}
    assert removed() == (0, 1)
    free |= {"results": 50 * MIB, "spool": 0}
    assert removed() == (1, 0)


def test_a_clock_that_is_set_ahead_makes_nothing_old(house: House) -> None:
    paths = house.answered()
    passed_s = 0.0
    retention = house.retention(monotonic=lambda: passed_s)
    assert retention.tick().studies == 0
    house.store.clock.forward(365 * DAY)
    for _ in range(3):
        passed_s += 60
        house.store.clock.forward(60)
        assert retention.tick().studies == 0
    # Set right again, nothing was lost by it.
    house.store.clock.forward(-365 * DAY)
    assert retention.tick().studies == 0
    assert all(path.exists() for path in paths)
    # What is wanted for space is no question of the clock.
    house.store.clock.forward(7200)
    house.free = 0
    assert retention.tick().studies == 1


def test_a_clock_that_was_wrong_for_good_is_followed_after_a_day(house: House) -> None:
    house.answered()
    passed_s = 0.0
    retention = house.retention(monotonic=lambda: passed_s)
    retention.tick()
    house.store.clock.forward(60 * DAY)
    assert retention.tick().studies == 0
    passed_s += 1.1 * DAY
    house.store.clock.forward(1.1 * DAY)
    assert retention.tick().studies == 1


@pytest.mark.parametrize(("days", "removed"), [(60, 0), (6, 1)])
def test_a_clock_that_is_ahead_already_at_the_start_makes_nothing_old(
    house: House, days: float, removed: int
) -> None:
    """Or nothing came for so long: then a day more does no harm."""
    house.table = RetentionTable(images_days=5)
    house.answered()
    passed_s = 0.0
    house.store.clock.forward(days * DAY)
    retention = house.retention(monotonic=lambda: passed_s, longest_rest_s=LONGEST_REST_S)
    assert retention.tick().studies == removed
    passed_s += 3600
    house.store.clock.forward(3600)
    assert retention.tick().studies == 0
    passed_s += DAY
    house.store.clock.forward(DAY)
    assert retention.tick().studies == 1 - removed


def test_results_go_for_space_when_there_are_no_images_left(house: House) -> None:
    house.answered()
    house.store.clock.forward(7200)
    house.free = 0
    removed = house.retention().tick()
    assert (removed.studies, removed.runs) == (1, 1)


# ------------------------------------------------------------------ crashes


class Killed(BaseException):
    """As kill -9: nobody catches it."""


@pytest.mark.parametrize("results", [False, True], ids=["images", "results"])
def test_killed_at_each_step_it_is_finished_by_the_next_start(
    house: House, results: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write of the database, every deletion and every sync is once the last thing done."""
    import os

    import pe_triage.node.retention as module
    import pe_triage.store.retention as rows

    left = 0

    def dying(function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if not after:
                left -= 1
                if left == 0:
                    raise Killed
            value = function(*arguments, **named)
            if after:
                left -= 1
                if left == 0:
                    raise Killed
            return value

        return call

    real_unlink, real_sync, real_write = os.unlink, module._sync, rows.write
    for step in range(1, 40):
        study_uid = f"1.2.3.{step}"
        paths = house.answered(study_uid)
        house.store.clock.forward((366 if results else 31) * DAY)
        if results:
            house.table = RetentionTable(images_days=0)
        left = step
        monkeypatch.setattr(module.os, "unlink", dying(real_unlink))
        monkeypatch.setattr(module, "_sync", dying(real_sync))
        monkeypatch.setattr(rows, "write", dying(real_write, after=True))
        killed = False
        try:
            house.retention().tick()
        except Killed:
            killed = True
        monkeypatch.undo()
        house.agree()
        doc = house.doc(study_uid)
        assert (doc["state"], doc["outcome"]) == ("DONE", "POSITIVE")
        house.retention().tick()
        house.agree()
        assert house.kept.interrupted() == []
        assert house.kept.interrupted_results() == []
        if results:
            assert house.doc(study_uid)["results"][1]["path"] is None
        else:
            assert house.doc(study_uid)["instances_held"] == 0
            assert not any(path.exists() for path in paths)
        if not killed:
            break
    else:
        pytest.fail("it never came to its end")
    assert step >= (4 if results else 5)


def test_a_file_that_will_not_go_is_tried_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pe_triage.node.retention as module

    paths = house.answered()
    house.store.clock.forward(31 * DAY)

    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "unlink", refuse)
    assert house.retention().tick().studies == 0
    assert house.kept.interrupted() == [STUDY]
    monkeypatch.undo()
    house.retention().tick()
    assert house.kept.interrupted() == []
    assert not any(path.exists() for path in paths)


def test_what_lies_outside_the_spool_is_never_deleted(house: House, tmp_path: Path) -> None:
    house.answered()
    treasure = tmp_path / "treasure.dcm"
    treasure.write_bytes(b"x")
    with house.store.engine.begin() as connection:
        connection.execute(
            update(schema.instances)
            .where(schema.instances.c.sop_instance_uid == f"{STUDY}.1")
            .values(path=f"spool/studies/../../../{treasure.name}")
        )
    house.store.clock.forward(31 * DAY)
    house.retention().tick()
    assert treasure.exists()
    assert house.kept.interrupted() == [STUDY]


# ------------------------------------------------------------------ what comes afterwards


@pytest.fixture
def emptied(house: House) -> House:
    house.answered(count=3)
    house.store.clock.forward(31 * DAY)
    assert house.retention().tick().studies == 1
    return house


def test_the_same_study_again_changes_nothing(emptied: House) -> None:
    emptied.images(count=3)
    doc = emptied.doc()
    assert (doc["state"], doc["run"], doc["instances_held"]) == ("DONE", 1, 3)
    assert doc["images_removed_at"] is None
    assert emptied.store.enqueue() is None
    assert emptied.store.state() is StudyState.DONE
    # Whoever fetched it has the time to use it.
    assert emptied.retention().tick().studies == 0
    assert emptied.store.enqueue(forced=True) is not None


def test_given_back_by_the_pacs_with_other_bytes(emptied: House) -> None:
    """A PACS changes attributes and syntaxes; there is nothing here that this could overwrite."""
    for number in (1, 2, 3):
        again = instance(STUDY, number, emptied.store.data_dir, sha256=sha(f"changed {number}"))
        (recorded,) = emptied.store.record(again)
        assert recorded.status is RecordStatus.DUPLICATE
    assert emptied.store.state() is StudyState.DONE
    job = emptied.store.enqueue(forced=True)
    assert job is not None
    claimed = emptied.store.claimed()
    assert emptied.store.studies.manifest(STUDY, run=2).digest == claimed.manifest_digest
    # Held again, it is not overwritten.
    (third,) = emptied.store.record(instance(STUDY, 1, emptied.store.data_dir))
    assert third.status is RecordStatus.CONFLICT_CONTENT


def test_another_patient_is_still_another(emptied: House) -> None:
    stranger = PatientIdentity(patient_id="OTHER")
    (recorded,) = emptied.store.record(
        instance(STUDY, 1, emptied.store.data_dir, identity=stranger)
    )
    assert recorded.status is RecordStatus.CONFLICT_IDENTITY


def test_reprocess_says_that_images_are_gone(emptied: House) -> None:
    with pytest.raises(ImagesNotHeldError, match=r"3 of its images are no longer held.*again"):
        requeue(emptied.store.engine, STUDY, rank=None)
    assert emptied.store.state() is StudyState.DONE
    emptied.images(count=2)
    with pytest.raises(ImagesNotHeldError, match="1 of its images"):
        requeue(emptied.store.engine, STUDY, rank=None)
    emptied.images(count=1, first=3)
    assert requeue(emptied.store.engine, STUDY, rank=None) == 2


def test_a_late_slice_is_not_analysed_alone(emptied: House) -> None:
    """It ends FAILED, visibly, supersedes nothing, and runs whole when the rest has come again."""
    emptied.images(count=1, first=4)
    assert emptied.store.state() is StudyState.RECEIVING
    (progress,) = emptied.store.studies.receiving()
    assert progress.instances == 1
    assert emptied.store.enqueue() is None
    doc = emptied.doc()
    assert (doc["state"], doc["run"], doc["outcome"]) == ("FAILED", 2, None)
    assert "3 of its images are no longer held" in doc["reason"]
    assert doc["completeness"]["sign"] == NOT_HELD
    with emptied.store.engine.begin() as connection:
        jobs = schema.jobs
        rows = connection.execute(select(jobs).order_by(jobs.c.run)).all()
        assert [row.superseded for row in rows] == [False, False]
    # Nothing is claimed, and looking again makes no third run.
    assert emptied.store.queue.claim("w", 30) is None
    emptied.images(count=2)
    assert emptied.store.state() is StudyState.RECEIVING
    assert emptied.store.enqueue() is None
    assert emptied.doc()["run"] == 2
    emptied.images(count=1, first=3)
    job = emptied.store.enqueue()
    assert job is not None
    assert (job.run, len(emptied.store.studies.instances(STUDY, run=3))) == (3, 4)
    emptied.store.finish(emptied.store.claimed())
    assert emptied.doc()["state"] == "DONE"


def test_our_own_results_that_come_back_are_removed_too(emptied: House) -> None:
    path = emptied.spool.final_path(STUDY, "2.25.9")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"sr")
    own = instance(
        STUDY, 9, emptied.store.data_dir, path=path, role=InstanceRole.OWN_RESULT,
        received_at=emptied.store.clock.now,
    )  # fmt: skip
    emptied.store.record(own)
    assert emptied.store.state() is StudyState.DONE
    emptied.store.clock.forward(31 * DAY)
    assert emptied.retention().tick().studies == 1
    assert not path.exists()
    assert emptied.doc()["instances_held"] == 0


def test_what_grows_between_the_look_and_the_claim_is_kept(house: House) -> None:
    house.answered()
    house.store.clock.forward(31 * DAY)
    before = house.store.clock.now - timedelta(days=30)
    assert house.kept.removable(before) == [STUDY]
    house.images(count=1, first=3)
    assert house.kept.claim(STUDY, before, Why.AGE) is None
    house.agree()


def test_an_instance_that_comes_again_while_files_go_is_kept(house: House) -> None:
    """The claim is made; before the files go, one of them is indexed anew."""
    paths = house.answered()
    house.store.clock.forward(31 * DAY)
    assert house.kept.claim(STUDY, house.store.clock.now, Why.AGE) is not None
    house.images(count=1)
    house.retention().tick()
    assert [path.exists() for path in paths] == [True, False]
    house.agree()
    assert house.doc()["instances_held"] == 1
