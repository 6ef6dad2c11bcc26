"""Interleavings of arrivals by chance, and what must be true of each at its end."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from sqlalchemy import Engine

from pe_triage.domain import TERMINAL_STATES, InstanceRole, Outcome, PatientIdentity, StudyState
from pe_triage.errors import StudyNotFoundError
from pe_triage.identity import same_patient
from pe_triage.receive.spool import AssociationEvent
from tests.support.assembling import (
    ANN,
    BEN,
    SLICES,
    STUDIES,
    Association,
    Sent,
    World,
    emptied,
    image,
    images,
)

PAUSES_S = (*(0.05,) * 12, *(0.3,) * 4, 1.0, 3.0, 20.0, 70.0)
"""Mostly a steady stream; now and then a pause, or one longer than the quiet time."""


def plan(rng: random.Random) -> list[Association]:
    """Associations that bring the studies, some of them several at once, some again."""
    made: list[Association] = []
    for uid in rng.sample(sorted(STUDIES), rng.choice([1, 2, 2, 3])):
        gone = set(rng.sample(range(SLICES), rng.choice([0, 0, 0, 0, 1, 2])))
        numbers = [n for n in range(SLICES + 1) if n not in gone]
        if rng.random() < 0.7:
            rng.shuffle(numbers)
        parts = rng.randint(1, 3)
        for part in range(parts):
            todo = [image(uid, n) for n in numbers[part::parts]]
            if rng.random() < 0.3:
                todo += [image(uid, n) for n in rng.choices(numbers, k=rng.randint(1, 4))]
            if rng.random() < 0.1:
                todo = [_without_issuer(what) for what in todo]
            if rng.random() < 0.15:
                todo.append(_report(uid, STUDIES[uid]))
            aborted = rng.random() < 0.2
            ends = AssociationEvent.ABORTED if aborted else AssociationEvent.RELEASED
            aet = rng.choice(["CT1", "CT1", f"CT{2 + part}"])
            made.append(Association(len(made) + 1, aet, todo, ends))
    if len(made) > 1 and rng.random() < 0.3:
        # One association for images of several studies, image by image.
        one, other = rng.sample(made, 2)
        one.todo += other.todo
        rng.shuffle(one.todo)
        made.remove(other)
    if rng.random() < 0.3:
        _add_conflict(rng, made)
    return made


def _without_issuer(what: Sent) -> Sent:
    return replace(what, patient=PatientIdentity(patient_id=what.patient.patient_id))


def _report(uid: str, patient: PatientIdentity) -> Sent:
    return Sent(uid, 0, patient, "d" * 64, f"{uid}.report", InstanceRole.OTHER)


def _add_conflict(rng: random.Random, made: list[Association]) -> None:
    where = rng.choice(made)
    what = rng.choice(where.todo)
    other = BEN if what.patient.patient_id == ANN.patient_id else ANN
    strange: Sent = rng.choice(
        [
            replace(what, sha256="e" * 64),
            replace(what, patient=other, sop_instance_uid=f"{what.study_uid}.99", sha256="f" * 64),
            replace(what, patient=other, sha256="a" * 64),
            replace(
                what,
                sop_instance_uid=image(
                    rng.choice([u for u in STUDIES if u != what.study_uid]), 3
                ).sop_instance_uid,
            ),
            _report(what.study_uid, other),
        ]
    )
    target = rng.choice(made)
    target.todo.insert(rng.randint(0, len(target.todo)), strange)


def _ask_of(rng: random.Random) -> dict[str, dict[str, int]]:
    """What the PACS says: nothing, what is true, less, more."""
    chance = rng.random()
    if chance < 0.5:
        return {}
    full = {uid: {f"{uid}.1": SLICES, f"{uid}.2": 1} for uid in STUDIES}
    if chance < 0.6:
        return {uid: {f"{uid}.1": SLICES - 2} for uid in STUDIES}
    if chance < 0.7:
        return {uid: {f"{uid}.1": SLICES + 3, f"{uid}.2": 1} for uid in STUDIES}
    return full


def play(engine: Engine, seed: int) -> World:
    """Run one interleaving to its end."""
    rng = random.Random(seed)
    world = World(emptied(engine), rng, pacs=_ask_of(rng))
    waiting = plan(rng)
    while waiting:
        association = rng.choice(waiting)
        if association.state == "new":
            world.open(association)
        elif association.todo:
            world.arrive(association, association.todo.pop(0))
        else:
            world.end(association)
            waiting.remove(association)
        _meanwhile(world)
        if rng.random() < 0.01:
            _crash(world, waiting)
    # Whatever is still open falls silent.
    world.run_out()
    return world


def _meanwhile(world: World) -> None:
    rng = world.rng
    pause_s = rng.choice(PAUSES_S)
    for step_s in (pause_s,) if pause_s < 3 else (pause_s * 0.2, pause_s * 0.8):
        world.now_s += step_s
        if rng.random() < 0.3 or step_s > 1:
            # Mostly all of it; at times the indexer lags behind the receivers.
            world.index(rng.choice([2, 1000, 1000, 1000]))
        if rng.random() < 0.05:
            world.pacs_away = not world.pacs_away
        if step_s > 1 or rng.random() < 0.1:
            if rng.random() < 0.8:
                world.expectations.step()
            world.tick()
            world.work()


def _crash(world: World, waiting: list[Association]) -> None:
    world.restart()
    for association in waiting:
        if association.state == "open":
            # The sender notices, and sends the rest on a new one.
            association.state = "new"
            association.number += 100


def check(world: World) -> Counter[str]:
    """What must be true of every interleaving; returns what it has shown, to be counted."""
    seen: Counter[str] = Counter()
    assert not world.log.errors, world.log.errors
    signs = {facts["sign"] for name, facts in world.log.events if name == "study.complete"}
    assert "clock_set_back" not in signs, "closed by a clock that nobody has touched"
    aside = {
        (e.study_uid, e.sop_instance_uid, e.sha256): e for e in world.quarantine.list(decided=True)
    }
    for what in world.sent:
        held = world.taken.get(what.sop_instance_uid)
        kept = held is not None and (
            (held.study_uid, held.sha256) == (what.study_uid, what.sha256)
            and same_patient(held.patient, what.patient)
        )
        key = (what.study_uid, what.sop_instance_uid, what.sha256)
        assert kept or key in aside, "an acknowledged object is neither held nor set aside"
    for uid in sorted({what.study_uid for what in world.sent}):
        seen += _check_study(world, uid)
    seen["restarts"] += world.restarts
    seen["fenced"] += world.lost
    for name, facts in world.log.events:
        if name == "study.complete":
            seen[f"sign {facts['sign']}"] += 1
    return seen


def _check_study(world: World, uid: str) -> Counter[str]:
    seen: Counter[str] = Counter()
    study = world.studies.get(uid)
    assert study.state in TERMINAL_STATES, f"{uid} was left {study.state}"
    seen[str(study.state)] += 1
    runs = [f for f in world.finished if f.job.study_uid == uid]
    before: set[str] = set()
    for run in runs:
        entries = {row.sop_instance_uid for row in run.rows}
        for row in run.rows:
            origin = world.taken[row.sop_instance_uid]
            assert (origin.study_uid, origin.sha256) == (uid, row.sha256), "a mixed study"
            assert same_patient(origin.patient, study.identity), "another patient's image"
        if any(row.role is InstanceRole.IMAGE for row in run.rows):
            # A run about reports alone gives way to the one about images.
            assert before < entries, "what was sent again made a run of its own"
            before = entries
    seen["superseded"] += max(0, len(runs) - 1)
    if study.quarantine_reason is not None:
        assert world.quarantine.list(), "in quarantine, and nobody can see why"
        seen["in doubt"] += 1
        return seen
    assert runs, "a study ended without an answer"
    final = runs[-1]
    subject = {k for k, w in world.taken.items() if w.study_uid == uid and _counts(world, uid, w)}
    assert {row.sop_instance_uid for row in final.rows} == subject, "the answer is not about all"
    slices = {
        n
        for row in final.rows
        if (n := world.taken[row.sop_instance_uid].number) < SLICES
        and row.role is InstanceRole.IMAGE
    }
    if slices == set(range(SLICES)):
        assert final.outcome is Outcome.NEGATIVE
    if slices and slices != set(range(min(slices), max(slices) + 1)):
        assert final.outcome is Outcome.NOT_EVALUATED, "analysed with a slice missing inside"
        seen["gap"] += 1
    return seen


def _counts(world: World, uid: str, what: Sent) -> bool:
    any_image = any(
        w.study_uid == uid and w.role is InstanceRole.IMAGE for w in world.taken.values()
    )
    return (what.role is InstanceRole.IMAGE) is any_image


def decide(world: World) -> int:
    """A person discards what was set aside; every study in doubt then gets its answer."""
    doubtful = {e.study_uid for e in world.quarantine.list()}
    for entry in world.quarantine.list():
        world.quarantine.discard(entry.quarantine_id)
    world.run_out()
    for uid in doubtful:
        assert uid is not None
        try:
            study = world.studies.get(uid)
        except StudyNotFoundError:
            continue
        assert study.quarantine_reason is None
        assert study.state in TERMINAL_STATES
        if study.instances:
            assert study.state is not StudyState.QUARANTINED
            _check_study(world, uid)
    return len(doubtful)


def one(engine: Engine, number: int) -> Counter[str]:
    """Play and check one interleaving.

    Raises
    ------
    AssertionError
        Something was not as it must be; names the interleaving.
    """
    try:
        world = play(engine, number)
        seen = check(world)
        seen["decided"] += decide(world)
    except Exception as error:
        raise AssertionError(f"interleaving {number}: {error!r}") from error
    seen["interleavings"] += 1
    return seen


def many(engine: Engine, first: int, count: int) -> Counter[str]:
    """Play and check `count` interleavings; raises as `one` does."""
    seen: Counter[str] = Counter()
    for number in range(first, first + count):
        seen += one(engine, number)
    return seen


__all__ = ["check", "decide", "images", "many", "one", "plan", "play"]
