"""Leases for what only one of several hosts may do at a time, on the database's own clock."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, insert, or_, select, update

from pe_triage.store import schema
from pe_triage.store.engine import db_now, read, write

LONGEST_S = 120.0
"""No lease runs longer: one that seems to was given before the clock was set back."""

COORDINATOR = "coordinator"
HOST = "host/"
"""Beginning of the lease of a host; its node id follows."""

STORE = "store"
"""Fact: which store the files of this database lie in."""

_leases, _facts = schema.leases, schema.site_facts


class Leases:
    """Taken, renewed and given back by any number of processes and hosts.

    Parameters
    ----------
    engine
        From `engine.open_engine`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, name: str, owner: str, ttl_s: float, *, over: str | None = None) -> int | None:
        """Take a lease that nobody holds, for `ttl_s` seconds.

        Parameters
        ----------
        owner
            Names the holder; see `release`.
        over
            Also where the holder's name begins with this: an earlier life of the same.

        Returns
        -------
        int or None
            The token to renew it with; None where another holds it.
        """
        if ttl_s > LONGEST_S:
            raise ValueError(f"a lease of {ttl_s:g} s")

        def work(connection: Connection) -> int | None:
            known = select(_leases.c.token).where(_leases.c.name == name)
            if connection.execute(known).one_or_none() is None:
                # Of two that do this at once the second fails, looks again and finds the row.
                connection.execute(
                    insert(_leases).values(
                        name=name, owner=owner, token=1, held_until=db_now() + ttl_s
                    )
                )
                return 1
            free = or_(
                _leases.c.held_until < db_now(), _leases.c.held_until > db_now() + 2 * LONGEST_S
            )
            if over is not None:
                free |= _leases.c.owner.startswith(over, autoescape=True)
            return connection.execute(
                update(_leases)
                .where(_leases.c.name == name, free)
                .values(owner=owner, token=_leases.c.token + 1, held_until=db_now() + ttl_s)
                .returning(_leases.c.token)
            ).scalar_one_or_none()

        return write(self._engine, work)

    def renew(self, name: str, token: int, ttl_s: float) -> bool:
        """Hold it for `ttl_s` seconds from now; False where another has taken it since.

        One that ran out and that nobody took is held again: nobody has acted in between.
        """
        statement = (
            update(_leases)
            .where(_leases.c.name == name, _leases.c.token == token)
            .values(held_until=db_now() + ttl_s)
            .returning(_leases.c.token)
        )
        return write(self._engine, lambda c: c.execute(statement).one_or_none()) is not None

    def release(self, owner_prefix: str) -> int:
        """Give back what a holder that is gone held; returns how many leases.

        Parameters
        ----------
        owner_prefix
            Start of the owner's name; end it with a separator.
        """
        if not owner_prefix:
            raise ValueError("an empty prefix would release everyone's leases")
        statement = (
            update(_leases)
            .where(
                _leases.c.owner.startswith(owner_prefix, autoescape=True),
                _leases.c.held_until > 0,
            )
            .values(held_until=0.0, token=_leases.c.token + 1)
            .returning(_leases.c.name)
        )
        return write(self._engine, lambda c: len(c.execute(statement).all()))

    def held(self, prefix: str) -> dict[str, str]:
        """Name to owner of the leases that are held and begin with `prefix`."""
        statement = select(_leases.c.name, _leases.c.owner).where(
            _leases.c.name.startswith(prefix, autoescape=True), _leases.c.held_until >= db_now()
        )
        with read(self._engine) as connection:
            return {row.name: row.owner for row in connection.execute(statement)}

    def living_hosts(self) -> frozenset[str]:
        """Node ids of the hosts that live."""
        return frozenset(name.removeprefix(HOST) for name in self.held(HOST))


def fact(engine: Engine, name: str) -> str | None:
    """What holds for all hosts; None where nobody has said it yet."""
    statement = select(_facts.c.value).where(_facts.c.name == name)
    with read(engine) as connection:
        return connection.execute(statement).scalar_one_or_none()


def settle_fact(engine: Engine, name: str, value: str) -> str:
    """Say it where nobody has; returns what holds from now on."""

    def work(connection: Connection) -> str:
        statement = select(_facts.c.value).where(_facts.c.name == name)
        known = connection.execute(statement).scalar_one_or_none()
        if known is None:
            connection.execute(insert(_facts).values(name=name, value=value))
            return value
        return str(known)

    return write(engine, work)
