"""The same suite over SQLite and PostgreSQL (house rule 6)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, text

from pe_triage.store.engine import open_engine
from pe_triage.store.migrate import upgrade
from pe_triage.store.schema import metadata
from tests.support.postgres import postgres_url
from tests.support.store import StoreUnderTest

BACKENDS = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres() -> Iterator[str]:
    with postgres_url() as url:
        upgrade(url)
        yield url


def empty_postgres(url: str) -> None:
    engine = open_engine(url)
    names = ", ".join(table.name for table in metadata.sorted_tables)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    engine.dispose()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_database(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Make an empty, migrated database and return its URL; on PostgreSQL it is always the same."""
    count = 0

    def make() -> str:
        nonlocal count
        count += 1
        if backend == "postgresql":
            url: str = request.getfixturevalue("migrated_postgres")
            empty_postgres(url)
            return url
        path = tmp_path / f"node-{count}.sqlite3"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        return f"sqlite:///{path}"

    return make


@pytest.fixture
def store(new_database: Callable[[], str], tmp_path: Path) -> Iterator[StoreUnderTest]:
    url = new_database()
    engine = open_engine(url)
    if engine.dialect.name == "sqlite":
        # Power cuts are not what this suite is about (tests/unit/store/test_engine.py sees that
        # the node's own setting is the durable one), and waiting for the disk is most of its time.
        event.listen(engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA synchronous = OFF"))
    yield StoreUnderTest(engine=engine, url=url, data_dir=tmp_path / "data")
    engine.dispose()
