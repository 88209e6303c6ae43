"""Choosing codes: the cuts of Hugging Face's processors, their chances, and noise that is noise."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import pi, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference.engine import sampler
from inference.engine.ops import LogitsRules, TorchOps
from inference.engine.sampler import MIN_FRAMES, SamplingTensors, gumbel, key_of

CODES = 96
EOS = 90
SUPPRESSED = [86, 87, 88, 89, 91, 92, 93, 94, 95]
LOUD = 1e9  # noise that decides alone
SETTINGS = list(product((0.3, 0.9, 1.7), (1, 2, 5, 50, 1000), (0.001, 0.3, 0.8, 0.95, 1.0)))
DRAWS = 24_576
EULER = 0.5772156649


@dataclass(frozen=True)
class Case:
    """One row: logits (CODES,), what it chose before, and how it chooses."""

    logits: Tensor
    before: tuple[int, ...] = ()
    step: int = 0
    temperature: float = 1.0
    top_k: int = CODES
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Chosen:
    codes: Tensor  # (B,) int64
    bad: Tensor  # (S,) bool
    seen: Tensor  # (S, CODES) bool


def case_of(seed: int, temperature: float = 1.0, top_k: int = 50, top_p: float = 1.0) -> Case:
    """Random logits; with ties, and many, where nothing but top-k could part them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 3, CODES)
    before = tuple(generator.integers(0, CODES, seed % 5).tolist())
    return Case(
        torch.tensor(np.round(logits) if top_p == 1 else logits, dtype=torch.float32),
        before,
        len(before),
        temperature,
        top_k,
        top_p,
        float(generator.choice([1.0, 1.05, 1.5, 0.8])),
        seed,
    )


def theirs(case: Case, has_rules: bool = True) -> Tensor:
    """Scores (CODES,) after Hugging Face's processors, in the order of its `generate`."""
    rules: list[LogitsProcessor] = [
        RepetitionPenaltyLogitsProcessor(case.repetition_penalty),
        MinNewTokensLengthLogitsProcessor(0, MIN_FRAMES, EOS),
        SuppressTokensLogitsProcessor(SUPPRESSED),
    ]
    found = rules if has_rules else []
    found += [TemperatureLogitsWarper(case.temperature), TopKLogitsWarper(case.top_k)]
    if case.top_p < 1:
        found.append(TopPLogitsWarper(case.top_p))
    before, scores = torch.tensor([case.before], dtype=torch.int64), case.logits[None].clone()
    for process in found:
        scores = process(before, scores)
    return scores[0]


def sampling_of(cases: Sequence[Case]) -> SamplingTensors:
    return SamplingTensors(
        temperature=torch.tensor([case.temperature for case in cases]),
        top_k=torch.tensor([case.top_k for case in cases], dtype=torch.int32),
        top_p=torch.tensor([case.top_p for case in cases]),
        repetition_penalty=torch.tensor([case.repetition_penalty for case in cases]),
        key=torch.tensor([key_of(case.seed) for case in cases]),
        step=torch.tensor([case.step for case in cases], dtype=torch.int32),
    )


def chosen(
    cases: Sequence[Case],
    has_rules: bool = True,
    group: int = 0,
    slots: Sequence[int] | None = None,
) -> Chosen:
    """What TorchOps chooses, row i being in slot `slots[i]`; codebook 0 alone has rules."""
    index = torch.tensor(slots or range(len(cases)), dtype=torch.int32)
    rows = [cases[i] for i in index.argsort().tolist()]
    seen = torch.zeros(len(cases), CODES, dtype=torch.bool)
    for slot, case in enumerate(rows):
        seen[slot, list(case.before)] = True
    allowed = torch.ones(CODES, dtype=torch.bool)
    allowed[SUPPRESSED] = False
    rules = LogitsRules(seen, allowed, EOS) if has_rules else LogitsRules()
    bad, logits = torch.zeros(len(cases), dtype=torch.bool), torch.stack([c.logits for c in cases])
    codes = TorchOps().sample(logits, rules, sampling_of(rows), index, group, bad)
    return Chosen(codes, bad, seen)


def kept(case: Case, has_rules: bool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each code is called for, louder than any chance allows: it is chosen if it is not cut."""
    with monkeypatch.context() as patched:
        patched.setattr(sampler, "gumbel", lambda *_: LOUD * torch.eye(CODES))
        codes = chosen([case] * CODES, has_rules).codes
    return [code for code in range(CODES) if codes[code] == code]


@pytest.mark.parametrize("has_rules", [True, False])
def test_what_is_kept_is_what_hugging_face_keeps(
    has_rules: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [case_of(seed, *how) for seed, how in enumerate(SETTINGS * 3)]
    ours = [kept(case, has_rules, monkeypatch) for case in cases]
    for case, found in zip(cases, ours, strict=True):
        scores = theirs(case, has_rules)
        assert found == scores.isfinite().nonzero().flatten().tolist(), case
    assert any(len(found) > case.top_k for case, found in zip(cases, ours, strict=True))  # ties


def test_the_end_cannot_come_before_the_third_frame() -> None:
    logits = torch.zeros(CODES)
    logits[EOS] = 100
    cases = [Case(logits, step=step) for step in range(4)]
    assert (chosen(cases).codes == EOS).tolist() == [False, False, True, True]


SMOOTH = [case_of(seed, top_p=0.9).logits for seed in range(4)]
CHANCES = [
    (Case(SMOOTH[0], temperature=0.9, top_k=50), False),
    (Case(SMOOTH[1] * 0.4, (1, 1), temperature=1.3, top_k=20), True),
    (
        Case(SMOOTH[2] * 0.5, (3, 5, 5, 70), temperature=0.9, top_p=0.9, repetition_penalty=1.5),
        True,
    ),
    (Case(SMOOTH[3] * 0.2, temperature=0.7, top_k=60, top_p=0.95), False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "has_rules"), CHANCES)
def test_codes_are_drawn_by_hugging_faces_chances(case: Case, has_rules: bool) -> None:
    """By many seeds, by many steps of one seed, and never by chances that are a little warmer."""
    chances = theirs(case, has_rules).double().softmax(-1)
    by_seed = [replace(case, seed=seed, step=MIN_FRAMES) for seed in range(DRAWS)]
    by_step = [replace(case, seed=1, step=step) for step in range(MIN_FRAMES, DRAWS + MIN_FRAMES)]
    warmer = theirs(replace(case, temperature=1.15 * case.temperature, top_p=1.0), has_rules)
    for cases, group in ((by_seed, 0), (by_step, 3)):
        counts = chosen(cases, has_rules, group).codes.bincount(minlength=CODES)
        assert counts[chances == 0].sum() == 0
        assert strangeness(counts, chances) < 1 < strangeness(counts, warmer.double().softmax(-1))


def strangeness(counts: Tensor, chances: Tensor) -> float:
    """The chi-square statistic over its 99.9 % quantile (Wilson and Hilferty's formula).

    What is expected less than ten times is counted together.
    """
    expected, order = (chances * counts.sum()).sort()
    rare = int((expected < 10).sum())
    parts = [rare, *[1] * (len(chances) - rare)]
    found = torch.stack([part.sum() for part in counts[order].double().split(parts)])
    wanted = torch.stack([part.sum() for part in expected.split(parts)])
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    free = len(wanted) - 1
    quantile = free * (1 - 2 / (9 * free) + 3.0902 * sqrt(2 / (9 * free))) ** 3
    return float(((found - wanted) ** 2 / wanted).sum()) / quantile


def test_a_code_depends_on_its_own_row_alone() -> None:
    cases = [case_of(seed, *SETTINGS[7 * seed % len(SETTINGS)]) for seed in range(24)]
    cases[5] = replace(cases[5], temperature=0.0)
    together, order = chosen(cases), list(np.random.default_rng(0).permutation(24))
    moved = chosen([cases[i] for i in order], slots=[(5 * i) % 24 for i in range(24)])
    for place, number in enumerate(order):
        alone = chosen([cases[number]])
        assert alone.codes == together.codes[number] == moved.codes[place]
        assert torch.equal(alone.seen[0], together.seen[number])
        assert torch.equal(alone.seen[0], moved.seen[5 * place % 24])


def test_greedy_takes_the_best_of_what_may_be_chosen() -> None:
    cases = [replace(case_of(seed), temperature=0.0) for seed in range(50)]
    best = [int(theirs(replace(case, temperature=1.0)).argmax()) for case in cases]
    assert chosen(cases).codes.tolist() == best
    assert chosen([replace(case, seed=99) for case in cases]).codes.tolist() == best


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 0.001}])
def test_a_cut_that_leaves_one_code_is_greedy(cut: dict[str, float]) -> None:
    logits = np.random.default_rng(0).normal(0, 1, (50, CODES)).astype(np.float32)
    cases = [Case(torch.from_numpy(row), seed=seed) for seed, row in enumerate(logits)]
    greedy = chosen([replace(case, temperature=0.0) for case in cases])
    assert torch.equal(chosen([replace(case, **cut) for case in cases]).codes, greedy.codes)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_row_that_is_not_finite_fails_alone(number: float, temperature: float) -> None:
    sound = [replace(case_of(seed), temperature=temperature) for seed in range(6)]
    logits = sound[2].logits.clone()
    logits[17] = number
    broken = [*sound[:2], replace(sound[2], logits=logits), *sound[3:]]
    found, expected = chosen(broken), chosen(sound)
    assert found.bad.tolist() == [False, False, True, False, False, False]
    assert found.codes[2] == 0
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found.codes[others], expected.codes[others])
    assert torch.equal(found.seen[others], expected.seen[others])
    assert not expected.bad.any()


def test_a_row_that_went_bad_stays_bad() -> None:
    bad, slots = torch.tensor([True, False]), torch.arange(2, dtype=torch.int32)
    cases = [case_of(0), case_of(1)]
    logits = torch.stack([case.logits for case in cases])
    TorchOps().sample(logits, LogitsRules(), sampling_of(cases), slots, 3, bad)
    assert bad.tolist() == [True, False]


def test_exactly_what_was_chosen_is_marked_as_seen() -> None:
    cases = [case_of(seed) for seed in range(20)]
    found = chosen(cases)
    for case, code, seen in zip(cases, found.codes.tolist(), found.seen, strict=True):
        assert set(seen.nonzero().flatten().tolist()) == {*case.before, code}


# The noise


def rows_of(keys: Sequence[int], steps: Sequence[int], groups: Sequence[int]) -> Tensor:
    """(keys · steps · groups, 512) of noise."""
    key, step = (torch.tensor(column) for column in zip(*product(keys, steps), strict=True))
    return torch.stack([gumbel(key, step, group, 512) for group in groups], dim=1).flatten(0, 1)


def test_seed_step_group_and_index_each_change_the_noise() -> None:
    """Rows of near and of far counters: no two are alike, shifted or not, and none correlate."""
    keys = [key_of(seed) for seed in (0, 1, 2, 2**31 - 1)]
    rows = rows_of(keys, [0, 1, 2, 3, 2047], [0, 1, 14, 15])
    assert len(rows.unique(dim=0)) == len(rows) == 80
    for shift in range(3):
        lines = torch.cat([rows[:, : 512 - shift], rows[:, shift:]])
        among = torch.corrcoef(lines)[: len(rows), len(rows) :]
        others = among if shift else among[~torch.eye(len(rows), dtype=torch.bool)]
        assert others.abs().max() < 5.5 / sqrt(512)
    assert all(len(row.unique()) > 500 for row in rows)


def test_the_same_counter_gives_the_same_noise_in_any_company() -> None:
    keys, steps = torch.tensor([key_of(1), key_of(2)]), torch.tensor([7, 9], dtype=torch.int32)
    both = gumbel(keys, steps, 4, 64)
    assert torch.equal(gumbel(keys[1:], steps[1:], 4, 3000)[:, :64], both[1:])


def test_keys_are_odd_and_each_seed_has_its_own() -> None:
    keys = [key_of(seed) for seed in (*range(50_000), 2**31 - 1)]
    assert len(set(keys)) == len(keys)
    assert all(key % 2 and -(2**63) <= key < 2**63 for key in keys)


def test_ten_million_numbers_are_gumbel_noise() -> None:
    """Mean and variance within five standard errors, all finite, evenly spread before the logs."""
    count, total, square, spread = 0, 0.0, 0.0, torch.zeros(256, dtype=torch.int64)
    for part in range(10):
        keys = torch.tensor([key_of(seed) for seed in range(20 * part, 20 * part + 20)])
        noise = gumbel(keys, torch.arange(20) * (part + 1), part, 50_000).double()
        assert noise.isfinite().all()
        count, total = count + noise.numel(), total + float(noise.sum())
        square += float((noise**2).sum())
        even = torch.exp(-torch.exp(-noise))
        spread += (even * 256).long().clamp(max=255).flatten().bincount(minlength=256)
    mean, variance = total / count, square / count - (total / count) ** 2
    assert count == 10_000_000
    assert abs(mean - EULER) < 5 * sqrt(pi**2 / 6 / count)
    assert abs(variance - pi**2 / 6) < 5 * pi**2 / 6 * sqrt(4.4 / count)
    assert strangeness(spread, torch.full((256,), 1 / 256, dtype=torch.float64)) < 1
