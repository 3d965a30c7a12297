"""Configurations of other launchers, as files and as overrides in scripts."""

from __future__ import annotations

import pytest

from overlapkit.config.sources import Source
from overlapkit.errors import InputError

GPU = ("--gpu", "h100", "--core", "0.16.1")

NEMO_RL = """\
policy:
  precision: bfloat16
  train_global_batch_size: 96
  train_micro_batch_size: 1
  megatron_cfg:
    enabled: {enabled}
    pipeline_dtype: ${{policy.precision}}
    tensor_model_parallel_size: 2
    pipeline_model_parallel_size: 2
    sequence_parallel: true
    virtual_pipeline_model_parallel_size: 2
    activation_checkpointing: true
    optimizer: {{use_distributed_optimizer: true, lr: 1.0e-6}}
    distributed_data_parallel_config:
      overlap_grad_reduce: true
      overlap_param_gather: ${{policy.megatron_cfg.sequence_parallel}}
      grad_reduce_in_fp32: false
      average_in_collective: true
    env_vars: {{CUDA_DEVICE_MAX_CONNECTIONS: "1"}}
  generation: {{colocated: {{enabled: {colocated}, resources: {{num_nodes: 1}}}}}}
cluster: {{num_nodes: 3, gpus_per_node: 8}}
"""


def nemo_rl(enabled: str = "true", colocated: str = "true") -> str:
    return NEMO_RL.format(enabled=enabled, colocated=colocated)


def test_nemo_rl(overlapkit, config) -> None:
    name = config(nemo_rl())
    document = overlapkit("explain", name, *GPU, "--json").document
    effective = document["effective"]
    assert document["world_size"] == 24
    assert effective["model.tensor_model_parallel_size"] == 2
    assert effective["model.pipeline_model_parallel_size"] == 2
    assert effective["ddp.overlap_grad_reduce"] is effective["ddp.overlap_param_gather"] is True
    assert effective["ddp.grad_reduce_in_fp32"] is False
    assert effective["ddp.use_distributed_optimizer"] is True
    # It hands on neither of these.
    assert effective["model.virtual_pipeline_model_parallel_size"] is None
    notes = " ".join(document["notes"])
    assert "this is NeMo-RL's configuration" in notes
    assert "megatron_cfg.virtual_pipeline_model_parallel_size" in notes
    assert "distributed_data_parallel_config.average_in_collective" in notes
    assert document["job_env"]["CUDA_DEVICE_MAX_CONNECTIONS"]["value"] == "1"
    text = overlapkit("explain", name, *GPU).out
    assert "Everything that was requested is in effect" not in text


def test_nemo_rl_with_gpus_of_its_own_for_generation(config) -> None:
    launch = Source("yaml", config(nemo_rl(colocated="false"))).read().launch
    assert launch is not None and launch.world_size == 16


def test_where_the_users_own_keys_are(config) -> None:
    name = config(nemo_rl())
    where = Source("yaml", name).read().where
    assert str(where["ddp.overlap_grad_reduce"]) == f"{name}:15:7"
    assert str(where["model.tensor_model_parallel_size"]) == f"{name}:8:5"


def test_overrides_of_a_launchers_own_keys_and_of_megatrons(config) -> None:
    given = (
        "policy.megatron_cfg.tensor_model_parallel_size=4",
        "++cluster.num_nodes=1",
        "model.num_layers=36",
        "ddp.bucket_size=1000",
    )
    settings = Source("yaml", config(nemo_rl()), given).read()
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    assert settings.flat()["model.num_layers"] == 36
    assert settings.flat()["ddp.bucket_size"] == 1000
    assert settings.launch is not None and settings.launch.world_size == 8
    assert str(settings.where["model.tensor_model_parallel_size"]) == given[0]


def test_nemo_rl_without_megatron(config) -> None:
    name = config(nemo_rl(enabled="false"))
    with pytest.raises(InputError, match=r"run.yaml:6: this is NeMo-RL's .* DTensor"):
        Source("yaml", name).read()


def test_a_value_that_is_computed_at_start(overlapkit, config) -> None:
    text = nemo_rl().replace("sequence_parallel: true", "sequence_parallel: ${mul:1,2}")
    document = overlapkit("explain", config(text), *GPU, "--json").document
    notes = " ".join(document["notes"])
    assert "not known here: policy.megatron_cfg.sequence_parallel" in notes


VERL = """\
actor_rollout_ref:
  actor:
    strategy: {strategy}
    megatron:
      tensor_model_parallel_size: {tp}
      pipeline_model_parallel_size: 2
      virtual_pipeline_model_parallel_size: 2
      expert_model_parallel_size: 2
      sequence_parallel: true
      override_transformer_config: {{overlap_moe_expert_parallel_comm: true}}
      override_ddp_config: {{overlap_grad_reduce: true, overlap_param_gather: true}}
trainer: {{nnodes: 2, n_gpus_per_node: 8}}
"""
VERL_SCRIPT = """\
#!/bin/bash
TP={tp}
A=actor_rollout_ref.actor.megatron
python3 -m verl.trainer.main_ppo --config-path=config --config-name='ppo_megatron_trainer.yaml' \\
    data.prompt="$UNKNOWN" algorithm.kl_ctrl.kl_coef= \\
    actor_rollout_ref.actor.megatron.tensor_model_parallel_size=${{TP}} \\
    actor_rollout_ref.actor.megatron.pipeline_model_parallel_size=2 \\
    actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size=2 \\
    actor_rollout_ref.actor.megatron.expert_model_parallel_size=2 \\
    +$A.override_transformer_config.overlap_moe_expert_parallel_comm=True \\
    ++actor_rollout_ref.actor.megatron.override_ddp_config.overlap_grad_reduce=True \\
    +actor_rollout_ref.actor.megatron.override_ddp_config.overlap_param_gather=True \\
    trainer.n_gpus_per_node=8 trainer.nnodes=2 $@
"""


@pytest.mark.parametrize("form", ["file", "script"])
@pytest.mark.parametrize("tp", [1, 2])
def test_verl(form: str, tp: int, overlapkit, config) -> None:
    if form == "file":
        arguments = [config(VERL.format(strategy="megatron", tp=tp))]
    else:
        arguments = ["--from-megatron-lm", config(VERL_SCRIPT.format(tp=tp), "run.sh")]
    document = overlapkit("explain", *arguments, *GPU, "--json").document
    effective = document["effective"]
    assert document["world_size"] == 16
    assert effective["model.tensor_model_parallel_size"] == tp
    # verl switches it off where one rank has the whole tensor.
    assert effective["model.sequence_parallel"] is (tp > 1)
    assert effective["model.overlap_p2p_comm"] is True
    assert effective["model.batch_p2p_comm"] is False
    assert effective["model.overlap_moe_expert_parallel_comm"] is True
    assert effective["ddp.overlap_grad_reduce"] is True
    assert effective["ddp.grad_reduce_in_fp32"] is True
    assert effective["ddp.use_distributed_optimizer"] is True
    assert any("this is verl's configuration" in note for note in document["notes"])
    assert not any("does not set CUDA_DEVICE_MAX" in d["reason"] for d in document["decisions"])


def test_where_an_override_in_a_script_is(config) -> None:
    name = config(VERL_SCRIPT.format(tp=2), "run.sh")
    where = Source("script", name).read().where
    assert str(where["ddp.overlap_grad_reduce"]) == f"{name}:11:7"
    assert str(where["model.pipeline_model_parallel_size"]) == f"{name}:7:5"


def test_a_value_of_verl_that_is_not_known(config) -> None:
    text = VERL_SCRIPT.format(tp=2).replace("nnodes=2", "nnodes=$NODES")
    settings = Source("script", config(text, "run.sh")).read()
    assert settings.launch is not None and settings.launch.world_size is None
    assert any("trainer.nnodes has no known value" in note for note in settings.launch.notes)
    given = ("trainer.nnodes=4",)
    settings = Source("script", config(text, "run.sh"), given).read()
    assert settings.launch is not None and settings.launch.world_size == 32


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp2"])
def test_verl_without_megatron(strategy: str, config) -> None:
    text = VERL.format(strategy=strategy, tp=2)
    with pytest.raises(InputError, match=f":3: this is verl's .* {strategy}, not with Megatron"):
        Source("yaml", config(text)).read()
    script = "python3 -m verl.trainer.main_ppo actor_rollout_ref.model.path=a trainer.nnodes=1\n"
    with pytest.raises(InputError, match=r"this is verl's .*FSDP"):
        Source("script", config(script, "run.sh")).read()


NEMO_1 = """\
trainer: {{num_nodes: 2, devices: 8, precision: bf16}}
model:
  mcore_gpt: true
  micro_batch_size: 1
  global_batch_size: 64
  tensor_model_parallel_size: 2
  pipeline_model_parallel_size: 2
  sequence_parallel: true
  encoder_seq_length: 2048
  num_layers: 8
  hidden_size: 1024
  num_attention_heads: 16
  ub_tp_comm_overlap: true
  tokenizer: {{library: megatron}}
  optim:
    name: {optimizer}
    bucket_cap_mb: 400
    overlap_grad_sync: true
    overlap_param_sync: {gather}
"""


@pytest.mark.parametrize("optimizer", ["distributed_fused_adam", "mcore_distributed_optim"])
def test_nemo_1(optimizer: str, overlapkit, config) -> None:
    name = config(NEMO_1.format(optimizer=optimizer, gather="true"))
    document = overlapkit("explain", name, *GPU, "--json").document
    effective = document["effective"]
    assert document["world_size"] == 16
    assert effective["model.tp_comm_overlap"] is True
    assert effective["model.overlap_p2p_comm"] is False
    assert effective["model.batch_p2p_comm"] is True
    assert effective["ddp.overlap_grad_reduce"] is effective["ddp.overlap_param_gather"] is True
    of_core = optimizer == "mcore_distributed_optim"
    assert any(d["dimension"] == "DP" for d in document["decisions"]) is of_core
    assert any("bucket_cap_mb: 400" in note for note in document["notes"]) is not of_core


def test_nemo_1_gathers_only_with_the_reduction(overlapkit, config) -> None:
    text = NEMO_1.format(optimizer="distributed_fused_adam", gather="true")
    name = config(text.replace("overlap_grad_sync: true", "overlap_grad_sync: false"))
    assert "19:5: NeMo 1 stops at start" in overlapkit("explain", name, *GPU).out


def test_nemo_1_as_overrides_in_a_script(config, tmp_path) -> None:
    (tmp_path / "gpt.yaml").write_text(NEMO_1.format(optimizer="fused_adam", gather="false"))
    script = (
        "python megatron_gpt_pretraining.py --config-path=. --config-name=gpt \\\n"
        "  trainer.num_nodes=4 model.tensor_model_parallel_size=4\n"
    )
    settings = Source("script", config(script, "run.sh")).read()
    assert settings.origin is not None and settings.origin.name == "NeMo 1"
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    assert settings.flat()["model.num_layers"] == 8
    assert settings.launch is not None and settings.launch.world_size == 32


OTHERS = {
    "ds.json": ('{"zero_optimization": {"stage": 2, "overlap_comm": true}}', "ZeRO stage 2"),
    "a.yaml": ("compute_environment: LOCAL\ndistributed_type: FSDP\n", "accelerate"),
    "neox.yml": ('{"pipe_parallel_size": 1, "hidden_size": 64}', "GPT-NeoX"),
    "primus.yaml": ("modules: {pre_trainer: {overrides: {a: 1}}}\n", "Primus"),
    "factory.yaml": ("model_name_or_path: a\nstage: sft\n", "LLaMA-Factory"),
    "axolotl.yml": ("base_model: a\ndatasets: []\n", "Axolotl"),
    "config.json": ('{"architectures": ["A"], "model_type": "a"}', "config.json of Hugging Face"),
    "titan.toml": ('[job]\nname = "a"\n[parallelism]\ntensor_parallel_degree = 2\n', "torchtitan"),
    "other.toml": ("[a]\nb = 1\n", "this is TOML"),
    "recipe.py": ("from nemo.collections import llm\nllm.pretrain()\n", "NeMo 2 recipe"),
    "bridge.py": ("from megatron.bridge.recipes import llama\n", "run_config.yaml"),
    "plain.py": ("print(1)\n", "Python program"),
    "swift.yaml": ("model: a/b\ntrain_type: lora\ntensor_model_parallel_size: 2\n", "ms-swift"),
    "unknown.yaml": ("training: {a: 1}\ntrainer: {b: 2}\n", "it has training, trainer"),
    "nemo2.yaml": ("_target_: nemo_run.config.Partial\ntrainer: {}\n", "NeMo 2 recipe"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("command", ["explain", "doctor", "plan"])
def test_what_is_not_read_is_named(name: str, command: str, overlapkit, config) -> None:
    text, said = OTHERS[name]
    result = overlapkit(command, config(text, name), "--world-size", "8", "--gpu", "h100")
    assert result.status == 2 and result.err.count("\n") == 1
    assert said in result.err and name in result.err
    assert "did you mean" not in result.err


BRIDGE = "model: {tensor_model_parallel_size: 2}\nddp: {use_distributed_optimizer: true}\n"


@pytest.mark.parametrize(
    "text", [BRIDGE, "model: {num_layers: 2}\n", f"{BRIDGE}trainer: {{a: 1}}\n"]
)
def test_megatron_bridges_own_configuration_is_no_launchers(text: str, config) -> None:
    given = Source("yaml", config(text))
    try:
        assert given.read().origin is None
    except InputError as error:
        assert "trainer" in str(error)


@pytest.mark.parametrize("command", ["doctor", "plan"])
def test_other_commands_read_them_too(command: str, overlapkit, config) -> None:
    sizes = "num_layers=8 hidden_size=1024 num_attention_heads=8 seq_length=128 vocab_size=1000"
    given = [f"model.{size}" for size in sizes.split()]
    result = overlapkit(command, config(nemo_rl()), *given, "--gpu", "h100", "--core", "0.16.1")
    assert result.status in (0, 1), result.err
    assert "NeMo-RL" in result.out


@pytest.mark.parametrize("form", ["nemo 1", "ms-swift"])
def test_a_remedy_is_not_written_in_megatrons_names(form: str, overlapkit, config) -> None:
    if form == "nemo 1":
        text = NEMO_1.format(optimizer="mcore_distributed_optim", gather="true")
        name = config(text.replace("sequence_parallel: true", "sequence_parallel: false"))
    else:
        flags = "--tensor_model_parallel_size 2 --tp_comm_overlap true"
        text = f"NPROC_PER_NODE=8 megatron sft --model a {flags}\n"
        name = config(text, "run.sh")
    before = open(name).read()  # noqa: PTH123, SIM115
    found = overlapkit("explain", name, *GPU, "--json").document["findings"]
    result = overlapkit("explain", name, *GPU, "--fix")
    assert found > 0 and result.status == 1
    assert "whose own keys are not" in " ".join(result.out.split())
    assert open(name).read() == before  # noqa: PTH123, SIM115


CHILD = """\
defaults: {parent}
policy:
  megatron_cfg:
    enabled: true
    tensor_model_parallel_size: 4
    distributed_data_parallel_config: {{overlap_param_gather: false}}
"""


def test_a_configuration_that_inherits(overlapkit, config, tmp_path) -> None:
    config(nemo_rl(), "base.yaml")
    name = config(CHILD.format(parent="base.yaml"), "child.yaml")
    settings = Source("yaml", name).read()
    assert settings.flat()["model.tensor_model_parallel_size"] == 4
    assert settings.flat()["model.pipeline_model_parallel_size"] == 2
    assert settings.flat()["ddp.overlap_param_gather"] is False
    assert settings.flat()["ddp.overlap_grad_reduce"] is True
    assert str(settings.where["ddp.overlap_grad_reduce"]) == f"{tmp_path / 'base.yaml'}:15:7"
    assert settings.launch is not None and settings.launch.world_size == 24


def test_nothing_is_found_in_what_is_inherited_from_a_file_that_is_not_here(
    overlapkit, config
) -> None:
    name = config(CHILD.format(parent="[not_here.yaml]"))
    result = overlapkit("explain", name, "--world-size", "8", *GPU, "--env-file", "/dev/null")
    assert "not_here.yaml is not here" in result.out
    assert "use_distributed_optimizer is off" not in result.out


def test_a_file_that_inherits_from_itself(config) -> None:
    name = config(CHILD.format(parent="run.yaml"))
    assert Source("yaml", name).read().flat()["model.tensor_model_parallel_size"] == 4


def test_what_verl_sets_where_nothing_else_does(overlapkit, config, tmp_path) -> None:
    name = config(VERL.format(strategy="megatron", tp=2))
    (tmp_path / "job.env").write_text("CUDA_DEVICE_MAX_CONNECTIONS=8\n")
    given = {}
    for env_file in ("/dev/null", str(tmp_path / "job.env")):
        result = overlapkit("explain", name, *GPU, "--json", "--env-file", env_file)
        given[env_file] = result.document["job_env"]["CUDA_DEVICE_MAX_CONNECTIONS"]["value"]
    assert list(given.values()) == ["1", "8"]
