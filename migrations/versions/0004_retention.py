"""Which files are still here, who decided what, and why.

Revision ID: 0004
Revises: 0003
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Defaults of the server: a program of the version before goes on inserting.
    for name in ("held", "removed"):
        op.add_column("studies", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.add_column(
        "studies", sa.Column("removing", sa.Boolean, nullable=False, server_default=sa.false())
    )
    op.add_column("studies", sa.Column("removed_at", TIME))
    op.add_column("studies", sa.Column("removed_why", sa.String(16)))
    op.add_column("instances", sa.Column("removed_at", TIME))
    op.add_column("results", sa.Column("removed_at", TIME))
    for name, type_ in (("at", TIME), ("by", sa.Text()), ("why", sa.Text())):
        op.add_column("deliveries", sa.Column(f"abandoned_{name}", type_))
    op.add_column("quarantine", sa.Column("decided_by", sa.Text))
    op.add_column("quarantine", sa.Column("decided_why", sa.Text))
    op.execute(
        "UPDATE studies SET held = (SELECT count(*) FROM instances "
        "WHERE instances.study_uid = studies.study_uid)"
    )
    for name, table, columns, where in (
        ("ix_studies_held", "studies", ["last_activity_at", "study_uid"], "held > 0"),
        ("ix_studies_removing", "studies", ["study_uid"], "removing"),
        (
            "ix_results_removing",
            "results",
            ["job_id"],
            "removed_at IS NOT NULL AND path IS NOT NULL",
        ),
    ):
        op.create_index(
            name,
            table,
            columns,
            postgresql_where=sa.text(where),
            sqlite_where=sa.text(where),
        )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
