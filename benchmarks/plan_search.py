"""The search of `overlapkit plan` for a layout, with bounds that prune and without.

    uv run python benchmarks/plan_search.py [--full] [--gpu NAME]

Every case is a model without a layout. Printed are the layouts that divide it, those that were
estimated, CPU seconds, and the layout that was chosen. With --full every layout is estimated as
well: the two must choose the same, and the ratio of CPU seconds is what the bounds save. That takes
minutes, so only the smaller cases are enumerated. Exit status 1: the two differ.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from overlapkit.config.run import Settings
from overlapkit.config.yaml_file import Document
from overlapkit.plan.cluster import cluster_of
from overlapkit.plan.inputs import read_inputs
from overlapkit.plan.plan import CHOSEN_FROM, free_dimensions
from overlapkit.plan.search.ranking import Ranking
from overlapkit.plan.search.sweep import sweep

SHAPES = Path(__file__).resolve().parent / "data" / "model_shapes.json"


@dataclass(frozen=True)
class Case:
    """A model on a number of GPUs.

    Attributes:
        model: of `SHAPES`.
        gpus: of the job.
        batch: sequences of a step.
        enumerated: whether --full estimates every layout.
    """

    model: str
    gpus: int
    batch: int
    enumerated: bool = False


CASES = (
    Case("llama3_8b", 16, 128, enumerated=True),
    Case("llama3_70b", 64, 256, enumerated=True),
    # Nothing fits without offloading.
    Case("llama3_70b", 4, 64, enumerated=True),
    Case("llama3_405b", 1024, 2048),
    Case("Qwen3_30B_a3B", 16, 512, enumerated=True),
    Case("Qwen3_235B_a22B", 256, 2048),
    Case("GPT OSS 120B", 256, 2048),
    Case("DeepSeekV3", 256, 2048),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="estimate every layout as well")
    parser.add_argument("--gpu", default="b200", help="the cluster's GPU")
    options = parser.parse_args()
    differ = 0
    for case in CASES:
        pruned, seconds = _timed(case, options.gpu, CHOSEN_FROM)
        best = pruned.best
        print(
            f"{case.model} on {case.gpus} x {options.gpu}: {pruned.tried} layouts, "
            f"{len(pruned.fitting)} that fit estimated, {pruned.slower} need no estimate; "
            f"{seconds:.1f} s of CPU; {best.layout}"
        )
        if not (options.full and case.enumerated):
            continue
        full, longer = _timed(case, options.gpu, None)
        same = [one.layout for one in full.fitting[:CHOSEN_FROM]] == [
            one.layout for one in pruned.fastest[:CHOSEN_FROM]
        ]
        differ += not same
        agrees = "the same" if same else "NOT the same"
        print(
            f"  every layout: {len(full.fitting)} fit; {longer:.1f} s of CPU, "
            f"{longer / seconds:.1f} times as many; the fastest {CHOSEN_FROM} are {agrees}"
        )
    return 1 if differ else 0


def _timed(case: Case, gpu: str, ranked: int | None) -> tuple[Ranking, float]:
    """The ranking of a case, and the CPU seconds that it took."""
    inputs = read_inputs((), document=_document(case), world_size=case.gpus)
    settings: Settings = inputs.settings
    start = time.process_time()
    ranking = sweep(settings, cluster_of(gpu, case.gpus), free_dimensions(inputs), ranked=ranked)
    return ranking, time.process_time() - start


def _document(case: Case) -> Document:
    model = json.loads(SHAPES.read_text())["models"][case.model]
    data = {
        "model": model,
        "ddp": {"use_distributed_optimizer": True},
        "train": {"global_batch_size": case.batch},
        "mixed_precision": "bf16_mixed",
    }
    return Document(case.model, data)


if __name__ == "__main__":
    raise SystemExit(main())
