"""ConfigContainer: the order of application, on real Megatron-Core configurations."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from megatron.bridge import models
from megatron.bridge.training import software
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.decisions import OverlapConfigError
from megatron.bridge.training.mixed_precision import MixedPrecisionConfig
from support.late import Late

if TYPE_CHECKING:
    from megatron.bridge.training import config
else:
    config = Late("megatron.bridge.training.config")


def container(**fields: Any) -> config.ConfigContainer:
    model = models.GPTModelProvider(
        num_layers=8, hidden_size=64, num_attention_heads=4, vocab_size=512
    )
    defaults: dict[str, Any] = {
        "model": model,
        "optimizer": config.OptimizerConfig(use_distributed_optimizer=True),
        "ddp": config.DistributedDataParallelConfig(use_distributed_optimizer=True),
        "mixed_precision": "bf16_mixed",
        "comm_overlap": CommOverlapConfig(tp_comm_overlap=False),
    }
    return config.ConfigContainer(**{**defaults, **fields})


def test_configs_are_megatron_cores() -> None:
    from megatron.core import distributed, optimizer

    assert issubclass(
        config.DistributedDataParallelConfig, distributed.DistributedDataParallelConfig
    )
    assert issubclass(config.OptimizerConfig, optimizer.OptimizerConfig)


def test_data_parallel_size() -> None:
    cfg = container()
    cfg.model.tensor_model_parallel_size = 2
    cfg.model.pipeline_model_parallel_size = 4
    cfg.model.context_parallel_size = 2
    assert cfg.get_data_parallel_size(64) == 4
    with pytest.raises(AssertionError, match=r"world size \(24\) is not divisible"):
        cfg.get_data_parallel_size(24)


def test_fields_set_one_after_another_are_checked_at_the_end() -> None:
    cfg = container()
    cfg.model.sequence_parallel = True  # Not yet sound: refused only if it stays so.
    cfg.model.tensor_model_parallel_size = 2
    cfg.apply_runtime_config(world_size=4)
    assert cfg.data_parallel_size == 2
    cfg = container()
    cfg.model.sequence_parallel = True
    with pytest.raises(ValueError, match="sequence_parallel"):
        cfg.apply_runtime_config(world_size=4)


def test_order_mixed_precision_then_overlap() -> None:
    ddp = config.DistributedDataParallelConfig(
        use_distributed_optimizer=True, grad_reduce_in_fp32=False, bucket_size=7
    )
    cfg = container(ddp=ddp)
    config.runtime_config_update(cfg, world_size=8)
    assert isinstance(cfg.mixed_precision, MixedPrecisionConfig)
    assert cfg.model.bf16 is True
    assert ddp.grad_reduce_in_fp32 is True
    assert cfg.comm_overlap is not None
    assert cfg.comm_overlap.data_parallel_size == 8
    assert (ddp.overlap_grad_reduce, ddp.bucket_size) == (True, 128 * 1024 * 1024)
    assert {d.knob for d in cfg.decisions} >= {"ddp.overlap_grad_reduce", "model.tp_comm_overlap"}


def test_env_vars_fill_in_what_the_process_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_BEFORE", "1")
    monkeypatch.delenv("NOT_SET", raising=False)
    cfg = container(env_vars={"SET_BEFORE": 2, "NOT_SET": True})
    cfg.apply_runtime_config(world_size=2)
    assert (os.environ["SET_BEFORE"], os.environ["NOT_SET"]) == ("1", "True")
    assert "launch.env-vars-overridden" in {d.rule for d in cfg.decisions}
    monkeypatch.delenv("NOT_SET")
    cfg = container(env_vars={"NOT_SET": 1, "LIST": [1]})
    with pytest.raises(OverlapConfigError, match=r"env_vars\.LIST"):
        cfg.apply_runtime_config(world_size=2)
    assert "NOT_SET" not in os.environ


def test_distributed_optimizer_is_put_in_step() -> None:
    for one in (
        {"ddp": config.DistributedDataParallelConfig()},
        {"optimizer": config.OptimizerConfig()},
    ):
        cfg = container(**one)
        cfg.apply_runtime_config(world_size=2)
        assert cfg.ddp.use_distributed_optimizer is True
        assert cfg.optimizer.use_distributed_optimizer is True


def test_the_pipeline_hazard_is_refused_without_comm_overlap_too() -> None:
    cfg = container(comm_overlap=None)
    cfg.model.pipeline_model_parallel_size = 2
    cfg.model.virtual_pipeline_model_parallel_size = 2
    with pytest.raises(OverlapConfigError, match="silently wrong gradients"):
        cfg.apply_runtime_config(world_size=4)


def test_world_size_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "6")
    cfg = container()
    cfg.set_data_parallel_size()
    assert cfg.data_parallel_size == 6


def test_microbatches() -> None:
    train = config.TrainingConfig(micro_batch_size=2, global_batch_size=32)
    assert train.num_microbatches(4) == 4
    with pytest.raises(OverlapConfigError, match="not a multiple"):
        train.num_microbatches(3)
    with pytest.raises(OverlapConfigError, match="must be set"):
        config.TrainingConfig().num_microbatches(1)


def test_megatron_bridge_beside_us_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.foreign_megatron_bridge() is None
    monkeypatch.setattr(software, "installed_version", lambda *names: "0.3.1")
    told = software.foreign_megatron_bridge()
    assert told is not None
    assert "0.3.1" in told
    assert "uninstall" in told


def test_moe_recomputation_is_refused_on_an_old_core_too() -> None:
    """The drop-in follows Megatron-Bridge's main branch, which asks whatever the core."""
    overlap = CommOverlapConfig(tp_comm_overlap=False, overlap_moe_expert_parallel_comm=True)
    cfg = container(comm_overlap=overlap)
    cfg.model.num_moe_experts, cfg.model.expert_model_parallel_size = 8, 2
    cfg.model.moe_token_dispatcher_type, cfg.model.recompute_modules = "alltoall", ["moe"]
    with pytest.raises(AssertionError, match="moe in recompute_modules"):
        cfg.apply_runtime_config(world_size=4)
