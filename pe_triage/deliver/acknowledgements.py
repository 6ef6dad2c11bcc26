"""What an HL7 acknowledgement means for a delivery, as tables (HL7 v2.5.1 chapter 2).

The peer's own text (MSA-3, ERR-7, ERR-8) is read by nobody here: it may name the patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pe_triage.deliver.statuses import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A verdict and what to call it."""

    verdict: Verdict
    words: str


ACKNOWLEDGEMENTS: Mapping[str, Rule] = MappingProxyType(
    {
        "AA": Rule(verdict=Verdict.SENT, words="application accept"),
        "CA": Rule(verdict=Verdict.SENT, words="commit accept"),
        # An error without a code is most often a receiver's bad moment: a database, a queue. It
        # is tried until delivery gives up, and seen all the while.
        "AE": Rule(verdict=Verdict.RETRY, words="application error"),
        "CE": Rule(verdict=Verdict.RETRY, words="commit error"),
        "AR": Rule(verdict=Verdict.PARK, words="application reject"),
        "CR": Rule(verdict=Verdict.PARK, words="commit reject"),
    }
)
"""MSA-1, table 0008; unless ERR-3 says more."""

ERROR_CODES: Mapping[str, Rule] = MappingProxyType(
    {
        "100": Rule(verdict=Verdict.PARK, words="segment sequence error"),
        "101": Rule(verdict=Verdict.PARK, words="required field missing"),
        "102": Rule(verdict=Verdict.PARK, words="data type error"),
        "103": Rule(verdict=Verdict.PARK, words="table value not found"),
        "104": Rule(verdict=Verdict.PARK, words="value too long"),
        "200": Rule(verdict=Verdict.PARK, words="unsupported message type"),
        "201": Rule(verdict=Verdict.PARK, words="unsupported event code"),
        "202": Rule(verdict=Verdict.PARK, words="unsupported processing id"),
        "203": Rule(verdict=Verdict.PARK, words="unsupported version id"),
        # The order may reach the RIS after our answer does.
        "204": Rule(verdict=Verdict.RETRY, words="unknown key identifier"),
        # Our control identifiers are derived from the run: what it has under it is this message.
        "205": Rule(verdict=Verdict.WARNING, words="duplicate key identifier: it is there already"),
        "206": Rule(verdict=Verdict.RETRY, words="application record locked"),
        "207": Rule(verdict=Verdict.RETRY, words="application internal error"),
    }
)
"""ERR-3.1 (or ERR-1.4 of older senders), table 0357: decides where MSA-1 is no acceptance."""

UNKNOWN = Rule(verdict=Verdict.RETRY, words="unknown acknowledgement code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """MSA-1, MSA-2 and the first error code."""

    code: str
    control_id: str
    error_code: str = ""

    def judge(self) -> tuple[Verdict, str]:
        """Return the verdict, and a line of our own words."""
        rule = ACKNOWLEDGEMENTS.get(self.code, UNKNOWN)
        detail = ERROR_CODES.get(self.error_code)
        shown = self.code if self.code in ACKNOWLEDGEMENTS else "?"
        if rule.verdict is Verdict.SENT or detail is None:
            return rule.verdict, f"{shown}: {rule.words}"
        return detail.verdict, f"{shown}: {rule.words}, {self.error_code} {detail.words}"


def parse_acknowledgement(message: bytes) -> Acknowledgement | None:
    """Read what matters of an ACK; None where it is none.

    Tolerant on purpose: receivers end segments by LF, leave fields out and write any text they
    like; codes and identifiers are ASCII wherever they stand.
    """
    text = message.decode("ascii", errors="replace").replace("\r\n", "\r").replace("\n", "\r")
    segments = [line for line in text.split("\r") if line]
    if not segments or not segments[0].startswith("MSH") or len(segments[0]) < 5:
        return None
    field, component = segments[0][3], segments[0][4]
    found = {line[:3]: line.split(field) for line in reversed(segments) if line[3:4] == field}
    msa = found.get("MSA")
    if msa is None or len(msa) < 3:
        return None
    return Acknowledgement(
        code=msa[1].strip(),
        control_id=msa[2].strip(),
        error_code=_error_code(found.get("ERR", []), component),
    )


def _error_code(err: list[str], component: str) -> str:
    for position, part in ((3, 0), (1, 3)):
        values = err[position].split(component) if len(err) > position else []
        # ERR-1.4 is a coded element of its own: its code is the first subcomponent.
        value = values[part].split("&")[0].strip() if len(values) > part else ""
        if value:
            return value
    return ""
