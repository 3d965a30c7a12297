"""The semantics of communication overlap that matter most: exactly 26 cases, on real configs.

The skill tells its users to run this file and to expect `26 passed`, with or without Transformer
Engine. Further cases belong in the files beside this one. A case covers one gate or one choice with
all its parts: `benchmarks/mutation.py` counts which changes of the rules these cases catch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

from megatron.bridge import models
from megatron.bridge.models.parameter_count import chunk_parameters
from megatron.bridge.training import comm_overlap as module
from megatron.bridge.training.bucket_size import SMALLEST_BUCKET, auto_bucket_size
from megatron.bridge.training.comm_overlap import (
    BulkOverlapCfg,
    CommOverlapConfig,
    PipelineOverlapCfg,
    RingExchangeOverlapCfg,
    TransformerLayerTPOverlapCfg,
    _CommOverlapConfig,
    userbuffers_bf16_b200_h8192_tp2_mbs1_seqlen8192,
    userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192,
    userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora,
)
from megatron.bridge.training.decisions import Decision, Outcome
from megatron.bridge.training.edits import Edit
from megatron.bridge.training.rules.context import Gpu
from megatron.bridge.training.software import AssumedSoftware
from megatron.bridge.training.versions import KNOWN, NEWEST
from support.late import Late

real = Late("megatron.bridge.training.config")

EP = {"overlap_moe_expert_parallel_comm": True}
DELAY = {**EP, "delay_wgrad_compute": True}
MIB = 1024 * 1024


class Installed:
    """Versions that the rules find, whatever is installed; a case may take another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.have_te, self.te, self.torch = True, "2.20.0", "2.15.0"
        monkeypatch.setattr(module, "installed_stack", lambda: NEWEST)
        monkeypatch.setattr(module, "is_te_min_version", lambda v: Version(self.te) >= Version(v))
        monkeypatch.setattr(
            module, "is_torch_min_version", lambda v: Version(self.torch) >= Version(v)
        )
        monkeypatch.setattr(
            module.InstalledSoftware, "have_te", lambda _: bool(module.HAVE_TE) and self.have_te
        )
        monkeypatch.setattr(module, "HAVE_TE", True)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Transformer Engine and torch there, in new versions."""
    return Installed(monkeypatch)


def gpt(**fields: Any) -> models.GPTModelProvider:
    sizes: dict[str, Any] = {"num_layers": 8, "hidden_size": 512, "num_attention_heads": 8}
    return models.GPTModelProvider(**{**sizes, "vocab_size": 1024, "seq_length": 512, **fields})


def moe(**fields: Any) -> models.GPTModelProvider:
    """A model that meets every need of expert-parallel overlap, and fuses no weight gradient."""
    needs: dict[str, Any] = {
        "num_moe_experts": 8,
        "expert_model_parallel_size": 4,
        "moe_token_dispatcher_type": "alltoall",
        "bf16": True,
        "gradient_accumulation_fusion": False,
    }
    return gpt(**{**needs, **fields})


def tp_model(**fields: Any) -> models.GPTModelProvider:
    return gpt(**{"tensor_model_parallel_size": 4, "sequence_parallel": True, **fields})


def asking(**knobs: Any) -> CommOverlapConfig:
    return CommOverlapConfig(**{"tp_comm_overlap": False, "data_parallel_size": 4, **knobs})


@dataclass
class Run:
    """A request applied to a model, the optimizer and DDP, with the distributed optimizer."""

    config: CommOverlapConfig
    model: Any
    ddp: dict[str, Any] = field(default_factory=lambda: {"use_distributed_optimizer": True})

    def __post_init__(self) -> None:
        self.optimizer = real.OptimizerConfig(use_distributed_optimizer=True)
        self.ddp_config = real.DistributedDataParallelConfig(**self.ddp)
        self.config.setup(self.model, self.optimizer, self.ddp_config)

    def decision(self, knob: str) -> Decision:
        return next(d for d in self.config.decisions if d.knob == knob)

    def decided_by(self, knob: str) -> str:
        return self.decision(knob).rule

    @property
    def notes(self) -> dict[str, Decision]:
        return {d.rule: d for d in self.config.decisions if d.outcome is Outcome.NOTE}


def refused(config: CommOverlapConfig, model: Any, *words: str, **ddp: Any) -> str:
    """The run stops, the error has these words, and nothing was changed. Returns the error."""
    before = dict(vars(model))
    with pytest.raises(AssertionError) as error:
        Run(config, model, {"use_distributed_optimizer": True, **ddp})
    for word in words:
        assert word in str(error.value), word
    assert dict(vars(model)) == before
    return str(error.value)


class TestTensorParallel:
    def test_on_where_requested_with_every_need_met(self) -> None:
        for size in (2, 4):
            model = tp_model(tensor_model_parallel_size=size)
            run = Run(asking(tp_comm_overlap=True, tp_comm_bootstrap_backend="mpi"), model)
            assert (model.tp_comm_overlap, model.tp_comm_bootstrap_backend) == (True, "mpi")
            assert run.decision("model.tp_comm_overlap").outcome is Outcome.GRANTED
            assert run.decision("model.tp_comm_bootstrap_backend").requested == "mpi"
        model = tp_model()
        run = Run(asking(tp_comm_overlap=False), model)
        assert (model.tp_comm_overlap, model.tp_comm_bootstrap_backend) == (False, "nccl")
        assert run.decision("model.tp_comm_overlap").outcome is Outcome.DEFAULT
        assert run.decision("model.tp_comm_bootstrap_backend").outcome is Outcome.DEFAULT
        assert not run.notes

    @pytest.mark.parametrize(
        ("fields", "te", "rule"),
        [
            ({"tensor_model_parallel_size": 1}, True, "tp.needs-tensor-parallel"),
            ({"sequence_parallel": False}, True, "tp.needs-sequence-parallel"),
            ({}, False, "tp.needs-transformer-engine"),
        ],
    )
    def test_off_while_a_need_is_not_met(
        self,
        installed: Installed,
        caplog: pytest.LogCaptureFixture,
        fields: dict[str, Any],
        te: bool,
        rule: str,
    ) -> None:
        installed.have_te = te
        preset = userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora
        config = asking(tp_comm_overlap=True, tp_comm_overlap_cfg=preset)
        model = tp_model(**fields)
        run = Run(config, model)
        assert (model.tp_comm_overlap, model.tp_comm_bootstrap_backend) == (False, "nccl")
        decision = run.decision("model.tp_comm_overlap")
        assert (decision.requested, decision.effective) == (True, False)
        assert (decision.rule, decision.outcome) == (rule, Outcome.REFUSED)
        assert rule in caplog.text
        assert not any(d.rule.startswith("ub.") for d in config.decisions)
        # The request stays as it was, for a model that meets the need.
        installed.have_te = True
        later = tp_model()
        Run(config, later)
        assert later.tp_comm_overlap is True
        assert any(d.rule.startswith("ub.") for d in config.decisions)

    def test_the_first_unmet_need_is_the_reason(
        self, installed: Installed, caplog: pytest.LogCaptureFixture
    ) -> None:
        installed.have_te = False
        config = asking(tp_comm_overlap=True)
        run = Run(config, gpt(tensor_model_parallel_size=1, sequence_parallel=False))
        assert run.decided_by("model.tp_comm_overlap") == "tp.needs-tensor-parallel"
        assert "tensor_model_parallel_size is 1" in caplog.text
        run = Run(config, tp_model(sequence_parallel=False))
        assert run.decided_by("model.tp_comm_overlap") == "tp.needs-sequence-parallel"
        assert [d.outcome for d in config.decisions].count(Outcome.REFUSED) == 1

    def test_preset_becomes_a_plain_dict_without_none(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        lora = userbuffers_fp8_h100_h8192_tp2_mbs1_seqlen4096_lora
        model = tp_model(tensor_model_parallel_size=2, hidden_size=8192, fp8="hybrid")
        run = Run(asking(tp_comm_overlap=True, tp_comm_overlap_cfg=lora), model)
        given = model.tp_comm_overlap_cfg
        assert type(given) is dict
        assert "qkv_wgrad" not in given
        assert "fc1_wgrad" not in given
        assert given["qkv_fprop"]["method"] == "ring_exchange"
        assert all(value is not None for gemm in given.values() for value in gemm.values())
        decision = run.decision("model.tp_comm_overlap_cfg")
        assert (decision.effective, decision.outcome) == (lora, Outcome.GRANTED)
        # It is tuned for this precision, hidden size and TP; for others a note says so.
        assert "tp.preset-fit" not in run.notes
        assert "tp.userbuffers-default" not in caplog.text
        sizes = {"tensor_model_parallel_size": 2, "hidden_size": 8192, "fp8": "hybrid"}
        for other in ({"tensor_model_parallel_size": 4}, {"hidden_size": 4096}, {"fp8": None}):
            run = Run(
                asking(tp_comm_overlap=True, tp_comm_overlap_cfg=lora),
                tp_model(**{**sizes, **other}),
            )
            assert "tp.preset-fit" in run.notes, other
        # Where presets fit, the first is an edit: that of the run's GPU.
        config = asking(tp_comm_overlap=True, tp_comm_overlap_cfg=lora)
        for name in ("b200", "h100"):
            fitting = f"userbuffers_bf16_{name}_h12288_tp4_mbs1_seqlen2048"
            found = config.resolve(tp_model(hidden_size=12288), None, gpu=Gpu(name, 9.0))
            (note,) = (d for d in found.decisions if d.rule == "tp.preset-fit")
            assert note.edits == (Edit("comm_overlap.tp_comm_overlap_cfg", fitting),)
            assert fitting in (note.remedy or "")
        # Only findings, and settings that nobody chose, are warned of.
        assert "tp.preset-fit" not in caplog.text

    def test_without_a_preset_the_defaults_of_transformer_engine(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = tp_model(hidden_size=8192)
        note = Run(asking(tp_comm_overlap=True), model).notes["tp.userbuffers-default"]
        assert model.tp_comm_overlap is True
        assert model.tp_comm_overlap_cfg is None
        assert "Transformer Engine's defaults" in caplog.text
        remedy = note.remedy or ""
        assert "userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192" in remedy
        assert "tp2" not in remedy and "fp8" not in remedy

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
        preset = userbuffers_bf16_h100_h8192_tp4_mbs1_seqlen8192
        # Settings of one's own, that are no preset, are used as they are.
        own = TransformerLayerTPOverlapCfg(**{**vars(preset), "fc2_fprop": ring})
        model = tp_model()
        run = Run(asking(tp_comm_overlap=True, tp_comm_overlap_cfg=own), model)
        assert model.tp_comm_overlap_cfg["fc2_fprop"] == asdict(ring)
        assert "tp.preset-fit" not in run.notes


class TestPipelineParallel:
    @pytest.mark.parametrize(
        ("pp", "vpp", "overlap", "batch", "rule"),
        [
            (1, None, False, False, "pp.none"),
            (4, 2, True, False, "pp.interleaved"),
            (4, None, False, True, "pp.not-interleaved"),
            (2, 1, False, True, "pp.not-interleaved"),
        ],
    )
    def test_selection(
        self, pp: int, vpp: int | None, overlap: bool, batch: bool, rule: str
    ) -> None:
        model = gpt(pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vpp)
        run = Run(asking(), model)
        assert (model.overlap_p2p_comm, model.batch_p2p_comm) == (overlap, batch)
        assert {run.decided_by(f"model.{k}_p2p_comm") for k in ("overlap", "batch")} == {rule}
        assert (model.defer_embedding_wgrad_compute, model.wgrad_deferral_limit) == (False, -1)
        assert run.decided_by("model.wgrad_deferral_limit") == "pp.wgrad-deferral"

    def test_user_overrides_selection(self) -> None:
        model = gpt(pipeline_model_parallel_size=4, virtual_pipeline_model_parallel_size=2)
        deferral = {"defer_embedding_wgrad_compute": True, "wgrad_deferral_limit": 3}
        run = Run(asking(overlap_p2p_comm=False, batch_p2p_comm=True, **deferral), model)
        assert (model.overlap_p2p_comm, model.batch_p2p_comm) == (False, True)
        assert (model.defer_embedding_wgrad_compute, model.wgrad_deferral_limit) == (True, 3)
        for knob in ("overlap_p2p_comm", "batch_p2p_comm", *deferral):
            decision = run.decision(f"model.{knob}")
            assert (decision.rule, decision.outcome) == ("any.user-wins", Outcome.GRANTED)
        # What agrees with the default is granted by the rule of the default.
        run = Run(asking(overlap_p2p_comm=True, wgrad_deferral_limit=-1), model)
        assert run.decided_by("model.overlap_p2p_comm") == "pp.interleaved"
        assert run.decided_by("model.wgrad_deferral_limit") == "pp.wgrad-deferral"

    def test_batched_p2p_of_two_interleaved_stages_is_refused(self) -> None:
        batched = {"overlap_p2p_comm": False, "batch_p2p_comm": True}
        two = {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2}
        layout = {
            "pipeline_model_parallel_size": 2,
            "pipeline_model_parallel_layout": "Et*2|t*2|t*2|t*2L",
        }
        words = ("silently wrong gradients", "overlap_p2p_comm=true")
        refused(asking(**batched), gpt(**two), *words)
        refused(asking(**batched), gpt(**layout), *words)
        # Without interleaving, with other peers, or in another mode, nothing is swapped.
        for fields, knobs in (
            ({**two, "virtual_pipeline_model_parallel_size": None}, batched),
            ({**two, "virtual_pipeline_model_parallel_size": 1}, batched),
            ({**two, "pipeline_model_parallel_size": 4}, batched),
            ({"pipeline_model_parallel_size": 1}, batched),
            ({**layout, "pipeline_model_parallel_layout": "Et*4|t*4L"}, batched),
            (two, {"overlap_p2p_comm": True, "batch_p2p_comm": True}),
            (two, {"overlap_p2p_comm": False, "batch_p2p_comm": False}),
            (two, {}),
        ):
            model = gpt(**fields)
            Run(asking(**knobs), model)
            assert model.batch_p2p_comm is knobs.get("batch_p2p_comm", False)


class TestDataParallel:
    def test_defaults_with_replicas(self) -> None:
        for size in (2, 4):
            run = Run(asking(data_parallel_size=size), gpt())
            ddp, optimizer = run.ddp_config, run.optimizer
            assert ddp.bucket_size == 128 * MIB
            assert ddp.overlap_grad_reduce is True
            assert ddp.overlap_param_gather is optimizer.overlap_param_gather is True
            assert ddp.align_param_gather is False
            assert optimizer.overlap_param_gather_with_optimizer_step is False
            assert run.decided_by("ddp.overlap_grad_reduce") == "dp.defaults"
            assert run.decided_by("ddp.bucket_size") == "dp.bucket-size"

    def test_everything_off_without_replicas(self) -> None:
        held = dict.fromkeys(("overlap_grad_reduce", "overlap_param_gather"), True)
        for cp in (1, 16):
            run = Run(
                asking(data_parallel_size=1),
                gpt(context_parallel_size=cp),
                {**held, "use_distributed_optimizer": True, "align_param_gather": True},
            )
            ddp, optimizer = run.ddp_config, run.optimizer
            assert ddp.bucket_size is None
            assert ddp.overlap_grad_reduce is ddp.overlap_param_gather is False
            assert ddp.align_param_gather is optimizer.overlap_param_gather is False
            assert optimizer.overlap_param_gather_with_optimizer_step is False
            decision = run.decision("ddp.overlap_grad_reduce")
            assert decision.rule == "dp.size-1"
            assert ("context-parallel ranks still reduce" in decision.reason) is (cp == 16)
        for size in (None, 0, -4):
            refused(asking(data_parallel_size=size), gpt(), "data_parallel_size", repr(size))

    def test_interleaving_aligns_param_gather(self) -> None:
        for pp, vpp, aligned in ((4, 2, True), (2, 2, True), (4, None, False), (4, 1, False)):
            model = gpt(pipeline_model_parallel_size=pp, virtual_pipeline_model_parallel_size=vpp)
            run = Run(asking(), model)
            assert run.ddp_config.align_param_gather is aligned
            assert run.decided_by("ddp.align_param_gather") == "dp.align-param-gather"
        model = gpt(pipeline_model_parallel_size=1, virtual_pipeline_model_parallel_size=2)
        assert Run(asking(), model).ddp_config.align_param_gather is False

    def test_user_values_win_over_the_defaults(self) -> None:
        asked = {
            "bucket_size": 1_000_000,
            "overlap_grad_reduce": False,
            "overlap_param_gather": False,
            "align_param_gather": True,
        }
        step = "overlap_param_gather_with_optimizer_step"
        for size in (4, 1):
            run = Run(asking(data_parallel_size=size, **asked, **{step: True}), gpt())
            assert {knob: getattr(run.ddp_config, knob) for knob in asked} == asked
            assert getattr(run.optimizer, step) is True
            wins = {knob: run.decided_by(f"ddp.{knob}") for knob in asked}
            if size == 4:
                assert set(wins.values()) == {"any.user-wins"}
            assert run.decided_by(f"optimizer.{step}") == "any.user-wins"
        one = Run(asking(overlap_param_gather=False), gpt()).ddp_config
        assert (one.overlap_grad_reduce, one.overlap_param_gather) == (True, False)
        for size in ("big", 0, -1, 1.5, True):
            refused(asking(bucket_size=size), gpt(), "bucket_size", repr(size))

    def test_auto_bucket_size_fits_what_is_reduced(self) -> None:
        def auto(model: Any, **knobs: Any) -> int:
            return Run(asking(bucket_size="auto", **knobs), model).ddp_config.bucket_size

        def held(model: Any, *, expert: bool = False, **vocabulary: Any) -> int:
            tensors = chunk_parameters(model, **vocabulary)
            return sum(t.numel for t in tensors if t.expert is expert)

        plain = gpt()
        assert auto(plain) == auto_bucket_size(held(plain), 4)
        assert 4 <= held(plain) / auto(plain) <= 64
        # Context-parallel ranks reduce too.
        for dp, cp in ((4, 8), (1, 64)):
            model = gpt(context_parallel_size=cp)
            assert auto(model, data_parallel_size=dp) == auto_bucket_size(held(model), dp * cp)
        # Experts have a buffer of their own, which other ranks reduce: the smaller buckets count.
        for ffn, tp, etp, ranks in ((320, 2, 1, 2), (320, 2, None, 1), (16, 2, 1, 2), (8, 2, 1, 2)):
            model = moe(
                moe_ffn_hidden_size=ffn,
                tensor_model_parallel_size=tp,
                expert_tensor_parallel_size=etp,
                add_bias_linear=False,
            )
            experts = held(model, expert=True)
            sizes = [auto_bucket_size(held(model), 4)]
            if ranks > 1 and experts > SMALLEST_BUCKET:
                sizes.append(auto_bucket_size(experts, ranks))
            assert auto(model) == min(sizes), (ffn, etp)
        # Without a vocabulary the layers count; what cannot be counted is estimated by its layers.
        without = gpt(vocab_size=None)
        assert auto(without) == auto_bucket_size(held(without, vocab_size=1), 4)
        other = gpt(heterogeneous_block_specs=True, tensor_model_parallel_size=2)
        assert auto(other) == auto_bucket_size(12 * 512 * 512 * 8 // 2, 4)
        predicting = gpt(mtp_num_layers=1, tensor_model_parallel_size=2)
        assert auto(predicting) == auto_bucket_size(held(predicting), 4)

    def test_ignored_without_the_distributed_optimizer(self) -> None:
        ddp = {"overlap_param_gather": True, "bucket_size": 7, "align_param_gather": True}
        knobs: dict[str, Any] = {
            "overlap_grad_reduce": True,
            "bucket_size": 7,
            "align_param_gather": False,
            "overlap_param_gather_with_optimizer_step": False,
        }
        run = Run(asking(**knobs), gpt(), ddp)
        told = {d.knob.rpartition(".")[2]: d for d in run.config.decisions if d.rule[:3] == "dp."}
        assert {d.rule for d in told.values()} == {"dp.needs-distributed-optimizer"}
        for knob, requested, present, outcome in (
            ("overlap_grad_reduce", True, False, Outcome.REFUSED),
            ("overlap_param_gather", None, True, Outcome.DEFAULT),
            ("bucket_size", 7, 7, Outcome.GRANTED),
            ("align_param_gather", False, True, Outcome.REFUSED),
            ("overlap_param_gather_with_optimizer_step", False, False, Outcome.GRANTED),
        ):
            decision = told[knob]
            holder = run.optimizer if "step" in knob else run.ddp_config
            assert (decision.requested, decision.effective) == (requested, present), knob
            assert (decision.outcome, getattr(holder, knob)) == (outcome, present), knob
            # What is not as comm_overlap would have it can be mended.
            mended = outcome is Outcome.REFUSED
            assert bool(decision.edits) is bool(decision.remedy) is mended, knob
        # Nothing asked and nothing there: a note for the two that would have been turned on.
        noted = Run(asking(), gpt(), {}).notes
        assert set(noted) == {"dp.needs-distributed-optimizer"}
        assert noted["dp.needs-distributed-optimizer"].edits
        run = Run(asking(bucket_size=5, align_param_gather=False), gpt(), {})
        assert [(d.knob, d.outcome) for d in run.config.decisions if d.rule[:3] == "dp."] == [
            ("ddp.overlap_grad_reduce", Outcome.NOTE),
            ("ddp.overlap_param_gather", Outcome.NOTE),
            ("ddp.bucket_size", Outcome.REFUSED),
            ("ddp.align_param_gather", Outcome.GRANTED),
        ]
        # With Muon a knob works on ddp itself, as far as its optimizer does what the knob says.
        asked: dict[str, Any] = {"overlap_param_gather": True, "bucket_size": 5}
        asked["overlap_param_gather_with_optimizer_step"] = True
        reduce, gather, step, size = (
            Edit("ddp.overlap_grad_reduce", True),
            Edit("ddp.overlap_param_gather", True),
            Edit("comm_overlap.overlap_param_gather_with_optimizer_step", False),
            Edit("ddp.bucket_size", 5),
        )
        ignored = Edit("comm_overlap.overlap_param_gather", False)
        oldest = AssumedSoftware(stack=KNOWN[0])
        for knobs, software, reduces, edits in (
            ({}, None, False, [(reduce,), (reduce, gather)]),
            (asked, None, False, [(reduce,), (reduce, gather), (reduce, size), (step,)]),
            (asked, None, True, [(gather,), (size,), (step,)]),
            ({"overlap_grad_reduce": True}, None, False, [(reduce,), (reduce, gather)]),
            (asked, oldest, False, [(reduce,), (ignored,), (reduce, size), (step,)]),
            ({}, oldest, False, [(reduce,), ()]),
        ):
            held = SimpleNamespace(overlap_grad_reduce=reduces)
            muon = SimpleNamespace(optimizer="dist_muon")
            found = asking(**knobs).resolve(gpt(), held, software, muon)
            by_muon = [d for d in found.decisions if d.rule == "dp.muon-by-name"]
            mended = (Outcome.NOTE, Outcome.REFUSED)
            assert [d.edits for d in by_muon if d.outcome in mended] == edits, knobs
        # No optimizer at all holds nothing either.
        config = asking(overlap_param_gather_with_optimizer_step=False)
        config.setup(gpt(), None, real.DistributedDataParallelConfig())
        assert config.decisions[-1].outcome is Outcome.GRANTED


class TestExpertParallel:
    def test_granted_with_every_need_met(self, installed: Installed) -> None:
        installed.torch = "2.6.0"
        pipeline = {"pipeline_model_parallel_size": 4, "virtual_pipeline_model_parallel_size": 2}
        for fields in (
            {},
            {"moe_token_dispatcher_type": "flex"},
            {"bf16": False, "fp16": True},
            {"num_moe_experts": 2, "expert_model_parallel_size": 2},
            pipeline,
            {"recompute_granularity": "selective", "recompute_modules": "core_attn,mlp"},
            {"mtp_num_layers": 0},
            {"mtp_num_layers": 1},
        ):
            model = moe(**fields)
            run = Run(asking(**EP), model)
            assert model.overlap_moe_expert_parallel_comm is True, fields
            assert model.delay_wgrad_compute is False
            assert run.decision("model.overlap_moe_expert_parallel_comm").effective is True
        # Off unless requested, whatever the model had, and whatever it lacks. What it had and loses
        # can be had by request, or given up where a need is not met.
        knob = "overlap_moe_expert_parallel_comm"
        for make, knobs, edits in (
            (moe, {}, (Edit(f"comm_overlap.{knob}", True),)),
            (gpt, {}, (Edit(f"model.{knob}", False),)),
            (gpt, dict.fromkeys(DELAY, False), ()),
        ):
            model = make(overlap_moe_expert_parallel_comm=True, delay_wgrad_compute=True)
            run = Run(asking(**knobs), model)
            assert model.overlap_moe_expert_parallel_comm is model.delay_wgrad_compute is False
            assert run.decision(f"model.{knob}").edits == edits
        assert not Run(asking(), moe()).decision(f"model.{knob}").edits

    def test_a_broken_need_is_an_error(self, installed: Installed) -> None:
        for fields, words in (
            ({"expert_model_parallel_size": 1}, "expert_model_parallel_size is 1"),
            ({"num_moe_experts": None}, "num_moe_experts is None"),
            ({"num_moe_experts": 1}, "num_moe_experts is 1"),
            ({"moe_token_dispatcher_type": "allgather"}, "moe_token_dispatcher_type"),
            ({"bf16": False}, "bf16 is False, fp16 is False"),
            ({"pipeline_model_parallel_size": 2}, "virtual_pipeline_model_parallel_size is None"),
            ({"recompute_granularity": "full"}, "recompute_granularity is 'full'"),
            ({"recompute_method": "uniform"}, "recompute_method is 'uniform'"),
            ({"recompute_num_layers": 1}, "recompute_num_layers is 1"),
            ({"recompute_modules": ["moe"]}, "moe in recompute_modules"),
            ({"recompute_modules": "core_attn,moe"}, "moe in recompute_modules"),
            ({"moe_shared_expert_overlap": True}, "moe_shared_expert_overlap is True"),
            ({"mtp_num_layers": 2}, "at most one layer"),
        ):
            refused(asking(**EP), moe(**fields), words)
        installed.torch = "2.5.9"
        both = ("torch is older than 2.6.0", "num_moe_experts is 1")
        refused(asking(**EP), moe(num_moe_experts=1), *both)

    def test_delayed_wgrad_needs_expert_overlap(self) -> None:
        delay = {"delay_wgrad_compute": True}
        off = "overlap_moe_expert_parallel_comm is off"
        refused(asking(**delay), moe(), off)
        on_model = {"overlap_moe_expert_parallel_comm": True}
        refused(asking(**delay, overlap_moe_expert_parallel_comm=False), moe(**on_model), off)
        # Requested, or on the model already: then the model keeps it. DDP needs to know, too.
        for knobs, fields in ((DELAY, {}), (delay, on_model)):
            model = moe(**fields)
            run = Run(asking(**knobs), model, {})
            assert model.overlap_moe_expert_parallel_comm is model.delay_wgrad_compute is True
            assert getattr(run.ddp_config, "delay_wgrad_compute", True) is True
        # A DDP configuration without the field gets none.
        for held, knobs in ((True, DELAY), (True, EP), (False, DELAY)):
            ddp = SimpleNamespace(**({"delay_wgrad_compute": False} if held else {}))
            asking(**knobs).setup(moe(), None, ddp)
            assert vars(ddp) == ({"delay_wgrad_compute": knobs is DELAY} if held else {})

    def test_delayed_wgrad_needs_a_transformer_engine_that_reduces_it(
        self, installed: Installed
    ) -> None:
        installed.te = "2.6.9"
        needs, fused = "older than 2.7.0", {"gradient_accumulation_fusion": True}
        # The reduction is DDP's, or requested; the fused kernel is the model's.
        refused(asking(**DELAY), moe(), needs, overlap_grad_reduce=True)
        refused(asking(**DELAY, overlap_grad_reduce=True), moe(), needs)
        refused(asking(**DELAY), moe(**fused), needs)
        for te, fields, ddp in (
            ("2.6.9", {}, {}),
            ("2.7.0", fused, {"overlap_grad_reduce": True}),
        ):
            installed.te = te
            model = moe(**fields)
            Run(asking(**DELAY), model, ddp)
            assert model.delay_wgrad_compute is True

    def test_delayed_wgrad_inside_a_cuda_graph(self, installed: Installed) -> None:
        name = "cuda_graph_modules" if hasattr(moe(), "cuda_graph_modules") else "cuda_graph_scope"
        good = {"gradient_accumulation_fusion": True, "add_bias_linear": False}
        shared = {"moe_shared_expert_intermediate_size": 64}
        attention = {**good, name: ["attn"]}
        router = {**good, **shared, name: "moe_router,mlp"}
        old, unfused = "older than 2.12.0", {"gradient_accumulation_fusion": False}
        for fields in (attention, router):
            installed.te = "2.11.9"
            refused(asking(**DELAY), moe(**fields), old)
            installed.te = "2.12.0"
            fusion = "gradient_accumulation_fusion is off"
            refused(asking(**DELAY), moe(**{**fields, **unfused}), fusion)
        installed.te = "2.11.9"
        overlapped = {**router, "moe_shared_expert_overlap": True}
        assert "2.12.0" not in refused(asking(**DELAY), moe(**overlapped), "shared_expert")
        installed.te = "2.12.0"
        for bias in ("add_bias_linear", "add_qkv_bias"):
            words = ("attention bias", f"{bias} is True")
            refused(asking(**DELAY), moe(**{**attention, bias: True}), *words)
        for te, fields in (
            ("2.12.0", attention),
            ("2.12.0", router),
            # Outside attention a bias is no obstacle, and neither is anything without a graph.
            ("2.12.0", {**router, "add_bias_linear": True, "add_qkv_bias": True}),
            ("2.11.9", {**good, "add_qkv_bias": True}),
            ("2.11.9", {**unfused, **shared, name: ["moe"]}),
            ("2.11.9", {**unfused, name: ["moe_router"]}),
        ):
            installed.te = te
            model = moe(**fields)
            Run(asking(**DELAY), model)
            assert model.delay_wgrad_compute is True, fields


class TestSetup:
    def test_end_to_end(self) -> None:
        config = CommOverlapConfig(
            tp_comm_overlap=True,
            tp_comm_overlap_cfg=userbuffers_bf16_b200_h8192_tp2_mbs1_seqlen8192,
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
        assert ddp.bucket_size == 128 * MIB
        assert optimizer.overlap_param_gather is True
        config.setup(model, optimizer, ddp)
        assert (dict(vars(model)), dict(vars(optimizer)), dict(vars(ddp))) == once

        # What is unset leaves a configuration alone, except where None is a value; what it has no
        # attribute for is not added. The user's own knobs come on top of others.
        plain = SimpleNamespace(bucket_size=3, overlap_grad_reduce=True, batch_p2p_comm=True)
        config._apply_cfgs(_CommOverlapConfig(batch_p2p_comm=False, tp_comm_overlap=True), plain)
        assert vars(plain) == {
            "bucket_size": None,
            "overlap_grad_reduce": True,
            "batch_p2p_comm": False,
        }
        chosen = _CommOverlapConfig(bucket_size=5, overlap_p2p_comm=True, batch_p2p_comm=False)
        asking(overlap_p2p_comm=False)._override_user_cfgs(chosen)
        assert (chosen.bucket_size, chosen.overlap_p2p_comm, chosen.batch_p2p_comm) == (
            5,
            False,
            False,
        )
