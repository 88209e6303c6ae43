"""The App with the GPU: `modal deploy -m inference.modal.app`, and what brings its model there.

The wheels of torch 2.11 bring CUDA 13.0 with them, which is what Modal's driver, 580.95.05, has.
Our kernels are compiled for the planned GPUs before there is one. Knows voices by their ids; the
registry's App finds it by name.
"""

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import modal

from inference.modal import memory_snapshot as snapshot
from inference.modal.calls import RemoteCalls
from inference.models import marker
from inference.models.catalog import DEMO_FILES
from inference.serving.config import ServiceConfig
from inference.serving.voice_files import VolumeFiles
from registry.contract import Item
from registry.modal.plan import SHARED_FILES, STATE, WEIGHTS, deployment
from registry.storage.data_dir import DataDir

plan = deployment(os.environ)

PACKAGES = (
    "accelerate==1.12.0",
    "huggingface-hub==0.36.2",
    "librosa==0.11.0",
    "numpy==2.4.6",
    "safetensors==0.8.0",
    "soundfile==0.14.0",
    "tokenizers==0.22.2",
    "transformers==4.57.3",
)
WAITING = 32  # speeches that wait for a slot; more are refused
AT_ONCE = 32  # calls that need no slot
GRACE_S = 20.0  # at the end, for a thread that still works; Modal gives 30
TRIAL_TEXT = "Enrol a voice once, speak with it by name."
BUNDLED = Path(__file__).parents[2] / "cli" / "data" / "alice"  # on whose machine it is run
TOKEN = "HF_TOKEN"  # as huggingface_hub reads it
SNAPSHOT = plan.snapshot != "off"
VOLUME_FAILURES = (modal.exception.Error, RuntimeError, OSError)


# Of the demo model the files that it has, for others may lie in its folder.
OF_DEMO = ("!demo/**", *(f"demo/{name}" for name in DEMO_FILES))
OURS = modal.FilePatternMatcher("**/*.py", "**/*.cu", *OF_DEMO)


def with_our_files(image: modal.Image, **environ: str) -> modal.Image:
    """Add the last layers: what changes most often, and only what runs here."""
    shared = ~modal.FilePatternMatcher(*SHARED_FILES)
    image = image.env(plan.environ() | environ)
    return image.add_local_python_source("inference", ignore=~OURS).add_local_python_source(
        "registry", ignore=shared
    )


packages = (
    modal.Image.debian_slim("3.12")
    .uv_pip_install("torch==2.11.0")
    .uv_pip_install(*PACKAGES)
    .uv_pip_install("qwen-tts==0.1.1", extra_options="--no-deps")  # half of them are for a demo
)
offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
state = modal.Volume.from_name(plan.state_volume, create_if_missing=True, version=1)
weights = modal.Volume.from_name(plan.weights_volume, create_if_missing=True, version=1)
tokens = [modal.Secret.from_name(plan.hf_secret, required_keys=[TOKEN])] if plan.hf_secret else []
app = modal.App(plan.inference_app, include_source=False)


@app.cls(
    image=with_our_files(packages, **offline),
    gpu=list(plan.gpus) if len(plan.gpus) > 1 else plan.gpu,
    cpu=2.0,
    memory=8192,
    region=plan.region,
    min_containers=plan.min_containers,
    max_containers=1,
    scaledown_window=plan.scaledown_s,
    timeout=300,
    startup_timeout=600,
    retries=0,
    enable_memory_snapshot=SNAPSHOT,
    experimental_options={"enable_gpu_snapshot": True} if plan.snapshot == "gpu" else None,
    volumes={WEIGHTS: weights.with_mount_options(read_only=True), STATE: state},
)
@modal.concurrent(max_inputs=plan.slots + WAITING + AT_ONCE)
class Voices:
    """Serves `inference.modal.calls.RemoteCalls` on a GPU."""

    @modal.enter(snap=SNAPSHOT)
    def read(self) -> None:
        """Read the model before `start` and before a snapshot is taken; see memory_snapshot.py."""
        device, dtype = place()
        kernels = plan.architectures if SNAPSHOT and device == "cuda" else ()
        self.kept = snapshot.read(Path(WEIGHTS), plan.model, dtype, kernels)

    @modal.enter(snap=False)
    async def start(self) -> None:
        device, dtype = place()
        files = VolumeFiles(DataDir(Path(STATE)), state, VOLUME_FAILURES)
        config = ServiceConfig(device, dtype, slots=plan.slots, queue_limit=WAITING)
        service = snapshot.service(self.kept, Path(WEIGHTS), plan.model, files, config)
        self.kept = None
        self.remote = RemoteCalls(service, plan.speak_limit_s)
        await self.remote.ready()

    @modal.exit()
    def stop(self) -> None:
        self.remote.close(GRACE_S)

    # No method may be sync: to cancel one call of those, Modal ends the container, and with it
    # what everybody else listens to.

    @modal.method()
    async def extract_prompt(self, source: dict[str, Any], until_s: float) -> Item:
        return await self.remote.extract_prompt(source, until_s)

    @modal.method()
    async def speak(
        self, ref: dict[str, Any], text: str, params: dict[str, Any], until_s: float
    ) -> AsyncGenerator[Item, None]:
        call = modal.current_function_call_id() or ""
        async with aclosing(self.remote.speak(call, ref, text, params, until_s)) as items:
            async for item in items:
                yield item

    @modal.method()
    async def describe(self) -> Item:
        return await self.remote.describe()

    @modal.method()
    async def status(self) -> Item:
        return self.remote.status()


@app.function(
    image=with_our_files(packages),
    cpu=2.0,
    memory=4096,
    timeout=3600,
    retries=0,
    max_containers=1,
    secrets=tokens,
    volumes={WEIGHTS: weights},
)
def download_model() -> dict[str, Any]:
    """Bring the model to its Volume; the progress is in the log."""
    return asdict(marker.bring(Path(WEIGHTS), plan.model, weights.commit))


@app.local_entrypoint()
def trial(
    clip: str = "", transcript: str = "", text: str = TRIAL_TEXT, output: str = "output.wav"
) -> None:
    """Speak a sentence in the voice of a clip: `modal run -m inference.modal.app --clip ref.wav`.

    The App is gone afterwards, and nothing is kept. Without a transcript only the sound of the
    voice is followed; without a clip it is the bundled one.
    """
    from inference.modal.trial import TrialFailed, speak_once, write_wave

    if not clip:
        clip = str(BUNDLED.with_suffix(".wav"))
        transcript = BUNDLED.with_suffix(".txt").read_text(encoding="utf-8").strip()
    try:
        pcm = speak_once(Voices(), state, Path(clip), transcript or None, text)
        seconds = write_wave(Path(output), pcm)
    except (TrialFailed, OSError) as error:
        raise SystemExit(f"Error: {error}") from error
    sys.stdout.write(f"Wrote {output}: {seconds:.3f} s.\n")


def place() -> tuple[str, str]:
    """Choose device and dtype as the plan says; to ask the GPU would spoil the snapshot."""
    if modal.is_local():
        return "cpu", "float32"
    return "cuda", plan.dtype
