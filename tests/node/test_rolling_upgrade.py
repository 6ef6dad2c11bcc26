"""Two versions at once on one database: the schema goes up while the older program works.

The older program is the real one: the package as it stood before the newest migration was added,
taken from git's history. Where there is none (an sdist, a shallow clone) these tests are skipped.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import pytest

from pe_triage.store.migrate import migrations_dir
from tests.node.conftest import QUICK, NewStudy, storescu
from tests.support.dcmtk import StoreScp
from tests.support.node import RunningNode, RunningWorker, pe_triage, wait_for
from tests.support.peers import missing, required

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
"""A machine that is busy with other things shows the same."""
MOST = 12
"""Studies after which both versions must have had one."""


def git(*arguments: str) -> bytes:
    """What git says of this checkout, or a skip."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, check=False, timeout=60
        )
    except FileNotFoundError:
        missing("git", "git")
    if done.returncode != 0:
        no_history(done.stderr.decode(errors="replace").strip())
    return done.stdout


def no_history(why: str) -> NoReturn:
    """Skip, or fail where every peer is required."""
    message = f"no history of this checkout, which a full clone has: {why}"
    (pytest.fail if required() else pytest.skip)(message)


def migrations(paths: Iterable[Path]) -> set[str]:
    """Names of the migrations among these."""
    return {path.name for path in paths if path.name.startswith("0") and path.suffix == ".py"}


def newest_migration() -> Path:
    return max(migrations_dir().glob("versions/0*.py"))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the package as it was before the newest migration."""
    newest = newest_migration()
    folder_name = str(newest.parent.relative_to(ROOT))
    wanted = migrations(newest.parent.iterdir()) - {newest.name}

    def held(commit: str) -> set[str]:
        names = git("ls-tree", "--name-only", commit, f"{folder_name}/").decode().split()
        return migrations(map(Path, names))

    # Not the commit before it was added: a migration may have got another name or number since.
    commits = git("log", "-m", "--first-parent", "--format=%H", "--", folder_name).decode().split()
    before = next((c for c in ("HEAD", *commits) if held(c) == wanted), None)
    if before is None:
        no_history("no commit has all migrations but the newest")
    archive = git("archive", before, "pe_triage", "migrations")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    assert migrations((folder / folder_name).iterdir()) == wanted
    return folder


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_rolling_upgrade(
    older: Path,
    database: str | None,
    new_study: NewStudy,
    tiny_bundle: Path,
    store_scp: StoreScp,
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    where = ("--data-dir", data_dir, *(() if database is None else ("--database", database)))
    flags = ("--model", tiny_bundle, "--send-to", store_scp.address)
    every: list[str] = []

    def study() -> tuple[str, list[Path]]:
        study_uid, files = new_study()
        every.append(study_uid)
        return study_uid, files

    with contextlib.ExitStack() as stack:
        if database is not None:
            done = pe_triage("db", "upgrade", *where, program=older)
            assert done.returncode == 0, done.stderr
        node = stack.enter_context(
            RunningNode(
                data_dir, *flags, "--workers", 0, "--quiet-s", 3, "--log-level", "DEBUG",
                database=database, settings=QUICK, program=older, start=False,
            )
        )  # fmt: skip
        node.start(PATIENCE_S)
        old_worker = stack.enter_context(RunningWorker(*where, *flags, program=older))
        old_worker.wait_ready(PATIENCE_S)
        first, files = study()
        storescu(node, files)

        def first_ended() -> bool:
            # This version's own words are of columns that are not there yet.
            done = pe_triage("show", first, "--json", *where, program=older)
            return done.returncode == 0 and json.loads(done.stdout)["state"] == "DONE"

        wait_for(first_ended, PATIENCE_S, "the end of the first study")

        # The schema goes up while the older program has work before it.
        during, files = study()
        storescu(node, files)
        done = pe_triage("db", "upgrade", *where)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        node.wait_ended(during, timeout_s=PATIENCE_S)

        # Both versions work on one queue, behind the older receiver.
        new_worker = stack.enter_context(RunningWorker(*where, *flags)).wait_ready(PATIENCE_S)
        while not (old_worker.finished() - {first, during} and new_worker.finished()):
            assert len(every) < MOST, "one of the two versions gets no job"
            batch = [study() for _ in range(2)]
            for _, files in batch:
                storescu(node, files)
            for study_uid, _ in batch:
                node.wait_ended(study_uid, timeout_s=PATIENCE_S)

        # A process of the older node that dies now is started again, and works.
        node.kill_one("coordinator")
        wait_for(lambda: len(node.events("process.ready")) >= 3, PATIENCE_S, "started again")
        after, files = study()
        storescu(node, files)
        node.wait_ended(after, timeout_s=PATIENCE_S)

        # But an older program that is started anew refuses, in one line.
        for command in (("worker", *flags), ("db", "upgrade")):
            refused = pe_triage(*command, *where, program=older)
            assert refused.returncode == 2, refused.stderr
            (line,) = refused.stderr.splitlines()
            assert line.startswith("pe-triage: the database schema is newer than this program")

        # The node follows; the older worker is still there.
        assert node.stop() == 0
        node.program = None
        node.start(PATIENCE_S)
        for _ in range(2):
            last, files = study()
            storescu(node, files)
            node.wait_ended(last, timeout_s=PATIENCE_S)
        assert old_worker.stop() == 0
        assert new_worker.stop() == 0

        for study_uid in every:
            doc = node.show(study_uid)
            assert doc is not None
            assert (doc["state"], doc["run"], doc["pending_run"]) == ("DONE", 1, None)
            sent = store_scp.stored(study_uid)
            assert sent == dict.fromkeys((r["sop_instance_uid"] for r in doc["results"]), 1)
        assert not old_worker.finished() & new_worker.finished(), "a study was analysed twice"
        assert (old_worker.finished() | new_worker.finished()) == set(every)
