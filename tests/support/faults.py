"""Real faults: processes that can be killed, a disk that can be filled, stores that are wrong.

Processes are forked from one that has imported everything and has no threads, so that a restart
costs milliseconds. The wrong stores are there to show that the tests would notice.
"""

import io
import multiprocessing
import os
import random
import shutil
import socket
import sqlite3
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import clips
import httpx
import numpy as np
import soundfile
import uvicorn
from fakes import FakeInference
from fastapi import FastAPI
from sqlmodel import Session

import registry.storage.database
from registry.app import create_app
from registry.audio.clips import ReferenceClip
from registry.audio.wave import IEEE_FLOAT, wave_file
from registry.contract import ExtractedPrompt
from registry.settings import Settings
from registry.storage.blobs import write_once
from registry.storage.data_dir import GRACE_S, DataDir, clip_key, sha256_of
from registry.storage.database import Database, migrate
from registry.storage.rows.inserts import NewVoice
from registry.storage.store import VoiceStore
from registry.storage.stored_voice import StoredVoice
from registry.storage.uploads import Clip, Upload
from registry.voices.clone import Cloner
from registry.voices.enrolment import Enroller
from registry.voices.speech import Speaker
from registry.voices.trial import LIMIT_S

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("registry.app", "registry.upkeep.doctor", "alembic.command", "av", "httpx", "soundfile"),
        *("uvicorn", "uvicorn.loops.auto", "uvicorn.protocols.http.auto", "uvicorn.lifespan.on"),
    ]
)
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load the usual one costs ten requests


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, verify=NO_TLS)


@contextmanager
def process(target: Callable[..., None], *args: Any) -> Iterator[BaseProcess]:
    """A process of its own that runs `target`; on leaving it is killed if it still runs."""
    child = FORKS.Process(target=target, args=args)
    child.start()
    try:
        yield child
    finally:
        child.kill()
        child.join()
        child.close()


def finish(children: list[BaseProcess], timeout_s: float = 60) -> list[int | None]:
    """Wait for each; their exit statuses, None for one that hangs."""
    for child in children:
        child.join(timeout_s)
    return [child.exitcode for child in children]


@contextmanager
def server(
    home: Path, store: type[VoiceStore] = VoiceStore, decode: bool = False
) -> Iterator[tuple[BaseProcess, str]]:
    """A server process and its URL, at once: connections wait until it accepts them."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with process(serve, home, store, decode, listener) as child:
        listener.close()  # it is the child's alone, and dies with it
        yield child, url


def serve(home: Path, store_class: type[VoiceStore], decode: bool, listener: socket.socket) -> None:
    store = store_class(DataDir(home))
    inference = FakeInference(store.data)
    make = create_app if decode else quick_app
    app = make(store, inference, Settings(home=home))
    uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none")).run(sockets=[listener])


def quick_app(
    store: VoiceStore, inference: FakeInference, settings: Settings, *, is_server: bool = True
) -> FastAPI:
    app = create_app(store, inference, settings, is_server=is_server)
    limits = settings.queue_limit, settings.queue_timeout_s
    enroller = QuickEnroller(store, inference, LIMIT_S, *limits)
    speaker = Speaker(store, inference, enroller)
    parts = {"enroller": enroller, "speaker": speaker}
    parts |= {"cloner": Cloner(store, inference, enroller)}
    app.state.services = replace(app.state.services, **parts)
    return app


class QuickEnroller(Enroller):
    """Reads our own clips in this process. The decoder's child takes 0.2 s and writes nothing, so
    that most kills would fall where nothing can break."""

    async def decode(self, clip: Clip, line: int | None = None) -> ReferenceClip:
        with clip.open() as file:
            return quick_clip(file.read())


def quick_clip(upload: bytes) -> ReferenceClip:
    samples, rate = soundfile.read(io.BytesIO(upload), dtype="float32")
    return ReferenceClip(
        sha256=sha256_of(upload),
        size=len(upload),
        media_type="audio/wav",
        sample_rate=rate,
        channels=1,
        duration_s=len(samples) / rate,
        peak_dbfs=-6.0,
        rms_dbfs=-20.0,
        clipped_fraction=0.0,
        dc_offset=0.0,
        speech_s=len(samples) / rate,
        gain_db=0.0,
        warnings=(),
        conditioned_wav=wave_file(samples.tobytes(), 24_000, IEEE_FLOAT, bits=32),
    )


def noise(rng: random.Random) -> bytes:
    """One second at 8 kHz, unlike any other."""
    samples = np.random.default_rng(rng.getrandbits(64)).normal(0, 0.1, (1, 8000))
    return clips.file(samples.astype(np.float32), 8000)


def age(data: DataDir) -> None:
    """Make every file older than any write that could still be under way."""
    old = time.time() - 2 * GRACE_S
    files = (*data.content_files(), *data.leftovers())
    for path in (*files, *data.empty_folders(), *data.transients()):
        os.utime(path, (old, old))


def fill_disk(folder: Path) -> Path:
    """Take all the room that is left; removing the file gives it back."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        for size in (65_536, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    return filler


def add(
    client: httpx.Client, name: str, upload: bytes, description: str = "", labels: str = "{}"
) -> httpx.Response:
    form = {"name": name, "transcript": "hi", "description": description, "labels": labels}
    return client.post("/voices", data=form, files={"audio": ("clip", upload)})


def upgrade_by(scripts: Path, home: Path, steps: int) -> None:
    """Upgrade by other migrations than ours; they die before the last of so many steps."""
    sys.path.insert(0, str(scripts))
    os.environ["STEPS_LEFT"] = str(steps)
    migrate(DataDir(home))


def upgrade_to(scripts: Path, home: Path, schema: str) -> None:
    """As a newer program would, whose last migration is `schema`."""
    sys.path.insert(0, str(scripts))
    registry.storage.database.SCHEMA = schema
    migrate(DataDir(home))


class WriteBehind(VoiceStore):
    """Wrong: answers from a copy of the database, and the file follows some milliseconds later."""

    def __init__(self, data: DataDir) -> None:
        super().__init__(data)
        copy = data.root / "ahead.db"
        shutil.copy(data.database, copy)
        self._db = Database(copy)
        threading.Thread(target=self._follow, args=(copy,), daemon=True).start()

    def _follow(self, copy: Path) -> None:
        ahead, behind = sqlite3.connect(copy), sqlite3.connect(self.data.database)
        with closing(ahead), closing(behind):
            while True:
                ahead.backup(behind)
                time.sleep(0.01)


class RowFirst(VoiceStore):
    """Wrong: the row before the clip, on a slow disk, though it answers after both."""

    _late: Callable[[], object] | None = None  # what is left to write

    def keep_clip(self, source: Any, upload: Upload | None, clip: ReferenceClip) -> None:
        write_once(self.data.conditioned(source), clip.conditioned_wav)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with super().transaction() as session:
            self._late = None
            yield session
            late = self._late
        if late is not None:
            time.sleep(0.01)
            late()

    def insert(
        self,
        session: Session,
        new: NewVoice,
        upload: Upload,
        clip: ReferenceClip,
        prompt: ExtractedPrompt,
    ) -> StoredVoice:
        self._late = partial(upload.keep, self.blobs, clip_key(clip.sha256))
        return super().insert(session, new, upload, clip, prompt)


class Trusting(VoiceStore):
    """Wrong: believes that a clip it has just stored is still there when the row goes in."""

    def insert(
        self,
        session: Session,
        new: NewVoice,
        upload: Upload,
        clip: ReferenceClip,
        prompt: ExtractedPrompt,
    ) -> StoredVoice:
        return _Forgetful(self).insert(session, new, upload, clip, prompt)


class _Forgetful(VoiceStore):
    def __init__(self, store: VoiceStore) -> None:
        self.data, self._db = store.data, store._db

    def keep_clip(self, source: Any, upload: Upload | None, clip: ReferenceClip) -> None:
        pass
