"""What is uploaded, and what the images name, is enough: both Apps start from that alone.

A fresh process has the uploaded files and the packages of the image, and neither the checkout nor
anything else that is installed here.
"""

import json
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from clips import file, tone
from conftest import PYTHON, ROOT
from images import hiding, not_in_image
from local_remote import deployed
from modal_server import ModalServer

import inference.modal.app
import registry.modal.app

PROMPT = {"fingerprint": "f" * 64, "sha256": "5" * 64, "frames": 13, "modes": ["xvec"]}
MODEL = {"id": "Qwen/Qwen3-TTS-12Hz-1.7B-Base", "revision": "r1"}
MARKER = {"model_id": MODEL["id"], "revision": "r1", "source": f"{MODEL['id']}@r1"}
MARKER |= {"languages": ["english"], "sample_rate": 24_000}

START = """
import sys
root, packages, folder = sys.argv[1:]
sys.path += [root, packages]
"""

ASK = """
import asyncio, json, warnings
from pathlib import Path
from registry.modal import app as deploy

class Volume:
    object_id = "vo-1"
    def commit(self): ...
    def reload(self): ...

class Dict(dict):
    def put(self, key, value, *, skip_if_exists):
        return self.setdefault(key, value) is value

deploy.STATE, deploy.WEIGHTS, deploy.LOCAL = f"{folder}/state", f"{folder}/weights", Path(folder)
deploy.state, deploy.weights, deploy.claims = Volume(), Volume(), Dict()
with warnings.catch_warnings(action="ignore"):  # that it runs where Modal does not mount Volumes
    app = deploy.api.local()

def ask(method, path, body=b"", kind="application/json"):
    sent, bodies = [], [body]
    async def receive():
        if not bodies:
            await asyncio.Event().wait()  # the client stays
        return {"type": "http.request", "body": bodies.pop()}
    async def send(message):
        sent.append(message)
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "https", "server": ("a", 443)}
    asyncio.run(app(scope, receive, send))
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return [sent[0]["status"], json.loads(answer)]

form = Path(folder, "form").read_bytes()
said = [ask("GET", "/healthz"), ask("GET", "/readyz")]
said += [ask("POST", "/voices", form, "multipart/form-data; boundary=cut"), ask("GET", "/voices")]
print(json.dumps(said))
"""

IMPORT = """
import importlib, pkgutil
for module in pkgutil.walk_packages([f"{root}/%s"], "%s."):
    importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ModalServer]:
    """Both Apps, as `modal deploy` sends them."""
    with deployed() as server:
        line = [PYTHON, "-m", "modal", "deploy", "-m", "registry.modal.app"]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield server


def started(script: str, server: ModalServer, function: str, folder: Path, hidden: set[str]) -> str:
    """What a script prints that has what was uploaded for a Function in /root."""
    for name, content in server.uploaded(*server.functions[function].mount_ids).items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    line = [PYTHON, "-I", "-S", "-c", START + hiding(hidden) + script]
    line += [str(folder / "root"), sysconfig.get_path("purelib"), str(folder)]
    done = subprocess.run(line, cwd=folder, env=server.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def form(**fields: str) -> bytes:
    """An upload of a clip, cut by the boundary `cut`."""
    head = b'--cut\r\nContent-Disposition: form-data; name="%s"'
    parts = [head % k.encode() + b"\r\n\r\n" + v.encode() for k, v in fields.items()]
    parts.append(head % b"audio" + b'; filename="clip"\r\n\r\n' + file(tone(), 24_000))
    return b"\r\n".join([*parts, b"--cut--\r\n"])


@pytest.mark.slow
def test_the_registry_starts_and_enrols_from_what_its_image_has(
    server: ModalServer, tmp_path: Path
) -> None:
    hidden = not_in_image(registry.modal.app.PACKAGES)
    assert {"torch", "httpx", "uvicorn", "platformdirs"} <= hidden
    server.answers["Voices.extract_prompt"] = lambda source, until_s: {
        "prompt": PROMPT | {"model": MODEL}
    }
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.json").write_text(json.dumps(MARKER))
    (tmp_path / "form").write_bytes(form(name="alice"))
    script = IMPORT % ("registry", "registry") + ASK
    alive, ready, added, listed = json.loads(started(script, server, "api", tmp_path, hidden))
    assert alive == [200, {"status": "ok"}] and ready[0] == 200
    assert added[0] == 201, added
    assert [voice["name"] for voice in listed[1]["data"]] == ["alice"]
    assert list((tmp_path / "state" / "snapshots").glob("*.db"))


@pytest.mark.slow
def test_every_module_of_inference_is_imported_from_what_its_image_has(
    server: ModalServer, tmp_path: Path
) -> None:
    hidden = not_in_image([*inference.modal.app.PACKAGES, "torch"], "qwen-tts")
    started(IMPORT % ("inference", "inference"), server, "Voices.*", tmp_path, hidden)


def test_only_the_sources_of_the_registry_are_uploaded(server: ModalServer) -> None:
    sources = [path for name in ("registry", "migrations") for path in (ROOT / name).rglob("*.py")]
    ours = {f"/root/{path.relative_to(ROOT).as_posix()}" for path in sources}
    for tag in ("api", "doctor", "back_up", "restore", "use_model"):
        assert set(server.uploaded(*server.functions[tag].mount_ids)) == ours
