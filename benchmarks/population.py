"""A registry of N voices as years of use would leave it: names of people, roles and scripts.

The rows go straight into the tables, in one transaction; no clip or prompt file is written.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from random import Random
from typing import Any

from sqlalchemy import Connection, insert

from registry.contract import ModelRef, PromptSource, fingerprint
from registry.names import ID_PREFIX, name_key, variants
from registry.storage import sqlite
from registry.storage.data_dir import DataDir
from registry.storage.store import VoiceStore
from registry.storage.tables import Features, Label, NameVariant, Voice, VoiceVersion, utc_now


def words(text: str) -> list[str]:
    return text.split()


GIVEN = words(
    "Emma Liam Olivia Noah Ava Ethan Sophia Lucas Mia Mason Amelia Logan Harper James Evelyn Elijah"
    " Abigail Aiden Emily Jackson Zoë Renée José Björn Łukasz Søren Chloé François Jürgen Anaïs"
    " Aoife Siobhán Mateus Inês Giulia Matteo Freya Lars Katya Dmitri Priya Arjun Fatima Omar Yuki"
    " Kenji Min-jun Seo-yeon Wei Xiu Thabo Amara Kwame Zainab Ines Nia Otis Pearl Quentin Rosa"
)
FAMILY = words(
    "Smith Johnson Williams Brown Jones García Miller Davis Rodríguez Martínez Hernández López"
    " Wilson Anderson Thomas Taylor Moore Jackson Martin Lee Pérez Thompson White Harris Clark"
    " Lewis Robinson Walker Young Allen King Wright Scott Torres Nguyễn Hill Flores Green Adams"
    " Nelson Baker Hall Rivera Campbell Mitchell Carter Roberts Müller Schmidt Schneider Fischer"
    " Weber Meyer Wagner Becker Schulz Kowalski Nowak Novák Horvat Popescu Ivanov Petrov Rossi"
    " Ferrari Russo Bianchi Dubois Lefèvre Moreau Tanaka Suzuki Sato Kim Park Choi Okafor Mensah"
)
TONES = words("warm calm bright deep husky crisp gentle brisk sleepy stern cheerful raspy soft")
ROLES = words("story news trailer lecture audiobook ivr podcast game villain hero elder child")
SCRIPTS = (
    (words("田中 鈴木 佐藤 高橋 伊藤 渡辺"), words("美咲 陽菜 蓮 大翔 結衣 健太")),
    (words("Анна Мария Иван Дмитрий Ольга Сергей"), words("Смирнова Иванов Кузнецов Попова")),
    (words("김 이 박 최 정"), words("민준 서연 도윤 지우 하은")),
    (words("محمد فاطمة أحمد ليلى"), words("حسن علي إبراهيم")),
)
LANGUAGES = ("english", "german", "french", "spanish", "japanese", "korean", "russian", "italian")
TRANSCRIPT = "The birch canoe slid on the smooth planks, and the harbour lay {} miles behind."
CLIP = {
    **{"media_type": "audio/wav", "bytes": 354_000, "duration_s": 7.5, "sample_rate": 22_050},
    **{"channels": 1, "peak_dbfs": -3.1, "rms_dbfs": -21.4},
}
NOW = utc_now()
PER_CAMPAIGN = 5
NARRATORS = 0.25
CHUNK = 5000
CACHE_KIB = 400_000


@dataclass(frozen=True)
class Known:
    """A voice as a caller knows it."""

    id: str
    name: str
    campaign: str


def names(random: Random) -> Iterator[str]:
    """No two the same; where the plain ones are used up, people add a letter or a number."""
    seen = set()
    while True:
        name = _name(random)
        if name_key(name) not in seen:
            seen.add(name_key(name))
            yield name


def _name(random: Random) -> str:
    kind = random.random()
    if kind < NARRATORS:
        return f"narrator {random.choice(TONES)} {random.choice(ROLES)} {random.randrange(9999)}"
    if kind < 0.65:
        middle = random.choice("ABCDEFGHIJKLMNOPRSTW")
        return f"{random.choice(GIVEN)} {middle}. {random.choice(FAMILY)}{_number(random)}"
    if kind < 0.85:
        handle = f"{random.choice(GIVEN)}{random.choice('._-')}{random.choice(FAMILY)}"
        return handle.lower() + str(random.randrange(1000))
    family, given = random.choice(SCRIPTS)
    return f"{random.choice(family)} {random.choice(given)}{_number(random)}"


def _number(random: Random) -> str:
    return "" if random.random() < 0.3 else f" {random.randrange(2, 5000)}"


def populate(store: VoiceStore, count: int, model: ModelRef) -> list[Known]:
    """Fill an empty registry; the smaller population is the beginning of the larger one."""
    store.adopt_model(model.id, model)
    random = Random(7)
    found = [_known(random, number, name) for number, name in _numbered(names(random), count)]
    with _connection(store.data) as connection:
        for start in range(0, count, CHUNK):
            _insert(connection, found[start : start + CHUNK], start, model)
        connection.commit()
    return found


def _numbered(source: Iterator[str], count: int) -> Iterator[tuple[int, str]]:
    return enumerate(islice(source, count))


def _known(random: Random, number: int, name: str) -> Known:
    return Known(f"{ID_PREFIX}{random.getrandbits(128):032x}", name, f"c{number // PER_CAMPAIGN}")


def _connection(data: DataDir) -> Connection:
    connection = sqlite.engine(data.database).connect()
    connection.exec_driver_sql(f"PRAGMA cache_size=-{CACHE_KIB}")
    return connection


def _insert(connection: Connection, voices: list[Known], start: int, model: ModelRef) -> None:
    numbered = list(enumerate(voices, start))
    rows: dict[type, list[dict[str, Any]]] = {
        Voice: [_voice(voice) for voice in voices],
        VoiceVersion: [_version(number, voice) for number, voice in numbered],
        Label: [row for number, voice in numbered for row in _labels(number, voice)],
        NameVariant: [row for voice in voices for row in _variants(voice)],
        Features: [_features(number, voice, model) for number, voice in numbered],
    }
    for kind, values in rows.items():
        connection.execute(insert(kind), values)


def _voice(voice: Known) -> dict[str, Any]:
    return {
        "id": voice.id,
        "name": voice.name,
        "name_key": name_key(voice.name),
        "description": f"{voice.name}, recorded for campaign {voice.campaign}; a quiet room.",
        "defaults": {},
        "version": 1,
        "row_version": 1,
        "created_at": NOW,
        "updated_at": NOW,
    }


def _source(number: int, voice: Known) -> PromptSource:
    clip = sha256(f"clip {number}".encode()).hexdigest()
    return PromptSource(voice.id, clip, TRANSCRIPT.format(number))


def _version(number: int, voice: Known) -> dict[str, Any]:
    source = _source(number, voice)
    return {
        "voice_id": voice.id,
        "number": 1,
        "clip_sha256": source.clip_sha256,
        "transcript": source.transcript,
        "clip": CLIP,
        "warnings": [],
        "created_at": NOW,
    }


def _labels(number: int, voice: Known) -> Iterator[dict[str, str]]:
    use = "audiobook" if number % 3 == 0 else "game"
    language = LANGUAGES[number % len(LANGUAGES)]
    for key, value in (("use", use), ("language", language), ("campaign", voice.campaign)):
        yield {"voice_id": voice.id, "key": key, "value": value}


def _variants(voice: Known) -> Iterator[dict[str, str]]:
    for variant in sorted(variants(name_key(voice.name)) - {""}):
        yield {"variant": variant, "voice_id": voice.id}


def _features(number: int, voice: Known, model: ModelRef) -> dict[str, Any]:
    key = fingerprint(_source(number, voice), model)
    return {
        "voice_id": voice.id,
        "version": 1,
        "fingerprint": key,
        "sha256": key[::-1],
        "frames": 94,
        "modes": ["icl", "xvec"],
        "model_id": model.id,
        "model_revision": model.revision,
        "created_at": NOW,
    }
