"""The tables. Migrations must produce exactly these; a test compares them on both databases.

Times that people read are `UtcDateTime`. Times that decide who may work (``available_at``,
``lease_until``, ``next_attempt_at``, ``queued_at``) are epoch seconds on the database's clock, see
`engine.db_now`, so that the clocks of several machines never meet.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

from pe_triage.domain import Priority
from pe_triage.store.types import SafeText, StrictJson, UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Uid = SafeText
"""PS3.5 section 9.1 allows 64 characters; a sender's mistake must not make a batch unstorable."""

Digest = String(64)
"""SHA-256 in hex."""

RowId = BigInteger().with_variant(Integer, "sqlite")
"""SQLite numbers rows by itself only in a column of type INTEGER."""


class Rank(IntEnum):
    """Where a job stands in the queue before age counts; the smaller is claimed first."""

    STAT = 0
    ROUTINE = 100
    BACKFILL = 200


class QuarantineKind(StrEnum):
    """Why an instance was set aside."""

    CONTENT = "CONTENT"
    """Its SOP Instance UID is held with other bytes."""
    IDENTITY = "IDENTITY"
    """Its study is held under another patient."""
    ELSEWHERE = "ELSEWHERE"
    """Its SOP Instance UID is held under another study."""
    STRAY = "STRAY"
    """As the two before, but no image: only the object itself is set aside, its study goes on."""
    OTHER = "OTHER"
    """Something else, such as an unreadable file."""


IN_DOUBT = (QuarantineKind.IDENTITY, QuarantineKind.ELSEWHERE)
"""Kinds that put the study itself in quarantine."""


class QuarantineState(StrEnum):
    """What a person has decided on it."""

    HELD = "HELD"
    RELEASED = "RELEASED"
    DISCARDED = "DISCARDED"


URGENCY: dict[Priority | None, int] = {
    Priority.HIGH: 0,
    Priority.MEDIUM: 1,
    Priority.LOW: 2,
    None: 3,
}
"""How the worklist and the outbox order priorities."""

NO_URGENCY = URGENCY[None]

CORRECTED = "not sent: the PACS has corrected the patient since; the study is answered anew"
"""Last word of a delivery that names the patient as before: no request sends it."""

studies = Table(
    "studies",
    metadata,
    Column("study_uid", Uid, primary_key=True),
    Column("patient_id", SafeText, nullable=False),
    Column("issuer", SafeText, nullable=False),
    # RUNNING is never stored: a QUEUED study whose newest job is RUNNING is (see `documents`).
    Column("state", String(16), nullable=False),
    Column("run", Integer, nullable=False),
    # Everything held but our own results, and the CT images among it.
    Column("instances", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("urgency", Integer, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    Column("last_image_at", UtcDateTime, nullable=False),
    Column("last_activity_at", UtcDateTime, nullable=False),
    Column("quarantine_reason", SafeText),
    # Instances of every role whose files are here; of `instances`, those whose files were removed.
    Column("held", Integer, nullable=False, server_default="0"),
    Column("removed", Integer, nullable=False, server_default="0"),
    # Between the decision to remove files and the last of them: finished after a crash.
    Column("removing", Boolean, nullable=False, server_default=false()),
    Column("removed_at", UtcDateTime),
    Column("removed_why", String(16)),
    # Whom the images themselves name, where the PACS has corrected it since; see `corrections`.
    Column("former_patient_id", SafeText),
    Column("former_issuer", SafeText),
    Column("corrected_name", SafeText),
    Column("corrected_birth_date", SafeText),
    Column("corrected_sex", SafeText),
    Column("corrected_at", UtcDateTime),
    Column("corrections", Integer, nullable=False, server_default="0"),
    Index("ix_studies_worklist", "urgency", "received_at", "study_uid"),
    # What came within a day, and when anything came last.
    Index(None, "received_at"),
    Index(
        "ix_studies_receiving",
        "study_uid",
        postgresql_where=text("state = 'RECEIVING'"),
        sqlite_where=text("state = 'RECEIVING'"),
    ),
    Index(
        "ix_studies_held",
        "last_activity_at",
        "study_uid",
        postgresql_where=text("held > 0"),
        sqlite_where=text("held > 0"),
    ),
    Index(
        "ix_studies_removing",
        "study_uid",
        postgresql_where=text("removing"),
        sqlite_where=text("removing"),
    ),
)

instances = Table(
    "instances",
    metadata,
    Column("instance_id", RowId, primary_key=True),
    Column("study_uid", Uid, ForeignKey("studies.study_uid", ondelete="CASCADE"), nullable=False),
    # Unique over all studies: a SOP Instance UID names one object in the world (PS3.5 9).
    Column("sop_instance_uid", Uid, nullable=False, unique=True),
    Column("series_uid", Uid, nullable=False),
    Column("role", String(16), nullable=False),
    Column("sop_class_uid", Uid, nullable=False),
    Column("transfer_syntax_uid", Uid, nullable=False),
    Column("sha256", Digest, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # Relative to the data directory, POSIX separators.
    Column("path", SafeText, nullable=False),
    Column("association_id", SafeText, nullable=False),
    Column("calling_aet", SafeText, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    # First run whose manifest holds it; null while no run does.
    Column("run", Integer),
    Column("facts", StrictJson, nullable=False),
    # When its file was removed; null: the file is here.
    Column("removed_at", UtcDateTime),
    Index(None, "study_uid", "run"),
)

arrivals = Table(
    "arrivals",
    metadata,
    Column("study_uid", Uid, ForeignKey("studies.study_uid", ondelete="CASCADE"), primary_key=True),
    Column("association_id", SafeText, primary_key=True),
    Column("calling_aet", SafeText, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("first_at", UtcDateTime, nullable=False),
    Column("last_at", UtcDateTime, nullable=False),
    # How the association ended, in the words of its event; null: it has not, as far as is known.
    Column("ended", String(16)),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", RowId, primary_key=True),
    Column("study_uid", Uid, ForeignKey("studies.study_uid", ondelete="CASCADE"), nullable=False),
    Column("run", Integer, nullable=False),
    Column("manifest_digest", Digest, nullable=False),
    Column("model_sha256", Digest),
    Column("state", String(16), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("available_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lease_owner", SafeText),
    Column("lease_until", Double),
    Column("fencing_token", Integer, nullable=False),
    Column("last_error", SafeText),
    Column("superseded", Boolean, nullable=False),
    Column("outcome", String(16)),
    Column("reason", SafeText),
    Column("priority", String(8)),
    Column("document", StrictJson),
    # Apart from the document, so that a page of the worklist does not read it.
    Column("slices", StrictJson),
    Column("received_at", UtcDateTime, nullable=False),
    Column("last_image_at", UtcDateTime, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("completed_at", UtcDateTime),
    Column("delivered_at", UtcDateTime),
    # What closed the study, in the words of the event `study.complete`.
    Column("closed_by", String(32)),
    Column("closed_reason", SafeText),
    # Images that the PACS said it holds, where it was asked.
    Column("expected_images", Integer),
    # Apart from the document, for the charts that watch the output.
    Column("pe_probability", Double),
    Column("attention_entropy", Double),
    # The worker had no destination at all (`worker --no-send`): nobody was told to take it.
    Column("unsent", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("study_uid", "run"),
    Index(None, "completed_at"),
    # When a model gave its first answer.
    Index("ix_jobs_model", "model_sha256", "completed_at"),
    Index(
        "ix_jobs_claim",
        "rank",
        "available_at",
        "job_id",
        postgresql_where=text("state = 'QUEUED'"),
        sqlite_where=text("state = 'QUEUED'"),
    ),
    # One run of a study at a time, even if a statement above it were wrong.
    Index(
        "uq_jobs_running",
        "study_uid",
        unique=True,
        postgresql_where=text("state = 'RUNNING'"),
        sqlite_where=text("state = 'RUNNING'"),
    ),
)

results = Table(
    "results",
    metadata,
    Column("result_id", RowId, primary_key=True),
    Column("job_id", RowId, ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("sop_class_uid", Uid),
    Column("sop_instance_uid", Uid, unique=True),
    Column("sha256", Digest),
    # Null where there is no file: it could not be written, or was removed.
    Column("path", SafeText),
    Column("removed_at", UtcDateTime),
    UniqueConstraint("job_id", "ordinal"),
    # Removal that a crash interrupted.
    Index(
        "ix_results_removing",
        "job_id",
        postgresql_where=text("removed_at IS NOT NULL AND path IS NOT NULL"),
        sqlite_where=text("removed_at IS NOT NULL AND path IS NOT NULL"),
    ),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", RowId, primary_key=True),
    Column("result_id", RowId, ForeignKey("results.result_id", ondelete="CASCADE"), nullable=False),
    Column("job_id", RowId, ForeignKey("jobs.job_id", ondelete="CASCADE"), nullable=False),
    Column("destination", SafeText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("urgency", Integer, nullable=False),
    Column("ordinal", Integer, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("last_error", SafeText),
    Column("sent_at", UtcDateTime),
    # Storage commitment: since when it is wanted, when it is asked for next (null: no more), how
    # often it was. Defaults of the server: a worker of the version before writes none of these.
    Column("commit_since", Double),
    Column("commit_next_at", Double),
    Column("commit_attempts", Integer, nullable=False, server_default="0"),
    Column("commit_error", SafeText),
    Column("redeliveries", Integer, nullable=False, server_default="0"),
    # A person's decision that this result need not arrive there.
    Column("abandoned_at", UtcDateTime),
    Column("abandoned_by", SafeText),
    Column("abandoned_why", SafeText),
    UniqueConstraint("result_id", "destination"),
    Index(None, "job_id", "state"),
    Index(
        "ix_deliveries_parked",
        "destination",
        postgresql_where=text("state = 'PARKED'"),
        sqlite_where=text("state = 'PARKED'"),
    ),
    # When a destination last took anything.
    Index(
        "ix_deliveries_taken",
        "destination",
        "sent_at",
        postgresql_where=text("sent_at IS NOT NULL"),
        sqlite_where=text("sent_at IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_commit",
        "destination",
        "commit_next_at",
        postgresql_where=text("commit_next_at IS NOT NULL"),
        sqlite_where=text("commit_next_at IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_uncommitted",
        "destination",
        "commit_since",
        postgresql_where=text("commit_since IS NOT NULL"),
        sqlite_where=text("commit_since IS NOT NULL"),
    ),
    Index(
        "ix_deliveries_due",
        "destination",
        "urgency",
        "queued_at",
        "job_id",
        "ordinal",
        postgresql_where=text("state = 'PENDING'"),
        sqlite_where=text("state = 'PENDING'"),
    ),
    Index(
        "ix_deliveries_next",
        "destination",
        "next_attempt_at",
        postgresql_where=text("state = 'PENDING'"),
        sqlite_where=text("state = 'PENDING'"),
    ),
)

commitment_requests = Table(
    "commitment_requests",
    metadata,
    Column("request_id", RowId, primary_key=True),
    Column("transaction_uid", Uid, nullable=False),
    # AET@HOST:PORT to which the answer goes.
    Column("requester", SafeText, nullable=False),
    # Of what is asked: the same request again is one request.
    Column("digest", Digest, nullable=False),
    Column("state", String(16), nullable=False),
    Column("received_at", Double, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", SafeText),
    Column("ended_at", Double),
    UniqueConstraint("requester", "transaction_uid", "digest"),
    Index(
        "ix_commitment_requests_due",
        "state",
        "next_attempt_at",
        postgresql_where=text("ended_at IS NULL"),
        sqlite_where=text("ended_at IS NULL"),
    ),
)
"""What scanners ask of us before they delete."""

commitment_request_items = Table(
    "commitment_request_items",
    metadata,
    Column(
        "request_id",
        RowId,
        ForeignKey("commitment_requests.request_id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("sop_instance_uid", Uid, primary_key=True),
    Column("sop_class_uid", Uid, nullable=False),
    # Null while the archive has said nothing of it.
    Column("held", Boolean),
    # Failure Reason (0008,1197) that it would be answered with now.
    Column("failure", Integer),
)

commitments = Table(
    "commitments",
    metadata,
    Column("commitment_id", RowId, primary_key=True),
    Column("transaction_uid", Uid, nullable=False, unique=True),
    # Who was asked: a destination's name, or the archive's address.
    Column("peer", SafeText, nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("answered_at", Double),
    Index(None, "asked_at"),
)
"""What we asked of archives: a report is believed only where it answers one of these."""

commitment_items = Table(
    "commitment_items",
    metadata,
    Column(
        "commitment_id",
        RowId,
        ForeignKey("commitments.commitment_id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("sop_instance_uid", Uid, primary_key=True),
    Column("sop_class_uid", Uid, nullable=False),
    # One of these: a result of ours, or what a scanner asked about.
    Column("delivery_id", RowId, ForeignKey("deliveries.delivery_id", ondelete="CASCADE")),
    Column("request_id", RowId, ForeignKey("commitment_requests.request_id", ondelete="CASCADE")),
    Index(None, "delivery_id"),
    Index(None, "request_id"),
)

alarms = Table(
    "alarms",
    metadata,
    Column("alarm_id", RowId, primary_key=True),
    Column("name", SafeText, nullable=False),
    # What it is about where one name can stand for several: a destination, a day.
    Column("subject", SafeText, nullable=False),
    Column("message", SafeText, nullable=False),
    Column("facts", StrictJson, nullable=False),
    Column("raised_at", UtcDateTime, nullable=False),
    Column("reminded_at", UtcDateTime, nullable=False),
    Column("cleared_at", UtcDateTime),
    # One standing alarm of a name and subject, even if two coordinators looked at once.
    Index(
        "uq_alarms_standing",
        "name",
        "subject",
        unique=True,
        postgresql_where=text("cleared_at IS NULL"),
        sqlite_where=text("cleared_at IS NULL"),
    ),
)

alarm_notices = Table(
    "alarm_notices",
    metadata,
    Column("notice_id", RowId, primary_key=True),
    Column("alarm_id", RowId, ForeignKey("alarms.alarm_id", ondelete="CASCADE"), nullable=False),
    Column("destination", SafeText, nullable=False),
    # Exactly what is sent, however often it is tried.
    Column("body", SafeText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("last_error", SafeText),
    Index(
        "ix_alarm_notices_due",
        "destination",
        "notice_id",
        postgresql_where=text("state = 'PENDING'"),
        sqlite_where=text("state = 'PENDING'"),
    ),
    Index(None, "alarm_id"),
)

quarantine = Table(
    "quarantine",
    metadata,
    Column("quarantine_id", RowId, primary_key=True),
    # No foreign key: what was set aside may belong to no study that is held.
    Column("study_uid", Uid),
    Column("sop_instance_uid", Uid),
    Column("sha256", Digest),
    Column("path", SafeText, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("reason", SafeText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("decided_at", UtcDateTime),
    Column("decided_by", SafeText),
    Column("decided_why", SafeText),
    Index(None, "study_uid", "sop_instance_uid", "sha256"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", SafeText, primary_key=True),
    Column("owner", SafeText, nullable=False),
    # Grows with each new holder: who finds another than its own has been replaced.
    Column("token", Integer, nullable=False),
    # Epoch seconds on the database's clock.
    Column("held_until", Double, nullable=False),
)
"""What only one may do at a time, and which hosts live."""

site_facts = Table(
    "site_facts",
    metadata,
    Column("name", SafeText, primary_key=True),
    Column("value", SafeText, nullable=False),
)
"""What holds for all hosts on this database; written once."""

retrievals = Table(
    "retrievals",
    metadata,
    # No foreign key: it may be the first that is heard of the study.
    Column("study_uid", Uid, primary_key=True),
    # CT series UID to the number of its images at the archive.
    Column("wanted", StrictJson, nullable=False),
    Column("begun_at", Double, nullable=False),
)
"""What is fetched from an archive and has not come whole yet."""
