"""The registry of students: versions made by jobs, aliases, and the log of their moves."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

WHEN = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("job_artifact") as changed:
        changed.add_column(
            sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    with op.batch_alter_table("job_artifact") as changed:  # the default was for existing rows
        changed.alter_column("pinned", server_default=None)
    op.create_table(
        "student",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_student")),
        sa.UniqueConstraint("name", name=op.f("uq_student_name")),
    )
    op.create_table(
        "student_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("student_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("artifact_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("seen", sa.Float(), nullable=True),
        sa.Column("unseen", sa.Float(), nullable=True),
        sa.Column("joint_harmonic_mean", sa.Float(), nullable=True),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("created_at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["student_id"], ["student.id"], name=op.f("fk_student_version_student_id_student")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_student_version_job_id_job")),
        sa.ForeignKeyConstraint(
            ["artifact_id"],
            ["job_artifact.id"],
            name=op.f("fk_student_version_artifact_id_job_artifact"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_student_version")),
        sa.UniqueConstraint(
            "student_id", "job_id", name=op.f("uq_student_version_student_id_job_id")
        ),
        sa.UniqueConstraint(
            "student_id", "number", name=op.f("uq_student_version_student_id_number")
        ),
    )
    op.create_index(op.f("ix_student_version_job_id"), "student_version", ["job_id"])
    op.create_index(op.f("ix_student_version_artifact_id"), "student_version", ["artifact_id"])
    op.create_table(
        "student_alias",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("student_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["student_id"], ["student.id"], name=op.f("fk_student_alias_student_id_student")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["student_version.id"],
            name=op.f("fk_student_alias_version_id_student_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_student_alias")),
        sa.UniqueConstraint("student_id", "name", name=op.f("uq_student_alias_student_id_name")),
    )
    op.create_table(
        "student_alias_move",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("student_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("from_number", sa.Integer(), nullable=True),
        sa.Column("to_number", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("at", WHEN, nullable=False),
        sa.ForeignKeyConstraint(
            ["student_id"], ["student.id"], name=op.f("fk_student_alias_move_student_id_student")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_student_alias_move")),
    )
    op.create_index(op.f("ix_student_alias_move_student_id"), "student_alias_move", ["student_id"])


def downgrade() -> None:
    for table in ("student_alias_move", "student_alias", "student_version", "student"):
        op.drop_table(table)
    with op.batch_alter_table("job_artifact") as changed:
        changed.drop_column("pinned")
