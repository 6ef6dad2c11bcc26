"""What closed a study, what its output was, and the alarms that watch over both.

Revision ID: 0002
Revises: 0001
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
TIME = sa.DateTime(timezone=True)
STATE = sa.String(16)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("closed_by", sa.String(32)))
    op.add_column("jobs", sa.Column("closed_reason", sa.Text))
    op.add_column("jobs", sa.Column("expected_images", sa.Integer))
    op.add_column("jobs", sa.Column("pe_probability", sa.Double))
    op.add_column("jobs", sa.Column("attention_entropy", sa.Double))
    op.create_index("ix_jobs_completed_at", "jobs", ["completed_at"])

    op.create_table(
        "alarms",
        sa.Column("alarm_id", ROW_ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("raised_at", TIME, nullable=False),
        sa.Column("reminded_at", TIME, nullable=False),
        sa.Column("cleared_at", TIME),
        sa.PrimaryKeyConstraint("alarm_id", name="pk_alarms"),
    )
    op.create_index(
        "uq_alarms_standing",
        "alarms",
        ["name", "subject"],
        unique=True,
        postgresql_where=sa.text("cleared_at IS NULL"),
        sqlite_where=sa.text("cleared_at IS NULL"),
    )

    op.create_table(
        "alarm_notices",
        sa.Column("notice_id", ROW_ID, nullable=False),
        sa.Column("alarm_id", ROW_ID, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("state", STATE, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("queued_at", sa.Double, nullable=False),
        sa.Column("next_attempt_at", sa.Double, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.PrimaryKeyConstraint("notice_id", name="pk_alarm_notices"),
        sa.ForeignKeyConstraint(
            ["alarm_id"],
            ["alarms.alarm_id"],
            name="fk_alarm_notices_alarm_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_alarm_notices_alarm_id", "alarm_notices", ["alarm_id"])
    op.create_index(
        "ix_alarm_notices_due",
        "alarm_notices",
        ["destination", "notice_id"],
        postgresql_where=sa.text("state = 'PENDING'"),
        sqlite_where=sa.text("state = 'PENDING'"),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
