"""What every rank runs: `python -m overlapkit.lab.rank.__main__ FOLDER`, under torchrun.

Reads the job in FOLDER, trains its variants and leaves its results there.
"""

from __future__ import annotations

from overlapkit.lab.link import rank_side as network

if __name__ == "__main__":
    # Before torch is imported: threads that exist already would stay in the old network namespace.
    network.join()

import gc
import math
import os
import sys
import time
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist

from megatron.bridge.training.decisions import Decision
from megatron.bridge.training.runtime_update import hold_against_request
from overlapkit.config.effective import EFFECTIVE_KNOBS, knob_value
from overlapkit.errors import InputError
from overlapkit.lab import corpus
from overlapkit.lab.events import emit
from overlapkit.lab.protocol import (
    JOB_FILE,
    Block,
    BlockResult,
    Calibration,
    DecisionRecord,
    Job,
    Variant,
    VariantResult,
    result_file,
    trace_file,
    weights_file,
)
from overlapkit.lab.rank import probe

_PACKAGES = ("torch", "megatron-core", "transformer-engine", "overlapkit", "numpy")


def run(folder: Path) -> None:
    """Do every block of the job in `folder`."""
    job = msgspec.json.decode((folder / JOB_FILE).read_bytes(), type=Job)
    rank = int(os.environ["RANK"])
    emit({"event": "importing"})
    if job.device == "cpu":
        from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda

        # One thread whatever the machine: sums in another order give other bits.
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        stand_in_for_cuda()
    else:
        # Of this node: a job may have several.
        enough = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) if enough else 0)
        dist.init_process_group("nccl" if enough else "gloo")
        if not enough:
            from overlapkit.lab.rank.shared_gpu import exchange_through_memory

            exchange_through_memory()
    tokens = corpus.read(job.corpus) if job.corpus else corpus.synthetic()
    warnings.filterwarnings("ignore")
    emit({"event": "ready"})
    for number, block in enumerate(job.blocks):
        worker = _Block(job, block, number, folder, rank, tokens)
        result = worker.run()
        (folder / result_file(number, rank)).write_bytes(msgspec.json.encode(result))
        del worker
        gc.collect()
    emit({"event": "done"})
    dist.destroy_process_group()


class _Block:
    """One block's work on one rank."""

    def __init__(
        self, job: Job, block: Block, number: int, folder: Path, rank: int, tokens: Any
    ) -> None:
        from overlapkit.lab.rank.trainer import Trainer

        self.job, self.block, self.number = job, block, number
        self.folder, self.rank, self.tokens = folder, rank, tokens
        self.trainers: dict[str, Trainer] = {}
        self.calibration: Calibration | None = None
        self.results = {
            variant.name: VariantResult(name=variant.name) for variant in block.variants
        }

    def run(self) -> BlockResult:
        rate = self._fixed_rate()
        if self.block.rounds == 0:
            for variant in self.block.variants:
                self._train_once(variant)
        else:
            for variant in self.block.variants:
                self._prepare(variant)
            if self.block.link_of is not None:
                rate = self._link(self.block.link_of, rate)
            for turn in range(self.block.rounds):
                for variant in self.block.variants:
                    self._turn(variant, turn)
                    # Right after a turn of its own: what else the machine does hits both alike.
                    if self.block.profiled and turn == self.block.rounds - 1:
                        self._profile(variant)
            for variant in self.block.variants:
                self._finish(variant)
        return BlockResult(
            name=self.block.name,
            rank=self.rank,
            rate_mbit=rate,
            variants=list(self.results.values()),
            versions=_versions(),
            device_name="cpu" if self.job.device == "cpu" else torch.cuda.get_device_name(),
            calibration=self.calibration,
        )

    def _tell(self, what: str, variant: Variant, **more: Any) -> None:
        emit({"event": what, "block": self.block.name, "variant": variant.name, **more})

    def _fixed_rate(self) -> float | None:
        rate = self.job.rate_mbit
        if isinstance(rate, str):
            network.set_rate(None)
            return None
        network.set_rate(rate)
        return rate

    def _prepare(self, variant: Variant) -> bool:
        """Build a variant; False where it was refused, which all ranks then agree on."""
        from overlapkit.lab.rank import build
        from overlapkit.lab.rank.trainer import Trainer

        self._tell("build", variant)
        result = self.results[variant.name]
        # Equal numbers whatever was trained before.
        torch.manual_seed(1)
        try:
            config = build.configure(variant, self.job.device, dist.get_world_size())
            built = build.build(config, self.job.device)
            trainer = Trainer(built, self.tokens, self.job.device)
        except (InputError, ValueError, AssertionError, RuntimeError) as error:
            # The same on every rank: nothing here depends on the rank but sizes of stages.
            result.error = f"{type(error).__name__}: {error}"
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
        held = hold_against_request(config.decisions, written, result.effective)
        result.decisions = [_record(decision) for decision in held]
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

    def _link(self, name: str, rate: float | None) -> float | None:
        """Choose the link's rate where that is left open, and calibrate where that is asked for.

        The rate is the one at which what the variant `name` sends takes `link_ratio` of the time
        that its step takes on an unlimited link.
        """
        if self.job.device == "cuda":
            # The link between GPUs is as fast as it is.
            return None
        choose = self.job.rate_mbit == "auto"
        if not choose and not self.block.calibrate:
            return rate
        network.set_rate(None)
        trainer = self.trainers[name]
        seconds, sent = _unlimited(trainer)
        if choose:
            rate = None if sent is None else sent * 8 / 1e6 / (seconds * self.block.link_ratio)
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
            )
        network.set_rate(rate)
        # All variants are to make equally many steps.
        del self.trainers[name], trainer
        self._prepare(next(variant for variant in self.block.variants if variant.name == name))
        return rate

    def _turn(self, variant: Variant, turn: int) -> None:
        trainer = self.trainers.get(variant.name)
        if trainer is None:
            return
        self._tell("turn", variant, turn=turn, of=self.block.rounds)
        result = self.results[variant.name]
        trainer.enter()
        grown = _Growth(self.job.device)
        for _ in range(self.block.warmup):
            trainer.step()
        _wait(self.job.device)
        dist.barrier()
        sent = network.sent_bytes()
        marks = [time.perf_counter()]
        for _ in range(self.block.steps):
            trainer.step()
            _wait(self.job.device)
            marks.append(time.perf_counter())
        after = network.sent_bytes()
        result.turns.append(np.diff(marks).tolist())
        result.transient_bytes = max(result.transient_bytes, grown.bytes())
        if sent is not None and after is not None:
            result.wire_bytes = (after - sent) / self.block.steps
        dist.barrier()

    def _profile(self, variant: Variant) -> None:
        from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile, schedule

        trainer = self.trainers.get(variant.name)
        if trainer is None:
            return
        self._tell("profile", variant)
        name = trace_file(self.block.name, variant.name, self.rank)
        activities = [ProfilerActivity.CPU]
        if self.job.device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        trainer.enter()
        with (
            _inside(self.folder),
            profile(
                activities=activities,
                schedule=schedule(wait=0, warmup=1, active=self.block.profiled, repeat=1),
                # What moves data between ranks that share a GPU is a thread of its own.
                experimental_config=_ExperimentalConfig(profile_all_threads=True)
                if self.job.device == "cuda" and dist.get_backend() == "gloo"
                else None,
                on_trace_ready=lambda done: done.export_chrome_trace(name),
            ) as profiler,
        ):
            for _ in range(1 + self.block.profiled):
                trainer.step()
                _wait(self.job.device)
                profiler.step()
        self.results[variant.name].trace = name
        dist.barrier()

    def _train_once(self, variant: Variant) -> None:
        if self._prepare(variant):
            trainer = self.trainers[variant.name]
            gradients: dict[str, torch.Tensor] = {}
            for step in range(self.block.warmup + self.block.steps):
                if step == 0 and variant.gradients:
                    gradients = self._first_gradients(variant)
                    continue
                trainer.step()
            self._finish(variant, gradients)
            del self.trainers[variant.name]

    def _first_gradients(self, variant: Variant) -> dict[str, torch.Tensor]:
        trainer = self.trainers[variant.name]
        for chunk in trainer.built.chunks:
            chunk.zero_grad_buffer()
        trainer.built.optimizer.zero_grad()
        trainer.accumulate()
        gradients = trainer.gradients()
        trainer.built.optimizer.step()
        return gradients

    def _finish(self, variant: Variant, gradients: dict[str, torch.Tensor] | None = None) -> None:
        from overlapkit.lab.rank.weights import save

        trainer = self.trainers.get(variant.name)
        if trainer is None:
            return
        trainer.enter()
        result = self.results[variant.name]
        if variant.collectives:
            from overlapkit.lab.rank.count_collectives import counted

            result.collectives = counted(trainer.step)
        trainer.finish()
        result.losses = [
            value if math.isfinite(value := float(loss)) else None for loss in trainer.losses
        ]
        result.digest = trainer.digest()
        result.persistent_bytes = trainer.tensors()
        if variant.weights:
            path = self.folder / weights_file(self.number, variant.name, self.rank)
            save(path, trainer.bare_chunks(), gradients or {})


def _unlimited(trainer: Any) -> tuple[float, float | None]:
    """Median seconds and sent bytes of a step, the slowest and the busiest rank's."""
    trainer.enter()
    trainer.step()
    before = network.sent_bytes()
    marks = [time.perf_counter()]
    for _ in range(5):
        trainer.step()
        marks.append(time.perf_counter())
    lengths, after = np.diff(marks), network.sent_bytes()
    sent = -1.0 if before is None or after is None else (after - before) / len(lengths)
    worst = probe.over_ranks([float(np.median(lengths)), sent])
    return worst[0], worst[1] if worst[1] > 0 else None


class _Growth:
    """How far memory grows above where it was when this was made."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = int(torch.cuda.memory_allocated())
            return
        with suppress(OSError):
            # Resets the kernel's high-water mark of this process's resident memory.
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS")

    def bytes(self) -> int:
        if self._device == "cuda":
            return int(torch.cuda.max_memory_allocated()) - self._before
        return max(0, _resident("VmHWM") - self._before)


def _resident(field: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


class _inside:
    """A folder as the working one: a profile's path ends up in it, so it gets its bare name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._before = Path.cwd()
        os.chdir(self._folder)

    def __exit__(self, *exception: object) -> None:
        os.chdir(self._before)


def _wait(device: str) -> None:
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
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    run(Path(sys.argv[1]))
