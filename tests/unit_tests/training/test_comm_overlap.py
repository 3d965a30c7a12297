"""The semantics of communication overlap that matter most: exactly 26 cases, on real configs.

The skill tells its users to run this file and to expect `26 passed`, with or without Transformer
Engine. Further cases belong in the files beside this one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from megatron.bridge import models
from megatron.bridge.training import comm_overlap as module
from megatron.bridge.training.comm_overlap import (
    BulkOverlapCfg,
    CommOverlapConfig,
    PipelineOverlapCfg,
    RingExchangeOverlapCfg,
    TransformerLayerTPOverlapCfg,
    _CommOverlapConfig,
    userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192,
    userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora,
)
from megatron.bridge.training.decisions import Decision
from support.late import Late

real = Late("megatron.bridge.training.config")


@pytest.fixture(autouse=True)
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine there, in a new version; tests of its absence take it away."""
    monkeypatch.setattr(module, "HAVE_TE", True)
    monkeypatch.setattr(module, "is_te_min_version", lambda version: True)
    monkeypatch.setattr(module, "is_torch_min_version", lambda version: True)


def gpt(**fields: Any) -> models.GPTModelProvider:
    sizes: dict[str, Any] = {"num_layers": 8, "hidden_size": 512, "num_attention_heads": 8}
    return models.GPTModelProvider(**{**sizes, "vocab_size": 1024, "seq_length": 512, **fields})


def moe(**fields: Any) -> models.GPTModelProvider:
    """A model that meets every need of expert-parallel overlap."""
    needs: dict[str, Any] = {
        "num_moe_experts": 8,
        "expert_model_parallel_size": 4,
        "moe_token_dispatcher_type": "alltoall",
        "bf16": True,
    }
    return gpt(**{**needs, **fields})


def tp_model(**fields: Any) -> models.GPTModelProvider:
    return gpt(**{"tensor_model_parallel_size": 4, "sequence_parallel": True, **fields})


def asking(**knobs: Any) -> CommOverlapConfig:
    config = CommOverlapConfig(**{"tp_comm_overlap": False, "data_parallel_size": 4, **knobs})
    config.finalize()
    return config


def model_side(config: CommOverlapConfig, model: models.GPTModelProvider) -> _CommOverlapConfig:
    return config._get_model_comm_overlap_cfgs(model, real.DistributedDataParallelConfig())


def decided(config: CommOverlapConfig, knob: str) -> Decision:
    return next(d for d in config.decisions if d.knob == knob)


class TestTensorParallel:
    def test_on_with_every_need_met(self) -> None:
        assert model_side(asking(tp_comm_overlap=True), tp_model()).tp_comm_overlap is True

    def test_off_without_tensor_parallelism(self) -> None:
        config, model = asking(tp_comm_overlap=True), gpt(tensor_model_parallel_size=1)
        assert model_side(config, model).tp_comm_overlap is False

    def test_off_without_sequence_parallelism(self) -> None:
        model = tp_model(sequence_parallel=False)
        assert model_side(asking(tp_comm_overlap=True), model).tp_comm_overlap is False

    def test_off_without_transformer_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "HAVE_TE", False)
        assert model_side(asking(tp_comm_overlap=True), tp_model()).tp_comm_overlap is False

    def test_refusal_keeps_the_request_and_names_the_first_cause(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = asking(tp_comm_overlap=True)
        model = gpt(tensor_model_parallel_size=1, sequence_parallel=False)
        config.setup(model, real.OptimizerConfig(), real.DistributedDataParallelConfig())
        assert "tensor_model_parallel_size is 1" in caplog.text
        decision = decided(config, "model.tp_comm_overlap")
        assert (decision.requested, decision.effective) == (True, False)
        assert decision.rule == "tp.needs-tensor-parallel"
        later = tp_model()
        config.setup(later, real.OptimizerConfig(), real.DistributedDataParallelConfig())
        assert later.tp_comm_overlap is True

    def test_preset_becomes_a_plain_dict_without_none(self) -> None:
        config = asking(
            tp_comm_overlap=True,
            tp_comm_overlap_cfg=userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora,
        )
        model = tp_model()
        config.setup(model, real.OptimizerConfig(), real.DistributedDataParallelConfig())
        given = model.tp_comm_overlap_cfg
        assert type(given) is dict
        assert "qkv_wgrad" not in given
        assert "fc1_wgrad" not in given
        assert given["qkv_fprop"]["method"] == "ring_exchange"
        assert all(value is not None for gemm in given.values() for value in gemm.values())

    def test_without_a_preset_the_defaults_of_transformer_engine(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = tp_model()
        asking(tp_comm_overlap=True).setup(
            model, real.OptimizerConfig(), real.DistributedDataParallelConfig()
        )
        assert model.tp_comm_overlap is True
        assert model.tp_comm_overlap_cfg is None
        assert "Transformer Engine's defaults" in caplog.text

    def test_entry_defaults(self) -> None:
        assert asdict(PipelineOverlapCfg(24, 2, 4, True)) == {
            "num_sm": 24,
            "cga_size": 2,
            "num_splits": 4,
            "set_sm_margin": True,
            "fp8_buf": False,
            "atomic_gemm": False,
            "method": "pipeline",
        }
        ring = RingExchangeOverlapCfg()
        assert (ring.aggregate, ring.num_sm, ring.cga_size) == (False, 1, 1)
        assert BulkOverlapCfg(2, 2, False).method == "bulk"
        gemms = TransformerLayerTPOverlapCfg(
            **asdict(userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192)
        )
        assert gemms.fc2_fprop is not None


class TestPipelineParallel:
    @pytest.mark.parametrize(
        ("pp", "vpp", "overlap", "batch"),
        [(1, None, False, False), (4, 2, True, False), (4, None, False, True), (4, 1, False, True)],
    )
    def test_selection(self, pp: int, vpp: int | None, overlap: bool, batch: bool) -> None:
        model = gpt(pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vpp)
        chosen = model_side(asking(), model)
        assert (chosen.overlap_p2p_comm, chosen.batch_p2p_comm) == (overlap, batch)

    def test_user_overrides_selection(self) -> None:
        model = gpt(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
        chosen = model_side(asking(overlap_p2p_comm=False, batch_p2p_comm=True), model)
        assert (chosen.overlap_p2p_comm, chosen.batch_p2p_comm) == (False, True)

    def test_batched_p2p_of_two_interleaved_stages_is_refused(self) -> None:
        model = gpt(pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2)
        config = asking(overlap_p2p_comm=False, batch_p2p_comm=True)
        with pytest.raises(
            AssertionError, match=r"silently wrong gradients.*overlap_p2p_comm=true"
        ):
            config.setup(model, real.OptimizerConfig(), real.DistributedDataParallelConfig())
        # Megatron-Core's defaults stay: nothing was applied halfway.
        assert (model.overlap_p2p_comm, model.batch_p2p_comm) == (False, True)


class TestDataParallel:
    def test_defaults_with_replicas(self) -> None:
        chosen = asking()._get_optimizer_overlap_cfgs(gpt())
        assert chosen.bucket_size == 128 * 1024 * 1024
        assert chosen.overlap_grad_reduce is True
        assert chosen.overlap_param_gather is True
        assert not chosen.align_param_gather
        assert not chosen.overlap_param_gather_with_optimizer_step

    def test_everything_off_without_replicas(self) -> None:
        chosen = asking(data_parallel_size=1)._get_optimizer_overlap_cfgs(gpt())
        assert chosen.bucket_size is None
        assert chosen.overlap_grad_reduce is False
        assert chosen.overlap_param_gather is False
        assert chosen.align_param_gather is False
        assert chosen.overlap_param_gather_with_optimizer_step is False

    def test_interleaving_aligns_param_gather(self) -> None:
        model = gpt(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
        assert asking()._get_optimizer_overlap_cfgs(model).align_param_gather is True

    def test_user_values_win_over_the_defaults(self) -> None:
        config = asking(bucket_size=1_000_000, overlap_param_gather=False)
        chosen = config._get_optimizer_overlap_cfgs(gpt())
        assert chosen.bucket_size == 1_000_000
        assert chosen.overlap_param_gather is False
        assert chosen.overlap_grad_reduce is True

    def test_auto_bucket_size_gives_several_buckets(self) -> None:
        chosen = asking(bucket_size="auto")._get_optimizer_overlap_cfgs(gpt())
        layers = 8 * 12 * 512 * 512
        assert isinstance(chosen.bucket_size, int)
        assert 4 <= layers / chosen.bucket_size <= 64

    def test_ignored_without_the_distributed_optimizer(self) -> None:
        config, ddp = asking(overlap_grad_reduce=True), real.DistributedDataParallelConfig()
        config.setup(gpt(), real.OptimizerConfig(), ddp)
        assert ddp.overlap_grad_reduce is False
        decision = decided(config, "ddp.overlap_grad_reduce")
        assert decision.rule == "dp.needs-distributed-optimizer"
        assert (decision.requested, decision.effective) == (True, False)


class TestExpertParallel:
    def test_granted_with_every_need_met(self) -> None:
        config = asking(overlap_moe_expert_parallel_comm=True, delay_wgrad_compute=True)
        chosen = model_side(config, moe())
        assert chosen.overlap_moe_expert_parallel_comm is True
        assert chosen.delay_wgrad_compute is True

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("expert_model_parallel_size", 1),
            ("moe_token_dispatcher_type", "allgather"),
            ("recompute_granularity", "full"),
        ],
    )
    def test_a_broken_need_is_an_error(self, field: str, value: Any) -> None:
        with pytest.raises(AssertionError, match=field):
            model_side(asking(overlap_moe_expert_parallel_comm=True), moe(**{field: value}))

    def test_delayed_wgrad_needs_expert_overlap(self) -> None:
        with pytest.raises(AssertionError, match="overlap_moe_expert_parallel_comm is off"):
            model_side(asking(delay_wgrad_compute=True), moe())


class TestSetup:
    def test_end_to_end(self) -> None:
        config = CommOverlapConfig(
            tp_comm_overlap=True,
            tp_comm_overlap_cfg=userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192,
            data_parallel_size=4,
        )
        model = tp_model(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
        optimizer = real.OptimizerConfig(use_distributed_optimizer=True)
        ddp = real.DistributedDataParallelConfig(use_distributed_optimizer=True)
        config.setup(model, optimizer, ddp)
        once = (dict(vars(model)), dict(vars(optimizer)), dict(vars(ddp)))
        assert model.tp_comm_overlap is True
        assert model.tp_comm_overlap_cfg["fc1_fprop"]["method"] == "ring_exchange"
        assert model.overlap_p2p_comm is True
        assert model.batch_p2p_comm is False
        assert ddp.overlap_grad_reduce is True
        assert ddp.overlap_param_gather is True
        assert ddp.align_param_gather is True
        assert ddp.bucket_size == 128 * 1024 * 1024
        assert optimizer.overlap_param_gather is True
        config.setup(model, optimizer, ddp)
        assert (dict(vars(model)), dict(vars(optimizer)), dict(vars(ddp))) == once
