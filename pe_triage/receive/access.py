"""Who may open an association: pure decisions over what a request says of itself.

AE titles are no authentication, only a first sieve; addresses are a better one. Rejections carry
the result, source and reason of PS3.8 Section 9.3.4, Table 9-21.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pe_triage.addresses import AcceptRule

Resolve = Callable[[str], frozenset[str] | None]
"""Host name to its addresses; None where nobody can say now (the resolver does not answer)."""

FRESH_S = 60.0
"""How long an answer of the resolver is used before it is asked again."""
RETRY_S = 5.0
"""How soon a resolver that did not answer is asked again."""


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


NOT_NOW = Rejection(
    result=2, source=3, reason=1, words="a host name in accept_from cannot be resolved now"
)
"""Temporary congestion: a scanner tries again, where it would give up after a permanent refusal."""


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
        Host name to its addresses; called only for rules of this AE title that name a host.
    """
    if called_aet.strip(" ") != policy.aet:
        return _rejected(7, "called AE title not recognised")
    if policy.accept_from:
        listed = _listed(policy.accept_from, calling_aet.strip(" "), peer_host, resolve)
        if listed is None:
            return NOT_NOW
        if listed:
            return None
        return _rejected(3, "calling AE title and address are not in accept_from")
    if policy.insecure or is_loopback(peer_host):
        return None
    return _rejected(3, "without accept_from only loopback is let in")


def _listed(rules: Sequence[AcceptRule], aet: str, peer_host: str, resolve: Resolve) -> bool | None:
    """Whether some rule lets it in; None where that depends on a name that is unknown now."""
    answers = [
        rule.host is None or _same_host(rule.host, peer_host, resolve)
        for rule in rules
        if rule.aet == aet
    ]
    if True in answers:
        return True
    return None if None in answers else False


def _same_host(host: str, peer_host: str, resolve: Resolve) -> bool | None:
    peer = _address(peer_host)
    if peer is None:
        return False
    named = _address(host)
    if named is not None:
        return named == peer
    addresses = resolve(host)
    if addresses is None:
        return None
    return any(_address(text) == peer for text in addresses)


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


def resolve_host(name: str) -> frozenset[str] | None:
    """Addresses of a host name by the system's resolver; None when it gives none.

    A name server that is restarted answers "no such name" as readily as "try again", so neither
    is taken for the truth about a scanner.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    return frozenset(str(entry[4][0]) for entry in found)


class ResolverCache:
    """Remembers addresses, so that no association waits for a name server that was just asked.

    Where it gives no answer, the last known addresses hold: a scanner does not move because the
    name server is down.

    Parameters
    ----------
    resolve
        Asked when what is known is older than `FRESH_S`.
    clock_s
        Monotonic seconds.
    """

    def __init__(
        self, resolve: Resolve = resolve_host, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._resolve = resolve
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, frozenset[str] | None]] = {}

    def __call__(self, name: str) -> frozenset[str] | None:
        """Return the addresses of a host name; None where none was ever found."""
        with self._lock:
            until_s, known = self._known.get(name, (-math.inf, None))
        if self._clock_s() < until_s:
            return known
        found = self._resolve(name)
        kept = known if found is None else found
        with self._lock:
            lasts_s = RETRY_S if found is None else FRESH_S
            self._known[name] = (self._clock_s() + lasts_s, kept)
        return kept
