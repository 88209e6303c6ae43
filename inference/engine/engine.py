"""Many voices at once on one device: continuous batching, one frame for everyone a step.

The engine knows nothing about files, names or HTTP, and belongs to one thread. docs/engine.md
walks through a request's life.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference.engine.checkpoint.host_checkpoint import HostCheckpoint, loading
from inference.engine.checkpoint.loading import load_weights, move
from inference.engine.checkpoint.tokenizer import load_tokenizer
from inference.engine.codec.decoder import StreamingDecoder
from inference.engine.codec.vocoder import BATCHES, CHUNKS, Vocoder
from inference.engine.config import EngineConfig, Setup, place
from inference.engine.device import Event, Lane, on_device
from inference.engine.forecast import Forecast, QueueSimulation
from inference.engine.frames import FrameRunner
from inference.engine.generator import Generator
from inference.engine.input_processor import InputProcessor
from inference.engine.model_config import ModelConfig, read_model_config
from inference.engine.page_allocator import PageAllocator, whole_pages
from inference.engine.prefill import Prefill
from inference.engine.prompt_builder import PromptBuilder, PromptEmbeds
from inference.engine.request import Counters, Output, PreparedVoice, Request
from inference.engine.request_queue import QueuedRequest, RequestQueue
from inference.engine.speech_stream import SpeechStream
from inference.engine.state import State
from inference.engine.text import TextTokenizer
from inference.engine.weights import Weights
from registry.errors import Overloaded

IN_FLIGHT = 2  # steps on the device at once
LOOKS = 8  # steps between two looks at who waits in vain
LOOK_S = 0.0002  # seconds between two looks at whether the device is done
CAPTURED_PROMPT = 384  # positions of a prompt: a clip of 30 s


class Engine:
    """Speaks many requests: `submit` queues one, `step` goes on with all, `cancel` ends one."""

    def __init__(
        self,
        model_config: ModelConfig,
        weights: Weights,
        text: TextTokenizer,
        config: EngineConfig | Setup,
    ) -> None:
        setup = config if isinstance(config, Setup) else Setup.of(config)
        self.model_config, self.setup, self.counters = model_config, setup, Counters()
        self._text = text
        self._lane = Lane(setup.device)
        with self._lane.on():
            self._prompt_builder = PromptBuilder(model_config, weights, text.target("")[:3])
            self._state = State(model_config, setup.limits, self._prompt_builder.pad, setup.dtype)
            self._generator = Generator(model_config, weights, setup.limits, self._state, setup.ops)
        self._prefill = Prefill(self._generator, self._state, self._lane)
        self._frames = FrameRunner(self._generator, self._state, setup, self._lane)
        decoder = StreamingDecoder(
            weights.decoder,
            model_config.decoder_config,
            setup.limits.slots,
            setup.device,
            setup.codec_dtype,
            setup.codec_ops,
        )
        self._vocoder = Vocoder(decoder, self._state.frames, model_config.codebook_size)
        self._inputs = InputProcessor(model_config, self._prompt_builder, text, setup.limits)
        self._queue = RequestQueue(setup.queue_limit, setup.prefill_positions, setup.limits.slots)
        self._free = list(range(setup.limits.slots - 1, -1, -1))
        self._pages = PageAllocator(setup.limits.cache_entries)
        self._streams: list[SpeechStream] = []
        self._ends: list[Output] = []  # of requests that never got in
        self._forecast = Forecast()
        self._lane.wait_for_device()

    @classmethod
    def load(cls, folder: Path, config: EngineConfig | None = None) -> "Engine":
        """Load the checkpoint in `folder`; ModelUnavailable says why it did not load."""
        with loading(f"The model in {folder}"):
            return _loaded(folder, config or EngineConfig())

    @classmethod
    def of(cls, checkpoint: HostCheckpoint, config: EngineConfig) -> "Engine":
        """Make an engine of a checkpoint in host memory: only the way to the device is left."""
        with loading("The model"):
            return _placed(checkpoint, config)

    @property
    def busy(self) -> bool:
        """True while a step has something to do."""
        return bool(self._streams or self._queue or self._ends)

    @property
    def running(self) -> int:
        return len(self._streams)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def prepare(
        self,
        embedding: NDArray[np.float32],
        codes: NDArray[np.int16] | None = None,
        transcript: str | None = None,
    ) -> PreparedVoice:
        """Put a voice on the device: embedding (D,), codes (T, groups) with their transcript.

        ValueError if they do not fit the model: a wrong code would break the device, not one voice.
        """
        self._inputs.check_features(embedding, codes)
        with self._lane.on():
            speaker = on_device(embedding, torch.float32, self.setup.device)
            if codes is None:
                return PreparedVoice(speaker, None, None)
            index = on_device(codes, torch.int64, self.setup.device)
            reference = self._prompt_builder.reference(index, self._text.ids(transcript or ""))
            event = self._lane.record_event()
        return PreparedVoice(speaker, reference, self._vocoder.prefill(index, after=event))

    def submit(self, request: Request) -> int:
        """Queue a request, whose Outputs come out of later steps; return the tokens of its text.

        Raises LanguageUnsupported, ModeUnavailable, TextTooLong, SpeechFailed or Overloaded.
        """
        waiting = self._inputs.process(request)
        self._queue.note(request.client)
        if self._queue.is_full:
            self.counters.refused += 1
            reason = f"{len(self._queue)} requests are waiting already. Try again later."
            raise Overloaded(reason, self.retry_after_s)
        simulation = self._queue.simulate(self._slots_to_come(), request.client)
        entries = whole_pages(waiting.positions)
        if not simulation.may_serve(waiting.patience_left_s, entries):
            self.counters.refused += 1
            raise waiting.refusal(simulation.wait_s(entries))
        self.counters.submitted += 1
        self._queue.push(waiting)
        return len(waiting.prompt.ids)

    def cancel(self, request: Request) -> None:
        """Forget a request: it has no more Outputs, and its slot is free for the next step."""
        stream = next((s for s in self._streams if s.request is request), None)
        if stream is not None:
            self._release(stream)
        if stream is not None or self._queue.remove(request):
            self.counters.cancelled += 1

    def step(self) -> list[Output]:
        """Let in who waits, make a frame for everyone, turn frames into sound, hand it out."""
        self._forecast.step(working=bool(self._streams))
        self._admit()
        frames_made = self._make_frames()
        self._decode_frames(frames_made)
        return self._collect()

    def run(self) -> Iterator[Output]:
        """Step until nothing is left to do."""
        while self.busy:
            yield from self.step()

    def capture(self, streams: int | None = None) -> None:
        """Capture the CUDA graphs for so many streams now: by default for all there can be.

        Others are captured by `captures`, or when a batch first needs them.
        """
        for _ in self.captures(streams):
            pass

    def captures(self, streams: int | None = None) -> Iterator[object]:
        """Capture the graphs for so many streams, one that is missing at each turn."""
        most = streams or self.setup.limits.slots
        yield from self._frames.captures(most)
        yield from self._prefill.captures(most, CAPTURED_PROMPT)
        yield from self._vocoder.captures(most)

    def position(self, request: Request) -> int | None:
        """How many requests wait before this one; None if it does not wait."""
        return self._queue.position(request)

    @property
    def retry_after_s(self) -> float:
        """A guess at when a request that comes now would get a slot."""
        wait_s = self._queue.simulate(self._slots_to_come()).wait_s(whole_pages(1))
        return max(1.0, round(wait_s, 1))

    def _admit(self) -> None:
        """Let in who waits; those whose prompts are of like length are prefilled together."""
        held = Counter(stream.request.client for stream in self._streams)
        admitted, late = self._queue.admit(len(self._free), self._pages.free_entries, held)
        admitted.sort(key=attrgetter("grain"))
        for _, alike in groupby(admitted, key=attrgetter("grain")):
            self._begin(list(alike))
        self._ends += [self._too_late(waiting) for waiting in late]
        due = self._queue and self.counters.steps % LOOKS == 0
        hopeless = self._queue.take_hopeless(self._slots_to_come()) if due else []
        for waiting, wait_s in hopeless:
            self.counters.refused += 1
            self._ends.append(Output.of_error(waiting.request, waiting.refusal(wait_s)))

    def _begin(self, admitted: list[QueuedRequest]) -> None:
        """Give each a slot and cache entries, and prefill them together."""
        with self._lane.on():
            prompts = [self._prompt_builder.build(waiting.prompt) for waiting in admitted]
            pairs = zip(admitted, prompts, strict=True)
            streams = [self._start(waiting, prompt) for waiting, prompt in pairs]
            embeds = [prompt.prefill for prompt in prompts]
            self._prefill([stream.slot for stream in streams], embeds)
        self._streams += streams
        self.counters.prefills += 1
        self.counters.prefilled += sum(map(len, embeds))

    def _start(self, waiting: QueuedRequest, prompt: PromptEmbeds) -> SpeechStream:
        request, slot = waiting.request, self._free.pop()
        entries = self._pages.allocate(waiting.positions)
        self._state.begin(slot, prompt, entries, request.sampling)
        icl = request.voice.mode(request.mode) == "icl"
        self._vocoder.begin(slot, request.voice.past if icl else None)
        return SpeechStream(
            request=request,
            slot=slot,
            entries=entries,
            prompt_len=waiting.prompt_len,
            budget=waiting.budget,
            submitted_s=waiting.submitted_s,
            admitted_s=time.perf_counter(),
        )

    def _make_frames(self) -> Event:
        """Issue one frame of every stream that is not over; the event happens when they exist."""
        streams = [stream for stream in self._streams if stream.wants_frames]
        if not streams:
            return self._lane.record_event()
        counters = self.counters
        counters.steps += 1
        counters.frames += len(streams)
        counters.largest_batch = max(counters.largest_batch, len(streams))
        return self._frames.issue(streams)

    def _decode_frames(self, made: Event) -> None:
        """Issue the chunks that are due, those of one size together."""
        due = [(stream.due_frames(), stream) for stream in self._streams]
        for size in CHUNKS:
            streams = [stream for frames, stream in due if frames == size]
            for begin in range(0, len(streams), BATCHES[-1]):
                self._decode_chunk(streams[begin : begin + BATCHES[-1]], size, made)

    def _decode_chunk(self, streams: Sequence[SpeechStream], size: int, made: Event) -> None:
        slots, starts = [s.slot for s in streams], [s.sent for s in streams]
        sound = self._vocoder.decode(slots, starts, size, after=made)
        for row, stream in enumerate(streams):
            stream.append_chunk(sound, row, size)

    def _collect(self) -> list[Output]:
        """Collect what is ready; wait while the device has enough to do and nothing to show."""
        outputs, self._ends = self._ends, []
        while True:
            self._read_reports()
            for stream in list(self._streams):
                outputs += self._deliver(stream)
            if outputs or self._can_issue():
                return outputs
            time.sleep(LOOK_S)

    def _can_issue(self) -> bool:
        if not self._streams or any(stream.due_frames() for stream in self._streams):
            return True
        wanted = any(stream.wants_frames for stream in self._streams)
        return wanted and self._frames.in_flight < IN_FLIGHT

    def _read_reports(self) -> None:
        while step := self._frames.pop_done():
            for stream, row in zip(step.streams, step.report.numpy(), strict=True):
                stream.append_frame(
                    row[:-1].copy(), self.model_config.codec_tokens.eos, bool(row[-1])
                )

    def _deliver(self, stream: SpeechStream) -> list[Output]:
        """Hand out the stream's PCM that is ready, and its end, which frees its slot."""
        pcm, codes = stream.take_ready()
        if stream.error is None and not len(pcm) and not stream.finished:
            return []
        self.counters.chunks += bool(len(pcm))
        if stream.error is not None or stream.finished:
            self._forecast.ended(len(stream.codes), stream.budget)
        if stream.error is not None:
            self.counters.failed += 1
            self._release(stream)
        elif stream.finished:
            self.counters.finished += 1
            self._release(stream)
        timings = stream.timings()
        return [Output(stream.request, pcm, codes, timings, stream.finished, stream.error)]

    def _release(self, stream: SpeechStream) -> None:
        with self._lane.on():
            self._generator.clear_cache(stream.entries)
        self._streams.remove(stream)
        self._free.append(stream.slot)
        self._pages.release(stream.entries)

    def _too_late(self, waiting: QueuedRequest) -> Output:
        self.counters.refused += 1
        error = Overloaded(
            f"This request waited {waiting.request.patience_s:g} s for a slot. Try again later.",
            self.retry_after_s,
        )
        return Output.of_error(waiting.request, error)

    def _slots_to_come(self) -> QueueSimulation:
        """When those who speak now will leave their slots, with nobody in the queue yet."""
        running = [(s.made, s.budget, len(s.entries)) for s in self._streams]
        return self._forecast.simulation(running, len(self._free), self._pages.free_entries)


def _loaded(folder: Path, config: EngineConfig) -> Engine:
    """Read the weights while the kernels compile."""
    _set_threads(config)
    model_config, (device, dtype) = read_model_config(folder), place(config)
    with ThreadPoolExecutor(1) as reader:
        weights = reader.submit(load_weights, folder, model_config, dtype, device)
        setup, text = Setup.of(config), load_tokenizer(folder)
    return Engine(model_config, weights.result(), text, setup)


def _placed(checkpoint: HostCheckpoint, config: EngineConfig) -> Engine:
    """Move the weights while the kernels compile."""
    _set_threads(config)
    with ThreadPoolExecutor(1) as mover:
        weights = mover.submit(move, checkpoint.weights, place(config)[0])
        setup = Setup.of(config)
    assert checkpoint.weights.talker.head.dtype == setup.dtype
    return Engine(checkpoint.model_config, weights.result(), checkpoint.text, setup)


def _set_threads(config: EngineConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
