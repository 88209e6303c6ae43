"""What a model's name means, what is refused, and the download against a hub of our own."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PYTHON, ROOT

from inference.models import catalog as weights
from inference.models.catalog import LocatedModel, ModelSpec
from inference.models.check import examine
from inference.models.hashes import HashCache, sha256_of_file
from registry.errors import ModelCannotClone, ModelUnavailable
from registry.storage.data_dir import DataDir

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_MODEL = "acme/tiny-voice"


def run_python(
    script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-W", "error", "-c", script, *arguments],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def zeros(size: int) -> bytes:
    """A safetensors file of so many bytes."""
    header = '{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}'
    count = size - 8 - 256
    text = (header % (count, count)).ljust(256).encode()
    return len(text).to_bytes(8, "little") + text + bytes(count)


def test_default_model_is_a_base_model_at_its_pinned_revision() -> None:
    spec = weights.parse(weights.DEFAULT)
    assert spec == ModelSpec(
        "hub", "Qwen/Qwen3-TTS-12Hz-1.7B-Base", "fd4b254389122332181a7c3db7f27e918eec64e3"
    )


@pytest.mark.parametrize("name", weights.MODELS)
def test_known_models_pin_a_commit_and_the_hash_of_their_weights(name: str) -> None:
    known = weights.MODELS[name]
    assert re.fullmatch(r"[0-9a-f]{40}", known.revision)
    assert set(known.sha256) <= set(weights.WEIGHTS) and weights.WEIGHTS[0] in known.sha256
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in known.sha256.values())


def test_a_given_revision_replaces_the_pinned_one() -> None:
    assert weights.parse(f"{weights.DEFAULT}@{COMMIT}").revision == COMMIT


@pytest.mark.slow
def test_an_existing_folder_is_a_folder_and_keeps_no_trailing_slash(checkpoint: Path) -> None:
    assert weights.parse(f"{checkpoint}/") == ModelSpec("folder", str(checkpoint))


@pytest.mark.parametrize("spec", [HUB_MODEL, f"{HUB_MODEL}@main", f"{HUB_MODEL}@{COMMIT[:12]}"])
def test_an_unknown_hub_model_needs_a_full_commit(spec: str) -> None:
    with pytest.raises(ModelUnavailable, match="40 hexadecimal digits"):
        weights.parse(spec)


@pytest.mark.parametrize(
    "spec", ["", "tiny", "/no/such/folder", "./nothing", "a/b/c", "../x", "a/b..c", "a/b-", "a b/c"]
)
def test_what_is_neither_folder_nor_hub_id_is_refused(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `../x` is a folder where a clone is named x
    with pytest.raises(ModelUnavailable, match="neither demo, nor a folder"):
        weights.parse(spec)


def test_a_model_that_is_not_downloaded_names_both_ways_out(data: DataDir, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from registry import errors\n"
        "from inference.models import catalog as weights\n"
        "from registry.storage.data_dir import DataDir\n"
        "try: weights.locate(weights.DEFAULT, DataDir(Path(sys.argv[1])))\n"
        "except errors.ModelUnavailable as error: print(error)\n"
        "assert not weights.is_downloaded(weights.DEFAULT)\n"
        "assert weights.size_on_disk(weights.DEFAULT) == 0\n"
    )
    done = run_python(script, str(data.root), HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")
    assert "`voices model download`" in done.stdout, done.stderr
    assert "`voices model use demo`" in done.stdout and weights.DEFAULT in done.stdout


def test_a_folder_is_located_with_its_languages_and_rate(
    located: LocatedModel, checkpoint: Path
) -> None:
    assert located.path == checkpoint and located.sample_rate == 24_000
    assert located.ref.id == "local/tiny" and len(located.ref.revision) == 64
    assert "english" in located.languages and len(located.languages) == 10


def test_a_copied_folder_has_the_same_revision_and_a_changed_one_another(
    located: LocatedModel, data: DataDir, tmp_path: Path
) -> None:
    copy = shutil.copytree(located.path, tmp_path / "tiny")
    assert weights.locate(str(copy), data).ref == located.ref
    (copy / "merges.txt").write_text("#version: 0.2\n")
    merges = weights.locate(str(copy), data).ref.revision
    flip_a_bit(copy / "model.safetensors")
    flipped = weights.locate(str(copy), data).ref.revision
    assert len({located.ref.revision, merges, flipped}) == 3


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_known_hashes_are_used_as_long_as_the_file_is_untouched(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", HashCache(tmp_path / "hashes.json")
    file.write_bytes(b"one")
    assert cache.sha256(file) == sha256_of_file(file)
    entries = json.loads(cache.path.read_text())
    entries[str(file)][3] = "f" * 64
    cache.path.write_text(json.dumps(entries))
    assert cache.sha256(file) == "f" * 64
    file.write_bytes(b"other")
    assert cache.sha256(file) == hashlib.sha256(b"other").hexdigest()


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_hash_cache_is_not_waited_for(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", HashCache(tmp_path / "hashes.json")
    file.write_bytes(b"abc")
    os.mkfifo(cache.path)
    assert cache.sha256(file) == sha256_of_file(file)
    assert cache.remembered(file), "a file has taken its place"


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"%s": 5}', '{"%s": [1, 2, 3]}', "\xff", "[" * 50_000]
)
def test_a_damaged_hash_cache_is_ignored_and_rewritten(tmp_path: Path, damage: str) -> None:
    file, cache = tmp_path / "weights", HashCache(tmp_path / "hashes.json")
    file.write_bytes(b"one")
    cache.path.write_bytes(damage.replace("%s", str(file)).encode("latin-1"))
    assert cache.sha256(file) == hashlib.sha256(b"one").hexdigest()
    assert json.loads(cache.path.read_text())[str(file)][3] == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("name", [*weights.CONFIGS, *weights.WEIGHTS])
def test_an_incomplete_folder_says_what_is_missing(
    checkpoint: Path, data: DataDir, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "tiny")
    (copy / name).unlink()
    with pytest.raises(ModelUnavailable, match=re.escape(f"{name} missing")):
        weights.locate(str(copy), data)


def edited(checkpoint: Path, folder: Path, **changes: object) -> Path:
    copy = shutil.copytree(checkpoint, folder)
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("kind", ["custom_voice", "voice_design"])
@pytest.mark.parametrize(("size", "able"), [("0b6", "12Hz-0.6B-Base"), ("1b7", "12Hz-1.7B-Base")])
def test_a_model_that_cannot_clone_names_the_one_of_its_size_that_can(
    checkpoint: Path, data: DataDir, tmp_path: Path, kind: str, size: str, able: str
) -> None:
    copy = edited(checkpoint, tmp_path / "x", tts_model_type=kind, tts_model_size=size)
    with pytest.raises(ModelCannotClone, match=f"local/x is a {kind} checkpoint.*{able}"):
        weights.locate(str(copy), data)


@pytest.mark.parametrize(
    "changes", [{"model_type": "qwen3"}, {"tokenizer_type": "qwen3_tts_tokenizer_25hz"}]
)
def test_another_kind_of_model_is_refused(
    checkpoint: Path, data: DataDir, tmp_path: Path, changes: dict[str, str]
) -> None:
    copy = edited(checkpoint, tmp_path / "x", **changes)
    with pytest.raises(ModelUnavailable, match="no Qwen3-TTS 12 Hz model"):
        weights.locate(str(copy), data)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"model_type": {}}', "\xff", "[" * 50_000]
)
def test_a_damaged_config_is_refused(
    checkpoint: Path, data: DataDir, tmp_path: Path, content: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "x")
    (copy / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelUnavailable):
        weights.locate(str(copy), data)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "speech_tokenizer/config.json"]
)
def test_a_config_that_is_too_deep_has_no_shape(
    checkpoint: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "x")
    (copy / name).write_text('{"a":' * 50_000)
    with pytest.raises(ModelUnavailable, match="unusable"):
        weights.load_model_config(copy)


def test_a_config_without_languages_is_refused(
    checkpoint: Path, data: DataDir, tmp_path: Path
) -> None:
    copy = edited(checkpoint, tmp_path / "x", talker_config={})
    with pytest.raises(ModelUnavailable, match=r"incomplete.*codec_language_id"):
        weights.locate(str(copy), data)


def test_the_demo_came_with_the_package_and_needs_no_torch(data: DataDir) -> None:
    assert weights.is_downloaded("demo") and 10 * 2**20 < weights.size_on_disk("demo") < 16 * 2**20
    found = weights.locate("demo", data)
    assert (found.source, found.ref.id) == ("demo", "demo")
    assert found.languages == ("english",)
    script = "import sys; sys.modules['torch'] = None\n" + LOCATE_DEMO
    assert run_python(script, str(data.root)).stdout.strip() == found.ref.revision


LOCATE_DEMO = """
from pathlib import Path; from inference.models import catalog as weights
from registry.storage.data_dir import DataDir
print(weights.locate("demo", DataDir(Path(sys.argv[1]))).ref.revision)
"""


def test_the_demo_is_copied_where_a_deployment_keeps_its_model(tmp_path: Path) -> None:
    copied = weights.download_into(tmp_path, "demo")
    assert copied.path == tmp_path / "demo"
    assert copied.ref == weights.locate("demo", DataDir(tmp_path)).ref
    (copied.path / "model.safetensors").write_bytes(b"half of it")
    assert weights.download_into(tmp_path, "demo") == copied
    assert (copied.path / "model.safetensors").stat().st_size > 10 * 2**20


class Hub(http.server.ThreadingHTTPServer):
    """The part of the Hugging Face hub's HTTP that a snapshot download uses."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = files
        self.model, self.commit = HUB_MODEL, COMMIT
        self.cut: dict[str, int] = {}  # this much of a file is sent, then nothing any more
        self.starts: list[tuple[str, int]] = []  # (file, first byte) of each GET

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path, hub = self.path.partition("?")[0], self.server
        api, files = f"/api/models/{hub.model}", f"/{hub.model}/resolve/{hub.commit}/"
        if path in (api, f"{api}/revision/{hub.commit}"):
            names = [{"rfilename": name} for name in hub.files]
            self.send_json({"id": hub.model, "sha": hub.commit, "siblings": names})
        elif path == f"{api}/tree/{hub.commit}":
            self.send_json([tree_entry(*item) for item in hub.files.items()])
        elif path.startswith(files) and path.removeprefix(files) in hub.files:
            self.send_file(path.removeprefix(files), body)
        else:
            self.send_error(404)

    def send_json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_file(self, name: str, body: bool) -> None:
        content = self.server.files[name]
        start = int(re.sub(r"\D", "", self.headers.get("Range", "0").partition("-")[0]) or 0)
        if body:
            self.server.starts.append((name, start))
            if start and name in self.server.cut:
                self.send_error(503)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        self.end_headers()
        if body:
            self.wfile.write(content[start : self.server.cut.get(name)])
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay silent."""


def tree_entry(name: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    server = Hub({str(path.relative_to(checkpoint)): path.read_bytes() for path in files})
    server.files["README.md"] = b"not needed"
    server.files["pytorch_model.bin"] = b"a pickle, never fetched"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


DOWNLOAD = """
import json, sys; from pathlib import Path; from registry import errors
from inference.models import catalog as weights
from registry.storage.data_dir import DataDir
spec, data = sys.argv[1], DataDir(Path(sys.argv[2]))
pins = json.loads(sys.argv[3])
models = {spec: weights.KnownModel(sys.argv[4], pins, 0)} if pins else weights.MODELS
try:
    found = weights.download(spec, data, models)
    assert weights.is_downloaded(spec, models) and found == weights.locate(spec, data, models)
    print(json.dumps([found.ref.id, found.ref.revision, str(found.path), found.source]))
except errors.RegistryError as error:
    print(error.code, error)
"""


def fetch(
    hub: Hub, data: DataDir, spec: str = f"{HUB_MODEL}@{COMMIT}", pins: dict[str, str] | None = None
) -> str:
    """`download` in a process of its own, since the hub's address is read at import."""
    home = str(data.root / "hf")
    arguments = (spec, str(data.root), json.dumps(pins or {}), COMMIT)
    done = run_python(DOWNLOAD, *arguments, HF_ENDPOINT=hub.url, HF_HOME=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_download_fetches_only_what_a_model_needs_and_is_found_offline(
    hub: Hub, data: DataDir, checkpoint: Path
) -> None:
    name, revision, path, source = json.loads(fetch(hub, data))
    assert (name, revision, source) == (HUB_MODEL, COMMIT, f"{HUB_MODEL}@{COMMIT}")
    fetched = {
        str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file()
    }
    wanted = {n: c for n, c in hub.files.items() if n not in ("README.md", "pytorch_model.bin")}
    assert fetched == wanted


def test_download_accepts_weights_with_the_pinned_hash(hub: Hub, data: DataDir) -> None:
    pins = {name: hashlib.sha256(hub.files[name]).hexdigest() for name in weights.WEIGHTS}
    assert json.loads(fetch(hub, data, HUB_MODEL, pins))[:2] == [HUB_MODEL, COMMIT]


@pytest.mark.slow
def test_download_deletes_weights_with_a_wrong_hash_and_fetches_them_again(
    hub: Hub, data: DataDir
) -> None:
    good = hub.files["model.safetensors"]
    pins = {"model.safetensors": hashlib.sha256(good).hexdigest()}
    hub.files["model.safetensors"] = good[:-1] + bytes([good[-1] ^ 1])
    said = fetch(hub, data, HUB_MODEL, pins)
    assert said.startswith("model-unavailable model.safetensors was damaged") and "deleted" in said
    assert not any(p.stat().st_size == len(good) for p in data.root.rglob("*") if p.is_file())
    hub.files["model.safetensors"] = good
    assert json.loads(fetch(hub, data, HUB_MODEL, pins))[:2] == [HUB_MODEL, COMMIT]


@pytest.mark.slow
def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, data: DataDir) -> None:
    hub.files["model.safetensors"] = zeros(24 << 20)  # the client writes pieces of 10 MiB
    hub.cut["model.safetensors"] = 15 << 20
    assert fetch(hub, data).startswith("model-unavailable")
    hub.cut.clear()
    hub.starts.clear()
    path = Path(json.loads(fetch(hub, data))[2])
    [(name, start)] = hub.starts
    assert name == "model.safetensors" and start >= 10 << 20
    assert (path / name).stat().st_size == 24 << 20


def test_a_model_that_cannot_clone_is_refused_before_its_weights_are_fetched(
    hub: Hub, data: DataDir
) -> None:
    config = json.loads(hub.files["config.json"]) | {"tts_model_type": "custom_voice"}
    hub.files["config.json"] = json.dumps(config).encode()
    assert fetch(hub, data).startswith("model-cannot-clone")
    assert {name for name, _ in hub.starts} == {"config.json"}


def test_a_revision_that_the_hub_does_not_have_is_one_sentence(hub: Hub, data: DataDir) -> None:
    said = fetch(hub, data, f"{HUB_MODEL}@{'f' * 40}")
    assert said.startswith(f"model-unavailable The download of {HUB_MODEL}@ffff")


def test_a_hub_that_is_gone_leaves_one_sentence(hub: Hub, data: DataDir) -> None:
    hub.files = {name: c for name, c in hub.files.items() if name == "config.json"}
    assert "is not complete: generation_config.json, merges.txt" in fetch(hub, data)


BRING = """
import sys; from pathlib import Path; from registry import errors
from inference.models import marker as model_folder
root, spec, commits = Path(sys.argv[1]), sys.argv[2], []
try:
    model_folder.bring(root, spec, lambda: commits.append((root / "model.json").exists()))
    found = model_folder.marked(root, spec)
    print(found.path.relative_to(root), commits)
except errors.RegistryError as error:
    print(error.code, commits)
"""


@pytest.mark.slow
def test_a_download_for_a_deployment_goes_on_where_it_stopped_and_is_marked_last(
    hub: Hub, tmp_path: Path
) -> None:
    def bring() -> str:
        environ = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        root = str(tmp_path / "weights")
        done = run_python(BRING, root, f"{HUB_MODEL}@{COMMIT}", **environ)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    hub.files["model.safetensors"] = zeros(24 << 20)  # the client writes pieces of 10 MiB
    hub.cut["model.safetensors"] = 15 << 20
    assert bring() == "model-unavailable [False]"
    hub.cut.clear()
    hub.starts.clear()
    folder = f"{HUB_MODEL.replace('/', '--')}--{COMMIT}"
    assert bring() == f"{folder} [False, True]"
    [(name, start)] = hub.starts
    assert name == "model.safetensors" and start >= 10 << 20
    found = tmp_path / "weights" / folder
    assert (found / name).stat().st_size == 24 << 20 and not (found / name).is_symlink()


# Weights that are not whole


def copy_of(checkpoint: Path, folder: Path) -> Path:
    return Path(shutil.copytree(checkpoint, folder / "copy"))


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "the last byte": lambda whole: whole[:-1],
    "the last half": lambda whole: whole[: len(whole) // 2],
    "all but the header": lambda whole: whole[: 8 + int.from_bytes(whole[:8], "little")],
    "half of the header": lambda whole: whole[: 8 + int.from_bytes(whole[:8], "little") // 2],
    "all but the length": lambda whole: whole[:8],
    "all": lambda whole: b"",
    "nothing, and more follows": lambda whole: whole + b"x",
    "a page of an error": lambda whole: b"<!doctype html><title>502</title>",
    "a pointer to it": lambda whole: b"version https://git-lfs.github.com/spec/v1\n",
    "a header without end": lambda whole: (10**6).to_bytes(8, "little") + b"[" * 10**6,
    "an endless size": lambda whole: with_header(b'{"x": {"data_offsets": [0, Infinity]}}'),
    "a header of a list": lambda whole: (2).to_bytes(8, "little") + b"[]",
    "a length beyond memory": lambda whole: b"\xff" * 8 + whole[8:],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", weights.WEIGHTS)
def test_weights_that_are_not_whole_are_named_before_they_are_loaded(
    checkpoint: Path, data: DataDir, tmp_path: Path, name: str, cut: str
) -> None:
    file = copy_of(checkpoint, tmp_path) / name
    file.write_bytes(CUTS[cut](file.read_bytes()))
    with pytest.raises(ModelUnavailable) as refused:
        weights.locate(str(tmp_path / "copy"), data)
    assert str(file) in str(refused.value)
    [fault] = examine(str(tmp_path / "copy"), "", data, read_data=False)
    assert fault in str(refused.value)


def test_weights_that_changed_are_named_when_every_byte_is_read(
    checkpoint: Path, data: DataDir, tmp_path: Path
) -> None:
    """Even if their size and time tell nothing."""
    folder = copy_of(checkpoint, tmp_path)
    revision = weights.locate(str(folder), data).ref.revision
    assert examine(str(folder), revision, data, read_data=True) == []
    file = folder / "model.safetensors"
    before = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.locate(str(folder), data).ref.revision == revision, "the cache believes it"
    assert examine(str(folder), revision, data, read_data=False) == []
    [fault] = examine(str(folder), revision, data, read_data=True)
    assert str(file) in fault and "has changed" in fault


def test_a_config_that_changed_makes_another_model(
    checkpoint: Path, data: DataDir, tmp_path: Path
) -> None:
    folder = copy_of(checkpoint, tmp_path)
    revision = weights.locate(str(folder), data).ref.revision
    (folder / "generation_config.json").write_text("{}")
    [fault] = examine(str(folder), revision, data, read_data=True)
    assert str(folder) in fault and revision[:12] in fault


def test_a_model_that_is_not_here_is_no_fault(data: DataDir, tmp_path: Path) -> None:
    for source in (f"{HUB_MODEL}@{COMMIT}", str(tmp_path / "gone"), "fake"):
        assert examine(source, COMMIT, data, read_data=True) == []


def test_the_hashes_of_a_model_are_computed_where_they_can_not_be_kept(
    checkpoint: Path, data: DataDir
) -> None:
    known = weights.locate(str(checkpoint), data)
    (data.root / "models" / "hashes.json").unlink()
    (data.root / "models").rmdir()
    (data.root / "models").write_text("a file in the place of the folder")
    assert weights.locate(str(checkpoint), data) == known
