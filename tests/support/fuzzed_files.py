"""Parsers of files and of what other programs answer, to be fuzzed."""

import json
import tarfile
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click
import clips
import httpx
import numpy as np
from fuzzing import JSON_TOKENS, Parser
from odd_server import VOICE

from cli.api import answers, events
from cli.api.refusals import RequestRefused
from cli.output import visible
from inference.prompts.features import FeatureShape, PromptFeatures
from registry.api.events import event
from registry.audio.clips import Answer, ClipLimits, ClipRefused, DecoderUnavailable, understood
from registry.audio.decoding.container import sound_of
from registry.audio.decoding.riff import read_wave
from registry.audio.decoding.wrapping import breaks_off
from registry.audio.formats import AudioFormat
from registry.audio.report import Refusal, Report
from registry.contract import ModelRef, PromptRef, PromptSource
from registry.errors import BackupRefused, PromptCorrupt
from registry.storage.data_dir import sha256_of
from registry.upkeep.backup import _canonical, read_manifest
from registry.upkeep.restore import _header

LIMITS = ClipLimits()


def read_a_container(data: bytes) -> None:
    sound = sound_of(data)
    breaks_off(sound.data, sound.demuxer)
    if sound.demuxer == "wav":
        read_wave(sound.data)


SHORT = clips.tone(0.02)
CONTAINER = Parser(
    read_a_container,
    (Refusal,),
    [
        clips.file(SHORT, 24_000),
        clips.file(SHORT, 24_000, "RF64", "PCM_24"),
        clips.file(SHORT, 24_000, "FLAC")[:2000],
        clips.file(SHORT, 24_000, "OGG", "VORBIS")[:3500],
        clips.id3_tag(b"\x89PNG") + clips.file(SHORT, 24_000, "MP3", "MPEG_LAYER_III"),
        clips.muxed(SHORT, 24_000, "ipod", "aac"),
        clips.muxed(SHORT, 24_000, "adts", "aac"),
        clips.muxed(SHORT, 24_000, "webm", "libopus"),
    ],
    [
        *(
            b"RIFF",
            b"WAVE",
            b"fmt ",
            b"data",
            b"ds64",
            b"fLaC",
            b"OggS",
            b"ID3",
            b"APETAGEX",
            b"TAG",
        ),
        *(
            b"\xff\xfb\x90\x00",
            b"\xff\xf1",
            b"\x1aE\xdf\xa3",
            b"webm",
            b"ftyp",
            b"moov",
            b"\0" * 40,
        ),
        *(
            b"\xff\xff\xff\xff",
            b"\0\0\0\0",
            b"\x01\x00",
            b"\xfe\xff",
            b"\xef\xbb\xbf",
            b" ",
            b"Xing",
        ),
    ],
)


def read_a_prompt(data: bytes) -> None:
    PromptFeatures.load(data, PromptRef("voice_1", FEATURES.fingerprint, sha256_of(data)), SHAPE)


SHAPE = FeatureShape(code_groups=2, codebook_size=128, embedding_width=4)
FEATURES = PromptFeatures(
    PromptSource("voice_1", "c" * 64, "Grüße"),
    ModelRef("demo", "a" * 64),
    np.ones((3, 2), np.int16),
    np.ones(4, np.float32),
)
PROMPT = Parser(
    read_a_prompt,
    (PromptCorrupt,),
    [FEATURES.save(SHAPE)],
    [
        *(
            b"__metadata__",
            b"ref_code",
            b"ref_spk_embedding",
            b'"I16"',
            b'"F64"',
            b"shape",
            b"[-1]",
        ),
        *(
            b"data_offsets",
            b"-1",
            b"true",
            b"9" * 30,
            b"\xff" * 8,
            b"[" * 2000,
            b"NaN",
            *JSON_TOKENS,
        ),
    ],
)


def read_a_manifest(data: bytes) -> None:
    """Sealed anew where it is JSON, so that what is within is read, too."""
    with suppress(ValueError, RecursionError):
        manifest = json.loads(data)
        sealed = {"format": "voices-backup", "version": 1, "manifest": manifest}
        data = json.dumps(sealed | {"sha256": sha256_of(_canonical(manifest))}).encode()
    read_manifest(data)


MANIFEST = Parser(
    read_a_manifest,
    (BackupRefused,),
    [
        b'{"schema_revision": "0001", "created_at": "2026-11-28T06:00:00.000Z", "voices": 1, '
        b'"deleted": 0, "missing": [], "files": {"registry.db": {"sha256": "%s", "bytes": 3}}}'
        % (b"0" * 64),
    ],
    JSON_TOKENS,
)
REPORT = Report(
    *("audio/wav", 24_000, 1, 0.01, -8.0, -11.0, 0.0, 0.0, 0, 0.01, -9.0, ["A note."], 240)
)
CLIP_REPORT = Parser(
    lambda data: understood(Answer(data, b""), LIMITS),
    (ClipRefused, DecoderUnavailable),
    [
        b"\n" + json.dumps(asdict(REPORT)).encode() + b"\n" + bytes(4 * 240),
        b'filter\n{"code": "audio-silent", "message": "It is silent."}\n',
    ],
    [b"\n", b"audio-", b"\\u202e", b"\0\0\xc0\x7f", b"1e400", b"samples", *JSON_TOKENS],
)


def read_a_tar_header(block: bytes) -> None:
    """With the sum that belongs to it, for else nothing within would be read."""
    block = block.ljust(512, b"\0")[:512]
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    _header(block[:148] + b"%06o\0 " % total + block[156:], "its beginning")


def tar_header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.USTAR_FORMAT)


TAR = Parser(
    read_a_tar_header,
    (BackupRefused,),
    [
        tar_header("registry.db", 4096),
        tar_header("manifest.json", 100),
        tar_header(f"clips/{'0' * 64}", 44),
    ],
    [
        *(b"\0", b"/", b"..", b"7777777", b"\x80", b"\xff" * 8, b" ", b"ustar", b"GNU", b"\xe9"),
        *(b"1", b"2", b"5", b"L", b"x", b"g", b"S", b"-1", b"clips/", b"manifest.json"),
    ],
)


# Answers of another server


def answered(data: bytes) -> httpx.Response:
    """The media type, other headers, an empty line, the body; the status follows the length."""
    head, _, body = data.partition(b"\n\n")
    kind, *lines = head.split(b"\n")
    headers = [(b"Content-Type", kind), (b"Content-Length", b"%d" % len(body))]
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name, value.strip()))
    asked = httpx.Request("GET", "http://127.0.0.1:8000/voices")
    status = STATUSES[len(data) % len(STATUSES)]
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body), request=asked)


def read_a_page(data: bytes) -> None:
    answer = answered(data)
    answer.read()
    answers.parsed_json(answer, answers.PAGE)


def read_a_refusal(data: bytes) -> None:
    answer = answered(data)
    answer.read()
    refused = RequestRefused(answer)
    assert visible(refused.message) == refused.message and (refused.retry_s or 0) >= 0


def read_a_speech(data: bytes) -> None:
    answers.spoken(answered(data), AudioFormat("wav"))


def read_events(data: bytes) -> None:
    size = 1 + len(data) % 100
    for _ in events.audio_of(data[at : at + size] for at in range(0, len(data), size)):
        pass


STATUSES = (200, 301, 303, 307, 401, 403, 404, 422, 429, 500, 502, 503)
JSON_TYPE, PROBLEM = b"application/json\n\n", b"application/problem+json"
PAGE = Parser(
    read_a_page,
    (answers.Unexpected,),
    [
        JSON_TYPE + json.dumps({"data": [VOICE], "damaged": [], "next": None}).encode(),
        JSON_TYPE + b'{"data": [], "next": "YQ"}',
    ],
    [b"; charset=utf-16", b"text/html", b'"data"', b'"clip"', b'"duration_s"', *JSON_TOKENS],
)
REFUSAL = Parser(
    read_a_refusal,
    (),
    [
        PROBLEM + b'\nRetry-After: 3\n\n{"detail": "It is full.", "code": "overloaded"}',
        b"text/plain\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT\n\nmodal-http: slow",
        b"text/html\nLocation: https://elsewhere.example/voices\n\n<html>",
        b"text/html\nLocation: ?__modal_function_call_id=fc-1\n\n",
    ],
    [
        *(
            b"Retry-After: ",
            b"Location: ",
            b"//",
            b"http://[::1",
            b"?",
            b"#",
            b"%",
            b"\x1b]52;",
            b":",
        ),
        *(
            b"-1",
            b"9" * 20,
            b"+2400",
            b"Jan 0",
            b"\xe2\x80\xae",
            b"\x9b",
            b"99999999",
            *JSON_TOKENS,
        ),
    ],
)
SPEECH = Parser(
    read_a_speech,
    (answers.Unexpected,),
    [
        b"audio/wav\nX-Seed: 1\nX-Mode: icl\nX-Prompt-Cache: file\nX-Audio-Seconds: 1.5\n\n",
        b"text/event-stream\nX-Audio-Type: audio/wav; rate=24000\nX-Seed: 7\nX-Mode: xvec\n"
        b'X-Prompt-Cache: memory\nX-Retries: 2\nX-Fallback: xvec\nX-Warnings: ["Quiet."]\n\n',
    ],
    [
        *(
            b"X-Seed: ",
            b"X-Retries: ",
            b"X-Warnings: ",
            b"X-Audio-Seconds: ",
            b"rate=",
            b"\xb2",
            b":",
        ),
        *(b"Content-Encoding: gzip", b"nan", b"inf", b"1_0", b"9" * 5000, b"[" * 2000, b"\xd9\xa3"),
    ],
)
EVENTS = Parser(
    read_events,
    (click.ClickException,),
    [
        event("speech.audio.delta", audio="AAAA") + event("speech.audio.done", seed=1),
        event("speech.audio.delta", audio="AA==") + event("error", error={"message": "No."}),
        b": a comment\r\n\r\nevent: x\ndata:" + event("other")[5:] + event("speech.audio.done"),
    ],
    [
        b"data:",
        b"\n\n",
        b"\r",
        b'"audio"',
        b'"error"',
        b'"type"',
        b"A",
        b"=",
        b"\xff",
        *JSON_TOKENS,
    ],
)

FILES: dict[str, Parser[Any]] = {
    "a container": CONTAINER,
    "a prompt file": PROMPT,
    "the header of a member": TAR,
    "a manifest": MANIFEST,
    "the report on a clip": CLIP_REPORT,
    "a page of voices": PAGE,
    "a refusal": REFUSAL,
    "the headers of a speech": SPEECH,
    "the events of a speech": EVENTS,
}
