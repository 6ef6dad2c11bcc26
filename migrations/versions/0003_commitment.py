"""Storage commitment, asked for and answered.

Revision ID: 0003
Revises: 0002
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    # Defaults of the server: workers of version 0002 go on inserting during a rolling upgrade.
    op.add_column("deliveries", sa.Column("commit_since", sa.Double))
    op.add_column("deliveries", sa.Column("commit_next_at", sa.Double))
    op.add_column(
        "deliveries",
        sa.Column("commit_attempts", sa.Integer, nullable=False, server_default="0"),
    )
    op.add_column("deliveries", sa.Column("commit_error", sa.Text))
    op.add_column(
        "deliveries", sa.Column("redeliveries", sa.Integer, nullable=False, server_default="0")
    )
    for name, column in (
        ("ix_deliveries_commit", "commit_next_at"),
        ("ix_deliveries_uncommitted", "commit_since"),
    ):
        op.create_index(
            name,
            "deliveries",
            ["destination", column],
            postgresql_where=sa.text(f"{column} IS NOT NULL"),
            sqlite_where=sa.text(f"{column} IS NOT NULL"),
        )

    op.create_table(
        "commitment_requests",
        sa.Column("request_id", ROW_ID, nullable=False),
        sa.Column("transaction_uid", sa.Text, nullable=False),
        sa.Column("requester", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("received_at", sa.Double, nullable=False),
        sa.Column("next_attempt_at", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("ended_at", sa.Double),
        sa.PrimaryKeyConstraint("request_id", name="pk_commitment_requests"),
        sa.UniqueConstraint(
            "requester",
            "transaction_uid",
            "digest",
            name="uq_commitment_requests_requester_transaction_uid_digest",
        ),
    )
    op.create_index(
        "ix_commitment_requests_due",
        "commitment_requests",
        ["state", "next_attempt_at"],
        postgresql_where=sa.text("ended_at IS NULL"),
        sqlite_where=sa.text("ended_at IS NULL"),
    )

    op.create_table(
        "commitment_request_items",
        sa.Column("request_id", ROW_ID, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("sop_class_uid", sa.Text, nullable=False),
        sa.Column("held", sa.Boolean),
        sa.Column("failure", sa.Integer),
        sa.PrimaryKeyConstraint(
            "request_id", "sop_instance_uid", name="pk_commitment_request_items"
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["commitment_requests.request_id"],
            name="fk_commitment_request_items_request_id",
            ondelete="CASCADE",
        ),
    )

    op.create_table(
        "commitments",
        sa.Column("commitment_id", ROW_ID, nullable=False),
        sa.Column("transaction_uid", sa.Text, nullable=False),
        sa.Column("peer", sa.Text, nullable=False),
        sa.Column("asked_at", sa.Double, nullable=False),
        sa.Column("answered_at", sa.Double),
        sa.PrimaryKeyConstraint("commitment_id", name="pk_commitments"),
        sa.UniqueConstraint("transaction_uid", name="uq_commitments_transaction_uid"),
    )
    op.create_index("ix_commitments_asked_at", "commitments", ["asked_at"])

    op.create_table(
        "commitment_items",
        sa.Column("commitment_id", ROW_ID, nullable=False),
        sa.Column("sop_instance_uid", sa.Text, nullable=False),
        sa.Column("sop_class_uid", sa.Text, nullable=False),
        sa.Column("delivery_id", ROW_ID),
        sa.Column("request_id", ROW_ID),
        sa.PrimaryKeyConstraint("commitment_id", "sop_instance_uid", name="pk_commitment_items"),
        sa.ForeignKeyConstraint(
            ["commitment_id"],
            ["commitments.commitment_id"],
            name="fk_commitment_items_commitment_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["deliveries.delivery_id"],
            name="fk_commitment_items_delivery_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["request_id"],
            ["commitment_requests.request_id"],
            name="fk_commitment_items_request_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_commitment_items_delivery_id", "commitment_items", ["delivery_id"])
    op.create_index("ix_commitment_items_request_id", "commitment_items", ["request_id"])


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
