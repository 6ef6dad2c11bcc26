"""Which answers nobody was told to take, and how associations ended.

Revision ID: 0008
Revises: 0007
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column(
        "jobs", sa.Column("unsent", sa.Boolean, nullable=False, server_default=sa.false())
    )
    # Of a node that never had a destination it is certain; of one that has them, a run without a
    # delivery may as well be one that no destination wanted.
    op.execute(
        sa.text(
            "UPDATE jobs SET unsent = true WHERE NOT EXISTS (SELECT 1 FROM deliveries) "
            "AND EXISTS (SELECT 1 FROM results WHERE results.job_id = jobs.job_id)"
        )
    )
    op.add_column("arrivals", sa.Column("ended", sa.String(16)))
    # Null is from here on "not ended yet"; how these ended was never written down.
    op.execute(sa.text("UPDATE arrivals SET ended = 'unknown'"))


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
