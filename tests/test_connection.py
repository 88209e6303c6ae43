"""What the environment says of proxies, certificates and a home: used, or named in a sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest

from cli.api.connection import certificates, is_excepted, proxy_for

ROOT = Path(__file__).parent.parent
EXCEPTED = [
    ("http://a.example", "*"),
    ("http://a.example", "example"),
    ("http://a.example", ".example"),
    ("http://a.example", "*.example"),
    ("http://a.example", "b.example , A.Example"),
    ("http://a.example", "b.example a.example."),
    ("http://a.example:8443", "a.example:8443"),
    ("http://a.example", "http://a.example"),
    ("http://10.1.2.3", "10.0.0.0/8"),
    ("http://10.1.2.3", "10.1.2.3:80"),
    ("https://10.1.2.3", "10.1.2.3:443"),
    ("http://[2001:db8::1]", "2001:db8::1"),
    ("http://[2001:db8::1]", "[2001:db8::1]"),
    ("http://[2001:db8::1]", "[2001:db8::1]:80"),
    ("http://[2001:db8::1]", "2001:db8::/32"),
    ("http://[2001:db8::1]", "[2001:db8::]/32"),
    ("http://bücher.example", "xn--bcher-kva.example"),
]
NOT_EXCEPTED = [
    ("http://a.example", ""),
    ("http://a.example", " , ,"),
    ("http://aexample", "example"),
    ("http://a.example", "a.example:8080"),
    ("http://a.example", "a.example:port"),
    ("http://a.example", ":"),
    ("http://a.example", "[::1"),
    ("http://10.1.2.3", "10.1.2.3:8080"),
    ("http://10.1.2.3", "10.1.2.3/99"),
    ("http://10.1.2.3", "::/0"),
    ("http://[2001:db8::1]:81", "[2001:db8::1]:80"),
]


@pytest.mark.parametrize(("url", "no_proxy"), EXCEPTED)
def test_no_proxy_excepts(url: str, no_proxy: str) -> None:
    assert is_excepted(httpx.URL(url), no_proxy)


@pytest.mark.parametrize(("url", "no_proxy"), NOT_EXCEPTED)
def test_no_proxy_does_not_except(url: str, no_proxy: str) -> None:
    assert not is_excepted(httpx.URL(url), no_proxy)


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_used_or_its_variable_named(
    variable: str, no_proxies: pytest.MonkeyPatch
) -> None:
    target = httpx.URL("http://a.example")
    no_proxies.setenv(variable, "proxy.example:3128")
    found = proxy_for(target)
    assert found is not None and str(found.url) == "http://proxy.example:3128"
    assert proxy_for(httpx.URL("http://127.0.0.1")) is None
    for value in ("http://[::1", "foo://bar", "http://", "http://u:secret@h:99999", "socks9://h"):
        no_proxies.setenv(variable, value)
        with pytest.raises(
            click.ClickException, match=f"^{variable} is not the address"
        ) as refused:
            proxy_for(target)
        assert "secret" not in refused.value.message


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_certificates_that_are_not_there_are_said(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "missing"))
    with pytest.raises(click.ClickException, match=f"^{variable} names '.*missing'"):
        certificates()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare")
@pytest.mark.parametrize("verb", ["list", "logout", "where"])
def test_a_user_without_a_home_needs_one_variable(verb: str, tmp_path: Path) -> None:
    nobody = ["unshare", "-U", "--map-user=12345", "env", "-i", f"PYTHONPATH={ROOT}"]
    if subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("namespaces of users are not allowed here")
    command = [sys.executable, "-m", "cli.main", verb]
    home = f"VOICES_HOME={tmp_path / 'home'}"
    with_home = subprocess.run([*nobody, home, *command], capture_output=True, text=True)
    assert with_home.returncode == 0, with_home.stderr
    without = subprocess.run([*nobody, *command], capture_output=True, text=True)
    if verb != "logout":
        assert without.returncode == 2
        assert without.stderr.endswith(
            "no home directory: set VOICES_HOME to the folder to use, or HOME.\n"
        )
