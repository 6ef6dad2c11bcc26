"""Whatever leaves the node with an answer of the demonstration weights says what they are for."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pydicom
import pytest

from pe_triage.destinations import (
    FhirDestination,
    Hl7Destination,
    UpsDestination,
    WebhookDestination,
)
from pe_triage.domain import INTENDED_USE_WORDS, IntendedUse
from pe_triage.report.messages import MessageContext
from pe_triage.report.messages.fhir import build_fhir
from pe_triage.report.messages.hl7 import build_hl7
from pe_triage.report.messages.ups import build_ups
from pe_triage.report.messages.webhook import build_webhook
from pe_triage.report.study import choose_source
from pe_triage.report.wording import use_banner
from tests.unit.report.conftest import NOW, Case

WORDS = INTENDED_USE_WORDS[IntendedUse.DEMONSTRATION]
RIS = Hl7Destination(
    type="hl7", name="r", address="ris:2575", receiving_application="R", receiving_facility="H"
)
MESSAGES: dict[str, Callable[[MessageContext], Any]] = {
    "hl7": lambda c: build_hl7(c, RIS),
    "fhir": lambda c: build_fhir(c, FhirDestination(type="fhir", name="e", url="http://e/fhir")),
    "ups": lambda c: build_ups(c, UpsDestination(type="ups", name="u", url="http://u")),
    "webhook": lambda c: build_webhook(
        c, WebhookDestination(type="webhook", name="p", url="http://p", secret_env="X")
    ),
}


def test_every_object_names_the_use(cases: Callable[[str], Case]) -> None:
    case = cases("demonstration")
    assert WORDS == "demonstration on phantoms; no clinical use"
    labels = {item.label for item in case.results.objects}
    assert {"sr", "narrative", "key-objects", "summary"} <= labels
    for item in case.results.objects:
        ds = pydicom.dcmread(BytesIO(item.encoded))
        (ours,) = (
            e for e in ds.ContributingEquipmentSequence
            if "weights: " in str(e.get("ContributionDescription", ""))
        )  # fmt: skip
        assert ours.ContributionDescription.endswith("weights: demonstration"), item.label
        if ds.Modality in ("SR", "KO"):
            assert WORDS in ds.to_json(), item.label


def test_pictures_carry_it_in_capitals(cases: Callable[[str], Case]) -> None:
    said = use_banner(cases("demonstration").result.model)
    assert said.startswith("DEMONSTRATION ON PHANTOMS; no clinical use")


@pytest.mark.parametrize("road", list(MESSAGES))
def test_every_message_names_the_use(cases: Callable[[str], Case], road: str) -> None:
    case = cases("demonstration")
    context = MessageContext(
        result=case.result, study=case.scene.study, objects=case.results.objects, now=NOW,
        source=choose_source(case.scene.headers, case.result), settings=case.scene.settings,
    )  # fmt: skip
    body = MESSAGES[road](context)
    text = body.decode() if isinstance(body, bytes) else str(body)
    assert WORDS in text
