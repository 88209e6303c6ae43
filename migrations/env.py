"""Runs migrations on the engine that `registry.storage.database.migrate` hands over.

Alembic takes SQLite for a database without transactional DDL; with an explicit BEGIN it has it, so
a step that is killed half-way rolls back as a whole.
"""

from typing import Any

from alembic import context
from sqlmodel import SQLModel

import registry.storage.keys
import registry.storage.tables  # noqa: F401  registers the tables, as does .keys


def say_who_may_use_it(ctx: Any, step: Any, heads: object, run_args: object) -> None:
    """A step that only adds names the oldest schema whose programs get along with what it leaves.

    In SQLite's `user_version`, which is part of the transaction.
    """
    module = step.up_revision.module
    oldest = int(getattr(module, "oldest_program", module.revision))
    if ctx.dialect.name == "sqlite":
        ctx.connection.exec_driver_sql(f"PRAGMA user_version = {oldest}")


def run(engine: object) -> None:
    with engine.connect() as connection:  # type: ignore[attr-defined]
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            transactional_ddl=True,
            transaction_per_migration=True,
            render_as_batch=True,
            on_version_apply=say_who_may_use_it,
        )
        with context.begin_transaction():
            context.run_migrations()


run(context.config.attributes["engine"])
