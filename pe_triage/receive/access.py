"""Who may open an association: pure decisions over what a request says of itself.

AE titles are no authentication, only a first sieve; addresses are a better one. Rejections carry
the result, source and reason of PS3.8 Section 9.3.4, Table 9-21.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pe_triage.addresses import AcceptRule

Resolve = Callable[[str], frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An A-ASSOCIATE-RJ (PS3.8 Table 9-21) and the words for our own log."""

    result: int
    """1 permanent, 2 transient."""
    source: int
    """1 service user, 2 provider (ACSE), 3 provider (presentation)."""
    reason: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPolicy:
    """What this node lets in."""

    aet: str
    """Our title: the called AE title must be this one."""
    accept_from: tuple[AcceptRule, ...] = ()
    """Without rules every calling AE is let in from loopback, and none from beyond it."""
    insecure: bool = False
    """Without rules, let in every calling AE from anywhere."""


def _rejected(reason: int, words: str) -> Rejection:
    return Rejection(result=1, source=1, reason=reason, words=words)


def decide(
    policy: AccessPolicy, *, called_aet: str, calling_aet: str, peer_host: str, resolve: Resolve
) -> Rejection | None:
    """Decide on one association request; None lets it in.

    Parameters
    ----------
    called_aet, calling_aet
        As received; leading and trailing spaces do not count (PS3.8 Section 9.3.2).
    peer_host
        Address of the connection's other end.
    resolve
        Host name to its addresses; called only for rules that name a host by name.
    """
    if called_aet.strip(" ") != policy.aet:
        return _rejected(7, "called AE title not recognised")
    if policy.accept_from:
        if _listed(policy.accept_from, calling_aet.strip(" "), peer_host, resolve):
            return None
        return _rejected(3, "calling AE title and address are not in accept_from")
    if policy.insecure or is_loopback(peer_host):
        return None
    return _rejected(3, "without accept_from only loopback is let in")


def _listed(rules: Sequence[AcceptRule], aet: str, peer_host: str, resolve: Resolve) -> bool:
    return any(
        rule.aet == aet and (rule.host is None or _same_host(rule.host, peer_host, resolve))
        for rule in rules
    )


def _same_host(host: str, peer_host: str, resolve: Resolve) -> bool:
    peer = _address(peer_host)
    if peer is None:
        return False
    named = _address(host)
    if named is not None:
        return named == peer
    return any(_address(text) == peer for text in resolve(host))


def is_loopback(host: str) -> bool:
    """Whether an address is the machine itself, IPv4 inside IPv6 included."""
    address = _address(host)
    return address is not None and address.is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def resolve_host(name: str) -> frozenset[str]:
    """Addresses of a host name by the system's resolver; empty when it knows none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)
