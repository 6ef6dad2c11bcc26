"""One small trial of the campaign, and the check itself: it must notice what it is there for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pe_triage.store.engine import open_engine
from tests.campaign.check import Held, Seen, held_in, violations
from tests.campaign.journal import Journal, summary
from tests.campaign.session import Session
from tests.campaign.waiting import wait_for


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Three studies through a node whose worker is killed in the middle; nothing was lost."""
    home = tmp_path_factory.mktemp("campaign")
    # Started as the product is: a server of processes would cost more than it saves here.
    with Session(home, 1, forked=False, work_s=0.5) as session:
        session.node.start()
        for _ in range(2):
            session.send_one()
        wait_for(lambda: session.node.events("job.claimed"), 60, "a job is claimed")
        os.kill(session.node.pid_of("worker-1"), signal.SIGKILL)
        session.send_one()
        assert session.check() == []
        engine = open_engine(session.node.database_url)
        try:
            yield session.seen(held_in(engine, session.node.data_dir))
        finally:
            engine.dispose()


def test_a_good_trial_breaks_nothing(trial: Seen) -> None:
    assert len(trial.sent) == 3
    assert len(list(trial.acked)) == 36
    assert len(trial.arrivals) >= 6
    assert violations(trial) == []


def without(held: Held, sop_instance_uid: str) -> Held:
    kept = {uid: row for uid, row in held.instances.items() if uid != sop_instance_uid}
    return replace(held, instances=kept)


def test_a_lost_instance_is_noticed(trial: Seen) -> None:
    lost = next(iter(trial.acked))
    seen = replace(trial, held=without(trial.held, lost))
    assert violations(seen) == [f"instance {lost} was answered 0000 and is not held"]


@pytest.mark.parametrize("change", ["altered", "truncated", "removed"])
def test_a_file_that_is_not_what_was_sent_is_noticed(trial: Seen, change: str) -> None:
    sop, (_, _, path) = next(iter(trial.held.instances.items()))
    before = path.read_bytes()
    try:
        if change == "altered":
            path.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
        elif change == "truncated":
            path.write_bytes(before[:-2])
        else:
            path.unlink()
        assert violations(trial) == [f"the file of instance {sop} is not what was sent"]
    finally:
        path.write_bytes(before)
    assert violations(trial) == []


def test_a_study_that_does_not_end_is_noticed(trial: Seen) -> None:
    uid = next(iter(trial.sent))
    for state in ("RECEIVING", "QUEUED", "FAILED", "QUARANTINED"):
        studies = {**trial.held.studies, uid: (state, trial.held.studies[uid][1])}
        found = violations(replace(trial, held=replace(trial.held, studies=studies)))
        assert found == [f"study {uid} stands in {state}, not in DONE"]


def test_a_doubled_result_is_noticed(trial: Seen) -> None:
    one = trial.arrivals[0]
    again = replace(trial, arrivals=[*trial.arrivals, one])
    assert violations(again) == [], "the same bytes under the same UID are no second result"
    other_bytes = replace(one, sha256="0" * 64)
    found = violations(replace(trial, arrivals=[*trial.arrivals, other_bytes]))
    assert found == [f"result {one.sop_instance_uid} came with different bytes"]
    other_uid = replace(one, sop_instance_uid="2.25.1")
    found = violations(replace(trial, arrivals=[*trial.arrivals, other_uid]))
    assert "the PACS has result 2.25.1, which the node does not know" in found
    assert any(f"2 {'SR'} of" in line or "2 NARRATIVE of" in line for line in found)


def test_a_result_of_another_patient_or_study_is_noticed(trial: Seen) -> None:
    one, rest = trial.arrivals[0], list(trial.arrivals[1:])
    uid = one.sop_instance_uid

    def found(**changes: object) -> list[str]:
        changed = [replace(a, **changes) for a in trial.arrivals if a.sop_instance_uid == uid]  # type: ignore[arg-type]
        others = [a for a in rest if a.sop_instance_uid != uid]
        return violations(replace(trial, arrivals=[*changed, *others]))

    assert found(patient_id="SOMEONE-ELSE") == [f"result {uid} stands under patient SOMEONE-ELSE"]
    other = next(u for u in trial.sent if u != one.study_uid)
    assert f"result {uid} stands under study {other}, not {one.study_uid}" in found(study_uid=other)
    images = frozenset(trial.sent[other].digests)
    assert found(images=images) == [f"result {uid} refers to images of another study"]
    assert found(sha256="0" * 64) == [f"result {uid} came with other bytes than were persisted"]


def test_a_result_that_never_came_is_noticed(trial: Seen) -> None:
    uid = trial.arrivals[0].sop_instance_uid
    kept = [a for a in trial.arrivals if a.sop_instance_uid != uid]
    (found,) = violations(replace(trial, arrivals=kept))
    assert found.startswith("the PACS has 0 ")


def test_a_claim_that_had_lost_its_job_is_noticed(trial: Seen) -> None:
    uid, run = trial.finished[0]
    found = violations(replace(trial, finished=[*trial.finished, (uid, run)]))
    assert found == [f"run {run} of {uid} was finished by 2 claims"]
    jobs = [
        j._replace(fencing_token=j.fencing_token + 1) if j.study_uid == uid else j
        for j in trial.held.jobs
    ]
    found = violations(replace(trial, held=replace(trial.held, jobs=jobs)))
    assert set(found) == {f"a result of run {run} of {uid} is of a claim that had lost the job"}


def test_a_journal_goes_on_after_half_a_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal-0.jsonl")
    assert journal.sessions == 1
    trials = [{"process": "worker", "how": "moment", "recovered_s": s} for s in (1.0, 2.5)]
    journal.add_session("kill", 1, trials, [], {"studies": 4}, tmp_path / "none")
    with journal.path.open("a") as file:
        file.write('{"kind": "kill", "sess')
    again = Journal(journal.path)
    assert again.sessions == 2
    again.add_session("kill", 2, trials[:1], ["lost"], {"studies": 1}, tmp_path / "none")
    figures = summary(Journal(journal.path).trials)
    assert (figures["faults"], figures["violations"], figures["studies"]) == (3, 1, 5)
    assert figures["worst_recovery_s"] == {"kill worker": 2.5}
