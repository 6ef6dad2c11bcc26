"""Structured logging: study and job ids, never patient identity.

The processors run in this order: level and UTC time are added, keys that name identity are removed
whatever a caller passed, and the rest is written to stderr as one JSON line (or as coloured text
on a terminal). Study UIDs are logged: they are pseudonymous within a site and are what an engineer
searches by.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

IDENTITY_KEYS = frozenset(
    {
        "patient_id",
        "patient_name",
        "patient_birth_date",
        "birth_date",
        "identity",
        "issuer",
        "other_patient_ids",
        "accession_number",
        "patient",
        "ds",
        "dataset",
    }
)
"""Keys that are dropped from every event: a defence in depth, not a licence to pass them."""


def drop_identity(
    _logger: Any, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Structlog processor that removes `IDENTITY_KEYS`."""
    for key in IDENTITY_KEYS & event_dict.keys():
        del event_dict[key]
    return event_dict


def setup_logging(
    *, level: str = "INFO", json_lines: bool | None = None, stream: TextIO | None = None
) -> None:
    """Send structlog and the standard library's logging to `stream`, once per process.

    Parameters
    ----------
    level
        ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
    json_lines
        True for one JSON object a line; None decides by whether the stream is a terminal.
    stream
        Default: stderr.
    """
    out = sys.stderr if stream is None else stream
    as_json = (not out.isatty()) if json_lines is None else json_lines
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        drop_identity,
    ]
    renderer: Any
    if as_json:
        renderer = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                renderer,
            ]
            if as_json
            else [structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries log values of data elements at INFO and DEBUG; those may be identity.
    # httpcore writes whole header blocks at DEBUG, credentials among them.
    for name in (
        *("pynetdicom", "pydicom", "highdicom", "PIL", "matplotlib", "urllib3"),
        *("httpx", "httpcore", "hl7apy"),
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # A timer that still runs when it is due again is said by what holds it up, not twice a second.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def get_logger(**context: Any) -> Any:
    """A structlog logger bound to `context`."""
    return structlog.get_logger().bind(**context)
