"""Messages by the roads that a site has beside DICOM: pure functions, no network.

Built once for each run and destination, persisted beside the DICOM objects, and sent unchanged
however often it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pe_triage.destinations import AnyDestination
from pe_triage.domain import ResultKind, ResultMessage
from pe_triage.errors import PeTriageError
from pe_triage.report.messages.context import MessageContext, subject_of
from pe_triage.report.messages.fhir import build_fhir
from pe_triage.report.messages.hl7 import build_hl7
from pe_triage.report.messages.ups import build_ups
from pe_triage.report.messages.webhook import build_webhook
from pe_triage.report.study import StudyContext

__all__ = ["MessageContext", "StudyContext", "build_messages", "subject_of"]

BUILDERS: Mapping[str, tuple[ResultKind, Callable[[MessageContext, Any], bytes | None]]] = (
    MappingProxyType(
        {
            "hl7": (ResultKind.HL7, build_hl7),
            "fhir": (ResultKind.FHIR, build_fhir),
            "webhook": (ResultKind.WEBHOOK, build_webhook),
            "ups": (ResultKind.UPS, build_ups),
        }
    )
)
"""By the `type` of a destination's table; DICOM has none."""


def build_messages(
    context: MessageContext, destinations: Sequence[AnyDestination]
) -> tuple[ResultMessage, ...]:
    """Write one message for each destination that gets one.

    A message that cannot be written is no reason to withhold the answer from the PACS: it comes
    back with `refused`, so that it is seen.
    """
    messages = []
    for table in destinations:
        if table.type not in BUILDERS or context.result.outcome not in table.route.outcomes:
            continue
        kind, build = BUILDERS[table.type]
        if kind not in table.route.kinds:
            continue
        message_id = context.message_id(kind, table.name)
        body, refused = None, None
        try:
            body = build(context, table)
            if body is None:
                continue
        except PeTriageError as error:
            refused = error.message
        except Exception as error:  # noqa: BLE001 - whatever a header holds, the answer goes out
            # The class only: libraries repeat values in their messages.
            refused = f"the message could not be written ({type(error).__name__})"
        messages.append(
            ResultMessage(
                kind=kind,
                destination=table.name,
                message_id=message_id,
                body=body,
                refused=refused,
            )
        )
    return tuple(messages)
