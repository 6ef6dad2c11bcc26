"""Each migration leaves room for the program of the version before, which works on beside it.

Expand first, contract later: a migration may add what the older program neither reads nor has to
write, and nothing else. What is to go, goes one version after the last program that used it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from alembic import command
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Engine, Integer, Text, inspect

from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import alembic_config
from tests.contract.test_migrations import empty_url, plain  # noqa: F401 - one is a fixture

CONTRACTING: dict[str, str] = {}
"""Revisions that take something away, with the version whose programs may not run any more. Their
release notes must tell sites to stop everything first."""

Schema = dict[str, dict[str, Any]]


@pytest.fixture
def engine(empty_url: str) -> Iterator[Engine]:  # noqa: F811
    engine = open_engine(empty_url)
    yield engine
    engine.dispose()


def schema_of(connection: Connection) -> Schema:
    """Columns, and what restricts rows, by table."""
    inspector = inspect(connection)
    return {
        table: {
            "columns": {c["name"]: c for c in inspector.get_columns(table)},
            "rules": {
                str(plain(rule))
                for rule in (
                    *inspector.get_unique_constraints(table),
                    *inspector.get_foreign_keys(table),
                    *inspector.get_check_constraints(table),
                    *(i for i in inspector.get_indexes(table) if i["unique"]),
                )
            },
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def in_the_way(before: Schema, after: Schema) -> list[str]:
    """What a program that knows `before` cannot live with in `after`."""
    found = [f"table {name} is gone" for name in before.keys() - after.keys()]
    for table in before.keys() & after.keys():
        old, new = before[table]["columns"], after[table]["columns"]
        found += [f"{table}.{name} is gone" for name in old.keys() - new.keys()]
        for name, column in new.items():
            if name not in old:
                if not column["nullable"] and column["default"] is None:
                    found.append(f"{table}.{name} must be written")
                continue
            if str(column["type"]) != str(old[name]["type"]):
                found.append(f"{table}.{name} has another type")
            if old[name]["nullable"] and not column["nullable"]:
                found.append(f"{table}.{name} may not be left out any more")
            if old[name]["default"] is not None and column["default"] is None:
                found.append(f"{table}.{name} has lost its default")
        found += [f"{table}: new rule {r}" for r in after[table]["rules"] - before[table]["rules"]]
    return sorted(found)


def test_no_migration_is_in_the_way_of_the_version_before(engine: Engine) -> None:
    script = ScriptDirectory.from_config(alembic_config())
    revisions = [r.revision for r in script.walk_revisions()][::-1]
    assert len(revisions) >= 5
    # Not committed: a transaction may see its own tables.
    with engine.connect() as connection:
        config = alembic_config(connection)
        command.upgrade(config, revisions[0])
        before = schema_of(connection)
        assert {"studies", "jobs"} <= before.keys()
        for revision in revisions[1:]:
            command.upgrade(config, revision)
            after = schema_of(connection)
            if revision not in CONTRACTING:
                assert in_the_way(before, after) == [], revision
            before = after
        connection.rollback()


MISTAKES: dict[str, Callable[[Operations], object]] = {
    "table alarms is gone": lambda op: (op.drop_table("alarm_notices"), op.drop_table("alarms")),
    "jobs.reason is gone": lambda op: op.drop_column("jobs", "reason"),
    "jobs: new rule": lambda op: op.create_index(
        "uq_jobs_digest", "jobs", ["manifest_digest"], unique=True
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_migration_that_is_in_the_way_is_found(mistake: str, engine: Engine) -> None:
    """A check that cannot fail shows nothing."""
    with engine.connect() as connection:
        command.upgrade(alembic_config(connection), "head")
        before = schema_of(connection)
        MISTAKES[mistake](Operations(MigrationContext.configure(connection)))
        found = in_the_way(before, schema_of(connection))
        connection.rollback()
    assert any(line.startswith(mistake) for line in found), found


def test_columns_that_are_in_the_way_are_found() -> None:
    """SQLite itself makes few of these, and PostgreSQL none on a table that holds rows."""
    before: Schema = {"t": {"columns": {"a": column(), "b": column(default="0")}, "rules": set()}}
    after: Schema = {
        "t": {
            "columns": {
                "a": column(nullable=False, type="TEXT"),
                "b": column(),
                "c": column(nullable=False),
            },
            "rules": set(),
        }
    }
    assert in_the_way(before, after) == [
        "t.a has another type",
        "t.a may not be left out any more",
        "t.b has lost its default",
        "t.c must be written",
    ]


def column(**changes: object) -> dict[str, object]:
    return {"type": "INTEGER", "nullable": True, "default": None, **changes}


def test_what_may_be_added(engine: Engine) -> None:
    with engine.connect() as connection:
        command.upgrade(alembic_config(connection), "head")
        before = schema_of(connection)
        op = Operations(MigrationContext.configure(connection))
        op.add_column("jobs", Column("colour", Text))
        op.add_column("jobs", Column("size", Integer, nullable=False, server_default="0"))
        op.create_index("ix_jobs_colour", "jobs", ["colour"])
        op.create_table("colours", Column("name", Text, primary_key=True))
        assert in_the_way(before, schema_of(connection)) == []
        connection.rollback()
