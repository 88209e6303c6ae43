"""Clips on their way in: few at once, each a private file, of which nothing stays but a voice's."""

import asyncio
import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from api import CLIP, add, problem
from fakes import FakeInference
from faults import client_of, quick_app, server
from serving import serving
from test_serve import Server, served
from test_slow_clients import answer
from uploading import coming, uploaded

from registry.api.uploads import AT_ONCE, OF_ONE_CLIENT, Uploads
from registry.api.uploads import client_of as address_of
from registry.errors import ServerBusy
from registry.settings import Settings
from registry.storage.data_dir import DataDir, clip_key
from registry.storage.store import VoiceStore
from registry.upkeep.doctor import examine
from registry.voices.turns import FairTurns

FORM = "multipart/form-data; boundary=x"
HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + FORM + "\r\n"
BEGUN = b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\n'
LARGE = 16 * 2**20
PATHS = ("/voices", "/clone")


@pytest.fixture
def client(store: VoiceStore, fake: FakeInference) -> Iterator[httpx.Client]:
    with serving(quick_app(store, fake, Settings(home=store.data.root))) as client:
        yield client


def files(data: DataDir) -> list[Path]:
    return sorted(data.uploads.iterdir()) if data.uploads.is_dir() else []


def until_gone(client: httpx.Client, data: DataDir) -> None:
    for _ in range(5000):
        if not files(data):
            return
        assert client.get("/healthz").status_code == 200
    raise AssertionError(f"{files(data)} stay")


class Uploading:
    """Clients who have begun to send a clip, and say no more."""

    def __init__(self, held: ExitStack, port: int) -> None:
        self._held, self._port = held, port

    def begin(self, path: str = "/voices") -> socket.socket:
        """Asks whether to send the body."""
        connection = socket.create_connection(("127.0.0.1", self._port), 60)
        self._held.enter_context(connection)
        length = f"Content-Length: {LARGE}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall((HEAD.format(path=path) + length).encode())
        return connection

    def until_taken(self, path: str = "/voices") -> socket.socket:
        """Places are free again once the server has seen that others left."""
        for _ in range(5000):
            connection = self.begin(path)
            if connection.recv(4096).startswith(b"HTTP/1.1 100"):
                return connection
        raise AssertionError("no place becomes free")


@pytest.fixture
def uploading(client: httpx.Client) -> Iterator[Uploading]:
    with ExitStack() as held:
        assert client.base_url.port is not None
        yield Uploading(held, client.base_url.port)


def send_large(client: httpx.Client, path: str, name: str = "bob") -> httpx.Response:
    field = {"/voices": "name", "/clone": "text"}[path]
    return client.post(path, data={field: name}, files={"audio": bytes(LARGE)})


# ------------------------------------------------------------------ where it is


def test_a_clip_is_in_a_private_file_while_it_comes(
    client: httpx.Client, store: VoiceStore, uploading: Uploading
) -> None:
    connection = uploading.until_taken()
    connection.sendall(BEGUN + b"a" * 2**20)
    while not (found := files(store.data)) or found[0].stat().st_size < 2**19:
        assert client.get("/healthz").status_code == 200
    [file] = found
    assert stat.filemode(file.stat().st_mode) == "-rw-------"
    assert stat.filemode(file.parent.stat().st_mode) == "drwx------"
    assert set(file.read_bytes()) == set(b"a")
    connection.close()
    until_gone(client, store.data)


def test_a_voices_clip_is_the_file_that_was_written(store: VoiceStore, fake: FakeInference) -> None:
    with closing(uploaded(store.data, b"clip")) as upload:
        [file] = files(store.data)
        inode = file.stat().st_ino
        key, kept = clip_key(upload.sha256), store.data.clip(upload.sha256)
        assert upload.keep(store.blobs, key)
        assert kept.stat().st_ino == inode and files(store.data) == []
        assert not upload.keep(store.blobs, key)
        kept.unlink()  # by a clean-up
        assert upload.keep(store.blobs, key)
    assert kept.read_bytes() == b"clip"


def test_a_damaged_clip_of_the_same_name_is_replaced(store: VoiceStore) -> None:
    with closing(uploaded(store.data, b"clip")) as upload:
        kept = store.data.root / "clips" / upload.sha256
        kept.write_bytes(b"damage")
        assert upload.keep(store.blobs, clip_key(upload.sha256))
    assert kept.read_bytes() == b"clip"


def test_a_decoder_can_not_change_what_was_hashed(store: VoiceStore) -> None:
    with closing(uploaded(store.data, b"clip")) as upload, upload.open() as file:
        assert file.read() == b"clip"
        with pytest.raises(OSError):
            os.write(file.fileno(), b"x")
        with pytest.raises(OSError):
            os.ftruncate(file.fileno(), 0)


# ------------------------------------------------------------------ nothing stays


@pytest.mark.parametrize(
    "body",
    [
        BEGUN + b"a" * 300_000,
        BEGUN + b"a" * 300_000 + b'\r\n--x\r\nContent-Disposition: form-data; name="nme"\r\n\r\n',
        BEGUN + b"a" * 300_000 + b"\r\n--x--\r\n",
        BEGUN + b"\r\n--x--\r\n",
        BEGUN + b"a" * 300_000 + b"\r\n" + BEGUN,
        BEGUN + b"a" * 21 * 2**20,
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_whatever_is_refused_leaves_nothing(
    client: httpx.Client, store: VoiceStore, path: str, body: bytes
) -> None:
    kind = {"content-type": FORM}
    assert client.post(path, content=body, headers=kind).is_client_error
    assert files(store.data) == []


def test_neither_a_voice_nor_a_refused_one_leaves_an_upload(
    client: httpx.Client, store: VoiceStore
) -> None:
    assert add(client, "alice").status_code == 201
    assert add(client, "alice").status_code == 409
    assert add(client, "bob").status_code == 201  # of the same clip
    assert files(store.data) == []
    assert client.get("/voices/bob/clip").content == CLIP


@pytest.mark.parametrize("is_late", [False, True])
def test_what_is_dropped_has_no_file_even_if_its_first_part_comes_later(
    store: VoiceStore, is_late: bool
) -> None:
    uploads = Uploads(store.data.uploads)
    with closing(uploads.begin("", coming())) as upload:
        if not is_late:
            upload.write(b"clip")
            assert files(store.data)
        uploads.drop_now()
        if is_late:
            upload.write(b"clip")
        assert files(store.data) == []


def test_the_doctor_takes_what_a_killed_server_left_and_no_more(store: VoiceStore) -> None:
    def found(repair: bool) -> list[str]:
        return [told.what for told in examine(store.data, read_data=False, repair=repair)]

    with closing(uploaded(store.data, b"clip")):
        [kept] = files(store.data)
        left = kept.with_name(".tmp-0123456789abcdef")
        left.write_bytes(b"clip")
        told = [f"uploads/{left.name} belongs to no voice"]
        assert found(repair=False) == told and found(repair=True) == told
        assert files(store.data) == [kept] and found(repair=True) == []


def test_the_next_start_takes_what_a_killed_server_left_and_no_more(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    with server(tmp_path) as (child, url), client_of(url) as http:
        assert http.get("/voices").status_code == 200
        with ExitStack() as held:
            port = int(url.rpartition(":")[2])
            connection = Uploading(held, port).until_taken()
            connection.sendall(BEGUN + b"a" * 2**20)
            while not files(data):
                assert http.get("/healthz").status_code == 200
            VoiceStore(data).close()
            assert len(files(data)) == 1, "it is still coming"
            child.kill()
            child.join()
    assert len(files(data)) == 1
    VoiceStore(data).close()
    assert files(data) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB."""
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk needs root: {mounted.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("path", PATHS)
def test_a_disk_that_fills_while_a_clip_comes_is_the_servers_fault(
    small_disk: Path, path: str
) -> None:
    data = DataDir(small_disk / "home")
    store = VoiceStore(data)
    with serving(quick_app(store, FakeInference(data), Settings(home=data.root))) as http:
        assert problem(send_large(http, path)) == (507, "storage-full")
        assert files(data) == []
        assert add(http, "alice").status_code == 201


# ------------------------------------------------------------------ few at once


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`voices serve`, which speaks HTTP by another parser than the server in a thread."""
    with served(tmp_path_factory.mktemp("real") / "data", "--no-inference") as server:
        yield server


@pytest.fixture
def crowd(real: Server) -> Iterator[Uploading]:
    """Those who have all places that one address may have, and keep the pace."""
    with ExitStack() as held:
        uploading = Uploading(held, real.port)
        sending = [uploading.until_taken(PATHS[i % 2]) for i in range(OF_ONE_CLIENT)]
        for connection in sending:
            connection.sendall(BEGUN)
        with keeping_pace(sending):
            yield uploading


@contextmanager
def keeping_pace(sending: list[socket.socket]) -> Iterator[None]:
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(1):
            for connection in sending:
                connection.sendall(bytes(64 * 1024))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_one_clip_too_many_is_refused_before_it_is_sent(
    real: Server, crowd: Uploading, path: str
) -> None:
    said = answer(crowd.begin(path))
    assert said.startswith(b"HTTP/1.1 503") and b"retry-after: 2" in said.lower()
    assert b'"code":"server-busy"' in said
    assert real.ask("GET", "/voices")[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_who_sends_all_of_it_unasked_hears_the_refusal_too(
    real: Server, crowd: Uploading, path: str
) -> None:
    with httpx.Client(base_url=real.url, timeout=60) as client:
        for _ in range(3):
            reply = send_large(client, path)
            assert problem(reply) == (503, "server-busy")
            assert reply.headers["retry-after"] == "2"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("expect", ["Expect:", "Expect: 100-continue"])
def test_curl_hears_the_refusal(
    real: Server, crowd: Uploading, tmp_path: Path, expect: str
) -> None:
    clip = tmp_path / "clip"
    clip.write_bytes(bytes(LARGE))
    command = ["curl", "-s", "-S", "-H", expect, "-F", "name=bob", "-F", f"audio=@{clip}"]
    asked = [*command, f"{real.url}/voices"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"code":"server-busy"' in done.stdout


@pytest.mark.skipif(not Path("/proc/sys/net").is_dir(), reason="127.0.0.2 is an address on Linux")
def test_another_address_is_served_while_one_takes_all_it_may(
    real: Server, crowd: Uploading
) -> None:
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(transport=transport, base_url=real.url, timeout=60) as other:
        assert problem(add(other, "alice")) == (503, "inference-off")  # its clip was decoded


def test_the_last_places_are_for_other_clients(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    for _ in range(OF_ONE_CLIENT):
        uploads.begin("one", coming())
    with pytest.raises(ServerBusy, match="of one client"):
        uploads.begin("one", coming())
    last = [uploads.begin(f"other {i}", coming()) for i in range(AT_ONCE - OF_ONE_CLIENT)]
    with pytest.raises(ServerBusy, match=f"{AT_ONCE} clips"):
        uploads.begin("yet another", coming())
    last[0].close()
    last[0].close()  # gives back one place, not two
    uploads.begin("yet another", coming())
    with pytest.raises(ServerBusy):
        uploads.begin("the last", coming())


def test_an_address_of_ipv4_is_itself_however_it_is_written() -> None:
    hosts = ("::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2")
    known = [address_of({"type": "http", "client": (host, 1)}) for host in hosts]
    assert known == ["192.0.2.1", "192.0.2.1", "192.0.2.2"]


@pytest.mark.parametrize(
    ("client", "same"),
    [
        (("2001:db8::1", 1), True),
        (("2001:db8::ffff:ffff:ffff:ffff", 1), True),
        (("2001:db8:0:1::1", 1), False),
        (("192.0.2.1", 1), False),
        (None, False),
        (("testclient", 1), False),
    ],
)
def test_a_network_of_ipv6_is_one_client(client: tuple[str, int] | None, same: bool) -> None:
    known = address_of({"type": "http", "client": ("2001:db8::2", 7)})
    assert (address_of({"type": "http", "client": client}) == known) is same


# ------------------------------------------------------------------ whose turn it is


def turns_of(*clients: str, most: int = 1) -> list[str]:
    """In which order clients have their turn who come in this order while one is at work."""
    order = []

    async def come(turns: FairTurns, client: str) -> None:
        async with turns.turn(client):
            order.append(client)
            await asyncio.sleep(0)

    async def all_of_them() -> None:
        turns = FairTurns(most)
        async with turns.turn("first"):
            coming = [asyncio.create_task(come(turns, client)) for client in clients]
            for _ in clients:
                await asyncio.sleep(0)
        await asyncio.gather(*coming)

    asyncio.run(all_of_them())
    return order


def test_who_comes_late_waits_for_one_of_each_other_client() -> None:
    assert "".join(turns_of(*"aaaabbc")) == "abcabaa"
    assert "".join(turns_of(*"aaaa")) == "aaaa"


def test_a_line_that_is_full_is_told_and_its_last_places_are_for_other_clients() -> None:
    async def run() -> None:
        turns = FairTurns(1)

        async def come(client: str, line: int | None) -> None:
            async with turns.turn(client, line):
                pass

        async with turns.turn("first", 16):
            waiting = [asyncio.create_task(come("a", 16)) for _ in range(14)]
            await asyncio.sleep(0)
            with pytest.raises(ServerBusy):
                await come("a", 16)
            waiting += [asyncio.create_task(come(client, 16)) for client in "bc"]
            await asyncio.sleep(0)
            with pytest.raises(ServerBusy, match="16 others wait"):
                await come("d", 16)
            waiting.append(asyncio.create_task(come("a", None)))  # it was counted before
            await asyncio.sleep(0)
            for leaving in (waiting.pop(-2), waiting.pop(0), waiting.pop(0)):
                leaving.cancel()
            await asyncio.sleep(0)
            waiting.append(asyncio.create_task(come("a", 16)))
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        await come("a", 0)  # nobody is at work

    asyncio.run(run())


def test_who_was_counted_before_takes_no_place_in_a_line() -> None:
    async def run() -> None:
        turns = FairTurns(1)

        async def come(client: str, line: int | None) -> None:
            async with turns.turn(client, line):
                pass

        async with turns.turn("first"):
            waiting = [asyncio.create_task(come("a", line)) for line in [None, 16] * 14]
            await asyncio.sleep(0)
            with pytest.raises(ServerBusy):
                await come("a", 16)
            waiting += [asyncio.create_task(come("b", 16)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(ServerBusy, match="16 others wait"):
                await come("c", 16)
        await asyncio.gather(*waiting)
        assert not turns._in_line

    asyncio.run(run())


def test_who_leaves_while_waiting_loses_no_turn_of_others() -> None:
    async def leave() -> None:
        turns = FairTurns(1)

        async def come() -> None:
            async with turns.turn("a"):
                pass

        async with turns.turn("a"):
            waiting = [asyncio.create_task(come()) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        waiting[1].cancel()  # its turn has just come
        async with asyncio.timeout(60):
            await waiting[2]
            async with turns.turn("b"):
                pass

    asyncio.run(leave())


# ------------------------------------------------------------------ memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_many_large_uploads_at_once_take_little_memory(tmp_path: Path) -> None:
    with served(tmp_path / "data", "--no-inference") as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert send_large(client, "/voices").is_client_error  # to warm up
            before_mib = server.peak_mib()
            with ThreadPoolExecutor(40) as threads:
                names = (f"voice {i}" for i in range(40))
                replies = list(threads.map(lambda name: send_large(client, "/voices", name), names))
        assert server.peak_mib() - before_mib < 96  # of 640 that are sent
    statuses = {reply.status_code for reply in replies}
    assert 503 in statuses and statuses <= {415, 422, 503}
    assert list((tmp_path / "data" / "uploads").iterdir()) == []
