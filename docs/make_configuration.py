"""Print the table of docs/configuration.md from the settings themselves.

Usage: python docs/make_configuration.py
"""

from pe_triage.config import Settings


def main() -> None:
    """Print one row for each key."""
    print("| key | default | meaning |")
    print("|---|---|---|")
    for name, field in Settings.model_fields.items():
        if name == "data_dir":
            default = "the user data directory for pe-triage"
        elif field.default_factory is not None:
            default = "empty"
        else:
            default = f"`{field.default!r}`"
        print(f"| `{name}` | {default} | {field.description} |")


if __name__ == "__main__":
    main()
