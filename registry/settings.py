"""Every setting of the service, with its variable `VOICES_…`, its default and its bounds.

A value that can't be used, or a variable that means nothing, refuses to start and names itself.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from registry.errors import SettingInvalid

PREFIX = "VOICES_"
ORIGIN = r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?"
ANY = "*"
HOST = r"((\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])"
CLIENT_VARIABLES = ("VOICES_URL",)


def _networks(text: str) -> str:
    for network in text.split(",") if text else ():
        try:
            ip_network(network)
        except ValueError as error:
            raise PydanticCustomError("network", "{why}", {"why": str(error)}) from error
    return text


class Settings(BaseModel):
    """The settings of a server or a command, checked; each has a variable `VOICES_…`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(description="The data directory. Default: the platform's data folder.")
    model: str | None = Field(
        None,
        min_length=1,
        description="`demo`, a directory, or a hub id with `@revision`. "
        "Default: the model recorded in the data directory, else the 1.7B Base model.",
    )
    inference: Literal["on", "off"] = Field(
        "on", description="`off`: the server keeps voices but neither enrols nor speaks."
    )
    trial: Literal["on", "off"] = Field(
        "on",
        description="`on`: a new transcript is tried by a short sentence, if the model has time;"
        " `warnings` say what it tells.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="`auto` (CUDA if there is a GPU), `cpu`, `cuda` or `cuda:N`.",
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="`auto`: bfloat16 on GPUs that compute in it, float16 on older ones "
        "(a T4), float32 on the CPU.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="CPU threads of the model. Default: 1 for demo, else PyTorch's choice.",
    )
    slots: int | None = Field(
        None,
        ge=1,
        le=128,
        description="Speeches that are made at once. Default: 32 on a GPU, 8 on a CPU.",
    )
    prompt_cache_mib: int = Field(
        512,
        ge=0,
        le=65536,
        description="Memory of the device for known voices, in MiB; least used leave first.",
    )
    queue_limit: int = Field(
        32, ge=1, le=10000, description="Requests that may wait for the model; more get a 503."
    )
    queue_timeout_s: float = Field(
        30.0, gt=0, le=3600, description="How long a request waits for the model before a 503."
    )
    answer_s: float | None = Field(
        None,
        ge=20,
        le=3600,
        description="How long `/speak` may take until it answers, or begins to stream. For a "
        "server behind something that waits no longer. Default: as long as it takes.",
    )
    max_clip_mib: int = Field(20, ge=1, le=20, description="The largest upload, in MiB.")
    max_text: int = Field(
        5000,
        ge=1,
        le=5000,
        description="The longest text of one request, in characters; the model may take less.",
    )
    max_connections: int = Field(
        1024,
        ge=16,
        le=4096,
        description="Open connections of `voices serve`, at most half of its descriptors. One more "
        "closes the one that has waited longest for a request.",
    )
    max_requests: int = Field(
        512,
        ge=1,
        le=4096,
        description="Requests that are answered at once; more get a 503. `voices serve` keeps a "
        "quarter of its connections free of them.",
    )
    header_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="How long the head of a request may take until `voices serve` closes the "
        "connection.",
    )
    body_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="How long a body may take, on top of its bytes at 50 KiB/s: one that is sent "
        "gets a 408, the reader of an answer is left.",
    )
    deleted_keep: int = Field(
        100,
        ge=0,
        le=100000,
        description="Deleted voices that are kept, the newest; older ones are removed for good, "
        "with their files, when another is deleted, when a server starts, and hourly. Commands "
        "that work without a server remove some after `voices rm` only.",
    )
    auth: Literal["auto", "on"] = Field(
        "auto",
        description="`on`: `voices serve` asks everybody for a [key](security.md#keys), on this "
        "machine too, as behind a proxy. `auto`: only where it listens beyond loopback.",
    )
    allowed_origins: str = Field(
        "",
        pattern=rf"^(\*|{ORIGIN}(,{ORIGIN})*)?$",
        description="Pages of which browsers may call this server: origins such as "
        "`https://example.org`, with commas between them, or `*`. Default: none.",
    )
    allowed_hosts: str = Field(
        "",
        pattern=rf"^(\*|{HOST}(,{HOST})*)?$",
        description="More names by which `voices serve` is reached, with commas between them and "
        "without ports: `voices.example.org`, `*.example.org` for all below it, or `*`. "
        "Default: none but loopback and the address it listens on.",
    )
    proxies: Annotated[str, AfterValidator(_networks)] = Field(
        "",
        description="Proxies before `voices serve`, addresses or networks with commas between "
        "them: `127.0.0.1`, `10.0.0.0/8`. Their `X-Forwarded-For` and `X-Forwarded-Proto` count; "
        "of anyone else neither does. Default: none.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much the server says on stderr."
    )


def variable(field: str) -> str:
    return PREFIX + field.upper()


def load_settings(environ: Mapping[str, str], default_home: Path) -> Settings:
    """Read settings from the environment; raise SettingInvalid, which names the variable."""
    given = {k: v for k, v in environ.items() if k.startswith(PREFIX) and v != ""}
    known = {variable(field): field for field in Settings.model_fields}
    for name in given:
        if name not in known and name not in CLIENT_VARIABLES:
            raise SettingInvalid(f"{name} is not a setting.{_hint(name, known)}")
    values: dict[str, object] = {known[k]: v for k, v in given.items() if k in known}
    values.setdefault("home", default_home)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = variable(str(first["loc"][0]))
        raise SettingInvalid(
            f"{name}={environ.get(name)!r} can't be used: {first['msg']}."
        ) from None


def _hint(name: str, known: Mapping[str, str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""
