"""Other names of voices. An older program, which deletes no alias with its voice, may not use it.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alias",
        sa.Column("name_key", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("voice_id", sa.String, sa.ForeignKey("voice.id"), nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_index("ix_alias_voice_id", "alias", ["voice_id"])


def downgrade() -> None:
    op.drop_table("alias")
