"""Registry, inference and the engine on the tiny checkpoint, together over HTTP."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest
from clips import file, muxed, tone
from opened import opened_files
from serving import serving

from inference.models.catalog import LocatedModel
from inference.serving.config import ServiceConfig
from inference.serving.service import InferenceService
from registry.app import create_app
from registry.contract import ModelRef, PromptSource, fingerprint
from registry.settings import Settings
from registry.speech.local import LocalInference
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore

TRANSCRIPT = "the invention"
CLIPS = {
    "alice": file(tone(hz=240), 48_000),
    "bob": file(tone(hz=180), 44_100, "WAV"),
    "carol": muxed(tone(hz=300), 24_000, "mp3", "libmp3lame"),
}


@contextmanager
def running(data: DataDir, model: LocatedModel) -> Iterator[httpx.Client]:
    """A server over a data directory; leaving the block is a restart for the next one."""
    config = ServiceConfig(device="cpu", threads=1, queue_timeout_s=300)
    inference = LocalInference(lambda: InferenceService(data, model, config))
    with serving(create_app(VoiceStore(data), inference, Settings(home=data.root))) as client:
        yield client


@pytest.fixture
def enrolled(data: DataDir, located: LocatedModel) -> Iterator[httpx.Client]:
    with running(data, located) as client:
        for name, clip in CLIPS.items():
            form = {"name": name} | ({} if name == "carol" else {"transcript": TRANSCRIPT})
            created = client.post("/voices", data=form, files={"audio": clip})
            assert created.status_code == 201, created.text
        yield client


def made_by_version_1(data: DataDir) -> None:
    """Give every voice the names that its files had when conditioning was version 1."""
    with closing(sqlite3.connect(data.database)) as database, database:
        rows = database.execute(
            "SELECT voice_id, clip_sha256, transcript, fingerprint, model_id, model_revision"
            " FROM features JOIN voice_version USING (voice_id)"
        ).fetchall()
        for voice_id, clip, transcript, now, model_id, revision in rows:
            source = PromptSource(voice_id, clip, transcript)
            old = replace(source, preprocessing="1")
            then = fingerprint(old, ModelRef(model_id, revision))
            assert fingerprint(source, ModelRef(model_id, revision)) == now != then
            if data.conditioned(source).exists():
                data.conditioned(source).rename(data.conditioned(old))
            for path in data.prompts(voice_id).glob(f"{now}*"):
                path.rename(path.with_name(path.name.replace(now, then)))
            statement = "UPDATE features SET fingerprint = ? WHERE voice_id = ?"
            database.execute(statement, (then, voice_id))


@pytest.mark.slow
def test_voices_of_the_former_conditioning_are_stale_and_made_anew(
    enrolled: httpx.Client, data: DataDir, located: LocatedModel
) -> None:
    before = say(enrolled, "alice", mode="icl").content
    made_by_version_1(data)
    with running(data, located) as client:
        voice = client.get("/voices/alice").json()
        assert voice["prompt"]["state"] == "stale"
        spoken = say(client, "alice", mode="icl")
        assert spoken.headers["x-prompt-cache"] == "rebuilt"
        assert spoken.content == before
        after = client.get("/voices/alice").json()
        assert after["prompt"]["state"] == "ready"
        assert (after["id"], after["clip"]) == (voice["id"], voice["clip"])
        assert say(client, "bob").headers["x-prompt-cache"] == "rebuilt"


def say(client: httpx.Client, voice: str, **fields: object) -> httpx.Response:
    reply = client.post("/speak", json={"voice": voice, "text": "Hello there.", "seed": 5} | fields)
    assert reply.status_code == 200, reply.text
    return reply


@pytest.mark.slow
def test_after_a_restart_voices_speak_the_same_bytes_and_no_clip_is_opened(
    enrolled: httpx.Client, data: DataDir, located: LocatedModel
) -> None:
    before = {(n, m): say(enrolled, n, mode=m).content for n in ("alice", "bob") for m in MODES}
    before["carol", "xvec"] = say(enrolled, "carol").content
    with running(data, located) as client:
        with opened_files() as opened:
            after = {(n, m): say(client, n, mode=m).content for n, m in before}
        assert after == before
        assert after["alice", "icl"] != after["bob", "icl"] != after["bob", "xvec"]
        ours = [path for path in opened if path.startswith(str(data.root))]
        assert not [path for path in ours if "/clips/" in path or "/conditioned/" in path]
        assert len([path for path in ours if "/prompts/" in path]) == 3
        with opened_files() as opened:
            assert say(client, "alice").headers["x-prompt-cache"] == "memory"
        assert not [path for path in opened if "/prompts/" in path]


MODES = ("icl", "xvec")


@pytest.mark.slow
def test_sixteen_callers_of_two_voices_each_get_their_own(enrolled: httpx.Client) -> None:
    wanted = [(name, seed) for seed in range(8) for name in ("alice", "bob")]
    alone = {key: say(enrolled, key[0], seed=key[1]).content for key in wanted}
    together: dict[tuple[str, int], bytes] = {}

    def call(key: tuple[str, int]) -> None:
        together[key] = say(enrolled, key[0], seed=key[1]).content

    threads = [threading.Thread(target=call, args=(key,)) for key in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in wanted:  # a batch of another size may round the last bit differently
        ours, its = (np.frombuffer(found[key], "<i2").astype(int) for found in (together, alone))
        assert len(ours) == len(its) and np.abs(ours - its).max() <= 1
    assert len(set(alone.values())) == len(wanted)


@pytest.mark.slow
def test_a_flipped_prompt_is_rebuilt_bit_for_bit(enrolled: httpx.Client, data: DataDir) -> None:
    voice = enrolled.get("/voices/alice").json()
    path = next(data.prompts(voice["id"]).iterdir())
    sound, wanted = path.read_bytes(), say(enrolled, "alice").content
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with_memory = say(enrolled, "alice")
    assert with_memory.headers["x-prompt-cache"] == "memory"
    path.write_bytes(sound[: len(sound) // 2])
    assert enrolled.get("/voices/alice/prompt").status_code == 409
    rebuilt = enrolled.post("/voices/alice/rebuild")
    assert rebuilt.json()["prompt"] == voice["prompt"]
    assert path.read_bytes() == sound
    assert say(enrolled, "alice").content == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"text": "x" * 2000}, "text-too-long", "2048 frames"),
        ({"language": "klingon"}, "language-unsupported", "english"),
        ({"voice": "carol", "mode": "icl"}, "mode-unavailable", "transcript"),
    ],
)
def test_what_the_model_refuses_is_a_422_with_its_reason(
    enrolled: httpx.Client, fields: dict[str, str], code: str, said: str
) -> None:
    refused = enrolled.post("/speak", json={"voice": "alice", "text": "Hello."} | fields)
    assert refused.status_code == 422
    assert refused.json()["code"] == code
    assert said in refused.json()["detail"]


@pytest.mark.slow
def test_control_tokens_in_a_text_are_spoken_as_text(enrolled: httpx.Client) -> None:
    """A byte-level tokenizer gives one frame a character, so a swallowed token would be missed."""
    lengths = {
        text: float(say(enrolled, "bob", text=text, mode="xvec").headers["x-audio-seconds"])
        for text in ("<|im_end|>", "0123456789", "<tts_pad>!")
    }
    assert len(set(lengths.values())) == 1


@pytest.mark.slow
def test_greedy_ignores_the_seed_and_sampling_follows_it(enrolled: httpx.Client) -> None:
    greedy = [say(enrolled, "alice", seed=s, temperature=0).content for s in (1, 2)]
    sampled = [say(enrolled, "alice", seed=s).content for s in (1, 2, 1)]
    assert greedy[0] == greedy[1]
    assert sampled[0] == sampled[2] != sampled[1]
