from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pe_triage.domain import Outcome, ResultKind
from pe_triage.routing import DICOM_KINDS, MESSAGE_KINDS, Route, plan_deliveries


@dataclass(frozen=True)
class Item:
    kind: ResultKind
    addressee: str | None = None


RESULTS = [
    Item(ResultKind.SR),
    Item(ResultKind.SUMMARY),
    Item(ResultKind.HEATMAP),
    Item(ResultKind.HL7, "ris"),
    Item(ResultKind.WEBHOOK, "pager"),
]


def test_different_destinations_get_different_sets() -> None:
    routes = [
        Route(name="PACS@pacs:104"),
        Route(name="reading", kinds=frozenset({ResultKind.SUMMARY})),
        Route(name="ris", kinds=frozenset({ResultKind.HL7})),
        Route(
            name="pager",
            kinds=frozenset({ResultKind.WEBHOOK}),
            outcomes=frozenset({Outcome.POSITIVE}),
        ),
    ]
    negative = [(0, "PACS@pacs:104"), (1, "PACS@pacs:104"), (1, "reading"), (2, "PACS@pacs:104")]
    assert list(plan_deliveries(RESULTS, routes, Outcome.NEGATIVE)) == [*negative, (3, "ris")]
    assert plan_deliveries(RESULTS, routes, Outcome.POSITIVE)[-1] == (4, "pager")


def test_kinds_are_either_dicom_or_message() -> None:
    assert frozenset(ResultKind) == DICOM_KINDS | MESSAGE_KINDS
    assert not DICOM_KINDS & MESSAGE_KINDS


ITEMS = st.builds(Item, st.sampled_from(ResultKind), st.sampled_from([None, "a", "b"]))
ROUTES = st.builds(
    Route,
    name=st.sampled_from(["a", "b", "c"]),
    kinds=st.frozensets(st.sampled_from(ResultKind)),
    outcomes=st.frozensets(st.sampled_from(Outcome)),
)


@given(st.lists(ITEMS), st.lists(ROUTES), st.sampled_from(Outcome))
def test_what_a_plan_never_does(items: list[Item], routes: list[Route], outcome: Outcome) -> None:
    plan = plan_deliveries(items, routes, outcome)
    assert len(set(plan)) == len(plan)
    first = {route.name: route for route in reversed(routes)}
    for index, name in plan:
        item, route = items[index], first[name]
        assert item.kind in route.kinds
        assert outcome in route.outcomes
        # A message never reaches anyone but its addressee: it may name the patient.
        assert item.kind in DICOM_KINDS or item.addressee == name
    for index, item in enumerate(items):
        for name, route in first.items():
            if item.kind in DICOM_KINDS & route.kinds and outcome in route.outcomes:
                assert ((index, name) in plan) == (item.addressee in (None, name))
