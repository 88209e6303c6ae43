"""The part of check_wheel.py that looks at what else is installed."""

from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from check_wheel import PACKAGES, collisions


def install(folder: Path, name: str, package: str) -> None:
    """What pip leaves of a distribution with one package."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n{name}-1.0.dist-info/METADATA,,\n")


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_another_distribution_with_a_package_of_ours_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = list(collisions(packages_distributions()))
    install(tmp_path, "stranger", package)
    monkeypatch.syspath_prepend(tmp_path)
    (warning,) = set(collisions(packages_distributions())) - set(before)
    assert "stranger" in warning and repr(package) in warning


def test_packages_of_other_names_are_no_collision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(collisions(packages_distributions()))
    install(tmp_path, "stranger", "registry_of_others")
    monkeypatch.syspath_prepend(tmp_path)
    assert list(collisions(packages_distributions())) == before


def test_our_own_packages_are_no_collision() -> None:
    assert list(collisions({name: ["voice-registry"] for name in PACKAGES})) == []
