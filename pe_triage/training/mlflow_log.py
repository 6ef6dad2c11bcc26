"""Figures of a training run in MLflow, for those who keep their runs there.

MLflow counts its users over the network unless told otherwise; it is told otherwise here, since a
training machine in a hospital sends nothing anywhere but to the store that was named.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pe_triage.errors import InputError

KEPT_NAME: Final = "mlflow-run.txt"
"""In the directory of the run: the id of its run in MLflow, so that a resumed one goes on there."""
_QUIET: Final = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")


class MlflowLog:
    """One run in MLflow's store, opened once nothing has refused the training run.

    A store that goes away in the middle ends no training: it is said once, and the figures stand
    in the run's own history files all the same.

    Parameters
    ----------
    uri
        Tracking URI, such as ``sqlite:///runs.db`` or that of a server.
    run
        Directory of the training run.
    say
        Prints a line.

    Raises
    ------
    InputError
        The package is not installed.
    """

    def __init__(self, uri: str, run: Path, say: Callable[[str], None]) -> None:
        for name in _QUIET:
            os.environ.setdefault(name, "true")
        try:
            self._mlflow: Any = importlib.import_module("mlflow")
        except ImportError:
            raise InputError(
                "the package mlflow is not installed: pip install 'pe-triage[mlflow]'"
            ) from None
        self._uri, self._run, self._say = uri, run, say
        self._open = False
        self._lost = False

    def begin(self, words: Mapping[str, str]) -> None:
        """Open the run, or go on with the one that was opened for this directory before.

        Parameters
        ----------
        words
            What the run is to be found by: its spec and settings.

        Raises
        ------
        InputError
            The store cannot be used.
        """
        kept = self._run / KEPT_NAME
        known = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
        try:
            self._mlflow.set_tracking_uri(self._uri)
            active = self._mlflow.start_run(
                run_id=known, run_name=None if known else self._run.name
            )
            self._open = True
            if known is None:
                kept.write_text(f"{active.info.run_id}\n", encoding="utf-8")
                self._mlflow.log_params({k: v[:500] for k, v in words.items()})
        except Exception as error:  # noqa: BLE001  as its database or its server may fail
            raise InputError(f"MLflow at {place(self._uri)}: {self._line(error)}") from None

    def figure(self, name: str, value: float, at: int) -> None:
        """Record a figure, under a name that MLflow takes."""
        if not self._open or self._lost:
            return
        try:
            self._mlflow.log_metric(name.replace(" ", "_"), value, step=at)
        except Exception as error:  # noqa: BLE001  as above
            self._lost = True
            self._say(
                f"MLflow at {place(self._uri)} is lost, training goes on: {self._line(error)}"
            )

    def end(self, *, failed: bool) -> None:
        """Close the run."""
        if not self._open:
            return
        try:
            self._mlflow.end_run("FAILED" if failed else "FINISHED")
        except Exception as error:  # noqa: BLE001  as above
            self._say(f"MLflow at {place(self._uri)}: not closed: {self._line(error)}")

    def _line(self, error: Exception) -> str:
        text = " ".join(str(error).replace(self._uri, place(self._uri)).split())
        return text[:200] or type(error).__name__


def place(uri: str) -> str:
    """Return a URI without user name and password."""
    try:
        parts = urlsplit(uri)
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return "the URI given"
    return parts._replace(netloc=host).geturl() if parts.netloc else uri
