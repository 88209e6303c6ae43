"""Voices, their enrolments and features, labels, near names, and the model in use.

Revision: 0001, the first
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "voice",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("name_key", sa.String, nullable=False),
        sa.Column("description", sa.String, nullable=False),
        sa.Column("defaults", sa.JSON, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("row_version", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("updated_at", sa.String, nullable=False),
        sa.Column("deleted_at", sa.String),
    )
    op.create_index(
        "voice_live_name",
        "voice",
        ["name_key"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "voice_version",
        sa.Column("voice_id", sa.String, sa.ForeignKey("voice.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("clip_sha256", sa.String, nullable=False),
        sa.Column("transcript", sa.String),
        sa.Column("clip", sa.JSON, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_index("ix_voice_version_clip_sha256", "voice_version", ["clip_sha256"])
    op.create_table(
        "features",
        sa.Column("voice_id", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("fingerprint", sa.String, primary_key=True),
        sa.Column("sha256", sa.String, nullable=False),
        sa.Column("frames", sa.Integer, nullable=False),
        sa.Column("modes", sa.JSON, nullable=False),
        sa.Column("model_id", sa.String, nullable=False),
        sa.Column("model_revision", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
        sa.ForeignKeyConstraint(
            ["voice_id", "version"], ["voice_version.voice_id", "voice_version.number"]
        ),
    )
    op.create_table(
        "label",
        sa.Column("voice_id", sa.String, sa.ForeignKey("voice.id"), primary_key=True),
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("value", sa.String, nullable=False),
    )
    op.create_index("label_value", "label", ["key", "value", "voice_id"])
    op.create_table(
        "name_variant",
        sa.Column("variant", sa.String, primary_key=True),
        sa.Column("voice_id", sa.String, sa.ForeignKey("voice.id"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "model_in_use",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("source", sa.String, nullable=False),
        sa.Column("model_id", sa.String, nullable=False),
        sa.Column("revision", sa.String, nullable=False),
        sa.Column("chosen_at", sa.String, nullable=False),
    )


def downgrade() -> None:
    for table in ("model_in_use", "name_variant", "label", "features", "voice_version", "voice"):
        op.drop_table(table)
