"""The keys of a server.

It only adds a table, of which an older program knows nothing: it asks nobody for a key.
Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
oldest_program = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("secret_sha256", sa.String, nullable=False),
        sa.Column("former_sha256", sa.String),
        sa.Column("former_until", sa.String),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("voices", sa.JSON),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("expires_at", sa.String),
        sa.Column("last_used_at", sa.String),
        sa.Column("revoked_at", sa.String),
    )


def downgrade() -> None:
    op.drop_table("api_key")
