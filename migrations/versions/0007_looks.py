"""Indices for what the node looks at all day, so that it costs the same however much is held.

Revision ID: 0007
Revises: 0006
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("ix_studies_received_at", "studies", ["received_at"])
    op.create_index("ix_jobs_model", "jobs", ["model_sha256", "completed_at"])
    for name, columns, where in (
        ("ix_deliveries_parked", ["destination"], "state = 'PARKED'"),
        ("ix_deliveries_taken", ["destination", "sent_at"], "sent_at IS NOT NULL"),
    ):
        op.create_index(
            name,
            "deliveries",
            columns,
            postgresql_where=sa.text(where),
            sqlite_where=sa.text(where),
        )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
