"""How a show document looks to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ONLY_WHERE_SAID = ("images no longer held", "series_choice", "quarantine_reason", "last_error")
PRIORITY_STYLE = {"HIGH": "bold red", "MEDIUM": "yellow", "LOW": "cyan"}


def wide_console() -> Console:
    """A console as wide as the terminal; wide enough for a UID where the output goes elsewhere."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def _text(value: Any, digits: int | None = None) -> str:
    if value is None:
        return "–"
    if digits is not None and isinstance(value, int | float):
        return f"{value:.{digits}f}"
    return escape(str(value))


REMOVED_WHY = {
    "AGE": "by age",
    "SPACE": "for want of space",
    "LOST": "not in the backup that was restored",
}


def not_held(doc: Mapping[str, Any]) -> str | None:
    """How many images of a study went, when and why; None where all are here."""
    gone = doc.get("instances", 0) - doc.get("instances_held", doc.get("instances", 0))
    if gone <= 0:
        return None
    why = REMOVED_WHY.get(str(doc.get("images_removed_why")), "")
    return f"{gone} of {doc['instances']}, removed {why} on {str(doc['images_removed_at'])[:10]}"


def worklist_table(documents: Sequence[Mapping[str, Any]]) -> Table:
    """The triage worklist as a table, in the order given."""
    table = Table(title="Triage worklist, most urgent first", title_justify="left")
    for heading, justify in (
        ("Study", "left"),
        ("Outcome", "left"),
        ("PE probability", "right"),
        ("Priority", "left"),
        ("Seconds", "right"),
    ):
        table.add_column(
            heading,
            justify=justify,  # type: ignore[arg-type]
            overflow="fold",
            ratio=2 if heading == "Outcome" else None,
            min_width=44 if heading == "Study" else None,
        )
    for doc in documents:
        priority = doc.get("priority")
        style = PRIORITY_STYLE.get(str(priority), "")
        outcome = doc.get("outcome") or doc.get("state")
        reason, doubt, gone = doc.get("reason"), doc.get("quarantine_reason"), not_held(doc)
        table.add_row(
            _text(doc["study_uid"]),
            _text(outcome)
            + (f"\n[dim]{_text(reason)}[/dim]" if reason and reason != doubt else "")
            + (f"\n[bold red]! {_text(doubt)}[/bold red]" if doubt else "")
            + (f"\n[dim]images no longer held: {_text(gone)}[/dim]" if gone else ""),
            _text(doc.get("pe_probability"), 3),
            f"[{style}]{_text(priority)}[/{style}]" if style else _text(priority),
            _text(doc.get("latency_s"), 1),
        )
    return table


def print_document(console: Console, doc: Mapping[str, Any]) -> None:
    """Everything known of one study, for a person."""
    doc = {**doc, "images no longer held": not_held(doc)}
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key in (
        "study_uid",
        "state",
        "outcome",
        "reason",
        "quarantine_reason",
        "last_error",
        "priority",
        "series_uid",
        "series_choice",
        "instances",
        "images no longer held",
        "run",
        "pe_probability",
        "received_at",
        "last_image_at",
        "completed_at",
        "delivered_at",
        "latency_s",
    ):
        if key in doc and (key not in ONLY_WHERE_SAID or doc[key] is not None):
            table.add_row(key.replace("_", " "), _text(doc[key]))
    model = doc.get("model")
    if model:
        table.add_row(
            "model",
            f"{_text(model['name'])} {_text(model['version'])} "
            f"({_text(model['intended_use'])}) {_text(model['sha256'])}",
        )
    console.print(table)
    findings = doc.get("findings")
    exam = doc.get("exam")
    if exam or findings:
        labels = Table("label", "probability", "finding")
        for name in exam or findings or {}:
            labels.add_row(
                _text(name), _text((exam or {}).get(name), 3), _text((findings or {}).get(name))
            )
        console.print(labels)
    results = doc.get("results") or []
    if results:
        objects = Table("kind", "file", "deliveries")
        for result in results:
            sent = "\n".join(
                f"{_text(d['destination'])}: {_text(d['state'])} ({d['attempts']} attempts)"
                + (f" {_text(d['last_error'])}" if d.get("last_error") else "")
                for d in result.get("deliveries", [])
            )
            objects.add_row(_text(result["kind"]), _text(result.get("path")), sent or "–")
        console.print(objects)
