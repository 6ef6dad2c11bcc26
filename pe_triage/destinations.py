"""The ``[[destinations]]`` tables: where results go, by which road, and who gets what.

A secret never stands in a table: it names a file or an environment variable that holds it, read
when a message is sent, so that it can be changed without a restart and is in no dump of settings.
Messages of validation name keys and never repeat values: somebody may have pasted a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pe_triage.addresses import parse_destination, parse_host_port
from pe_triage.domain import Destination, Outcome, ResultKind
from pe_triage.errors import ConfigurationError, InputError
from pe_triage.routing import ALL_OUTCOMES, DICOM_KINDS, Route

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
"""No ``@``, so that it cannot be taken for the name of a `send_to` destination."""

HL7_CHARACTER_SETS: Mapping[str, str] = {
    "UNICODE UTF-8": "utf-8",
    "ASCII": "ascii",
    "8859/1": "iso8859_1",
    "8859/2": "iso8859_2",
    "8859/5": "iso8859_5",
    "8859/7": "iso8859_7",
    "8859/9": "iso8859_9",
    "8859/15": "iso8859_15",
}
"""Value of MSH-18 (HL7 table 0211) to Python's codec."""


class _Table(BaseModel):
    """What every destination has."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: str = Field(description="Name shown in `show`, unique: letters, digits, `.`, `_`, `-`.")
    outcomes: tuple[Outcome, ...] = Field(
        default=(), description="Outcomes of which it gets anything; empty: all."
    )
    timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        default=30.0, description="Seconds to wait for the peer, at each step."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not NAME_PATTERN.match(value):
            raise ValueError("expected 1 to 64 letters, digits, '.', '_' or '-'")
        return value

    @property
    def _kinds(self) -> frozenset[ResultKind]:
        raise NotImplementedError

    @property
    def route(self) -> Route:
        """What it takes."""
        return Route(
            name=self.name,
            kinds=self._kinds,
            outcomes=frozenset(self.outcomes) or ALL_OUTCOMES,
        )

    @property
    def encrypted(self) -> bool:
        """Whether the road is protected by TLS."""
        return False

    @property
    def host(self) -> str:
        """Host of the peer, for the warning that a road leaves this machine unprotected."""
        raise NotImplementedError

    def check_secrets(self) -> None:
        """Read what the table refers to, once at start.

        Raises
        ------
        ConfigurationError
            Naming the key; never the content.
        """


class DicomDestination(_Table):
    """A storage SCP: gets DICOM objects by C-STORE."""

    type: Literal["dicom"]
    address: str = Field(description="`AET@HOST:PORT`.")
    kinds: tuple[ResultKind, ...] = Field(
        default=(), description="Result kinds that it gets; empty: every DICOM kind."
    )

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return _checked(parse_destination, value)

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, value: tuple[ResultKind, ...]) -> tuple[ResultKind, ...]:
        wrong = sorted(kind for kind in value if kind not in DICOM_KINDS)
        if wrong:
            raise ValueError(f"{', '.join(wrong)} is no DICOM kind")
        return value

    @property
    def _kinds(self) -> frozenset[ResultKind]:
        return frozenset(self.kinds) or DICOM_KINDS

    @property
    def peer(self) -> Destination:
        """Parsed `address`."""
        return parse_destination(self.address)

    @property
    def host(self) -> str:
        """See the base class."""
        return self.peer.host


class _TlsTable(_Table):
    """A road that may be protected by TLS."""

    ca_file: Path | None = Field(
        default=None, description="PEM file of the authorities to trust; default: the system's."
    )
    client_cert_file: Path | None = Field(
        default=None, description="PEM file of this node's certificate, for mutual TLS."
    )
    client_key_file: Path | None = Field(
        default=None, description="PEM file of its key; default: inside the certificate's file."
    )

    def check_secrets(self) -> None:
        """See the base class."""
        for key in ("ca_file", "client_cert_file", "client_key_file"):
            path = getattr(self, key)
            if path is not None:
                _read(self.name, key, path)


class Hl7Destination(_TlsTable):
    """A RIS or interface engine: gets HL7 v2.5.1 ORU^R01 over MLLP."""

    type: Literal["hl7"]
    address: str = Field(description="`HOST:PORT` of the MLLP listener.")
    tls: bool = Field(default=False, description="MLLP over TLS.")
    sending_application: str = Field(default="PE-TRIAGE", max_length=180, description="MSH-3.")
    sending_facility: str = Field(default="", max_length=180, description="MSH-4.")
    receiving_application: str = Field(default="", max_length=180, description="MSH-5.")
    receiving_facility: str = Field(default="", max_length=180, description="MSH-6.")
    processing_id: Literal["P", "T", "D"] = Field(
        default="P", description="MSH-11: P production, T training, D debugging."
    )
    character_set: str = Field(
        default="UNICODE UTF-8",
        description="MSH-18: " + ", ".join(f"`{name}`" for name in HL7_CHARACTER_SETS) + ". "
        "A message that it cannot write goes in UNICODE UTF-8 and says so.",
    )

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return _checked(parse_host_port, value)

    @field_validator("character_set")
    @classmethod
    def _check_character_set(cls, value: str) -> str:
        if value not in HL7_CHARACTER_SETS:
            raise ValueError(f"expected one of {', '.join(HL7_CHARACTER_SETS)}")
        return value

    @property
    def _kinds(self) -> frozenset[ResultKind]:
        return frozenset({ResultKind.HL7})

    @property
    def peer(self) -> tuple[str, int]:
        """Host and port."""
        return parse_host_port(self.address)

    @property
    def host(self) -> str:
        """See the base class."""
        return self.peer[0]

    @property
    def encrypted(self) -> bool:
        """See the base class."""
        return self.tls


class _HttpTable(_TlsTable):
    """A road over HTTP."""

    url: str = Field(description="http:// or https://, without credentials.")
    authorization_file: Path | None = Field(
        default=None, description="File whose content is the Authorization header's value."
    )
    authorization_env: str | None = Field(
        default=None, description="Environment variable that holds it instead."
    )

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError:
            raise ValueError("is no URL") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise ValueError("expected http://HOST[:PORT]/… or https://…")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must hold no credentials; use authorization_file")
        if parts.query or parts.fragment:
            raise ValueError("must hold no query and no fragment")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _check_authorization(self) -> _HttpTable:
        if self.authorization_file is not None and self.authorization_env is not None:
            raise ValueError("authorization_file and authorization_env: give one, not both")
        return self

    @property
    def host(self) -> str:
        """See the base class."""
        return urlsplit(self.url).hostname or ""

    @property
    def encrypted(self) -> bool:
        """See the base class."""
        return self.url.startswith("https:")

    @property
    def authorization(self) -> Callable[[], str] | None:
        """Reads the Authorization header's value; None where none is configured."""
        return _secret(
            self.name,
            "authorization",
            self.authorization_file,
            self.authorization_env,
        )

    def check_secrets(self) -> None:
        """See the base class."""
        super().check_secrets()
        if self.authorization is not None:
            self.authorization()


class FhirDestination(_HttpTable):
    """A FHIR R4 server: gets a transaction Bundle."""

    type: Literal["fhir"]

    @property
    def _kinds(self) -> frozenset[ResultKind]:
        return frozenset({ResultKind.FHIR})


class WebhookDestination(_HttpTable):
    """Anything that takes a signed JSON POST: a chat bridge, a pager, a script."""

    type: Literal["webhook"]
    secret_file: Path | None = Field(
        default=None, description="File that holds the signing secret (24 bytes or more)."
    )
    secret_env: str | None = Field(
        default=None, description="Environment variable that holds it instead."
    )
    identity: bool = Field(
        default=False, description="Whether the body names the patient; off unless asked for."
    )
    alarms: Literal["no", "also", "only"] = Field(
        default="no",
        description="Whether it gets the node's alarms (docs/watching.md): `also`, beside the "
        "answers, or `only` these.",
    )

    @model_validator(mode="after")
    def _check_secret(self) -> WebhookDestination:
        if (self.secret_file is None) == (self.secret_env is None):
            raise ValueError("secret_file or secret_env: give exactly one")
        return self

    @property
    def _kinds(self) -> frozenset[ResultKind]:
        return frozenset() if self.alarms == "only" else frozenset({ResultKind.WEBHOOK})

    @property
    def secret(self) -> Callable[[], str]:
        """Reads the signing secret."""
        reader = _secret(self.name, "secret", self.secret_file, self.secret_env)
        assert reader is not None
        return reader

    def check_secrets(self) -> None:
        """See the base class."""
        super().check_secrets()
        if len(self.secret().encode()) < 24:
            raise ConfigurationError(
                f"destination {self.name!r}: the secret is shorter than 24 bytes"
            )


class UpsDestination(_HttpTable):
    """A UPS-RS origin server: gets a workitem with priority and references."""

    type: Literal["ups"]
    workitem: Literal["reading", "analysis"] = Field(
        default="reading",
        description="`reading`: schedule a reading task, only for an answer with a priority; "
        "`analysis`: report our own analysis as a performed workitem with its output.",
    )
    raise_existing: bool = Field(
        default=True,
        description="Reading tasks only: look for the study's reading task that is there already "
        "and raise its priority in place of creating one.",
    )
    worklist_label: str = Field(
        default="PE-TRIAGE", min_length=1, max_length=64, description="(0074,1202)."
    )

    @property
    def _kinds(self) -> frozenset[ResultKind]:
        return frozenset({ResultKind.UPS})


AnyDestination = Annotated[
    DicomDestination | Hl7Destination | FhirDestination | WebhookDestination | UpsDestination,
    Field(discriminator="type"),
]

TABLES: tuple[type[_Table], ...] = (
    DicomDestination,
    Hl7Destination,
    FhirDestination,
    WebhookDestination,
    UpsDestination,
)
"""For the documentation."""


def _checked(parse: Callable[[str], Any], text: str) -> str:
    try:
        parse(text)
    except InputError as error:
        raise ValueError(str(error)) from None
    return text


def _secret(
    name: str, key: str, file: Path | None, variable: str | None
) -> Callable[[], str] | None:
    if file is not None:
        return lambda: _one_line_of(name, f"{key}_file", _read(name, f"{key}_file", file))
    if variable is not None:
        return lambda: _one_line_of(name, f"{key}_env", os.environ.get(variable, ""))
    return None


def _one_line_of(name: str, key: str, text: str) -> str:
    value = text.strip()
    if not value or not value.isprintable():
        raise ConfigurationError(f"destination {name!r}: {key} holds no single line of text")
    return value


def _read(name: str, key: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise ConfigurationError(
            f"destination {name!r}: {key} cannot be read: {str(why).lower()}"
        ) from None
