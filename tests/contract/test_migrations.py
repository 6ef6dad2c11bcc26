from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, Table, inspect, select, text

from pe_triage.errors import ConfigurationError, SchemaError
from pe_triage.store import migrate
from pe_triage.store.engine import StoreUnavailableError, open_engine
from pe_triage.store.migrate import alembic_config, check_schema, migrations_dir, revisions, upgrade
from pe_triage.store.schema import arrivals, jobs, metadata
from tests.support.postgres import free_port
from tests.support.store import START


@pytest.fixture
def empty_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without tables."""
    if backend == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite3'}"
        return
    base: str = request.getfixturevalue("migrated_postgres")
    name = f"empty_{free_port()}"
    admin = open_engine(base)
    autocommit = admin.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield base.replace("/postgres", f"/{name}").replace(f"{name}ql://", "postgresql://")
    with autocommit.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@contextmanager
def engine_of(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def test_schema_equals_migrations(new_database: Callable[[], str]) -> None:
    """House rule 11."""
    with engine_of(new_database()) as engine, engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_partial_indices_and_keys_equal_too(backend: str, empty_url: str, tmp_path: Path) -> None:
    """Alembic compares neither the condition of a partial index nor what a key does on delete."""
    direct = f"sqlite:///{tmp_path / 'direct.sqlite3'}" if backend == "sqlite" else empty_url
    with engine_of(direct) as engine:
        metadata.create_all(engine)
        wanted = described(engine)
        if backend == "postgresql":
            metadata.drop_all(engine)
    upgrade(empty_url)
    with engine_of(empty_url) as engine:
        assert described(engine) == wanted
    assert "RUNNING" in str(wanted["jobs"])
    assert "CASCADE" in str(wanted["results"])


def plain(fact: Any) -> Any:
    """Copy what the inspector says, with SQL text as text."""
    if isinstance(fact, dict):
        return {key: plain(value) for key, value in sorted(fact.items())}
    return fact if isinstance(fact, list | bool | None) else str(fact)


def described(engine: Engine) -> dict[str, list[str]]:
    inspector = inspect(engine)
    return {
        name: sorted(
            str(plain(fact))
            for fact in (
                *inspector.get_indexes(name),
                *inspector.get_foreign_keys(name),
                *inspector.get_unique_constraints(name),
                inspector.get_pk_constraint(name),
            )
        )
        for name in metadata.tables
    }


def test_empty_then_upgraded_then_nothing_to_do(empty_url: str) -> None:
    with engine_of(empty_url) as engine:
        with pytest.raises(SchemaError, match=r"empty.*pe-triage db upgrade"):
            check_schema(engine)
        upgrade(empty_url)
        check_schema(engine)
        upgrade(empty_url)
        check_schema(engine)


def test_files_are_named_by_the_revisions_of_one_chain() -> None:
    """`check_schema` asks the names, so that a command that looks need not load Alembic."""
    scripts = ScriptDirectory.from_config(alembic_config())
    chain = [script.revision for script in scripts.walk_revisions()]
    assert revisions() == chain[::-1]
    assert scripts.get_heads() == revisions()[-1:]


def test_newer_and_outdated(new_database: Callable[[], str]) -> None:
    url = new_database()
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None
    with engine_of(url) as engine:
        try:
            set_revision(engine, "9999")
            with pytest.raises(SchemaError, match="newer than this program"):
                check_schema(engine)
            with pytest.raises(SchemaError, match="newer than this program"):
                upgrade(url)
            set_revision(engine, revisions()[-2])
            with pytest.raises(SchemaError, match=r"outdated.*pe-triage db upgrade"):
                check_schema(engine)
        finally:
            set_revision(engine, head)
        check_schema(engine)


def set_revision(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})


def test_foreign_tables_are_left_alone(empty_url: str) -> None:
    with engine_of(empty_url) as engine:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE studies (name TEXT)"))
        with pytest.raises(SchemaError, match="did not make"):
            upgrade(empty_url)


def test_many_upgrade_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upgrade, [empty_url] * 4))
    with engine_of(empty_url) as engine:
        check_schema(engine)


@pytest.mark.parametrize("sends", [False, True])
def test_answers_of_a_node_that_never_had_a_destination_are_known_as_such(
    empty_url: str, sends: bool
) -> None:
    """0008: retention would take them for answers that no destination wanted."""
    with engine_of(empty_url) as engine, engine.begin() as connection:
        config = alembic_config(connection)
        command.upgrade(config, "0007")
        old = MetaData()
        old.reflect(connection)
        rows: list[tuple[str, dict[str, Any]]] = [
            ("studies", {"study_uid": "1.2"}),
            ("jobs", {"job_id": 1, "study_uid": "1.2", "run": 1, "state": "DONE"}),
            ("jobs", {"job_id": 2, "study_uid": "1.2", "run": 2, "state": "FAILED"}),
            ("results", {"result_id": 1, "job_id": 1}),
        ]
        if sends:
            rows.append(("deliveries", {"delivery_id": 1, "result_id": 1, "job_id": 1}))
        for table, more in rows:
            connection.execute(old.tables[table].insert().values(filled(old.tables[table]) | more))
        command.upgrade(config, "head")
        known = connection.execute(select(jobs.c.job_id, jobs.c.unsent).order_by(jobs.c.job_id))
        assert [tuple(row) for row in known] == [(1, not sends), (2, False)]


def test_of_associations_of_before_it_is_not_claimed_how_they_ended(empty_url: str) -> None:
    """0008: null is "not ended yet" since, and a receiver that is gone then counts as an abort."""
    with engine_of(empty_url) as engine, engine.begin() as connection:
        config = alembic_config(connection)
        command.upgrade(config, "0007")
        old = MetaData()
        old.reflect(connection)
        for name in ("studies", "arrivals"):
            table = old.tables[name]
            connection.execute(table.insert().values(filled(table) | {"study_uid": "1.2"}))
        command.upgrade(config, "head")
        assert connection.execute(select(arrivals.c.ended)).scalar_one() == "unknown"


def filled(table: Table) -> dict[str, Any]:
    """A value for each column that wants one."""
    values: dict[type, Any] = {str: "x", int: 0, float: 0.0, bool: False, datetime: START}
    return {
        column.name: values[column.type.python_type]
        for column in table.columns
        if not column.nullable and column.server_default is None
    }


def test_a_failed_migration_leaves_nothing(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDL is transactional on both, so that an upgrade can simply be run again."""
    real = command.upgrade

    def break_afterwards(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upgrade", break_afterwards)
    with pytest.raises(KeyboardInterrupt):
        upgrade(empty_url)
    monkeypatch.undo()
    with engine_of(empty_url) as engine:
        assert inspect(engine).get_table_names() == []
        upgrade(empty_url)
        check_schema(engine)


def test_upgrade_leaves_logging_and_the_working_directory_out(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from pe_triage.store.migrate import upgrade;"
        "root = logging.getLogger(); root.setLevel(logging.ERROR);"
        f"upgrade('sqlite:///{tmp_path}/x.sqlite3');"
        "assert root.level == logging.ERROR and not root.handlers;"
        "assert not logging.getLogger('pe_triage').disabled"
    )
    environment = {"PYTHONPATH": str(Path(migrate.__file__).parents[2]), "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_installed_wheel_has_its_own_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "50%" / "pe_triage"
    (package / "_migrations" / "versions").mkdir(parents=True)
    (package / "_migrations" / "env.py").touch()
    monkeypatch.setattr(migrate.pe_triage, "__file__", str(package / "__init__.py"))
    assert migrations_dir() == package / "_migrations"
    # A directory's name may hold what ConfigParser takes for interpolation.
    assert alembic_config().get_main_option("script_location") == str(package / "_migrations")


def test_broken_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate.pe_triage, "__file__", str(tmp_path / "p" / "__init__.py"))
    with pytest.raises(SchemaError, match="install it again"):
        migrations_dir()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 40)
    with pytest.raises(ConfigurationError, match="not a database"):
        upgrade(f"sqlite:///{path}")


def test_a_server_that_is_not_there() -> None:
    url = f"postgresql://u:geheim@127.0.0.1:{free_port()}/x"
    with pytest.raises(StoreUnavailableError, match="not available") as caught:
        upgrade(url)
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_from_elsewhere_in_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE music (title TEXT)")
    connection.close()
    upgrade(f"sqlite:///{path}")
    with engine_of(f"sqlite:///{path}") as engine:
        check_schema(engine)
