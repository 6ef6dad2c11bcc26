"""However the images of studies arrive, each study ends once, whole and unmixed.

Twice. *The node's own* store, queue, quarantine and assembler run on a simulated clock
(`tests.support.assembling`): associations of three studies and two patients, conflicts, duplicates,
aborts, a PACS that is asked, a lagging journal, workers that die, restarts. And a small pure
reducer drives the deciding functions alone, a hundred times as fast; on what both can express they
must agree closing by closing. One example of Hypothesis is a hundred interleavings of the reducer
drawn from its seed, so that a failure names the seed. `tests/benchmarks/interleavings.py` runs as
many of the node's own as one has time for, and goes on where it was stopped.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from pe_triage.assemble.completeness import (
    CompletenessRules,
    SeriesProgress,
    StudyProgress,
    judge_completeness,
)
from pe_triage.assemble.eligibility import EligibilityRules, choose_series, judge_series
from pe_triage.assemble.geometry import series_geometry
from pe_triage.domain import Outcome, PatientIdentity, ReceivedInstance, StudyManifest
from pe_triage.receive.spool import AssociationEvent
from tests.support import assembling, interleaving
from tests.unit.assemble.conftest import make_series

T0 = datetime(2026, 1, 1, 12, tzinfo=UTC)
SLICES = 7
RULES = EligibilityRules(min_slices=4, min_coverage_mm=5.0)
WAITS = CompletenessRules(quiet_s=60.0, grace_s=2.0, max_wait_s=600.0, min_coverage_mm=8.0)
PER_EXAMPLE = 100


@cache
def instances(study: str) -> tuple[ReceivedInstance, ...]:
    """A chest of seven slices and one localizer; both studies are of one patient."""
    common = {"study_uid": study, "identity": PatientIdentity(patient_id="P1")}
    chest = make_series(SLICES, series=f"{study}.1", **common)
    scout = make_series(
        1, series=f"{study}.2", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"), **common
    )
    return (*chest, *scout)


@cache
def judged(study: str, held: frozenset[int]) -> tuple[SeriesProgress, ...]:
    by_series: dict[str, list[ReceivedInstance]] = {}
    for n in sorted(held):
        by_series.setdefault(instances(study)[n].series_uid, []).append(instances(study)[n])
    return tuple(
        SeriesProgress(verdict=judge_series(group, RULES), geometry=series_geometry(group))
        for _, group in sorted(by_series.items())
    )


@dataclass
class Study:
    """What a node holds of one study."""

    uid: str
    held: set[int] = field(default_factory=set)
    brought_by: set[int] = field(default_factory=set)
    receiving: bool = False
    since_s: float = 0.0
    last_s: float = 0.0
    runs: list[tuple[StudyManifest, Outcome, str]] = field(default_factory=list)


@dataclass
class Node:
    """The reducer: events and time in, runs out."""

    studies: dict[str, Study]
    associations: dict[int, str] = field(default_factory=dict)
    now_s: float = 0.0

    def store(self, association: int, uid: str, number: int) -> None:
        study = self.studies[uid]
        if number in study.held and not study.receiving:
            # As in the store: what is sent again of a study that was closed is no arrival.
            return
        study.last_s = self.now_s
        study.brought_by.add(association)
        if number in study.held:
            return
        if not study.receiving:
            study.receiving, study.since_s = True, self.now_s
        study.held.add(number)

    def pass_time(self, seconds: float) -> None:
        """Let time pass, asking again whenever the decision said so."""
        end_s = self.now_s + seconds
        while True:
            waits = [wait for study in self.studies.values() if (wait := self._judge(study))]
            step = min([*waits, end_s - self.now_s])
            if self.now_s + step >= end_s:
                self.now_s = end_s
                return
            self.now_s += step

    def _judge(self, study: Study) -> float | None:
        if not study.receiving:
            return None
        states = {a: self.associations[a] for a in study.brought_by}
        answer = judge_completeness(
            StudyProgress(
                instances=len(study.held),
                first_instance_at=T0 + timedelta(seconds=study.since_s),
                last_instance_at=T0 + timedelta(seconds=study.last_s),
                open_associations=sum(state == "open" for state in states.values()),
                all_released=all(state == "released" for state in states.values()),
                # Each association has a title of its own here.
                broken_off="aborted" in states.values(),
                series=judged(study.uid, frozenset(study.held)),
            ),
            WAITS,
            T0 + timedelta(seconds=self.now_s),
        )
        if not answer.complete:
            return answer.check_again_s
        study.receiving = False
        manifest = StudyManifest.of(study.uid, [instances(study.uid)[n] for n in study.held])
        choice = choose_series([s.verdict for s in judged(study.uid, frozenset(study.held))])
        outcome = Outcome.NOT_EVALUATED if choice.series_uid is None else Outcome.NEGATIVE
        study.runs.append((manifest, outcome, answer.sign))
        if answer.sign == "released_and_contiguous":
            assert all(state == "released" for state in states.values())
            assert study.held >= set(range(SLICES))
        return None


Event = tuple[str, int, str, int]


def script(rng: random.Random, uid: str, first: int, never: set[int]) -> list[list[Event]]:
    """The associations that bring one study: each opened, stores, ended; some are repeated."""
    numbers = [n for n in range(SLICES + 1) if n not in never]
    rng.shuffle(numbers)
    parts = rng.randint(1, 3)
    out = []
    for part in range(parts):
        association = first + part
        mine = numbers[part::parts]
        if rng.random() < 0.3:
            mine = mine + rng.choices(numbers, k=rng.randint(1, 4))
        ended = "aborted" if rng.random() < 0.2 else "released"
        stores = [("store", association, uid, n) for n in mine]
        out.append([("open", association, uid, 0), *stores, (ended, association, uid, 0)])
    return out


def interleave(rng: random.Random) -> tuple[Node, dict[str, set[int]]]:
    """Run one interleaving to its end; what was sent of each study."""
    uids = ("1.7.1", "1.7.2")
    never = {uid: set(rng.sample(range(SLICES), rng.choice([0, 0, 0, 0, 1, 2]))) for uid in uids}
    queues = [q for k, uid in enumerate(uids) for q in script(rng, uid, 10 * k, never[uid])]
    node = Node({uid: Study(uid) for uid in uids})
    while queues:
        queue = rng.choice(queues)
        kind, association, uid, number = queue.pop(0)
        if kind == "store":
            node.store(association, uid, number)
        else:
            node.associations[association] = kind
        if not queue:
            queues.remove(queue)
        # Mostly a steady stream; now and then a pause, or one longer than the quiet time.
        node.pass_time(rng.choice([0.05, 0.05, 0.05, 0.3, 0.3, 1.0, 3.0, 20.0, 70.0]))
    # A sender that stays silent with its association open ends too.
    node.pass_time(WAITS.max_wait_s + WAITS.quiet_s)
    return node, {uid: set(range(SLICES + 1)) - never[uid] for uid in uids}


def check(node: Node, sent: dict[str, set[int]]) -> None:
    for uid, study in node.studies.items():
        every = StudyManifest.of(uid, [instances(uid)[n] for n in sent[uid]])
        assert not study.receiving, "a study was left open"
        assert study.runs, "a study ended without an answer"
        # The last answer is about all that came, and every answer about this study alone.
        assert study.runs[-1][0].digest == every.digest
        own = {i.sop_instance_uid for i in instances(uid)}
        before: set[tuple[str, str]] = set()
        for manifest, _, _ in study.runs:
            assert manifest.study_uid == uid
            assert {entry[0] for entry in manifest.entries} <= own
            # Each run is about more than the one before: what was sent again started none.
            assert before < set(manifest.entries)
            before = set(manifest.entries)
        missing = set(range(SLICES)) - sent[uid]
        inner = missing & set(range(min(sent[uid]) + 1, max(sent[uid] - {SLICES}, default=0)))
        outcome = study.runs[-1][1]
        if inner:
            assert outcome is Outcome.NOT_EVALUATED
        if not missing:
            assert outcome is Outcome.NEGATIVE


def many(first: int, count: int) -> None:
    for number in range(first, first + count):
        check(*interleave(random.Random(number)))


seeds = st.integers(0, 2**40)


@settings(max_examples=20, deadline=None)
@given(first=seeds)
def test_every_interleaving_ends_whole_and_unmixed(first: int) -> None:
    many(first, PER_EXAMPLE)


@pytest.mark.long
@pytest.mark.timeout(6000)
@settings(max_examples=1000, deadline=None, database=None)
@seed(20260101)
@given(first=seeds)
def test_a_hundred_thousand_interleavings(first: int) -> None:
    many(first, PER_EXAMPLE)


def test_the_interleavings_reach_what_they_are_for() -> None:
    """Growth, early and late closing, refusals: or the property above would be empty."""
    signs: set[str] = set()
    grown = refused = 0
    for number in range(300):
        node, _ = interleave(random.Random(number))
        for study in node.studies.values():
            signs |= {sign for _, _, sign in study.runs}
            grown += len(study.runs) > 1
            refused += study.runs[-1][1] is Outcome.NOT_EVALUATED
    assert signs >= {"released_and_contiguous", "quiet", "broken_off"}
    assert grown > 20
    assert refused > 20


# ------------------------------------------------------------------ the node's own


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with assembling.fast_engine(tmp_path_factory.mktemp("node") / "node.sqlite3") as made:
        yield made


def test_the_node_ends_every_study_whole_and_unmixed(engine: Engine) -> None:
    seen = interleaving.many(engine, 0, 40)
    # Or the property would be empty.
    for word in ("DONE", "NOT_EVALUATED", "superseded", "gap", "in doubt", "decided", "restarts"):
        assert seen[word], word
    assert seen["sign released_and_contiguous"] > 5
    assert seen["sign quiet"] > 5
    assert seen["sign broken_off"]
    assert seen["sign expected_count"]


@pytest.mark.long
@pytest.mark.timeout(100_000)
def test_the_node_over_a_hundred_thousand_interleavings(engine: Engine) -> None:
    seen: Counter[str] = Counter()
    for first in range(0, 100_000, 1000):
        seen += interleaving.many(engine, first, 1000)
    assert seen["interleavings"] == 100_000
    assert seen["fenced"]


ENDS = {"released": AssociationEvent.RELEASED, "aborted": AssociationEvent.ABORTED}


def closings(engine: Engine, number: int) -> tuple[list[object], list[object]]:
    """What the node and the reducer make of the same arrivals, looked at in the same moments."""
    rng = random.Random(number)
    uids = ("1.7.1", "1.7.2")
    never = {uid: set(rng.sample(range(SLICES), rng.choice([0, 0, 1]))) for uid in uids}
    queues = [q for k, uid in enumerate(uids) for q in script(rng, uid, 10 * k, never[uid])]
    reducer = Node({uid: Study(uid) for uid in uids})
    world = assembling.World(assembling.emptied(engine), rng)
    # A title for each: only an association that brought a study keeps it open in the reducer.
    senders = {
        a: assembling.Association(a + 1, f"A{a}", [], ENDS[kind])
        for queue in queues
        for kind, a, _, _ in queue[-1:]
    }
    while queues:
        queue = rng.choice(queues)
        kind, association, uid, n = queue.pop(0)
        if kind == "store":
            reducer.store(association, uid, n)
            world.arrive(senders[association], assembling.image(uid, n))
        else:
            reducer.associations[association] = kind
            (world.open if kind == "open" else world.end)(senders[association])
        if not queue:
            queues.remove(queue)
        # No sum of these is a limit exactly: the node's clock runs on by a few microseconds.
        look(reducer, world, rng.choice([0.051, 0.053, 0.307, 1.013, 3.01, 20.3, 70.7]))
    for _ in range(12):
        look(reducer, world, 61.0)
    theirs = [
        (uid, sign, {entry[0] for entry in manifest.entries})
        for uid in uids
        for manifest, _, sign in reducer.studies[uid].runs
    ]
    signs = [
        facts["sign"]
        for uid in uids
        for name, facts in world.log.events
        if name == "study.complete" and facts["run"] is not None and facts["study_uid"] == uid
    ]
    ours = [
        (f.job.study_uid, sign, {row.sop_instance_uid for row in f.rows})
        for f, sign in zip(
            sorted(world.finished, key=lambda f: (f.job.study_uid, f.job.run)), signs, strict=True
        )
    ]
    return list(ours), list(theirs)


def look(reducer: Node, world: assembling.World, pause_s: float) -> None:
    reducer.now_s += pause_s
    world.now_s += pause_s
    world.index(1000)
    for study in reducer.studies.values():
        reducer._judge(study)
    world.tick()
    # At once: the reducer knows no queue in which two growths could meet.
    while (job := world.queue.claim("w/", 3600.0)) is not None:
        world._finish(job)


def agree(engine: Engine, first: int, count: int) -> None:
    for number in range(first, first + count):
        ours, theirs = closings(engine, number)
        assert ours, number
        assert ours == theirs, number


def test_the_reducer_closes_what_the_node_closes(engine: Engine) -> None:
    agree(engine, 0, 15)


@pytest.mark.long
@pytest.mark.timeout(20_000)
def test_the_reducer_closes_what_the_node_closes_ten_thousand_times(engine: Engine) -> None:
    agree(engine, 1000, 10_000)
