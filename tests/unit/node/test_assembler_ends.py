"""What might keep a study open for ever, or close it too soon, and does not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from pe_triage.domain import InstanceRole, StudyState
from pe_triage.node import assembler as assembler_module
from pe_triage.receive.spool import AssociationEvent
from tests.support.assembling import (
    ANN,
    BEN,
    SLICES,
    WAITS,
    Association,
    Sent,
    World,
    fast_engine,
    image,
)

UID = "1.7.1"
FULL = {UID: {f"{UID}.1": SLICES, f"{UID}.2": 1}}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with fast_engine(tmp_path / "node.sqlite3") as made:
        yield made


def world_of(engine: Engine, **more: object) -> World:
    return World(engine, random.Random(1), **more)  # type: ignore[arg-type]


def sender(world: World) -> Association:
    association = Association(1, "CT1", [], AssociationEvent.RELEASED)
    world.open(association)
    return association


def bring(world: World, association: Association, numbers: range = range(SLICES)) -> None:
    for n in numbers:
        world.arrive(association, image(UID, n))


def pass_s(world: World, seconds: float, step_s: float = 0.5) -> None:
    for _ in range(round(seconds / step_s)):
        world.now_s += step_s
        world.index(1000)
        world.tick()


def signs(world: World) -> list[str]:
    return [
        facts["sign"]
        for name, facts in world.log.events
        if name == "study.complete" and facts["study_uid"] == UID
    ]


def test_a_sender_that_repeats_one_image_for_ever_cannot_keep_its_study_open(
    engine: Engine,
) -> None:
    world = world_of(engine)
    association = sender(world)
    bring(world, association)
    for _ in range(int(WAITS.max_wait_s) + 10):
        world.arrive(association, image(UID, 0))
        pass_s(world, 1.0, 1.0)
    assert signs(world) == ["max_wait"]


def test_a_question_that_is_never_answered_keeps_nothing_open(engine: Engine) -> None:
    """The thread that asks has died: all else says that the study is complete."""
    world = world_of(engine, pacs=FULL)
    association = sender(world)
    bring(world, association)
    world.end(association)
    pass_s(world, WAITS.quiet_s - 1)
    assert signs(world) == []
    pass_s(world, 2)
    assert signs(world) == ["released_and_contiguous"]


def test_an_error_that_nobody_foresaw_is_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(engine, pacs=FULL)

    def broken(_uid: str) -> None:
        raise AttributeError("planted")

    monkeypatch.setitem(world.expectations._peers, "P", broken)
    association = sender(world)
    bring(world, association)
    world.end(association)
    pass_s(world, 2.5)
    assert signs(world) == [], "an answer may be on its way"
    assert world.expectations.step()
    pass_s(world, 1)
    assert signs(world) == ["released_and_contiguous"]
    assert [f["error"] for name, f in world.log.events if name == "query.failed"] == [
        "AttributeError"
    ]


def test_headers_that_break_a_rule_are_closed_by_time_and_left_to_the_worker(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise OverflowError("planted")

    monkeypatch.setattr(assembler_module, "judge_series", broken)
    world = world_of(engine)
    association = sender(world)
    bring(world, association)
    world.end(association)
    pass_s(world, WAITS.quiet_s + 1)
    assert signs(world) == ["quiet"]
    assert [name for name, _ in world.log.errors] == ["series.judge_failed"], "and is said once"


def test_a_journal_that_lags_is_no_clock_that_was_set_back(engine: Engine) -> None:
    """Under load it is never empty for minutes: what comes then is not closed piece by piece."""
    world = world_of(engine)
    association = sender(world)
    bring(world, association, range(1))
    pass_s(world, 1)
    # Of a later association something always waits, so that the journal is never found empty.
    behind = Association(99, "CT9", [], AssociationEvent.RELEASED)
    world.arrive(behind, image("1.7.2", 0))
    for n in range(1, SLICES):
        world.now_s += WAITS.quiet_s / 2
        world.arrive(association, image(UID, n))
        world.index(1)
        world.tick()
    assert signs(world) == []
    world.end(association)
    pass_s(world, 3)
    assert signs(world) == ["released_and_contiguous"]


def test_a_localizer_that_is_whole_does_not_end_its_study(engine: Engine) -> None:
    """The PACS has the chest already; here it is on its way."""
    world = world_of(engine, pacs=FULL)
    association = sender(world)
    world.arrive(association, image(UID, SLICES))
    world.end(association)
    pass_s(world, 2.5)
    assert world.expectations.step()
    pass_s(world, 30)
    assert signs(world) == []
    later = Association(2, "CT1", [], AssociationEvent.ABORTED)
    world.open(later)
    bring(world, later)
    world.end(later)
    pass_s(world, 2.5)
    assert world.expectations.step()
    pass_s(world, 1)
    assert signs(world) == ["expected_count"]


def test_an_abort_while_the_patient_was_in_doubt_is_not_forgotten(engine: Engine) -> None:
    """A report alone came of the association that broke off, and images may have been to follow."""
    world = world_of(engine)
    whole = sender(world)
    bring(world, whole)
    stranger = replace(image(UID, 1), patient=BEN, sop_instance_uid=f"{UID}.99", sha256="f" * 64)
    world.arrive(whole, stranger)
    world.end(whole)
    pass_s(world, 0.5)
    broken = Association(2, "CT1", [], AssociationEvent.ABORTED)
    world.open(broken)
    report = Sent(UID, 0, ANN, "d" * 64, f"{UID}.report", InstanceRole.OTHER)
    world.arrive(broken, report)
    world.end(broken)
    pass_s(world, 1.0)
    assert world.studies.get(UID).state is StudyState.QUARANTINED
    (entry,) = world.quarantine.list()
    world.quarantine.discard(entry.quarantine_id)
    pass_s(world, WAITS.quiet_s - 1)
    assert signs(world) == []
    pass_s(world, 2.0)
    # What came of the sender last was released, before the other broke off.
    assert signs(world) == ["broken_off"]


@pytest.mark.parametrize(
    ("title", "again", "sign"),
    [("CT1", False, "broken_off"), ("CT1", True, "quiet"), ("CT2", True, "broken_off")],
)
def test_a_sender_that_breaks_off_is_told_from_one_that_goes_on(
    engine: Engine, title: str, again: bool, sign: str
) -> None:
    """What it brings again counts: it has nothing more to bring."""
    world = world_of(engine)
    broken = Association(1, "CT1", [], AssociationEvent.ABORTED)
    world.open(broken)
    bring(world, broken)
    world.end(broken)
    pass_s(world, 10.0)
    if again:
        other = Association(2, title, [], AssociationEvent.RELEASED)
        world.open(other)
        bring(world, other, range(2))
        world.end(other)
    pass_s(world, WAITS.quiet_s + 2)
    assert signs(world) == [sign]
    (name, facts) = world.log.events[-1]
    assert name == "study.complete"
    assert "an association ended without release" in facts["reason"]


def test_time_in_quarantine_is_no_time_waited(engine: Engine) -> None:
    """The sender goes on while a person decides, long after the limit."""
    world = world_of(engine)
    association = sender(world)
    bring(world, association, range(4))
    world.arrive(association, replace(image(UID, 1), patient=BEN, sop_instance_uid=f"{UID}.99"))
    pass_s(world, WAITS.max_wait_s + 60, 10.0)
    bring(world, association, range(4, 5))
    world.index(1000)
    (entry,) = world.quarantine.list()
    world.quarantine.discard(entry.quarantine_id)
    for n in range(5, SLICES):
        pass_s(world, 10.0)
        bring(world, association, range(n, n + 1))
    world.end(association)
    pass_s(world, 10.0)
    assert signs(world) == ["released_and_contiguous"]


def broke_off(world: World, *, ends: bool = True) -> Association:
    """A sender that brings all that there is, and then does not release."""
    association = Association(1, "CT1", [], AssociationEvent.ABORTED)
    world.open(association)
    bring(world, association)
    if ends:
        world.end(association)
    world.index(1000)
    return association


@pytest.mark.parametrize("ends", [True, False], ids=["aborted", "cut-by-our-own-end"])
def test_a_restart_does_not_forget_that_a_sender_broke_off(engine: Engine, ends: bool) -> None:
    """Nor that the node itself died with the association open: the sender had more, perhaps."""
    world = world_of(engine)
    broke_off(world, ends=ends)
    world.restart()
    pass_s(world, WAITS.quiet_s - 1)
    assert signs(world) == []
    pass_s(world, 3.0)
    assert signs(world) == ["broken_off"]


def test_after_a_restart_a_sender_that_goes_on_is_seen_to(engine: Engine) -> None:
    world = world_of(engine)
    broke_off(world)
    world.restart()
    other = Association(2, "CT1", [], AssociationEvent.RELEASED)
    world.open(other)
    bring(world, other, range(2))
    world.end(other)
    pass_s(world, WAITS.quiet_s + 2)
    assert signs(world) == ["quiet"]


def test_a_restart_does_not_forget_that_all_was_released(engine: Engine) -> None:
    world = world_of(engine)
    association = sender(world)
    bring(world, association)
    world.end(association)
    world.index(1000)
    world.restart()
    pass_s(world, WAITS.grace_s + 1)
    assert signs(world) == ["released_and_contiguous"]


def test_an_association_that_outlives_the_coordinator_is_open_still(engine: Engine) -> None:
    """Receivers go on where the process that assembles is started again."""
    world = world_of(engine)
    association = sender(world)
    bring(world, association, range(SLICES - 1))
    world.index(1000)
    world._start()
    pass_s(world, 10.0)
    bring(world, association, range(SLICES - 1, SLICES))
    pass_s(world, 10.0)
    assert signs(world) == []
    world.end(association)
    pass_s(world, 0.5)
    assert signs(world) == ["released_and_contiguous"]


@pytest.mark.parametrize("sign", ["quiet", "broken_off"])
def test_what_a_person_puts_back_came_by_no_association(engine: Engine, sign: str) -> None:
    """It neither broke off, nor does it show that a sender that did has gone on."""
    world = world_of(engine)
    if sign == "broken_off":
        broke_off(world)
    # The name that `Spool.put_back` gives: a boot of its own, and no event ever.
    back = Association(0, "CT1", [], AssociationEvent.RELEASED, state="open")
    now, world.boot = world.boot, "gone"
    bring(world, back)
    world.boot = now
    world.heard[back.id("gone")] = AssociationEvent.RELEASED  # for the world's own check alone
    pass_s(world, WAITS.quiet_s + 2)
    assert signs(world) == [sign]
