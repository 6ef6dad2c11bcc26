"""Names of peers as people write them: ``AET@HOST:PORT`` and ``AET[@HOST]``.

An AE title is up to 16 characters of the default repertoire without backslash and control
characters; leading and trailing spaces do not count, and spaces alone are no title (PS3.5
Section 6.2, VR AE).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from pe_triage.domain import Destination
from pe_triage.errors import ConfigurationError

AET_MAX_LENGTH = 16
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
                        r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?\Z")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptRule:
    """One calling AE that may open associations, from one host or (None) from any."""

    aet: str
    host: str | None = None

    def __str__(self) -> str:
        return self.aet if self.host is None else f"{self.aet}@{self.host}"


def parse_aet(text: str) -> str:
    """Check an AE title and strip what does not count.

    Raises
    ------
    ConfigurationError
        When `text` is no AE title (PS3.5 Section 6.2); the message names it and what is wrong.
    """
    return _parse_aet(text, of=text)


def parse_destination(text: str) -> Destination:
    """Parse ``AET@HOST:PORT``; an IPv6 host stands in brackets, as in ``PACS@[::1]:104``.

    Raises
    ------
    ConfigurationError
        The message names `text` and what is wrong with it.
    """
    aet, at, address = text.strip().rpartition("@")
    if not at:
        raise _wrong(text, "expected AET@HOST:PORT")
    host, port = _parse_host_port(address, of=text, expected="AET@HOST:PORT")
    return Destination(aet=_parse_aet(aet, of=text), host=host, port=port)


def parse_host_port(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``; an IPv6 host stands in brackets, as in ``[::1]:2575``.

    Raises
    ------
    ConfigurationError
        The message names `text` and what is wrong with it.
    """
    return _parse_host_port(text.strip(), of=text, expected="HOST:PORT")


def parse_accept_from(text: str) -> AcceptRule:
    """Parse ``AET`` or ``AET@HOST``; an IPv6 host may stand in brackets.

    Raises
    ------
    ConfigurationError
        The message names `text` and what is wrong with it.
    """
    stripped = text.strip()
    aet, at, host = stripped.rpartition("@")
    if not at:
        return AcceptRule(aet=_parse_aet(stripped, of=text))
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" in host:
        _check_ipv6(host, of=text)
    else:
        _check_host(host, of=text)
    return AcceptRule(aet=_parse_aet(aet, of=text), host=host)


def _wrong(text: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"{text!r}: {what}")


def _parse_host_port(address: str, *, of: str, expected: str) -> tuple[str, int]:
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket:
            raise _wrong(of, "the bracket around the IPv6 address is not closed")
        if rest and not rest.startswith(":"):
            raise _wrong(of, "expected :PORT after the closing bracket")
        port_text = rest[1:]
        _check_ipv6(host, of=of)
    else:
        host, colon, port_text = address.rpartition(":")
        if not colon:
            raise _wrong(of, f"the port is missing; expected {expected}")
        if ":" in host:
            raise _wrong(of, "an IPv6 address must stand in brackets")
        _check_host(host, of=of)
    return host, _parse_port(port_text, of=of)


def _parse_aet(aet: str, *, of: str) -> str:
    title = aet.strip(" ")
    if not title:
        raise _wrong(of, "the AE title is empty")
    if len(title) > AET_MAX_LENGTH:
        raise _wrong(of, f"the AE title has {len(title)} characters, at most 16 are allowed")
    if "\\" in title or not all(" " <= character <= "~" for character in title):
        raise _wrong(of, "an AE title is ASCII without backslash and control characters")
    return title


def _parse_port(text: str, *, of: str) -> int:
    if not text:
        raise _wrong(of, "the port is missing; expected AET@HOST:PORT")
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise _wrong(of, f"the port {text!r} is not a number from 1 to 65535")
    port = int(text)
    if not 1 <= port <= 65535:
        raise _wrong(of, f"the port {port} is not in 1 to 65535")
    return port


def _check_host(host: str, *, of: str) -> None:
    if not host:
        raise _wrong(of, "the host is missing")
    if not _HOST_NAME.match(host):
        raise _wrong(of, f"{host!r} is no host name or address")
    if re.fullmatch(r"[0-9.]+", host):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise _wrong(of, f"{host!r} is no IPv4 address") from None


def _check_ipv6(host: str, *, of: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise _wrong(of, f"{host!r} is no IPv6 address") from None
