"""MLflow: what the command writes is what it reads back; a store that fails ends no training."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pe_triage.cli import cli
from pe_triage.errors import InputError
from pe_triage.training.mlflow_log import KEPT_NAME, MlflowLog, place
from tests.support.peers import required
from tests.support.rspect import small_tree

try:
    import mlflow
except ImportError:
    mlflow = None
# MLflow's own use of SQLAlchemy is not ours to fix.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")


@pytest.fixture
def store() -> Any:
    if mlflow is None:
        (pytest.fail if required() else pytest.skip)("the package mlflow-skinny is not installed")
    return mlflow


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tree(tmp_path_factory.mktemp("mlflow"), 5, size=32, slices=6)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    yield
    if mlflow is not None:
        mlflow.end_run()


def train(tree: Path, out: Path, uri: str, *more: str) -> Any:
    args = [
        "train", "cnn-max", "--data", str(tree), "--out", str(out), "--size", "32", "--epochs1",
        "2", "--batch1", "2", "--units-per-exam", "2", "--max-steps1", "1", "--validation", "0.4",
        "--device", "cpu", "--no-tensorboard", "--mlflow", uri, *more,
    ]  # fmt: skip
    return CliRunner().invoke(cli, args)


def test_figures_and_words_stand_in_the_store_and_a_resumed_run_goes_on_there(
    tmp_path: Path, store: Any
) -> None:
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    for at in range(2):
        log = MlflowLog(uri, tmp_path, pytest.fail)
        log.begin({"spec": "s"})
        log.figure("stage1/training loss", 1.0 - at, at)
        log.end(failed=not at)
    (run,) = store.MlflowClient(tracking_uri=uri).search_runs(["0"])
    assert run.info.run_id == (tmp_path / KEPT_NAME).read_text().strip()
    assert (run.info.status, run.info.run_name) == ("FINISHED", tmp_path.name)
    assert run.data.params == {"spec": "s"}
    found = store.MlflowClient(uri).get_metric_history(run.info.run_id, "stage1/training_loss")
    assert [(m.step, m.value) for m in found] == [(0, 1.0), (1, 0.0)]
    with pytest.raises(InputError) as caught:
        MlflowLog("nonsense://me:secret@host/x", tmp_path, print).begin({})
    assert "MLflow at nonsense://host/x" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_the_command_writes_losses_and_settings_to_a_store(
    tree: Path, tmp_path: Path, store: Any
) -> None:
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    done = train(tree, tmp_path / "run", uri)
    assert done.exit_code == 0, done.output
    client = store.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.info.run_id == (tmp_path / "run" / KEPT_NAME).read_text().strip()
    assert run.data.params["spec"] == "cnn-max-32"
    assert run.data.params["stage1.epochs"] == "2"
    history = json.loads((tmp_path / "run" / "stage1-history.json").read_text())["history"]
    for name in ("training", "validation"):
        found = client.get_metric_history(run.info.run_id, f"stage1/{name}_loss")
        assert [m.step for m in found] == [0, 1]
        want = [entry[f"{name}_loss"] for entry in history]
        assert [m.value for m in found] == pytest.approx(want)
    # refused: it has been trained already; nothing is added to the store
    assert isinstance(train(tree, tmp_path / "run", uri).exception, InputError)
    assert len(client.search_runs(["0"])) == 1
    # resumed it is the same run in the store
    assert train(tree, tmp_path / "run", uri, "--resume").exit_code == 0
    assert len(client.search_runs(["0"])) == 1


class Broken:
    """Stands for MLflow whose server goes away after the start."""

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_a, **_k: self

    info = type("Info", (), {"run_id": "1"})

    def log_metric(self, *_a: object, **_k: object) -> None:
        self.asked += 1
        raise ConnectionError("gone\naway")

    def end_run(self, *_a: object) -> None:
        raise ConnectionError("gone")


def test_a_store_lost_in_the_middle_is_said_once_and_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken()
    monkeypatch.setitem(sys.modules, "mlflow", broken)  # type: ignore[arg-type]
    said: list[str] = []
    log = MlflowLog("https://a:b@host:5000/x", tmp_path, said.append)
    log.begin({"spec": "s"})
    for at in range(3):
        log.figure("stage1/training loss", 1.0, at)
    log.end(failed=False)
    assert broken.asked == 1
    assert said[0] == "MLflow at https://host:5000/x is lost, training goes on: gone away"
    assert len(said) == 2


def test_without_the_package_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = train(tmp_path, tmp_path / "run", "sqlite:///x.db")
    assert isinstance(done.exception, InputError)
    assert "pip install 'pe-triage[mlflow]'" in str(done.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        ("sqlite:////data/runs.db", "sqlite:////data/runs.db"),
        ("runs", "runs"),
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("https://[bad", "the URI given"),
    ],
)
def test_a_uri_is_named_without_user_and_password(uri: str, want: str) -> None:
    assert place(uri) == want
