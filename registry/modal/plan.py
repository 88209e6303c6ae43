"""Plans what `voices deploy` makes on Modal: names, sizes, windows, by VOICES_DEPLOY_… variables.

Standard library only: both images have it, and both deploy modules read it when imported. A value
that can't be used is a ValueError that names its variable.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

PREFIX = "VOICES_DEPLOY_"
GPUS = {  # as Modal calls them, with the compute capability of each
    "T4": (7, 5),
    "L4": (8, 9),
    "A10": (8, 6),
    "A100": (8, 0),
    "A100-40GB": (8, 0),
    "A100-80GB": (8, 0),
    "L40S": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "B200": (10, 0),
    "RTX-PRO-6000": (12, 0),
}
WITHOUT_BFLOAT16 = (8, 0)  # architectures below it multiply no bfloat16
NOTHING = {"region": "any", "hf_secret": "none"}  # the words that mean none
SNAPSHOTS = ("cpu", "gpu", "off")
NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
REGION = re.compile(r"[a-z0-9-]{2,32}")
SECRET = re.compile(r"(?!hf_)[A-Za-z0-9][\w.-]{0,62}", re.ASCII)
MODEL = re.compile(r"demo|[\w.-]+/[\w.-]+(@[0-9a-f]{40})?")
BOUNDS = {  # least and most
    "scaledown_s": (2, 1200),
    "min_containers": (0, 1),
    "slots": (1, 128),
    "speak_limit_s": (10, 140),
}
# What the GPU's image has of this package: enough for inference, and no more.
SHARED_FILES = (
    *("__init__.py", "contract.py", "errors.py"),
    *("modal/__init__.py", "modal/plan.py", "storage/__init__.py"),
    *("storage/blobs.py", "storage/data_dir.py", "storage/private.py"),
)
STATE, WEIGHTS, BACKUP = "/state", "/weights", "/backup"  # where containers see the Volumes


@dataclass(frozen=True)
class Deployment:
    """The settings of one deployment; their defaults cost nothing while nobody speaks.

    There is never more than one GPU.
    """

    name: str = "voices"  # a prefix: several deployments can share a workspace
    model: str = "Qwen/Qwen3-TTS-12Hz-1.7B-Base"
    gpu: str = "T4"  # or several, of which the first that is free is taken: T4,L4
    region: str | None = None
    min_containers: int = 0  # 1 keeps the GPU, and its bill, running
    scaledown_s: int = 60  # idle seconds before the GPU is given back
    slots: int = 32  # speeches at once
    snapshot: str = "cpu"  # of memory, from which a container starts: cpu, gpu or off
    speak_limit_s: int = 120  # the longest that one request may speak
    proxy_auth: bool = True  # strangers are refused before a container starts
    keys: bool = False  # the registry asks everybody for one of its keys
    hf_secret: str | None = None  # a secret of Modal's with HF_TOKEN, for the download alone

    def __post_init__(self) -> None:
        self._must(bool(NAME.fullmatch(self.name)), "name", "lower case letters, digits and -")
        self._must(bool(MODEL.fullmatch(self.model)), "model", "a hub id, or demo")
        known = set(self.gpus) <= GPUS.keys()
        self._must(known, "gpu", f"one of {', '.join(GPUS)}, or several with commas")
        self._must(self.snapshot in SNAPSHOTS, "snapshot", f"one of {', '.join(SNAPSHOTS)}")
        regional = self.region is None or bool(REGION.fullmatch(self.region))
        self._must(regional, "region", "a region of Modal's, such as eu or us-east")
        named = self.hf_secret is None or bool(SECRET.fullmatch(self.hf_secret))
        self._must(named, "hf_secret", "the name of a secret at Modal, not a token itself")
        for field, (least, most) in BOUNDS.items():
            self._must(least <= getattr(self, field) <= most, field, f"{least} to {most}")

    @property
    def gpus(self) -> tuple[str, ...]:
        """The kinds of GPU that will do; the first one that is free is taken."""
        return tuple(self.gpu.split(","))

    @property
    def architectures(self) -> tuple[tuple[int, int], ...]:
        return tuple(sorted({GPUS[gpu] for gpu in self.gpus}))

    @property
    def dtype(self) -> str:
        """The type of number that every one of the GPUs can multiply with."""
        return "float16" if self.architectures[0] < WITHOUT_BFLOAT16 else "bfloat16"

    @property
    def registry_app(self) -> str:
        return f"{self.name}-registry"

    @property
    def inference_app(self) -> str:
        return f"{self.name}-inference"

    @property
    def state_volume(self) -> str:
        return f"{self.name}-state"

    @property
    def weights_volume(self) -> str:
        return f"{self.name}-weights"

    @property
    def backup_volume(self) -> str:
        return f"{self.name}-backup"

    @property
    def claims_dict(self) -> str:
        return f"{self.name}-claims"

    def environ(self) -> dict[str, str]:
        """Return the variables that make an equal Deployment in an image or a child process."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {variable(name): _text(value) for name, value in given.items() if value is not None}

    def _must(self, kept: bool, field: str, wanted: str) -> None:
        if not kept:
            raise ValueError(f"{variable(field)}={getattr(self, field)!r}: it must be {wanted}.")


def variable(field: str) -> str:
    return PREFIX + field.upper()


def deployment(environ: Mapping[str, str]) -> Deployment:
    """Read a Deployment from its variables; raise ValueError also for one that is no setting."""
    kinds = {variable(field.name): field for field in fields(Deployment)}
    given = {name: text for name, text in environ.items() if name.startswith(PREFIX) and text}
    if unknown := sorted(given.keys() - kinds.keys()):
        raise ValueError(f"{unknown[0]} is not a setting; there are {', '.join(kinds)}.")
    values = {kinds[name].name: _value(name, kinds[name].type, t) for name, t in given.items()}
    return Deployment(**values)


def _value(name: str, kind: Any, text: str) -> Any:
    if name == variable("gpu"):
        return ",".join(dict.fromkeys(part.strip().upper() for part in text.split(",")))
    if any(name == variable(field) and text == none for field, none in NOTHING.items()):
        return None
    if kind is bool:
        if text not in ("0", "1"):
            raise ValueError(f"{name}={text!r}: it must be 0 or 1.")
        return text == "1"
    if kind is int:
        if not re.fullmatch(r"\d{1,6}", text):
            raise ValueError(f"{name}={text!r}: it must be a whole number.")
        return int(text)
    return text


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
