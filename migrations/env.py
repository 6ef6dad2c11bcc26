"""Alembic's entry: runs on the connection that `pe_triage.store.migrate` hands over."""

from alembic import context

from pe_triage.store.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("migrations are run by: pe-triage db upgrade")

context.configure(
    connection=connection,
    target_metadata=metadata,
    compare_type=True,
    # SQLite alters a table by making it anew.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
