"""A JSON event for whatever a site hangs on it: a chat bridge, a pager, a script.

No patient identity unless the destination asks for it: UIDs, the answer and the weights only.
"""

from __future__ import annotations

import json
from typing import Any

from pe_triage.destinations import WebhookDestination
from pe_triage.domain import INTENDED_USE_WORDS, NOTICE, ResultKind
from pe_triage.report.messages.context import MessageContext
from pe_triage.report.wording import headline

EVENT_TYPE = "pe_triage.study.answered"


def build_webhook(context: MessageContext, table: WebhookDestination) -> bytes:
    """Return the event's body: UTF-8 JSON, keys sorted."""
    result = context.result
    prediction, model = result.prediction, result.model
    data: dict[str, Any] = {
        "study_uid": context.study.study_uid,
        "run": context.study.run,
        "outcome": result.outcome.value,
        "priority": result.priority.value if result.priority else None,
        "headline": headline(result),
        "reason": result.reason,
        "pe_probability": None if prediction is None else float(prediction.pe_probability),
        "calibrated": bool(model and model.calibrated),
        "findings": None
        if prediction is None
        else {label: decision.value for label, decision in prediction.findings.items()},
        "model": None
        if model is None
        else {
            "name": model.name,
            "version": model.version,
            "sha256": model.sha256,
            "intended_use": model.intended_use.value,
        },
        "intended_use": INTENDED_USE_WORDS[model.intended_use] if model else None,
        "notice": NOTICE,
        "results": [
            {
                "kind": item.kind.value,
                "sop_class_uid": item.sop_class_uid,
                "series_uid": item.series_uid,
                "sop_instance_uid": item.sop_instance_uid,
            }
            for item in context.objects
        ],
    }
    if table.identity:
        subject = context.subject
        data["patient"] = {
            "id": subject.patient_id,
            "issuer": subject.issuer,
            "name": str(context.source.get("PatientName", "") or ""),
            "birth_date": subject.birth_date,
            "sex": subject.sex,
        }
        data["accession_number"] = subject.accession_number
    event = {
        "id": context.message_id(ResultKind.WEBHOOK, table.name),
        "type": EVENT_TYPE,
        "timestamp": context.now.isoformat(),
        "data": data,
    }
    return json.dumps(event, ensure_ascii=False, sort_keys=True).encode()
