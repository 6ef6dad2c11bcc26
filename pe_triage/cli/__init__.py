"""The command line: what a person touches.

Each command lives in a module of its own that is imported only when it is called, so that
``pe-triage --help`` and ``pe-triage studies`` never wait for torch.

Exit codes: 0 done; 1 it ran and something failed; 2 wrong usage, configuration or input, said in
one line without a traceback.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from pe_triage import __version__
from pe_triage.errors import InputError, PeTriageError


class _Lazy(NamedTuple):
    module: str
    help: str
    logs: bool = True
    """Whether it may log. structlog is a tenth of the start of a command that only prints."""


COMMANDS: dict[str, _Lazy] = {
    "demo": _Lazy("demo", "See it work: node, stand-in PACS and sample studies on loopback."),
    "serve": _Lazy("serve", "Run the node: receive, analyse, report, deliver."),
    "worker": _Lazy("worker", "Run a worker without a receiver on the same database and storage."),
    "studies": _Lazy("studies", "Print the triage worklist, most urgent first.", logs=False),
    "show": _Lazy("show", "Print everything known of one study, or read an SR file.", logs=False),
    "reprocess": _Lazy("reprocess", "Queue a study again as a new run."),
    "priors": _Lazy("priors", "Queue a patient's earlier studies at the PACS, behind all others."),
    "analyze": _Lazy("analyze", "Analyse a folder of DICOM files without a network."),
    "deliveries": _Lazy("deliveries", "List what waits or is parked; send parked results again."),
    "correct": _Lazy("correct", "Answer a study anew under the patient that the PACS has."),
    "quarantine": _Lazy("quarantine", "Review what was set aside."),
    "retention": _Lazy("retention", "Say what holds files here, and what may be removed."),
    "watch": _Lazy("watch", "Print control charts and the alarms that stand."),
    "reconcile": _Lazy(
        "reconcile", "Compare a day with the PACS: what never came, or got nothing."
    ),
    "health": _Lazy("health", "Say whether a node or worker lives, for probes.", logs=False),
    "echo": _Lazy("echo", "Send a C-ECHO to a peer."),
    "db": _Lazy("db", "Manage the database schema."),
    "backup": _Lazy("backup", "Copy database and files of a node, also while it runs."),
    "restore": _Lazy("restore", "Bring a backup back, and settle what it lacks."),
    "phantom": _Lazy("phantom", "Generate synthetic CTPA studies."),
    "evaluate": _Lazy("evaluate", "Evaluate a bundle on labelled data; calibrate it."),
    "train": _Lazy("train", "Train a model on RSPECT-layout data and write a bundle."),
    "bundle": _Lazy("bundle", "Inspect and verify model bundles."),
}
"""Command name to module of `pe_triage.cli` (attribute of the same name) and its line of help."""


class LazyGroup(click.Group):
    """A click group whose commands are imported when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        if lazy.logs:
            from pe_triage.logs import setup_logging

            # stdout is for the answer: without this, structlog would print events there.
            setup_logging(level="WARNING")
        module = importlib.import_module(f"pe_triage.cli.{lazy.module}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pe-triage")
def cli() -> None:
    """Triage CT pulmonary angiography for pulmonary embolism.

    Research software: a triage aid; a negative result does not exclude pulmonary embolism.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Whatever any command writes may hold patients' data: it is its user's alone.
    os.umask(0o077)
    try:
        code = cli.main(args=None if argv is None else list(argv), standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort:
        return _fail("interrupted", 1)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except InputError as error:
        return _fail(str(error), 2)
    except PeTriageError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        # The reader of our output went away (`pe-triage studies | head`); nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"pe-triage: {line}", file=sys.stderr)  # noqa: T201
    return code
