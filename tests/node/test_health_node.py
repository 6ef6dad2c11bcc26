"""A running node and a running worker as a probe sees them, and a worker that is told to end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy import select

from pe_triage.health import judge
from pe_triage.store import schema
from pe_triage.store.engine import open_engine
from tests.node.conftest import QUICK, NewStudy, storescu
from tests.node.test_faults import open_association
from tests.support.node import RunningNode, RunningWorker, pe_triage, wait_for


def asked(file: Path, *options: str) -> tuple[int, str]:
    done = pe_triage("health", *options, file)
    return done.returncode, done.stdout.strip()


def test_a_node_says_that_it_lives(new_study: NewStudy, tmp_path: Path) -> None:
    file = tmp_path / "health.json"
    assert asked(file) == (1, f"no health file {file}: it has not started")
    flags = ("--workers", 0, "--log-level", "DEBUG")
    with RunningNode(
        tmp_path / "node", *flags, settings={**QUICK, "health_file": str(file)}
    ) as node:
        assert asked(file, "--ready") == (0, "running, 2 of 2 processes ready")
        node.kill_one("receiver-1")
        # Looked at in this process: starting a probe may take longer than the restart.
        wait_for(lambda: not judge(file, ready=True).well, 30, "not ready while it is restarted")
        assert asked(file)[0] == 0
        wait_for(lambda: asked(file, "--ready")[0] == 0, 60, "ready again")

        _, files = new_study(slices=2)
        with open_association(node, files, "SCANNER") as association:
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            wait_for(lambda: asked(file, "--ready") == (1, "it is stopping"), 20, "stopping")
            assert asked(file) == (0, "it is stopping")
            assert association.send_c_store(files[0]).Status == 0x0000
        assert node.process.wait(60) == 0


@pytest.mark.timeout(400)
def test_a_worker_that_is_stopped_hands_its_run_back(
    new_study: NewStudy, tiny_bundle: Path, tmp_path: Path
) -> None:
    """It counts as no attempt, and the next worker has it at once."""
    data_dir, file = tmp_path / "node", tmp_path / "health.json"
    study_uid, files = new_study()
    settings = {**QUICK, "drain_s": 0.0}
    with RunningNode(data_dir, "--workers", 0, "--quiet-s", 3, settings=settings) as node:
        flags = ("--data-dir", data_dir, "--no-send", "--model", tiny_bundle)
        configured = ("--config", tmp_path / "node.toml")
        with RunningWorker(
            *flags, *configured, environment={"PE_TRIAGE_HEALTH_FILE": str(file)}
        ) as worker:
            worker.wait_ready(120)
            assert asked(file, "--ready") == (0, "running, 1 of 1 processes ready")
            storescu(node, files)
            wait_for(lambda: any('"job.claimed"' in line for line in worker.lines), 60, "claimed")
            assert worker.stop() == 0
            assert any('"job.handed_back"' in line for line in worker.lines), worker.lines[-5:]
        assert asked(file, "--ready")[0] == 1
        doc = node.show(study_uid)
        assert doc is not None
        assert (doc["state"], doc["pending_run"]) == ("QUEUED", 1)
        with RunningWorker(*flags, *configured) as another:
            another.wait_ready(120)
            doc = node.wait_ended(study_uid, delivered=False)
            assert (doc["state"], doc["run"]) == ("DONE", 1)
            assert another.stop() == 0
        engine = open_engine(node.database_url)
        with engine.connect() as connection:
            assert connection.execute(select(schema.jobs.c.attempts)).scalars().all() == [1]
        engine.dispose()
