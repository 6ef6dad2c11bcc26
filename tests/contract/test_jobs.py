from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select

from pe_triage.domain import Outcome, PatientIdentity, Priority, StudyState
from pe_triage.errors import InputError, LeaseLostError, StudyNotFoundError
from pe_triage.store import schema
from pe_triage.store.engine import StoreRefusedError
from pe_triage.store.jobs import JobQueue, Rank, StudyChangedError
from tests.support.store import EMPTY_ANSWER, PACS, START, STUDY, StoreUnderTest, instance

OTHER = "1.2.826.0.1.2"


def job_row(store: StoreUnderTest, job_id: int) -> dict[str, object]:
    with store.engine.begin() as connection:
        jobs = schema.jobs
        row = connection.execute(select(jobs).where(jobs.c.job_id == job_id)).one()
        return dict(row._mapping)


def test_a_run_from_queue_to_end(store: StoreUnderTest) -> None:
    queued = store.queued()
    assert (queued.run, queued.attempt, store.state()) == (1, 0, StudyState.QUEUED)
    job = store.claimed()
    assert (job.job_id, job.run, job.attempt) == (queued.job_id, 1, 1)
    assert job.manifest_digest == store.studies.manifest(STUDY, run=1).digest
    assert job.last_image_at == START + timedelta(seconds=2)
    assert store.state() is StudyState.RUNNING
    assert store.queue.claim("other", 30) is None
    store.finish(job)
    assert store.state() is StudyState.DONE
    assert store.queue.claim("other", 30) is None
    assert store.queue.pending().total == 0


def test_unknown_study_cannot_be_queued(store: StoreUnderTest) -> None:
    with pytest.raises(StudyNotFoundError):
        store.queue.enqueue("9.9", "0" * 64)


def test_identical_instances_start_no_second_run(store: StoreUnderTest) -> None:
    store.queued()
    assert store.enqueue() is None
    assert store.state() is StudyState.QUEUED
    store.finish(store.claimed())
    store.receive()
    assert store.enqueue() is None
    assert store.state() is StudyState.DONE


def test_a_forced_run_has_the_next_number(store: StoreUnderTest) -> None:
    store.queued()
    store.finish(store.claimed())
    job = store.enqueue(forced=True)
    assert job is not None
    assert (job.run, store.state()) == (2, StudyState.QUEUED)
    latest = store.queue.latest(STUDY)
    assert latest is not None
    assert latest.job_id == job.job_id


def test_a_slice_that_comes_while_queueing_is_not_left_out(store: StoreUnderTest) -> None:
    store.receive(count=2)
    looked = store.studies.manifest(STUDY).digest
    store.record(instance(STUDY, 3, store.data_dir))
    with pytest.raises(StudyChangedError):
        store.queue.enqueue(STUDY, looked)
    assert store.state() is StudyState.RECEIVING
    assert store.queue.latest(STUDY) is None


def test_a_waiting_run_takes_a_late_slice_in(store: StoreUnderTest) -> None:
    first = store.queued(rank=Rank.STAT)
    store.record(instance(STUDY, 3, store.data_dir))
    assert store.state() is StudyState.RECEIVING
    again = store.enqueue()
    assert again is not None
    assert (again.job_id, again.run) == (first.job_id, 1)
    assert again.manifest_digest != first.manifest_digest
    assert again.last_image_at == START + timedelta(seconds=3)
    assert len(store.studies.instances(STUDY, run=1)) == 3
    assert job_row(store, first.job_id)["rank"] == Rank.STAT
    assert store.queue.pending().queued == 1


def test_a_slice_during_the_run_makes_a_superseding_run(store: StoreUnderTest) -> None:
    store.queued()
    first = store.claimed()
    store.record(instance(STUDY, 3, store.data_dir))
    assert store.state() is StudyState.RECEIVING
    assert len(store.studies.instances(STUDY, run=first.run)) == 2
    second = store.enqueue()
    assert second is not None
    assert second.run == 2
    # Runs of one study are worked one after the other.
    assert store.queue.claim("other", 30) is None
    store.finish(first)
    assert store.state() is StudyState.QUEUED
    assert job_row(store, first.job_id)["superseded"] is False
    claimed = store.claimed("other")
    assert (claimed.run, len(store.studies.instances(STUDY, run=2))) == (2, 3)
    store.finish(claimed, outcome=Outcome.NEGATIVE, priority=Priority.LOW)
    assert store.state() is StudyState.DONE
    assert job_row(store, first.job_id)["superseded"] is True
    assert job_row(store, claimed.job_id)["superseded"] is False


def test_a_study_that_grew_stays_receiving_when_its_run_ends(store: StoreUnderTest) -> None:
    store.queued()
    job = store.claimed()
    store.record(instance(STUDY, 3, store.data_dir))
    store.finish(job)
    assert store.state() is StudyState.RECEIVING
    assert [p.run for p in store.studies.receiving()] == [1]


def test_urgent_first_then_the_oldest(store: StoreUnderTest) -> None:
    order = [(Rank.BACKFILL, 1), (Rank.ROUTINE, 2), (Rank.ROUTINE, 3), (Rank.STAT, 4)]
    for rank, number in order:
        store.queued(f"1.2.826.0.1.{number}", rank=rank)
        time.sleep(0.005)
    claimed = [store.claimed(f"w{n}").study_uid[-1] for n in range(4)]
    assert claimed == ["4", "2", "3", "1"]


def test_the_runs_answer_is_stored_in_one_transaction(store: StoreUnderTest) -> None:
    """Neither results nor deliveries nor the end of the run exist without each other."""
    store.queued()
    job = store.claimed()
    with pytest.raises(StoreRefusedError):
        store.finish(job, document={**EMPTY_ANSWER, "exam": {"x": float("nan")}})
    assert store.state() is StudyState.RUNNING
    store.finish(job)
    assert len(store.outbox.due(PACS, 10)) == 2


def test_finishing_twice_is_harmless(store: StoreUnderTest) -> None:
    store.queued()
    job = store.claimed()
    store.finish(job)
    store.finish(job)
    assert len(store.outbox.due(PACS, 10)) == 2


def test_results_are_what_the_next_run_supersedes(store: StoreUnderTest) -> None:
    store.queued()
    first = store.claimed()
    assert store.queue.earlier_results(first) == []
    store.finish(first)
    store.enqueue(forced=True)
    second = store.claimed()
    store.queue.fail(second, "broken", retry=False)
    store.enqueue(forced=True)
    third = store.claimed()
    rows = store.queue.earlier_results(third)
    assert [row.kind.value for row in rows] == ["SR", "SUMMARY"]
    assert rows[0].sop_instance_uid == f"2.25.{first.job_id}.1.0"


def test_failure_is_tried_again_and_then_ends_visibly(store: StoreUnderTest) -> None:
    store.queued()
    for attempt in (1, 2):
        job = store.claimed()
        assert job.attempt == attempt
        assert store.queue.fail(job, "GPU is gone", retry=True) is StudyState.QUEUED
        assert store.state() is StudyState.QUEUED
    assert store.queue.fail(store.claimed(), "GPU is gone", retry=True) is StudyState.FAILED
    assert store.state() is StudyState.FAILED
    row = job_row(store, job.job_id)
    assert row["reason"] == "gave up after 3 attempts: GPU is gone"
    assert row["outcome"] is None
    assert row["completed_at"] is not None


def test_failure_for_good(store: StoreUnderTest) -> None:
    store.queued()
    job = store.claimed()
    assert store.queue.fail(job, "pixel data is truncated", retry=False) is StudyState.FAILED
    assert job_row(store, job.job_id)["reason"] == "pixel data is truncated"


def test_a_failed_job_waits_its_delay(store: StoreUnderTest) -> None:
    store.queued()
    store.queue.fail(store.claimed(), "later", retry=True, delay_s=0.3)
    assert store.queue.claim("w", 30) is None
    time.sleep(0.35)
    assert store.claimed().attempt == 2


def test_a_poisoned_study_does_not_stop_the_others(store: StoreUnderTest) -> None:
    store.queued("1.2.826.0.1.9", rank=Rank.STAT)
    for number in range(3):
        store.queued(f"1.2.826.0.1.{number}")
    ended = []
    for _ in range(20):
        job = store.queue.claim("w", 0.0)
        if job is None:
            break
        if job.study_uid.endswith(".9"):
            # It kills its worker each time: the lease is never given back.
            time.sleep(0.002)
            continue
        store.finish(job)
        ended.append(job.study_uid)
    assert len(ended) == 3
    assert store.state("1.2.826.0.1.9") is StudyState.FAILED
    assert store.queue.pending().total == 0


def test_a_finish_with_an_old_token_is_refused(store: StoreUnderTest) -> None:
    store.queued()
    old = store.claimed("slow", lease_s=0.0)
    time.sleep(0.005)
    new = store.claimed("quick")
    assert new.fencing_token > old.fencing_token
    with pytest.raises(LeaseLostError):
        store.finish(old, outcome=Outcome.NEGATIVE, priority=Priority.LOW)
    with pytest.raises(LeaseLostError):
        store.queue.fail(old, "late", retry=True)
    with pytest.raises(LeaseLostError):
        store.queue.heartbeat(old, "slow", 30)
    store.finish(new)
    assert job_row(store, new.job_id)["outcome"] == "POSITIVE"
    # Still refused after the end.
    with pytest.raises(LeaseLostError):
        store.finish(old)


def test_a_finish_after_the_lease_ran_out_counts_if_nobody_took_over(
    store: StoreUnderTest,
) -> None:
    store.queued()
    job = store.claimed(lease_s=0.0)
    time.sleep(0.005)
    store.finish(job)
    assert store.state() is StudyState.DONE


def test_the_heartbeat_holds_the_lease(store: StoreUnderTest) -> None:
    store.queued()
    job = store.claimed("w", lease_s=0.3)
    for _ in range(4):
        time.sleep(0.1)
        store.queue.heartbeat(job, "w", 0.3)
        assert store.queue.claim("thief", 30) is None
    time.sleep(0.35)
    assert store.claimed("heir").attempt == 2


def test_only_the_owner_beats(store: StoreUnderTest) -> None:
    store.queued()
    job = store.claimed("w")
    with pytest.raises(LeaseLostError):
        store.queue.heartbeat(job, "somebody else", 30)


def test_a_dead_owners_jobs_are_free_at_once(store: StoreUnderTest) -> None:
    store.queued()
    store.queued(OTHER)
    dead = store.claimed("node/worker-1/77")
    alive = store.claimed("node/worker-10/78")
    assert store.queue.release_owner("node/worker-1/") == 1
    with pytest.raises(LeaseLostError):
        store.queue.heartbeat(dead, "node/worker-1/77", 30)
    store.queue.heartbeat(alive, "node/worker-10/78", 30)
    heir = store.claimed("node/worker-1/79")
    assert (heir.job_id, heir.attempt) == (dead.job_id, 2)


def test_the_prefix_is_no_pattern(store: StoreUnderTest) -> None:
    store.queued()
    store.claimed("node/worker")
    assert store.queue.release_owner("%") == 0
    assert store.queue.release_owner("node_") == 0
    with pytest.raises(ValueError, match="empty"):
        store.queue.release_owner("")


def test_the_last_death_ends_the_job(store: StoreUnderTest) -> None:
    store.queued()
    for attempt in (1, 2, 3):
        assert store.claimed("w/").attempt == attempt
        assert store.queue.release_owner("w/") == 1
    assert store.state() is StudyState.FAILED


def test_reaping_keeps_the_place_in_the_queue(store: StoreUnderTest) -> None:
    first = store.queued()
    time.sleep(0.005)
    store.queued(OTHER)
    store.claimed(lease_s=0.0)
    time.sleep(0.005)
    assert store.queue.reap() == 1
    assert store.queue.reap() == 0
    assert store.claimed().job_id == first.job_id


def test_quarantine_fences_a_running_job(store: StoreUnderTest) -> None:
    store.queued()
    job = store.claimed()
    stranger = PatientIdentity(patient_id="PID-OTHER")
    store.record(instance(STUDY, 3, store.data_dir, identity=stranger))
    assert store.state() is StudyState.QUARANTINED
    with pytest.raises(LeaseLostError):
        store.finish(job)
    assert store.outbox.due(PACS, 10) == []
    assert store.queue.claim("w", 30) is None
    assert job_row(store, job.job_id)["state"] == "QUARANTINED"
    assert store.enqueue() is None
    with pytest.raises(InputError, match="quarantined"):
        store.enqueue(forced=True)


def test_a_run_cannot_end_in_between(store: StoreUnderTest) -> None:
    store.queued()
    with pytest.raises(ValueError, match="cannot end"):
        store.finish(store.claimed(), state=StudyState.RUNNING)


def test_a_job_that_does_not_exist(store: StoreUnderTest) -> None:
    store.queued()
    ghost = replace(store.claimed(), job_id=999)
    with pytest.raises(LeaseLostError):
        store.finish(ghost)


def test_pending_counts(store: StoreUnderTest) -> None:
    store.queued()
    store.queued(OTHER)
    store.claimed()
    depth = store.queue.pending()
    assert (depth.queued, depth.running, depth.total) == (1, 1, 2)


def test_max_attempts_is_a_setting(store: StoreUnderTest) -> None:
    store.queued()
    queue = JobQueue(store.engine, max_attempts=1, clock=store.clock)
    assert queue.fail(store.claimed(), "x", retry=True) is StudyState.FAILED
