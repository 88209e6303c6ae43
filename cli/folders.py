"""Finds the folders of a user's files, unless a variable names another folder."""

import os
from pathlib import Path

import click


class NoHome(click.UsageError):
    """Raised when the user has no home directory, as under a bare uid."""


def data_folder(variable: str) -> Path:
    from platformdirs import user_data_path

    try:
        return _absolute(user_data_path("voices", appauthor=False))
    except RuntimeError as error:
        raise _no_home(variable) from error


def config_folder(variable: str) -> Path:
    from platformdirs import user_config_path

    try:
        return _absolute(user_config_path("voices", appauthor=False))
    except RuntimeError as error:
        raise _no_home(variable) from error


def expanded(path: Path, variable: str) -> Path:
    """Replace a leading ~ by the home that it stands for; raise UsageError if there is none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise click.UsageError(
            f"{variable}={str(path)!r} can't be used: nobody has that home."
        ) from error


def real(path: Path) -> Path:
    """Resolve links; raise UsageError for one that leads to itself."""
    found = Path(os.path.realpath(path))
    if found.is_symlink():
        raise click.UsageError(f"{str(path)!r} is a link that leads to itself.")
    return found


def _absolute(path: Path) -> Path:
    """Raise RuntimeError if a ~ is left, as platformdirs does for a user without a home."""
    if not path.is_absolute():
        raise RuntimeError
    return path


def _no_home(variable: str) -> NoHome:
    return NoHome(f"This user has no home directory: set {variable} to the folder to use, or HOME.")
