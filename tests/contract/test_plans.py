"""The statements that run all day are answered from indices, whatever the tables hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Select, event, insert, select, text

from pe_triage.store import schema
from pe_triage.store.documents import worklist
from pe_triage.store.jobs import claimable
from tests.support.many_studies import OWNER, QUESTIONS, Node, cost, fill
from tests.support.store import PACS, StoreUnderTest

MANY = 3000
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def full(store: StoreUnderTest) -> StoreUnderTest:
    """A store with thousands of ended studies, and a few that wait."""
    uids = [f"1.2.3.{n}" for n in range(MANY)]
    times: dict[str, Any] = {"received_at": NOW, "last_image_at": NOW}
    with store.engine.begin() as connection:
        connection.execute(
            insert(schema.studies),
            [
                {
                    "study_uid": uid,
                    "patient_id": "p",
                    "issuer": "",
                    "state": "DONE",
                    "run": 1,
                    "instances": 1,
                    "images": 1,
                    "urgency": n % 4,
                    "last_activity_at": NOW,
                    **times,
                }
                for n, uid in enumerate(uids)
            ],
        )
        connection.execute(
            insert(schema.jobs),
            [
                {
                    "job_id": n + 1,
                    "study_uid": uid,
                    "run": 1,
                    "manifest_digest": "0" * 64,
                    "state": "QUEUED" if n % 100 == 0 else "DONE",
                    "rank": 100,
                    "available_at": 0.0,
                    "attempts": 0,
                    "fencing_token": 0,
                    "superseded": False,
                    "created_at": NOW,
                    **times,
                }
                for n, uid in enumerate(uids)
            ],
        )
        connection.execute(
            insert(schema.results),
            [
                {"result_id": n + 1, "job_id": n + 1, "ordinal": 0, "kind": "SR", "path": "x"}
                for n in range(MANY)
            ],
        )
        connection.execute(
            insert(schema.deliveries),
            [
                {
                    "result_id": n + 1,
                    "job_id": n + 1,
                    "destination": PACS,
                    "state": "PENDING" if n % 100 == 0 else "SENT",
                    "attempts": 0,
                    "urgency": n % 4,
                    "ordinal": 0,
                    "queued_at": 0.0,
                    "next_attempt_at": 0.0,
                }
                for n in range(MANY)
            ],
        )
        connection.execute(text("ANALYZE"))
    return store


def plan(store: StoreUnderTest, statement: Select[Any]) -> str:
    explain = "EXPLAIN QUERY PLAN " if store.engine.dialect.name == "sqlite" else "EXPLAIN "
    compiled = statement.compile(store.engine, compile_kwargs={"literal_binds": True})
    with store.engine.begin() as connection:
        rows = connection.exec_driver_sql(explain + str(compiled).replace("%", "%%")).all()
    return "\n".join(str(row) for row in rows)


def test_claim(full: StoreUnderTest) -> None:
    text_ = plan(full, claimable(lock=False))
    assert "ix_jobs_claim" in text_
    assert "Sort" not in text_
    assert "TEMP B-TREE" not in text_


def test_worklist_page(full: StoreUnderTest) -> None:
    statements: list[str] = []
    event.listen(
        full.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_rest: statements.append(statement),
    )
    assert len(worklist(full.engine, full.data_dir, limit=50)) == 50
    # A page costs a fixed number of statements, not one for each study.
    assert sum(s.lstrip().startswith("SELECT") for s in statements) <= 5
    studies = schema.studies
    page = (
        select(studies)
        .order_by(studies.c.urgency, studies.c.received_at, studies.c.study_uid)
        .limit(50)
    )
    text_ = plan(full, page)
    assert "ix_studies_worklist" in text_
    assert "TEMP B-TREE" not in text_


def test_due_deliveries(full: StoreUnderTest) -> None:
    statements: list[tuple[str, Any]] = []
    event.listen(
        full.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, parameters, *_rest: statements.append(
            (statement, parameters)
        ),
    )
    assert len(full.outbox.due(PACS, 10)) == 10
    statement, parameters = next(s for s in statements if "deliveries" in s[0])
    explain = "EXPLAIN QUERY PLAN " if full.engine.dialect.name == "sqlite" else "EXPLAIN "
    with full.engine.begin() as connection:
        rows = connection.exec_driver_sql(explain + statement, parameters).all()
    text_ = "\n".join(str(row) for row in rows)
    # Either of the two indices that hold nothing but what is pending.
    assert "ix_deliveries_due" in text_ or "ix_deliveries_next" in text_


FEW, MORE = 1_000, 8_000
"""Studies held. What grows with them has grown to eight times the cost."""


@pytest.fixture(scope="module")
def costs() -> dict[tuple[str, int], dict[str, int]]:
    """Filled once for each database and size."""
    return {}


@pytest.mark.parametrize("name", ["claim", *QUESTIONS])
def test_what_is_asked_all_day_costs_the_same_however_much_is_held(
    name: str, backend: str, store: StoreUnderTest, costs: dict[tuple[str, int], dict[str, int]]
) -> None:
    for size in (FEW, MORE):
        if (backend, size) not in costs:
            fill(store.engine, size)
            node = Node(store.engine, store.data_dir)
            costs[backend, size] = {"claim": cost(node, lambda n: n.queue.claim(OWNER, 30.0))}
            costs[backend, size] |= {asked: cost(node, ask) for asked, ask in QUESTIONS.items()}
    few, more = costs[backend, FEW][name], costs[backend, MORE][name]
    # A tree that is a level deeper is no growth; a table that is read through is.
    assert more <= 2 * few + 20, (few, more)


@pytest.mark.parametrize("backend", ["postgresql"])
def test_no_statement_is_planned_for_any_value(store: StoreUnderTest) -> None:
    """What psycopg has prepared goes on to be planned for its values, and finds its index."""
    for _ in range(20):
        assert store.queue.claim(OWNER, 30.0) is None
    counts = "SELECT sum(custom_plans), sum(generic_plans) FROM pg_prepared_statements"
    with store.engine.connect() as connection:
        custom, generic = connection.execute(text(counts)).one()
    assert custom > 0
    assert generic == 0
