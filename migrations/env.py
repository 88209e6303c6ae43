"""Runs migrations on the engine that `registry.database.migrate` hands over.

Alembic takes SQLite for a database without transactional DDL; with an explicit BEGIN it has it, so
a step that is killed half-way rolls back as a whole.
"""

from alembic import context
from sqlmodel import SQLModel

import registry.models  # noqa: F401  registers the tables


def run(engine: object) -> None:
    with engine.connect() as connection:  # type: ignore[attr-defined]
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            transactional_ddl=True,
            transaction_per_migration=True,
            render_as_batch=True,
        )
        with context.begin_transaction():
            context.run_migrations()


run(context.config.attributes["engine"])
