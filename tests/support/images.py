"""What an image at Modal has: the packages that it names, and what these require."""

from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HIDING = """
import sys
from importlib.machinery import PathFinder

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden!r}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Installed if finder is PathFinder else finder for finder in sys.meta_path]
"""


def hiding(modules: Iterable[str]) -> str:
    """The first lines of a script that is to find none of these modules, though they are here."""
    return HIDING.replace("{hidden!r}", repr(set(modules)))


def not_in_image(packages: Iterable[str], *alone: str) -> set[str]:
    """The modules that are installed here, but not by `packages`, nor by Modal's own client.

    Packages are named as in the image, `numpy==2.4.6`; `alone` are those without what they require.
    """
    named = (package.partition("==")[0] for package in packages)
    there = required([*named, "modal"]) | {*alone, "voice-registry"}
    owners = packages_distributions().items()
    return {module for module, names in owners if not {canonicalize_name(n) for n in names} & there}


def required(names: list[str]) -> set[str]:
    """The distributions and all that they require, extras aside."""
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found.add(name)
            with suppress(PackageNotFoundError):
                asked = [Requirement(text) for text in requires(name) or ()]
                names += [a.name for a in asked if a.marker is None or a.marker.evaluate()]
    return found
