"""Transformer Engine's real ``initialize_ub`` on every preset, and on what the checks refuse.

`support.te_userbuffers` says what is real and what is replaced. To run it without a GPU, install
torch's CUDA build, transformer-engine, transformer-engine-cu<N> and nvidia-curand from wheels, then
build transformer-engine-torch with --no-build-isolation, NVTE_FRAMEWORK=pytorch and, in CPATH, the
include folders under site-packages/nvidia and that of a CUDA toolkit (for crt/host_config.h). At
run time LD_LIBRARY_PATH lists nvidia/nccl/lib, nvidia/cu<N>/lib and nvidia/cudnn/lib of
site-packages.

With TE_EVIDENCE=<file> set, what Transformer Engine did is written to that file as JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from megatron.bridge.training.decisions import RULES
from megatron.bridge.training.tp_overlap_presets import PRESETS
from megatron.bridge.training.userbuffers.facts import GEMMS, KEYS, METHODS
from megatron.bridge.training.userbuffers.settings import as_te_dict, check_userbuffers
from support.property_tests import examples
from support.te_userbuffers import (
    COMMAND,
    MISSING,
    NOTED,
    REFUSED,
    RUNS,
    Config,
    errors,
    implements,
    initialize,
    preset_run,
    record,
    without_gpu,
)

EVIDENCE = Path(__file__).parents[2] / "docs/evidence/te-initialize-ub.json"
# The rules that initialize_ub enforces itself; the others speak of what comes after it.
ENFORCED = {refused.rule for refused in REFUSED.values()} - {"ub.method-name", "ub.method-gemm"}


pytestmark = pytest.mark.functional


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    import torch

    if torch.cuda.is_available():
        pytest.skip("communicators would be built on the visible GPU: set CUDA_VISIBLE_DEVICES=")
    with without_gpu():
        yield


TestT = TypeVar("TestT", bound=Callable[..., None])


def needs_te(test: TestT) -> TestT:
    skip = pytest.mark.skipif(bool(MISSING), reason=MISSING)
    return skip(pytest.mark.usefixtures("engine")(test))


@needs_te
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_accepted_and_built_as_it_says(name: str) -> None:
    precision, tp_size = preset_run(name)
    plain = as_te_dict(PRESETS[name])
    built = initialize(plain, precision, tp_size)
    assert built.keys() == GEMMS.keys()
    for gemm, asked in plain.items():
        seen, ring = built[gemm], asked["method"] == "ring_exchange"
        assert seen.communicator == ("CommOverlapP2P" if ring else "CommOverlap")
        assert seen.settings["num_comm_sm"] == asked["num_sm"]
        assert seen.settings["comm_cga_size"] == asked["cga_size"]
        for key in ("set_sm_margin", "atomic_gemm", "aggregate", "num_splits"):
            if key in asked:
                assert seen.settings[key] == asked[key], (gemm, key)
        split = gemm == "fc1_dgrad" and name.endswith("_lora")
        assert seen.collective == ("reduce-scatter" if split else GEMMS[gemm].collective)
        in_fp8 = seen.collective == "all-gather" or asked.get("fp8_buf", False)
        assert seen.buffer == ("uint8" if precision == "fp8" and in_fp8 else "bfloat16"), gemm


@needs_te
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_checks_refuse_transformer_engine_refuses(case: str) -> None:
    refused = REFUSED[case]
    assert refused.rule in {d.rule for d in errors(refused.cfg, refused.run)}
    with pytest.raises(Exception) as raised:
        initialize(refused.cfg, refused.run)
    assert type(raised.value).__name__ == refused.error, raised.value


SOUND = {
    "num_sm": st.sampled_from([2, 16]),
    "atomic_gemm": st.just(False),
    "fp8_buf": st.sampled_from([True, False, [False]]),
}
DOUBTFUL = {
    "atomic_gemm": st.booleans(),
    "is_reduce_scatter": st.booleans(),
    "num_sms": st.just(1),
}


def gemm_settings(gemm: str) -> st.SearchStrategy[Config]:
    methods = GEMMS[gemm].methods if gemm in GEMMS else METHODS
    of_its_own = {"method": st.sampled_from(methods)}
    of_any = {"method": st.sampled_from([*METHODS, "bulky"])}
    return st.one_of(
        st.fixed_dictionaries(of_its_own, optional=SOUND),
        st.fixed_dictionaries(of_its_own | {"atomic_gemm": st.just(True)}),
        st.fixed_dictionaries({}, optional=of_any | SOUND),
        st.fixed_dictionaries({}, optional=of_its_own | DOUBTFUL),
    )


CONFIGS = st.sets(st.sampled_from([*GEMMS, "fc3_fprop"]), max_size=4).flatmap(
    lambda gemms: st.fixed_dictionaries({gemm: gemm_settings(gemm) for gemm in sorted(gemms)})
)


@needs_te
@given(CONFIGS, st.sampled_from(list(RUNS)))
@examples(500, 5000)
def test_any_configuration_is_judged_alike(cfg: Config, run: str) -> None:
    ours = errors(cfg, run)
    try:
        built = initialize(cfg, run)
    except (TypeError, ValueError, KeyError) as error:
        event("refused")
        assert ours, f"only Transformer Engine refuses: {error!r}"
    else:
        event("accepted" if not ours else "cannot run")
        assert {d.rule for d in ours}.isdisjoint(ENFORCED), "only the checks refuse"
        if ours:
            return
        for d in check_userbuffers(cfg, **RUNS[run]):
            gemm = d.knob.split(".")[2]
            if d.rule == "ub.gemm-name":
                assert gemm not in built
            elif d.rule == "ub.atomic-bulk":
                assert not built[gemm].settings["atomic_gemm"]
            elif d.rule in ("ub.fp8-buf-list", "ub.fp8-buf-unused"):
                assert (built[gemm].buffer == "uint8") is d.effective
            elif d.rule == "ub.method-defaults":
                left_out = {"num_sm": "num_comm_sm", "cga_size": "comm_cga_size"}
                for key in left_out.keys() - cfg[gemm].keys():
                    assert built[gemm].settings[left_out[key]] == {"num_sm": 16, "cga_size": 2}[key]


@needs_te
@pytest.mark.parametrize("run", RUNS)
def test_the_table_of_gemms_is_transformer_engine_s(run: str) -> None:
    built = initialize(None, run)
    assert built.keys() == GEMMS.keys()
    for gemm, facts in GEMMS.items():
        ring = facts.method == "ring_exchange"
        assert built[gemm].communicator == ("CommOverlapP2P" if ring else "CommOverlap")
        assert built[gemm].collective == facts.collective


@needs_te
@pytest.mark.parametrize("key", KEYS)
def test_every_known_setting_is_known_to_transformer_engine(key: str) -> None:
    value = {"method": "pipeline", "is_reduce_scatter": True}.get(key, 1)
    initialize({"proj_fprop": {key: value}}, "fp8")


@needs_te
@pytest.mark.parametrize(
    ("gemm", "method"),
    [("qkv_fprop", "bulk"), ("qkv_fprop", "ring-exchange"), ("qkv_wgrad", "ring_exchange")],
)
def test_a_method_that_initialize_ub_lets_through_cannot_run(gemm: str, method: str) -> None:
    seen = initialize({gemm: {"method": method}}, "bf16")[gemm]
    assert errors({gemm: {"method": method}}, "bf16")
    operation = "split_overlap_ag" if seen.collective == "all-gather" else "bulk_overlap"
    assert not implements(seen.communicator + "Base", operation)


@needs_te
def test_the_methods_of_the_defaults_can_run() -> None:
    assert implements("CommOverlapP2PBase", "split_overlap_ag")
    assert implements("CommOverlapBase", "bulk_overlap")


@needs_te
@pytest.mark.skipif("TE_EVIDENCE" not in os.environ, reason="TE_EVIDENCE names no file to write")
def test_record_the_evidence() -> None:
    target = Path(os.environ["TE_EVIDENCE"])
    aside = target.with_suffix(".part")
    text = json.dumps(record(), indent=1)
    innermost = re.compile(r"\{[^{}\[\]]*\}")
    aside.write_text(innermost.sub(lambda found: " ".join(found[0].split()), text) + "\n")
    aside.replace(target)


def test_the_recorded_evidence_fits_the_source() -> None:
    evidence = json.loads(EVIDENCE.read_text())
    assert evidence["command"] == COMMAND
    assert evidence["presets"].keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        recorded = evidence["presets"][name]
        plain = as_te_dict(preset)
        assert recorded["accepted"]
        assert (recorded["precision"], recorded["tensor_parallel_size"]) == preset_run(name)
        assert sorted([*plain, *recorded["left_to_transformer_engine"]]) == sorted(GEMMS)
        for gemm, asked in plain.items():
            seen = recorded["gemms"][gemm]
            assert (seen["method"], seen["num_comm_sm"], seen["comm_cga_size"]) == (
                asked["method"],
                asked["num_sm"],
                asked["cga_size"],
            )
    assert evidence["refused"].keys() == REFUSED.keys()
    for case, refused in REFUSED.items():
        recorded = evidence["refused"][case]
        assert recorded["transformer_engine"].startswith(refused.error + ":")
        assert [d["reason"] for d in recorded["check_userbuffers"]] == [
            d.reason for d in errors(refused.cfg, refused.run)
        ]
    assert evidence["noted"].keys() == NOTED.keys()
    assert {
        d["rule"] for noted in evidence["noted"].values() for d in noted["check_userbuffers"]
    } <= (RULES.keys())
