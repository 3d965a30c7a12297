"""Rates that are read from profiles whose operators and times are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from overlapkit.calibrate.collect import NO_SHAPES, rates_in
from overlapkit.errors import InputError
from overlapkit.plan.rates.document import RatesCollective, RatesDocument, RatesGemm
from overlapkit.plan.rates.reading import read_rates
from support.operator_trace import BF16, OperatorTrace

Written = Callable[..., RatesDocument]
GEMM = "nvjet_tst_192x192_64x4_2x1_v_bz_TNT"
NORM = "void transformer_engine::normalization::rmsnorm_fwd_general_kernel<...>"
FLASH = "void pytorch_flash::flash_fwd_kernel<...>"
T, IN, OUT = 4096, 8192, 1024


@pytest.fixture
def read(tmp_path: Path) -> Written:
    """The rates of traces."""

    def of(*traces: OperatorTrace, gpu: str | None = None) -> RatesDocument:
        paths = [one.write(tmp_path / f"rank{n}.json") for n, one in enumerate(traces)]
        return rates_in(paths, gpu)

    return of


def only(rates: RatesDocument) -> RatesGemm:
    (row,) = rates.gemms
    return row


@pytest.mark.parametrize(
    ("dims", "strides", "which"),
    [
        ([[T, IN], [IN, OUT]], [[IN, 1], [1, IN]], "fprop"),
        ([[T, OUT], [OUT, IN]], [[OUT, 1], [IN, 1]], "dgrad"),
        ([[OUT, T], [T, IN]], [[1, OUT], [IN, 1]], "wgrad"),
        ([[OUT, T], [T, IN]], [[1, OUT], [1, T]], None),
        ([[T, IN], [IN, OUT]], None, None),
    ],
)
def test_a_product_has_the_sizes_of_its_operands_and_the_pass_of_how_they_lie(
    read: Written, dims: Any, strides: Any, which: str | None
) -> None:
    trace = OperatorTrace().operator("aten::mm", dims, [(GEMM, 120)], strides=strides)
    row = only(read(trace))
    (m, k), (_, n) = dims
    assert (row.m, row.n, row.k, row.which) == (m, n, k, which)
    assert (row.precision, row.batch, row.count) == ("bf16", 1, 1)
    assert row.seconds == pytest.approx(120e-6)


def test_the_median_of_equal_products_counts_over_all_files(read: Written) -> None:
    traces = [OperatorTrace(rank=0), OperatorTrace(rank=1)]
    for trace, times in zip(traces, ((100, 110), (400,)), strict=True):
        for time in times:
            trace.operator("aten::mm", [[T, IN], [IN, OUT]], [(GEMM, time)])
    row = only(read(*traces))
    assert (row.seconds, row.count) == (pytest.approx(110e-6), 3)


def test_a_product_in_two_kernels_takes_both(read: Written) -> None:
    kernels = [(GEMM, 100), ("void cublasLt::splitKreduce_kernel<32>", 20)]
    trace = OperatorTrace().operator("aten::addmm", [[OUT], [T, IN], [IN, OUT]], kernels)
    row = only(read(trace))
    assert row.seconds == pytest.approx(120e-6)
    assert (row.m, row.n, row.k) == (T, OUT, IN)


@pytest.mark.parametrize(
    ("types", "dims", "precision", "k"),
    [
        (["c10::Float8_e4m3fn"] * 2 + ["float"] * 2, [[T, IN], [IN, OUT], [], []], "fp8", IN),
        (
            ["c10::Float8_e4m3fn"] * 2 + ["c10::Float8_e8m0fnu"] * 2,
            [[T, IN], [IN, OUT], [T * IN // 32], [IN * OUT // 32]],
            "mxfp8",
            IN,
        ),
        (
            ["c10::Float4_e2m1fn_x2"] * 2 + ["c10::Float8_e4m3fn"] * 2,
            [[T, IN // 2], [IN // 2, OUT], [T * IN // 16], [IN * OUT // 16]],
            "nvfp4",
            IN,
        ),
    ],
)
def test_scaled_products_have_the_precision_of_their_operands_and_scales(
    read: Written, types: Sequence[str], dims: Any, precision: str, k: int
) -> None:
    trace = OperatorTrace("NVIDIA B200").operator(
        "aten::_scaled_mm", dims, [(GEMM, 50)], types=types
    )
    row = only(read(trace))
    assert (row.precision, row.m, row.n, row.k) == (precision, T, OUT, k)


def test_products_of_experts_are_grouped(read: Written) -> None:
    trace = OperatorTrace()
    forward = [[8 * 512, IN], [8, IN, OUT], [8]]
    turned = [[IN, 1], [IN * OUT, 1, IN], [1]]
    trace.operator("aten::_grouped_mm", forward, [(GEMM, 80)], strides=turned)
    backward = [[OUT, 8 * 512], [8 * 512, IN], [8]]
    trace.operator("aten::_grouped_mm", backward, [(GEMM, 90)])
    found = {row.which: row for row in read(trace).gemms}
    row = found["fprop"]
    assert (row.batch, row.m, row.n, row.k) == (8, 512, OUT, IN)
    row = found["wgrad"]
    assert (row.batch, row.m, row.n, row.k) == (8, OUT, IN, 512)


@pytest.mark.parametrize("gathered", [False, True])
def test_a_layer_of_transformer_engine_is_known_by_its_weight(
    read: Written, gathered: bool
) -> None:
    """Its backward states only a gradient. What it gathers first has the group's tokens."""
    trace = OperatorTrace()
    rows = T // 4 if gathered else T
    dims = [[rows, 1, IN], [IN], [], [OUT, IN]]
    start = trace.now
    trace.now += 1
    if gathered:
        trace.collective("_allgather_base", 30, elements=rows * IN, out=T * IN, ranks=range(4))
    trace.now = start
    trace.operator("_LayerNormLinear", dims, [(NORM, 15), (GEMM, 100)], sequence=5)
    if gathered:
        # Its launch is inside the operator.
        launch = next(e for e in trace.events if e["cat"] == "cuda_runtime")
        launch["ts"] = start + 0.2
    trace.operator(
        "_LayerNormLinearBackward", [[T, 1, OUT]], [(GEMM, 110), (GEMM, 130), (NORM, 9)],
        sequence=5, tid=2,
    )  # fmt: skip
    found = {row.which: row for row in read(trace).gemms}
    expected = {
        "fprop": (T, OUT, IN, 100),
        "dgrad": (T, IN, OUT, 110),
        "wgrad": (OUT, IN, T, 130),
    }
    assert found.keys() == expected.keys()
    for which, (m, n, k, time) in expected.items():
        row = found[which]  # type: ignore[index]
        assert (row.m, row.n, row.k) == (m, n, k)
        assert row.seconds == pytest.approx(time * 1e-6)


def test_a_weight_gradient_that_is_fused_is_the_rest_of_its_function(read: Written) -> None:
    name = "LinearWithGradAccumulationAndAsyncCommunication"
    trace = OperatorTrace()
    trace.operator(name, [[T, 1, IN], [OUT, IN]], sequence=9)
    trace.operator(f"{name}Backward", [[T, 1, OUT]], [(GEMM, 200)], sequence=9, tid=2)
    row = only(read(trace))
    assert (row.which, row.m, row.n, row.k) == ("wgrad", OUT, IN, T)


def test_a_function_whose_products_are_not_one_for_each_gradient_is_left_out(
    read: Written,
) -> None:
    trace = OperatorTrace()
    trace.operator("_Linear", [[OUT, IN], [T, 1, IN]], [(GEMM, 100)], sequence=1)
    trace.operator("_LinearBackward", [[T, 1, OUT]], [(GEMM, 100)] * 3, sequence=1, tid=2)
    rates = read(trace)
    assert only(rates).which == "fprop"
    assert any("_LinearBackward" in why for why in rates.unread)


HEADS = [2, 16, 4096, 128]
CAUSAL = ["", "", "", "0.", "True", "False", ""]


def test_attention_has_its_heads_and_whether_it_is_causal(read: Written) -> None:
    trace = OperatorTrace()
    name = "aten::_scaled_dot_product_flash_attention"
    dims = [HEADS, HEADS, HEADS, [], [], [], []]
    trace.operator(name, dims, [(FLASH, 300)], concrete=CAUSAL)
    back = [HEADS] * 5 + [[2, 16, 4096], [], [], [], [], [], []]
    concrete = [""] * 8 + ["4096", "4096", "0.", "False"]
    trace.operator(f"{name}_backward", back, [(FLASH, 900)], concrete=concrete, tid=2)
    forward, backward = read(trace).attention
    assert (forward.phase, forward.causal, forward.seconds) == (
        "forward", True, pytest.approx(300e-6),
    )  # fmt: skip
    assert (forward.batch, forward.heads, forward.sequence) == (2, 16, 4096)
    assert (forward.qk_head, forward.v_head, forward.precision) == (128, 128, "bf16")
    assert (backward.phase, backward.causal) == ("backward", False)


def test_attention_of_transformer_engine_has_its_tokens_first(read: Written) -> None:
    trace = OperatorTrace()
    q, kv, v = [4096, 2, 16, 192], [4096, 2, 16, 192], [4096, 2, 16, 128]
    trace.operator("FusedAttnFunc", [[], [], q, kv, v], [(FLASH, 300)], sequence=3)
    trace.operator("FusedAttnFuncBackward", [[4096, 2, 2048]], [(FLASH, 700)], sequence=3, tid=2)
    forward, backward = read(trace).attention
    for row in (forward, backward):
        assert (row.batch, row.sequence, row.heads) == (2, 4096, 16)
        assert (row.qk_head, row.v_head, row.causal) == (192, 128, True)
    assert backward.seconds == pytest.approx(700e-6)


def test_attention_with_a_mask_is_left_out(read: Written) -> None:
    trace = OperatorTrace()
    dims = [HEADS, HEADS, HEADS, [2, 1, 4096, 4096], [], [], [], []]
    concrete = ["", "", "", "", "False", "0.", "False", ""]
    name = "aten::_scaled_dot_product_efficient_attention"
    trace.operator(name, dims, [(FLASH, 300)], concrete=concrete)
    trace.operator("aten::mm", [[T, IN], [IN, OUT]], [(GEMM, 10)])
    rates = read(trace)
    assert rates.attention == []
    assert any("mask" in why for why in rates.unread)


def test_a_collective_has_its_message_and_its_group(read: Written) -> None:
    trace = OperatorTrace(world_size=16)
    node, across = range(8), (0, 8)
    trace.collective("_allgather_base", 70, elements=1 << 20, out=8 << 20, ranks=node)
    trace.collective("_reduce_scatter_base", 80, elements=8 << 20, out=1 << 20, ranks=node)
    trace.collective("allreduce", 900, elements=4 << 20, ranks=across)
    trace.collective("all_to_allv", 60, elements=2 << 20, ranks=node)
    found = {row.kind: row for row in read(trace).collectives}

    def told(row: RatesCollective) -> Any:
        return row.link, row.ranks, row.bytes, row.seconds

    assert told(found["all-gather"]) == ("node", 8, 16 << 20, pytest.approx(70e-6))
    assert told(found["reduce-scatter"]) == ("node", 8, 16 << 20, pytest.approx(80e-6))
    assert told(found["all-reduce"]) == ("network", 2, 8 << 20, pytest.approx(900e-6))
    assert told(found["all-to-all"]) == ("node", 8, 4 << 20, pytest.approx(60e-6))


def test_of_equal_messages_the_shortest_counts_since_the_others_wait(read: Written) -> None:
    ranks = [OperatorTrace(rank=rank) for rank in (0, 1)]
    for trace, times in zip(ranks, ((500, 90), (80, 300)), strict=True):
        for time in times:
            trace.collective("allreduce", time, elements=1 << 20, ranks=range(8))
    (row,) = read(*ranks).collectives
    assert (row.seconds, row.count) == (pytest.approx(80e-6), 4)


def test_products_beside_communication_count_only_where_none_ran_alone(read: Written) -> None:
    trace = OperatorTrace()
    for sizes, times in ((IN, (100, 150)), (2 * IN, (300,))):
        for n, time in enumerate(times):
            began = trace.device
            trace.operator("aten::mm", [[T, sizes], [sizes, OUT]], [(GEMM, time)])
            if n or sizes > IN:
                trace.collective("allreduce", time, elements=1, ranks=range(8), at=began)
    found = {row.k: row for row in read(trace).gemms}
    assert (found[IN].seconds, found[IN].count) == (pytest.approx(100e-6), 1)
    assert found[2 * IN].seconds == pytest.approx(300e-6)


def test_without_shapes_it_says_how_to_record_them(read: Written) -> None:
    trace = OperatorTrace(shapes=False)
    trace.operator("aten::mm", [[T, IN], [IN, OUT]], [(GEMM, 100)])
    with pytest.raises(InputError, match="record_shapes=True"):
        read(trace)
    trace.collective("allreduce", 100, elements=1 << 20, ranks=range(8))
    rates = read(trace)
    assert NO_SHAPES in rates.unread
    assert rates.gemms == [] and len(rates.collectives) == 1


def test_profiles_of_two_kinds_of_gpu_are_refused(read: Written) -> None:
    traces = [OperatorTrace(), OperatorTrace("NVIDIA B200")]
    for trace in traces:
        trace.operator("aten::mm", [[T, IN], [IN, OUT]], [(GEMM, 100)])
    with pytest.raises(InputError, match=r"several kinds of machine.*h100.*b200"):
        read(*traces)
    assert read(*traces, gpu="h100").gpu == "h100"


def test_an_operator_of_a_type_without_a_rate_is_left_out(read: Written) -> None:
    trace = OperatorTrace()
    trace.operator("aten::mm", [[8, 8], [8, 8]], [(GEMM, 5)], types=["double", "double"])
    trace.operator("aten::mm", [[T, IN], [IN, OUT]], [(GEMM, 100)], types=[BF16, BF16])
    rates = read(trace)
    assert only(rates).m == T
    assert any("no rate" in why for why in rates.unread)


class TestCommand:
    @pytest.fixture
    def profile(self, tmp_path: Path) -> str:
        trace = OperatorTrace()
        trace.operator("aten::mm", [[T, IN], [IN, OUT]], [(GEMM, 100)])
        trace.operator("aten::mm", [[T, IN], [IN, 4 * OUT]], [(GEMM, 390)])
        trace.kernel("void at::native::elementwise_kernel<...>", 5)
        return trace.write(tmp_path / "profile.json")

    def test_it_writes_a_file_that_a_plan_takes(
        self, overlapkit: Callable[..., Any], profile: str, tmp_path: Path
    ) -> None:
        out = str(tmp_path / "rates.json")
        done = overlapkit("plan", "calibrate", "--from-trace", profile, "--out", out)
        assert (done.status, done.err) == (0, "")
        assert "matrix products: 2 shapes, measured 2 times" in done.out
        assert f"--gpu h100 --rates {out}" in done.out
        assert read_rates(out).measured == "training"
        run = ("--model", "llama3_8b", "--gpu", "h100", "--world-size", "8", "tp=2", "mbs=1")
        planned = overlapkit("plan", *run, "gbs=8", "--rates", out, "--json")
        measured = json.loads(planned.out)["estimate"]["measured"]
        assert measured["rates"] == out
        assert measured["share"] > 0.1

    def test_without_a_file_the_rates_are_the_answer(
        self, overlapkit: Callable[..., Any], profile: str
    ) -> None:
        done = overlapkit("plan", "calibrate", profile)
        assert done.status == 0
        document = json.loads(done.out)
        assert (document["schema"], document["gpu"]) == ("overlapkit/rates/v1", "h100")
        assert "not measured: 1 x kernels of operators" in done.err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ((), "give --from-trace FILE"),
            (("none.json",), "none.json: no such file"),
            (("{profile}", "--gpu", "h9000"), "--gpu h9000: unknown GPU"),
            (("{profile}", "--out", "{profile}"), "{profile}"),
        ],
    )
    def test_bad_input_is_one_line(
        self,
        overlapkit: Callable[..., Any],
        profile: str,
        arguments: Sequence[str],
        said: str,
    ) -> None:
        done = overlapkit("plan", "calibrate", *(a.format(profile=profile) for a in arguments))
        assert done.status == 2
        assert said.format(profile=profile) in done.err
        assert done.err.count("\n") == 1
