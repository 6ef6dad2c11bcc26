"""Telling people how training goes: a bar on a terminal, lines elsewhere, TensorBoard, MLflow."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from pe_triage.errors import InputError
from pe_triage.training.mlflow_log import MlflowLog


class Reporter:
    """Where progress and figures go; silent on every process but the leading one.

    Parameters
    ----------
    tensorboard
        Directory for TensorBoard, or None. Needs the package ``tensorboard``.
    mlflow_log
        Where figures go too, or None.

    Raises
    ------
    InputError
        A package that was asked for is not installed.
    """

    def __init__(
        self,
        *,
        speaks: bool,
        tensorboard: Path | None = None,
        mlflow_log: MlflowLog | None = None,
        console: Console | None = None,
    ) -> None:
        self._speaks = speaks
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figure]}"),
            console=self._console,
            transient=True,
            disable=not (speaks and self._console.is_terminal),
        )
        self._task: Any = None
        self._writer: Any = None
        self._open_writer: Callable[[], Any] | None = None
        self._mlflow = mlflow_log if speaks else None
        if speaks and tensorboard is not None:
            # Opened at the first figure: a run that is refused leaves no directory behind.
            module = _needed("torch.utils.tensorboard", "tensorboard")
            self._open_writer = lambda: module.SummaryWriter(str(tensorboard))

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()
        if self._mlflow is not None:
            self._mlflow.end(failed=error is not None)

    def open(self, words: Mapping[str, str]) -> None:
        """Say that a run which was refused by nothing now begins, and what it is."""
        if self._mlflow is not None:
            self._mlflow.begin(words)

    def begin(self, words: str, total: int, done: int = 0) -> None:
        """Start a bar in the place of the last one."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(words, total=total, completed=done, figure="")

    def step(self, done: int, figure: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, figure=figure)

    def say(self, line: str) -> None:
        """Print a line."""
        if self._speaks:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def figure(self, name: str, value: float, at: int) -> None:
        """Record a figure where asked to; what stands before a slash groups it."""
        if self._writer is None and self._open_writer is not None:
            self._writer = self._open_writer()
        if self._writer is not None:
            self._writer.add_scalar(name, value, at)
            self._writer.flush()  # once an epoch: a run that is killed keeps its curves
        if self._mlflow is not None:
            self._mlflow.figure(name, value, at)


def tensorboard_there() -> bool:
    """Whether TensorBoard's package is installed."""
    return importlib.util.find_spec("tensorboard") is not None


def _needed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"the package {package} is not installed: pip install 'pe-triage[train]'"
        ) from None
