"""Print the tables of keys of docs/integration.md from the settings themselves; a test compares.

Usage: PYTHONPATH=. python docs/make_integration.py
"""

from __future__ import annotations

from pydantic_core import PydanticUndefined

from pe_triage.archive import ARCHIVE_TABLES
from pe_triage.destinations import TABLES


def rows(table: type) -> list[str]:
    """Return one row for each key of one kind of destination."""
    found = []
    for name, field in table.model_fields.items():
        if name == "type":
            continue
        default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`"
        if field.default_factory is not None:
            default = f"`{field.default_factory()!r}`"
        found.append(f"| `{name}` | {default} | {field.description} |")
    return found


def type_of(table: type) -> str:
    """Return the value of `type` that selects it."""
    return table.model_fields["type"].annotation.__args__[0]


def main() -> None:
    """Print every table."""
    for name, table in ARCHIVE_TABLES.items():
        print(f"\n### `{name}`\n")
        print("| key | default | meaning |\n|---|---|---|")
        print("\n".join(rows(table)))
    for table in TABLES:
        print(f"\n### `type = \"{type_of(table)}\"`\n")
        print(table.__doc__)
        print("\n| key | default | meaning |\n|---|---|---|")
        print("\n".join(rows(table)))


if __name__ == "__main__":
    main()
