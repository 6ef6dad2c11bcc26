"""Settings: parsed once, passed in, never read from a global.

Sources, the later wins: built-in defaults, a TOML file, environment variables ``PE_TRIAGE_…``,
command-line flags. Every key has its unit in its name or its description. A key that nobody knows
or a value out of range is one line that names the key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from pe_triage.addresses import AcceptRule, parse_accept_from, parse_aet, parse_destination
from pe_triage.archive import CommitmentTable, RetrieveTable
from pe_triage.destinations import AnyDestination
from pe_triage.domain import Destination
from pe_triage.errors import ConfigurationError, InputError
from pe_triage.monitoring import QueryTable, ReconcileTable, SenderTable, WatchTable
from pe_triage.retention import Marks, RetentionTable, marks_of, resume_free
from pe_triage.routing import Route
from pe_triage.urgency import UrgencyRule

T = TypeVar("T")

TABLES = frozenset(
    {
        "eligibility",
        "destinations",
        "policy",
        "report",
        "query",
        "senders",
        "watch",
        "reconcile",
        "commitment",
        "retrieve",
        "retention",
        "urgency",
    }
)
"""Keys that only a configuration file can hold."""

ENV_PREFIX = "PE_TRIAGE_"

ENV_NOT_SETTINGS = frozenset({"PE_TRIAGE_CONFIG", "PE_TRIAGE_REQUIRE_PEERS"})
"""Variables of that prefix which are not settings: the file's place, and the test suite's."""


def default_data_dir() -> Path:
    """Platform's user data directory for pe-triage."""
    return Path(platformdirs.user_data_dir("pe-triage", appauthor=False))


class Settings(BaseModel):
    """Everything a node can be told. Frozen; see `docs/configuration.md`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # --- where the node lives
    data_dir: Path = Field(
        default_factory=default_data_dir, description="Directory of spool, results and database."
    )
    database: str | None = Field(
        default=None,
        description="SQLAlchemy URL (sqlite:///… or postgresql://…); default: "
        "SQLite at pe-triage.sqlite3 inside the data directory.",
    )
    shared_dir: Path | None = Field(
        default=None,
        description="Directory that all hosts on one PostgreSQL database mount, for spool and "
        "results; default: the data directory, of one host (docs/many-hosts.md).",
    )
    shared_lag_s: Annotated[float, Field(ge=0, le=60)] = Field(
        default=2.0,
        description="Seconds by which a host may see late what another has written to shared_dir "
        "(NFS: acdirmax).",
    )

    # --- DICOM application entity
    aet: str = Field(default="PETRIAGE", description="AE title of this node (PS3.5 VR AE).")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=11112, description="TCP port; 0 takes a free one."
    )
    accept_from: tuple[str, ...] = Field(
        default=(),
        description="Calling AEs to accept, AET or AET@HOST; empty: all of loopback only.",
    )
    insecure: bool = Field(
        default=False, description="Accept every calling AE from any address without a list."
    )
    receivers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Receiver processes that share the port."
    )
    max_associations: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=64, description="Associations at once, for each receiver process."
    )
    network_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Seconds of silence after which an association is aborted."
    )
    min_free_mb: Annotated[int, Field(ge=0)] = Field(
        default=1024,
        description="Free space (MiB) in the data directory below which instances are refused "
        "with A700, until there is a quarter more, or `low_free_mb` where that is less; 0: it is "
        "not looked at.",
    )

    # --- when is a study complete
    quiet_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Last resort: seconds without a new instance that end a study."
    )
    grace_s: Annotated[float, Field(ge=0)] = Field(
        default=2.0,
        description="Seconds after the last instance before positive signs may end a study.",
    )
    max_wait_s: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="Seconds after the first instance at which a study is closed."
    )
    eligibility: dict[str, Any] = Field(
        default_factory=dict, description="Table of eligibility limits (docs/configuration.md)."
    )

    # --- analysis
    model: Path | None = Field(default=None, description="Bundle directory; default: built in.")
    allow_on_patients: tuple[str, ...] = Field(
        default=(),
        description="Names of demonstration bundles that may answer in full on patients' images.",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N.")
    runtime: Literal["auto", "pytorch", "openvino"] = Field(
        default="auto",
        description="What runs stage 1; auto: PyTorch on a GPU, else OpenVINO where it is "
        "installed and agrees with PyTorch, else PyTorch.",
    )
    batch_size: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=0,
        description="Slices prepared and encoded at once in stage 1; 0: as suits the runtime.",
    )
    threads: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="CPU threads of a worker; 0: as many as there are cores for it."
    )
    ahead: bool = Field(
        default=True,
        description="Whether idle workers encode slices of studies that still arrive, and prepare "
        "their analysis.",
    )
    workers: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Worker processes of serve; 0 where others work on this database."
    )
    key_slices: Annotated[int, Field(ge=3, le=8)] = Field(
        default=5, description="Key slices at most."
    )
    lease_s: Annotated[float, Field(ge=1)] = Field(
        default=30.0, description="Seconds that a claimed job is held without a heartbeat."
    )
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="Attempts at one job before it ends FAILED."
    )

    urgency: tuple[UrgencyRule, ...] = Field(
        default=(),
        description="Tables of rules that put a study first, or last, in the queue; the first "
        "that matches counts (docs/configuration.md).",
    )

    # --- how long files stay
    retention: RetentionTable = Field(
        default_factory=RetentionTable,
        description="Table of how long files stay once their study is answered and delivered "
        "(docs/configuration.md).",
    )

    # --- delivery
    send_to: tuple[str, ...] = Field(
        default=(), description="Destinations AET@HOST:PORT for every result object."
    )
    destinations: tuple[AnyDestination, ...] = Field(
        default=(),
        description="Tables of destinations with a name, a road and a choice of results "
        "(docs/integration.md).",
    )

    # --- results
    policy: dict[str, Any] = Field(
        default_factory=dict, description="Table of the triage policy (docs/configuration.md)."
    )
    report: dict[str, Any] = Field(
        default_factory=dict, description="Table of what the results hold (docs/configuration.md)."
    )

    # --- watching
    query: QueryTable = Field(
        default_factory=QueryTable,
        description="Table of who is asked by C-FIND, and what for (docs/watching.md).",
    )
    senders: tuple[SenderTable, ...] = Field(
        default=(),
        description="Tables of what holds for the studies of one calling AE (docs/watching.md).",
    )
    watch: WatchTable = Field(
        default_factory=WatchTable, description="Table of charts and alarms (docs/watching.md)."
    )
    reconcile: ReconcileTable = Field(
        default_factory=ReconcileTable,
        description="Table of the daily comparison with the PACS (docs/watching.md).",
    )

    # --- archive
    commitment: CommitmentTable = Field(
        default_factory=CommitmentTable,
        description="Table of storage commitment, both ways (docs/integration.md).",
    )
    retrieve: RetrieveTable = Field(
        default_factory=RetrieveTable,
        description="Table of how studies are fetched from the PACS (docs/integration.md).",
    )

    # --- operation
    drain_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="Seconds given to running associations and jobs on SIGTERM."
    )
    health_file: Path | None = Field(
        default=None,
        description="File in which a node or a worker says every 2 s that it lives, for "
        "`pe-triage health`; one for each; without it none is written.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe event that is logged."
    )
    log_format: Literal["auto", "json", "text"] = Field(
        default="auto", description="auto: JSON lines when stderr is not a terminal."
    )

    @field_validator("shared_dir")
    @classmethod
    def _check_shared_dir(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        if not value.is_absolute():
            raise ValueError("not an absolute path")
        if not (info.data.get("database") or "").startswith("postgres"):
            raise ValueError("several hosts need a PostgreSQL database")
        return value

    @field_validator("aet")
    @classmethod
    def _check_aet(cls, value: str) -> str:
        return _checked(parse_aet, value)

    @field_validator("send_to", "accept_from", "allow_on_patients", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("send_to")
    @classmethod
    def _check_send_to(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            _checked(parse_destination, text)
        if len(set(value)) != len(value):
            raise ValueError("a destination is named twice")
        return value

    @field_validator("accept_from")
    @classmethod
    def _check_accept_from(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            _checked(parse_accept_from, text)
        return value

    @field_validator("destinations")
    @classmethod
    def _check_destinations(cls, value: tuple[AnyDestination, ...]) -> tuple[AnyDestination, ...]:
        names = [table.name for table in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]!r} is given twice")
        return value

    @field_validator("retention")
    @classmethod
    def _check_retention(cls, value: RetentionTable, info: ValidationInfo) -> RetentionTable:
        if "min_free_mb" in info.data:
            marks_of(value, info.data["min_free_mb"])
        return value

    @field_validator("senders")
    @classmethod
    def _check_senders(cls, value: tuple[SenderTable, ...]) -> tuple[SenderTable, ...]:
        titles = [table.aet for table in value]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"the AE title {twice[0]!r} is given twice")
        return value

    @field_validator("commitment")
    @classmethod
    def _check_commitment(cls, value: CommitmentTable, info: ValidationInfo) -> CommitmentTable:
        known = {*info.data.get("send_to", ())} | {
            table.name for table in info.data.get("destinations", ()) if table.type == "dicom"
        }
        unknown = sorted(set(value.of) - known)
        if unknown:
            raise ValueError(f"of: {unknown[0]!r} is no send_to and no dicom destination")
        query = info.data.get("query")
        if value.requesters and value.archive is None and (query is None or query.pacs is None):
            raise ValueError("requesters: without archive or query.pacs nobody could confirm")
        return value

    @property
    def commitment_archive(self) -> str | None:
        """Who must hold what is confirmed to scanners."""
        return self.commitment.archive or self.query.pacs

    @property
    def commitment_peers(self) -> dict[str, Destination]:
        """Destination that is asked to commit, to the peer that answers for it."""
        addresses = {str(peer): peer for peer in self.peers} | {
            table.name: table.peer for table in self.destinations if table.type == "dicom"
        }
        # `send_to` as it stands there, and as `str` writes it.
        addresses |= dict(zip(self.send_to, self.peers, strict=True))
        return {
            str(addresses[name]) if name in self.send_to else name: parse_destination(
                self.commitment.at.get(name, str(addresses[name]))
            )
            for name in self.commitment.of
        }

    @property
    def retrieve_from(self) -> Destination | None:
        """Who is asked for studies that are no longer held."""
        return (
            self.query.peer if self.retrieve.pacs is None else parse_destination(self.retrieve.pacs)
        )

    @property
    def space_marks(self) -> Marks:
        """Free space at which the removal of files begins and ends."""
        return marks_of(self.retention, self.min_free_mb)

    @property
    def resume_free_bytes(self) -> int:
        """Free space at which images are taken again that were refused for want of it."""
        return resume_free(self.min_free_mb << 20, self.space_marks)

    @property
    def peers(self) -> tuple[Destination, ...]:
        """Parsed `send_to`."""
        return tuple(parse_destination(text) for text in self.send_to)

    @property
    def routes(self) -> tuple[Route, ...]:
        """What each destination takes: `send_to` everything, the tables what they say."""
        return (
            *(Route(name=str(peer)) for peer in self.peers),
            *(table.route for table in self.destinations),
        )

    @property
    def accept_rules(self) -> tuple[AcceptRule, ...]:
        """Parsed `accept_from`."""
        return tuple(parse_accept_from(text) for text in self.accept_from)

    @property
    def database_url(self) -> str:
        """The URL in force: given, or the embedded SQLite."""
        return self.database or f"sqlite:///{self.data_dir / 'pe-triage.sqlite3'}"

    @property
    def embedded_database(self) -> bool:
        """Whether the database is this node's own SQLite file, migrated by `serve` itself."""
        return self.database_url.startswith("sqlite")

    @property
    def store_dir(self) -> Path:
        """Where spool and results lie; paths in the database are relative to it."""
        return self.shared_dir or self.data_dir

    @property
    def spool_dir(self) -> Path:
        """Where received instances lie."""
        return self.store_dir / "spool"

    @property
    def results_dir(self) -> Path:
        """Where result objects lie."""
        return self.store_dir / "results"


def load_settings(
    flags: Mapping[str, Any],
    *,
    config_file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge defaults, TOML file, environment and flags into `Settings`.

    Parameters
    ----------
    flags
        Values from the command line; None and empty tuples mean "not given".
    config_file
        TOML file; default: what ``PE_TRIAGE_CONFIG`` names, else none.
    environ
        Default: the process environment.

    Raises
    ------
    ConfigurationError
        Naming the first key that is unknown, malformed or out of range, and where it stood.
    """
    env = os.environ if environ is None else environ
    path = config_file or (Path(env["PE_TRIAGE_CONFIG"]) if env.get("PE_TRIAGE_CONFIG") else None)
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in (_read_toml(path) if path else {}).items():
        merged[key], origin[key] = value, f"{path}: {key}"
    for variable, value in sorted(env.items()):
        if not variable.startswith(ENV_PREFIX) or variable in ENV_NOT_SETTINGS:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        if key not in Settings.model_fields:
            raise ConfigurationError(f"environment variable {variable}: unknown key {key!r}")
        merged[key], origin[key] = _from_env(key, variable, value), variable
    for key, value in flags.items():
        if value is not None and value != ():
            merged[key], origin[key] = value, f"--{key.replace('_', '-')}"
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigurationError(_one_line(error, origin)) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigurationError(f"configuration file not found: {path}") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"configuration {path} is not TOML: {error}") from None


def _checked(parse: Callable[[str], T], text: str) -> T:
    """Run a parser of ours inside pydantic, which collects only ValueError."""
    try:
        return parse(text)
    except InputError as error:
        raise ValueError(str(error)) from None


def _from_env(key: str, variable: str, value: str) -> Any:
    if key in TABLES:
        raise ConfigurationError(f"{variable}: {key} is a table; set it in a configuration file")
    return value


_WORDS = {
    "extra_forbidden": "unknown key",
    "union_tag_not_found": "the key type is missing (dicom, hl7, fhir, webhook or ups)",
    "union_tag_invalid": "type is none of dicom, hl7, fhir, webhook, ups",
}


def _place(loc: tuple[int | str, ...]) -> str:
    """Which table and key: ``[2].url``, counted from 1; the union's tag is no key."""
    if not loc:
        return ""
    keys = [part for part in loc[2:] if isinstance(part, str)]
    return f"[{int(loc[0]) + 1}]" + "".join(f".{key}" for key in keys[:1])


def _one_line(error: ValidationError, origin: Mapping[str, str]) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "settings"
    where = origin.get(key, key)
    if key == "destinations":
        # Never the value: it may be a secret that somebody pasted where its file's name belongs.
        words = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
        return f"{where}{_place(first['loc'][1:])}: {words}"
    inner = "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in first["loc"][1:])
    if inner and key in TABLES - {"eligibility", "destinations", "policy", "report"}:
        return f"{where}{inner}: {_WORDS.get(first['type'], first['msg'])}".replace(
            "Value error, ", ""
        )
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}"
    if first["type"] == "value_error":
        return f"{where}: {first['msg'].removeprefix('Value error, ')}"
    return f"{where}: {first['msg']} (got {first['input']!r})"
