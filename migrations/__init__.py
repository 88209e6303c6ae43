"""Alembic's migrations of the registry's database, as a package so that the wheel carries them."""
