"""One block on one rank: builds its variants, times, profiles and compares them."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.transformer.moe import moe_utils
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile, schedule

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.runtime_update import compare_with_request
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value
from overlapkit.errors import InputError
from overlapkit.lab.events import emit
from overlapkit.lab.link import rank_side as network
from overlapkit.lab.protocol import (
    CHECKPOINT,
    EVALUATE,
    STEP,
    Block,
    BlockResult,
    Calibration,
    DecisionRecord,
    Job,
    Variant,
    VariantResult,
    trace_file,
    weights_file,
)
from overlapkit.lab.rank import build, checkpoint, probe
from overlapkit.lab.rank.count_collectives import counted
from overlapkit.lab.rank.load import OtherPrograms
from overlapkit.lab.rank.memory import MemoryGrowth
from overlapkit.lab.rank.trainer import Trainer
from overlapkit.lab.rank.weights import save

PACKAGES = ("torch", "megatron-core", "transformer-engine", "overlapkit", "numpy")
"""Packages whose versions are recorded."""

_UNLIMITED_STEPS = 5

_LONGEST_LINK_S = 0.4
"""Seconds that a step's bytes may take at a chosen rate: longer steps only take longer to time."""


class RankBlock:
    """One block's work on one rank.

    Args:
        block: what to do.
        job: the block's job.
        number: the block's place in the job.
        folder: where the ranks leave their files.
        rank: this rank.
        tokens: the corpus.
    """

    def __init__(
        self,
        block: Block,
        *,
        job: Job,
        number: int,
        folder: Path,
        rank: int,
        tokens: NDArray[Any],
    ) -> None:
        self.block, self.job, self.number = block, job, number
        self.folder, self.rank, self.tokens = folder, rank, tokens
        self.trainers: dict[str, Trainer] = {}
        self.calibration: Calibration | None = None
        self.results = {
            variant.name: VariantResult(name=variant.name) for variant in block.variants
        }

    def run(self) -> BlockResult:
        """Train every variant; what was measured."""
        rate = self._fixed_rate()
        if self.block.rounds == 0:
            for variant in self.block.variants:
                self._train_once(variant)
        else:
            rate = self._take_turns(rate)
        return BlockResult(
            name=self.block.name,
            rank=self.rank,
            rate_mbit=rate,
            variants=list(self.results.values()),
            versions=_versions(),
            device_name="cpu" if self.job.device == "cpu" else torch.cuda.get_device_name(),
            calibration=self.calibration,
        )

    def _take_turns(self, rate: float | None) -> float | None:
        """Build all variants, then time and profile them alternately; the link's rate."""
        for variant in self.block.variants:
            self._prepare(variant)
        if self.block.link_of is not None:
            rate = self._choose_rate(self.block.link_of, rate)
        for turn in range(self.block.rounds):
            for variant in self.block.variants:
                self._turn(variant, turn)
                # Directly after a turn, so that other load on the machine affects both equally.
                if self.block.profiled and turn == self.block.rounds - 1:
                    self._profile(variant)
        for variant in self.block.variants:
            self._finish(variant)
        return rate

    def _report(self, event: str, variant: Variant, **more: Any) -> None:
        emit({"event": event, "block": self.block.name, "variant": variant.name, **more})

    def _fixed_rate(self) -> float | None:
        """Set the job's rate in Mbit/s, if it has one."""
        rate = self.job.rate_mbit
        if isinstance(rate, str):
            network.set_rate(None)
            return None
        network.set_rate(rate)
        return rate

    def _prepare(self, variant: Variant) -> bool:
        """Build a variant; False where it was refused, on which all ranks agree."""
        self._report("build", variant)
        result = self.results[variant.name]
        # The same random numbers whatever was trained before, and no record of another model's
        # layers: Megatron-Core keeps experts' losses in a table of the process.
        torch.manual_seed(1)
        vars(moe_utils).get("_MOE_LAYER_WISE_LOGGING_TRACKER", {}).clear()
        try:
            config = build.configure(variant, self.job.device, dist.get_world_size())
            built = build.build(config, self.job.device)
            trainer = Trainer(built, self.tokens, self.job.device, data=variant.data)
        except (InputError, ValueError, AssertionError, RuntimeError) as error:
            result.error = f"{type(error).__name__}: {error}"
        result.error = _first_error(result.error)
        if result.error is not None:
            return False
        model = config.model
        result.layout = {
            "tp": model.tensor_model_parallel_size,
            "pp": model.pipeline_model_parallel_size,
            "vpp": model.virtual_pipeline_model_parallel_size or 1,
            "dp": config.data_parallel_size or 1,
        }
        result.effective = {knob: _plain(knob_value(config, knob)) for knob in EFFECTIVE_KNOBS}
        written = {
            f"{section}.{key}": value
            for section in ("model", "ddp", "optimizer")
            for key, value in variant.settings.get(section, {}).items()
        }
        decisions = compare_with_request(config.decisions, written, result.effective)
        result.decisions = [_record(decision) for decision in decisions]
        result.buckets = [
            [
                bucket.grad_data.numel()
                for group in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups)
                for bucket in group.buckets
            ]
            for chunk in built.chunks
        ]
        result.parameters = sum(p.numel() for chunk in built.chunks for p in chunk.parameters())
        self.trainers[variant.name] = trainer
        return True

    def _choose_rate(self, name: str, rate: float | None) -> float | None:
        """Choose the link's rate where the job leaves it open, and calibrate where requested.

        At the chosen rate, sending what the variant `name` sends takes `link_ratio` of the time of
        its step on an unlimited link.
        """
        if self.job.device == "cuda":
            # The rate of the link between GPUs cannot be set.
            return None
        choose = self.job.rate_mbit == "auto"
        if not choose and not self.block.calibrate:
            return rate
        network.set_rate(None)
        others = OtherPrograms()
        trainer = self.trainers[name]
        seconds, sent = _unlimited(trainer)
        if choose:
            sending = min(seconds * self.block.link_ratio, _LONGEST_LINK_S)
            rate = None if sent is None else sent * 8 / 1e6 / sending
        if self.block.calibrate:
            payload = 4 * self.results[name].parameters
            fast = probe.pair_seconds(payload)
            network.set_rate(rate)
            self.calibration = Calibration(
                compute=seconds - fast,
                payload_bytes=payload,
                pair=probe.pair_seconds(payload),
                small=probe.pair_seconds(0),
                slowed=probe.slowed(payload, trainer.compute),
                others=others.cores(),
            )
        network.set_rate(rate)
        # Built again, so that all variants make the same number of steps.
        del self.trainers[name], trainer
        self._prepare(next(variant for variant in self.block.variants if variant.name == name))
        return rate

    def _turn(self, variant: Variant, turn: int) -> None:
        """Warm up, then time the steps of one turn."""
        trainer = self.trainers.get(variant.name)
        if trainer is None:
            return
        self._report("turn", variant, turn=turn, of=self.block.rounds)
        result = self.results[variant.name]
        trainer.enter()
        growth = MemoryGrowth(self.job.device)
        for _ in range(self.block.warmup):
            trainer.step()
        _synchronize(self.job.device)
        dist.barrier()
        sent, others = network.sent_bytes(), OtherPrograms()
        marks = [time.perf_counter()]
        for _ in range(self.block.steps):
            trainer.step()
            _synchronize(self.job.device)
            marks.append(time.perf_counter())
        after = network.sent_bytes()
        result.turns.append(np.diff(marks).tolist())
        result.others.append(others.cores())
        result.cores = len(os.sched_getaffinity(0))
        result.transient_bytes = max(result.transient_bytes, growth.bytes())
        if sent is not None and after is not None:
            result.wire_bytes = (after - sent) / self.block.steps
        dist.barrier()

    def _profile(self, variant: Variant) -> None:
        """Record a few steps with torch.profiler."""
        trainer = self.trainers.get(variant.name)
        if trainer is None:
            return
        self._report("profile", variant)
        name = trace_file(self.block.name, variant.name, self.rank)
        activities = [ProfilerActivity.CPU]
        if self.job.device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        trainer.enter()
        others = OtherPrograms()
        with (
            _inside(self.folder),
            profile(
                activities=activities,
                schedule=schedule(wait=0, warmup=1, active=self.block.profiled, repeat=1),
                # Between ranks that share a GPU, a separate thread moves the data.
                experimental_config=_ExperimentalConfig(profile_all_threads=True)
                if self.job.device == "cuda" and dist.get_backend() == "gloo"
                else None,
                on_trace_ready=lambda done: done.export_chrome_trace(name),
            ) as profiler,
        ):
            for _ in range(1 + self.block.profiled):
                trainer.step()
                _synchronize(self.job.device)
                profiler.step()
        self.results[variant.name].profile_others = others.cores()
        self.results[variant.name].trace = name
        dist.barrier()

    def _train_once(self, variant: Variant) -> None:
        """Build a variant, do all that it is to do without timing it, and drop it."""
        if not self._prepare(variant):
            return
        actions = variant.actions or (STEP,) * (self.block.warmup + self.block.steps)
        gradients: dict[str, torch.Tensor] = {}
        for action in actions:
            trainer = self.trainers[variant.name]
            if action == CHECKPOINT:
                self._from_checkpoint(variant)
            elif action == EVALUATE:
                trainer.evaluate()
            else:
                found = self._step(variant, trainer)
                gradients = gradients or found
        self._finish(variant, gradients)
        del self.trainers[variant.name]

    def _from_checkpoint(self, variant: Variant) -> None:
        """Write a checkpoint, build everything anew, and go on from what was read back."""
        result = self.results[variant.name]
        state, error = _attempted(lambda: checkpoint.written(self.trainers[variant.name]))
        result.unsaved = _first_error(error) or ""
        if result.unsaved or state is None:
            # Training goes on without it: its numbers can be right all the same.
            return
        before = self.trainers.pop(variant.name)
        folder = self.folder / f"checkpoint{self.number}.{variant.name}"
        checkpoint.write(state, folder)
        del state
        tensors = checkpoint.tensors(before.built)
        self._prepare(variant)
        trainer = self.trainers[variant.name]
        trainer.follow(before)
        del before
        checkpoint.read(trainer, folder)
        lost = checkpoint.differing(tensors, checkpoint.tensors(trainer.built))
        result.unrestored = sorted({*result.unrestored, *lost})
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(folder)

    def _step(self, variant: Variant, trainer: Trainer) -> dict[str, torch.Tensor]:
        """Make a step, and save its weights where requested; its gradients where requested."""
        first = trainer.steps == 0
        trainer.gradients_only()
        wanted = variant.gradients and (first or variant.every_step)
        gradients = trainer.gradients() if wanted else {}
        trainer.built.optimizer.step()
        if variant.weights and variant.every_step:
            name = weights_file(self.number, variant.name, self.rank, trainer.steps)
            save(self.folder / name, trainer.bare_chunks(), gradients, trainer.weights())
        return gradients

    def _finish(self, variant: Variant, gradients: dict[str, torch.Tensor] | None = None) -> None:
        """Record losses and weights; save tensors where the variant requests it."""
        trainer = self.trainers.get(variant.name)
        if trainer is None:
            return
        trainer.enter()
        result = self.results[variant.name]
        if variant.collectives:
            result.collectives = counted(trainer.step)
        trainer.finish()
        result.losses = _finite(trainer.losses)
        result.evaluations = _finite(trainer.evaluations)
        result.digest = trainer.digest()
        result.persistent_bytes = trainer.tensor_bytes()
        if variant.weights:
            path = self.folder / weights_file(self.number, variant.name, self.rank)
            save(path, trainer.bare_chunks(), gradients or {})


_Made = TypeVar("_Made")


def _attempted(make: Callable[[], _Made]) -> tuple[_Made | None, str | None]:
    """What `make` returns, or its error."""
    try:
        return make(), None
    except Exception as error:  # Whatever Megatron-Core raises; the ranks agree on it afterwards.
        return None, f"{type(error).__name__}: {error}"


def _first_error(error: str | None) -> str | None:
    """The first rank's error; a stage can be refused on its own rank alone."""
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next(filter(None, errors), None)


def _finite(losses: Iterable[torch.Tensor]) -> list[float | None]:
    return [value if math.isfinite(value := float(loss)) else None for loss in losses]


def _unlimited(trainer: Trainer) -> tuple[float, float | None]:
    """Median seconds of a step on the slowest rank, and bytes that the busiest rank sends."""
    trainer.enter()
    trainer.step()
    before = network.sent_bytes()
    marks = [time.perf_counter()]
    for _ in range(_UNLIMITED_STEPS):
        trainer.step()
        marks.append(time.perf_counter())
    lengths, after = np.diff(marks), network.sent_bytes()
    sent = -1.0 if before is None or after is None else (after - before) / len(lengths)
    worst = probe.over_ranks([float(np.median(lengths)), sent])
    return worst[0], worst[1] if worst[1] > 0 else None


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one: a profile records its own path, which is then a bare name."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _record(decision: Decision) -> DecisionRecord:
    return DecisionRecord(
        rule=decision.rule,
        knob=decision.knob,
        requested=_plain(decision.requested),
        effective=_plain(decision.effective),
        outcome=decision.outcome.value,
        reason=decision.reason,
    )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
