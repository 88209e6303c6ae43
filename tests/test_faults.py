"""Kill -9 at random moments of add, edit, rename and remove: what was acknowledged is there, whole.

The oracle: each client alone writes its own voices, so it knows what each must be. Of the one
operation that was under way when the server died, either outcome is right, and no mixture.
"""

import json
import random
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from faults import RowFirst, WriteBehind, add, age, client_of, noise, server

from registry.api.etags import voice_tag
from registry.names import name_key
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.upkeep.doctor import examine

OWNERS = 4
NAMES = [f"voice {letter}" for letter in "abcdefghijklmnopqrst"]


@dataclass(frozen=True)
class Known:
    """A voice as its owner last saw it; an edit puts `mark` in three places at once."""

    id: str
    name: str
    mark: str
    row_version: int
    clip: bytes = field(repr=False)


@dataclass
class Owner:
    rng: random.Random
    voices: dict[str, Known] = field(default_factory=dict)
    doubt: tuple[Known | None, Known | None] | None = None  # before and after
    acknowledged: int = 0
    shared_clips: list[bytes] = field(default_factory=list)

    def work(self, url: str) -> None:
        """Operate until the server dies."""
        with client_of(url) as http:
            try:
                while True:
                    self._operate(http)
            except httpx.TransportError:
                return

    def _operate(self, http: httpx.Client) -> None:
        mine = list(self.voices.values())
        add_more = len(mine) < 2 or (len(mine) < 4 and self.rng.random() < 0.3)
        verbs = [self._add] if add_more else [self._edit, self._rename, self._remove]
        done = self.rng.choice(verbs)(http, *([] if add_more else [self.rng.choice(mine)]))
        assert self.doubt is not None
        self._take(self.doubt[0], self.doubt[1] if done else self.doubt[0])
        self.acknowledged += done

    def _add(self, http: httpx.Client) -> bool:
        upload = self.rng.choice([noise(self.rng), self.rng.choice(self.shared_clips)])
        voice = Known("", self.rng.choice(NAMES), self._mark(), 1, upload)
        self.doubt = (None, voice)
        labels = json.dumps(marked(voice.mark)["labels"])
        reply = add(http, voice.name, upload, voice.mark, labels)
        if reply.status_code != 409:
            self.doubt = (None, self._checked(reply, replace(voice, id=reply.json()["id"]), 201))
        return reply.status_code != 409

    def _edit(self, http: httpx.Client, voice: Known) -> bool:
        mark = self._mark()
        after = replace(voice, mark=mark, row_version=voice.row_version + 1)
        self.doubt = (voice, after)
        match = {"If-Match": voice_tag(voice.id, voice.row_version)}
        reply = http.patch(f"/voices/{voice.id}", json=marked(mark), headers=match)
        self._checked(reply, after, 200)
        return True

    def _rename(self, http: httpx.Client, voice: Known) -> bool:
        name = self.rng.choice([name for name in NAMES if name != voice.name])
        after = replace(voice, name=name, row_version=voice.row_version + 1)
        self.doubt = (voice, after)
        reply = http.patch(f"/voices/{voice.id}", json={"name": name})
        if reply.status_code != 409:
            self._checked(reply, after, 200)
        return reply.status_code != 409

    def _remove(self, http: httpx.Client, voice: Known) -> bool:
        self.doubt = (voice, None)
        assert http.delete(f"/voices/{voice.id}").status_code == 204
        return True

    def _checked(self, reply: httpx.Response, voice: Known, status: int) -> Known:
        assert reply.status_code == status, reply.text
        assert seen(reply.json(), voice.clip) == voice
        return voice

    def _mark(self) -> str:
        return f"{self.rng.getrandbits(64):x}"

    def _take(self, before: Known | None, now: Known | None) -> None:
        if before is not None:
            del self.voices[before.id]
        if now is not None:
            self.voices[now.id] = now
        self.doubt = None

    def settle(self, found: dict[str, Known]) -> None:
        """After the server's death: the operation in doubt has happened, or it has not."""
        if self.doubt is None:
            return
        before, after = self.doubt
        if before is None and after is not None:  # an add, whose id was perhaps never told
            told = [voice.id for voice in found.values() if voice.mark == after.mark]
            self._take(None, replace(after, id=told[0]) if told else None)
        elif before is not None:
            self._take(before, before if found.get(before.id) == before else after)


def marked(mark: str) -> dict[str, object]:
    return {"description": mark, "labels": {"mark": mark, "also": mark}}


def seen(voice: dict, clip: bytes) -> Known:
    mark = voice["description"]
    assert voice["labels"] == {"mark": mark, "also": mark}, "half an edit"
    return Known(voice["id"], voice["name"], mark, voice["row_version"], clip)


class Siege:
    """One data directory, several clients, and a server that is killed again and again."""

    def __init__(self, home: Path, seed: int, store: type[VoiceStore] = VoiceStore) -> None:
        self.data = DataDir(home)
        self.store = store
        self.rng = random.Random(seed)
        shared = [noise(self.rng) for _ in range(3)]
        self.owners = [
            Owner(random.Random(self.rng.random()), shared_clips=shared) for _ in range(OWNERS)
        ]

    @property
    def acknowledged(self) -> int:
        return sum(owner.acknowledged for owner in self.owners)

    def run(self, kills: int) -> None:
        with ThreadPoolExecutor(OWNERS) as threads:
            for life in range(kills):
                with server(self.data.root, self.store, decode=life % 10 == 9) as (child, url):
                    self._check(url)
                    working = [threads.submit(owner.work, url) for owner in self.owners]
                    time.sleep(self.rng.uniform(0.02, 0.5))  # the moment of death is the test
                    child.kill()
                    for owner in working:
                        owner.result()
        with server(self.data.root, self.store) as (_, url):
            self._check(url)

    def _check(self, url: str) -> None:
        with client_of(url) as http:
            listed = http.get("/voices", params={"limit": 200}).json()["data"]
            clips = {voice["id"]: http.get(f"/voices/{voice['id']}/clip") for voice in listed}
            for voice in listed:
                assert clips[voice["id"]].status_code == 200, "a voice without its clip"
                prompt = http.get(f"/voices/{voice['id']}/prompt")
                assert prompt.status_code == 200, "a voice without its prompt"
        found = {v["id"]: seen(v, clips[v["id"]].content) for v in listed}
        for owner in self.owners:
            owner.settle(found)
        known = {id: voice for owner in self.owners for id, voice in owner.voices.items()}
        wrong = [id for id in found | known if found.get(id) != known.get(id)]
        assert not wrong, "an acknowledged operation is lost, or one is half done"
        assert len({name_key(voice.name) for voice in found.values()}) == len(found)
        assert examine(self.data, read_data=True, repair=False) == []


def orphans(data: DataDir) -> Iterator[str]:
    """Found by other means than the doctor's: the files that no row names."""
    with closing(sqlite3.connect(data.database)) as database:
        named = {row[0] for row in database.execute("SELECT clip_sha256 FROM voice_version")}
        named |= {row[0] for row in database.execute("SELECT voice_id FROM features")}
    for folder in ("clips", "conditioned", "prompts"):
        for path in (data.root / folder).iterdir():
            if path.name.split("-")[0] not in named:
                yield str(path)


def besiege(home: Path, kills: int) -> Siege:
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    siege = Siege(home, seed)
    started = time.monotonic()
    siege.run(kills)
    took_s = time.monotonic() - started
    print(f"{kills} kills, {siege.acknowledged} acknowledged operations, {took_s:.0f} s")
    return siege


def assert_nothing_is_left_over(data: DataDir) -> None:
    age(data)
    examine(data, read_data=True, repair=True)
    assert examine(data, read_data=True, repair=True) == []
    assert list(data.leftovers()) == []
    assert list(orphans(data)) == []


@pytest.mark.slow
def test_kill_9_loses_no_acknowledged_voice_and_leaves_no_half_one(tmp_path: Path) -> None:
    siege = besiege(tmp_path, kills=100)
    assert siege.acknowledged > 300, "too few: this proves little"
    assert_nothing_is_left_over(siege.data)


@pytest.mark.soak
@pytest.mark.timeout(6 * 3600)
@pytest.mark.parametrize("round", range(10))
def test_a_thousand_kills_lose_nothing(tmp_path: Path, round: int) -> None:
    siege = besiege(tmp_path, kills=100)
    assert_nothing_is_left_over(siege.data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "what"), [(WriteBehind, "operation is lost"), (RowFirst, "without its clip")]
)
def test_the_siege_notices_a_store_that_is_wrong(
    tmp_path: Path, wrong: type[VoiceStore], what: str
) -> None:
    with pytest.raises(AssertionError, match=what):
        Siege(tmp_path, seed=1, store=wrong).run(kills=200)  # a few are enough
