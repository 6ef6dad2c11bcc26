"""The floors of the house: imports run downwards only, and light processes never see torch.

The floors are those of the design: a room may import from floors below its own, from itself, and
from the neighbours that are named for it here; nothing else.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from pe_triage.store.migrate import upgrade

PACKAGE = Path(__file__).resolve().parents[2] / "pe_triage"

FLOOR: dict[str, int] = {
    "__init__": 0,
    "addresses": 0,
    "archive": 0,
    "clock": 0,
    "commitment": 0,
    "cores": 0,
    "config": 0,
    "destinations": 0,
    "domain": 0,
    "errors": 0,
    "frames": 0,
    "health": 0,
    "identity": 0,
    "logs": 0,
    "monitoring": 0,
    "repeating": 0,
    "resources": 0,
    "retention": 0,
    "routing": 0,
    "stack": 0,
    "urgency": 0,
    "assemble": 1,
    "imaging": 1,
    "report": 1,
    "watch": 1,
    "model": 2,
    "phantom": 3,
    "training": 3,
    "infer": 3,
    "receive": 3,
    "store": 3,
    "deliver": 3,
    "node": 4,
    "cli": 5,
    "web": 5,
    "app": 5,
    "answering": 5,
    "processes": 5,
    "committing": 5,
    "retrieving": 5,
    "keeping": 5,
    "sharing": 5,
    "startup": 5,
    "watchers": 5,
    "__main__": 6,
}

NEVER: dict[str, set[str]] = {
    "infer": {"receive", "store", "deliver", "report", "assemble", "training", "phantom"},
    "phantom": {"receive", "store", "deliver", "report", "assemble", "infer", "training"},
    "training": {"receive", "store", "deliver", "report", "assemble"},
    "receive": {"model", "imaging", "assemble", "report"},
    "store": {"model", "imaging", "assemble", "report"},
    "deliver": {"model", "imaging", "assemble", "report"},
    "watch": {"model", "imaging", "assemble", "report"},
    "node": {"training", "phantom"},
}
"""Rooms on a lower floor that a room has no business with."""

ROOM_SAME_FLOOR_ALLOWED: dict[str, set[str]] = {
    "archive": {"addresses", "domain", "errors"},
    "commitment": {"identity"},
    "config": {
        "addresses",
        "archive",
        "destinations",
        "domain",
        "errors",
        "monitoring",
        "retention",
        "routing",
        "urgency",
    },
    "monitoring": {"addresses", "domain", "errors"},
    "destinations": {"addresses", "domain", "errors", "routing"},
    "routing": {"domain"},
    "urgency": {"addresses", "errors"},
    "health": {"repeating"},
    "identity": {"domain"},
    "addresses": {"domain", "errors"},
    "domain": {"errors"},
    "logs": set(),
    "resources": {"errors"},
    "frames": {"domain"},
    "stack": {"domain", "frames"},
    "app": {"answering", "keeping", "processes", "sharing", "startup"},
    "processes": {"answering", "committing", "keeping", "sharing", "watchers"},
    "keeping": {"sharing", "startup", "watchers"},
    "committing": {"watchers"},
    "retrieving": {"watchers"},
    "cli": {"answering", "app", "keeping", "retrieving", "watchers"},
    # Evaluation judges what is served, so it predicts and explains by the code that serves. The
    # demonstration model is made of phantoms.
    "training": {"infer", "phantom"},
}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path, source: str) -> set[tuple[str, int]]:
    """Rooms of pe_triage that a module imports, at module level or inside functions."""
    rooms: set[tuple[str, int]] = set()
    package = ["pe_triage", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            if module == "pe_triage":
                names = [f"pe_triage.{alias.name}" for alias in node.names]
            else:
                names = [module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pe_triage":
                rooms.add((parts[1] if len(parts) > 1 else "__init__", node.lineno))
    return rooms


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downwards(path: Path) -> None:
    room = room_of(path)
    assert room in FLOOR, f"a new room {room!r}: give it a floor in this test and in the design"
    for target, line in imported_rooms(path, path.read_text(encoding="utf-8")):
        if target in (room, "__init__", "__version__"):
            continue
        assert target in FLOOR, f"{path.name}:{line} imports unknown room {target}"
        below = FLOOR[target] < FLOOR[room]
        beside = target in ROOM_SAME_FLOOR_ALLOWED.get(room, set())
        assert below or beside, f"{path.name}:{line}: {room} may not import {target}"
        assert target not in NEVER.get(room, set()), f"{path.name}:{line}: {room} -> {target}"


def test_the_checker_sees_an_arrow_that_runs_up() -> None:
    """A check that cannot fail shows nothing."""
    source = "def f():\n    from ..store import engine\n    import pe_triage.node.worker\n"
    rooms = {room for room, _ in imported_rooms(PACKAGE / "assemble" / "planted.py", source)}
    assert rooms == {"store", "node"}


@pytest.mark.parametrize(
    "module",
    [
        "pe_triage.cli",
        "pe_triage.app",
        "pe_triage.receive.server",
        "pe_triage.store.jobs",
        "pe_triage.deliver.store_scu",
        "pe_triage.node.coordinator",
        "pe_triage.node.supervisor",
    ],
)
def test_light_processes_never_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


HEAVY = ("torch", "timm", "scipy", "highdicom", "pydicom", "pynetdicom", "numpy", "PIL",
         "alembic", "psycopg", "apscheduler", "structlog", "pe_triage.app")  # fmt: skip
"""What a command that looks at the database has no need of."""


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [(["studies"], 0), (["studies", "--json"], 0), (["show", "1.2.3"], 2)],
)
def test_who_looks_at_the_database_loads_little_more(
    tmp_path: Path, command: list[str], exit_code: int
) -> None:
    upgrade(f"sqlite:///{tmp_path / 'pe-triage.sqlite3'}")
    code = (
        "import sys; from pe_triage.cli import main;"
        f"assert main({[*command, '--data-dir', str(tmp_path)]!r}) == {exit_code};"
        f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_almost_nothing() -> None:
    code = (
        "import sys; from pe_triage.cli import main; main(['--help']);"
        "bad = {'torch', 'pydicom', 'sqlalchemy', 'numpy', 'pynetdicom'} & set(sys.modules);"
        "sys.exit(str(sorted(bad)) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
