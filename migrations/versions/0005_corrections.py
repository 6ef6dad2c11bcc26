"""Whom a study is filed under since its patient was corrected at the PACS.

Revision ID: 0005
Revises: 0004
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    for name in (
        "former_patient_id",
        "former_issuer",
        "corrected_name",
        "corrected_birth_date",
        "corrected_sex",
    ):
        op.add_column("studies", sa.Column(name, sa.Text))
    op.add_column("studies", sa.Column("corrected_at", sa.DateTime(timezone=True)))
    op.add_column(
        "studies", sa.Column("corrections", sa.Integer, nullable=False, server_default="0")
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
