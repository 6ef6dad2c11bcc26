"""Studies, instances, jobs, results, deliveries, quarantine.

Written by hand and never edited after a release: it says what the tables were, while
`pe_triage.store.schema` says what they are.

Revision ID: 0001
Revises:
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.DateTime(timezone=True)
DIGEST = sa.String(64)
STATE = sa.String(16)


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("patient_id", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("urgency", sa.Integer, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("last_image_at", TIME, nullable=False),
        sa.Column("last_activity_at", TIME, nullable=False),
        sa.Column("quarantine_reason", sa.Text),
        sa.PrimaryKeyConstraint("study_uid", name="pk_studies"),
    )
    op.create_index("ix_studies_worklist", "studies", ["urgency", "received_at", "study_uid"])
    partial_index("ix_studies_receiving", "studies", ["study_uid"], "RECEIVING")

    op.create_table(
        "instances",
        sa.Column("instance_id", ROW_ID, nullable=False),
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("series_uid", sa.Text, nullable=False),
        sa.Column("role", STATE, nullable=False),
        sa.Column("sop_class_uid", sa.Text, nullable=False),
        sa.Column("transfer_syntax_uid", sa.Text, nullable=False),
        sa.Column("sha256", DIGEST, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("association_id", sa.Text, nullable=False),
        sa.Column("calling_aet", sa.Text, nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("run", sa.Integer),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("instance_id", name="pk_instances"),
        foreign_key("instances", "study_uid", "studies"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_instances_sop_instance_uid"),
    )
    op.create_index("ix_instances_study_uid_run", "instances", ["study_uid", "run"])

    op.create_table(
        "arrivals",
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("association_id", sa.Text, nullable=False),
        sa.Column("calling_aet", sa.Text, nullable=False),
        sa.Column("instances", sa.Integer, nullable=False),
        sa.Column("first_at", TIME, nullable=False),
        sa.Column("last_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("study_uid", "association_id", name="pk_arrivals"),
        foreign_key("arrivals", "study_uid", "studies"),
    )

    op.create_table(
        "jobs",
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("study_uid", sa.Text, nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("manifest_digest", DIGEST, nullable=False),
        sa.Column("model_sha256", DIGEST),
        sa.Column("state", STATE, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("available_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.Column("fencing_token", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("superseded", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("reason", sa.Text),
        sa.Column("priority", sa.String(8)),
        sa.Column("document", sa.JSON),
        sa.Column("slices", sa.JSON),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("last_image_at", TIME, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("completed_at", TIME),
        sa.Column("delivered_at", TIME),
        sa.PrimaryKeyConstraint("job_id", name="pk_jobs"),
        foreign_key("jobs", "study_uid", "studies"),
        sa.UniqueConstraint("study_uid", "run", name="uq_jobs_study_uid_run"),
    )
    partial_index("ix_jobs_claim", "jobs", ["rank", "available_at", "job_id"], "QUEUED")
    partial_index("uq_jobs_running", "jobs", ["study_uid"], "RUNNING", unique=True)

    op.create_table(
        "results",
        sa.Column("result_id", ROW_ID, nullable=False),
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("sop_class_uid", sa.Text),
        sa.Column("sop_instance_uid", sa.Text),
        sa.Column("sha256", DIGEST),
        sa.Column("path", sa.Text),
        sa.PrimaryKeyConstraint("result_id", name="pk_results"),
        foreign_key("results", "job_id", "jobs"),
        sa.UniqueConstraint("sop_instance_uid", name="uq_results_sop_instance_uid"),
        sa.UniqueConstraint("job_id", "ordinal", name="uq_results_job_id_ordinal"),
    )

    op.create_table(
        "deliveries",
        sa.Column("delivery_id", ROW_ID, nullable=False),
        sa.Column("result_id", ROW_ID, nullable=False),
        sa.Column("job_id", ROW_ID, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("urgency", sa.Integer, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("queued_at", sa.Double, nullable=False),
        sa.Column("next_attempt_at", sa.Double, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("sent_at", TIME),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_deliveries"),
        foreign_key("deliveries", "result_id", "results"),
        foreign_key("deliveries", "job_id", "jobs"),
        sa.UniqueConstraint("result_id", "destination", name="uq_deliveries_result_id_destination"),
    )
    op.create_index("ix_deliveries_job_id_state", "deliveries", ["job_id", "state"])
    partial_index(
        "ix_deliveries_due",
        "deliveries",
        ["destination", "urgency", "queued_at", "job_id", "ordinal"],
        "PENDING",
    )
    partial_index("ix_deliveries_next", "deliveries", ["destination", "next_attempt_at"], "PENDING")

    op.create_table(
        "quarantine",
        sa.Column("quarantine_id", ROW_ID, nullable=False),
        sa.Column("study_uid", sa.Text),
        sa.Column("sop_instance_uid", sa.Text),
        sa.Column("sha256", DIGEST),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("kind", STATE, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("decided_at", TIME),
        sa.PrimaryKeyConstraint("quarantine_id", name="pk_quarantine"),
    )
    op.create_index(
        "ix_quarantine_study_uid_sop_instance_uid_sha256",
        "quarantine",
        ["study_uid", "sop_instance_uid", "sha256"],
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")


def foreign_key(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"{target}.{column}"], name=f"fk_{table}_{column}", ondelete="CASCADE"
    )


def partial_index(
    name: str, table: str, columns: list[str], state: str, *, unique: bool = False
) -> None:
    where = sa.text(f"state = '{state}'")
    op.create_index(name, table, columns, unique=unique, postgresql_where=where, sqlite_where=where)
