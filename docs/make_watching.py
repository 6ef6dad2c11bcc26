"""Print the tables of docs/watching.md from the settings and the alarms themselves.

Usage: PYTHONPATH=. python docs/make_watching.py
"""

from pydantic_core import PydanticUndefined

from pe_triage.monitoring import MONITORING_TABLES
from pe_triage.watch.alarms import NAMES


def rows(table: type) -> list[str]:
    """One line for each key."""
    lines = []
    for name, field in table.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return lines


def alarm_rows() -> list[str]:
    """One line for each alarm."""
    return [f"| `{name}` | {words} |" for name, words in NAMES.items()]


def main() -> None:
    """Print everything."""
    for name, table in MONITORING_TABLES.items():
        print(f"### `{name}`\n\n| key | default | meaning |\n|---|---|---|")
        print("\n".join(rows(table)), end="\n\n")
    print("| alarm | meaning |\n|---|---|")
    print("\n".join(alarm_rows()))


if __name__ == "__main__":
    main()
