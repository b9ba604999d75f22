"""A step's operations, utilisation, memory and engine load, by hand."""

import json

import numpy as np
import pytest

from megatron_nft.cluster.usage import Usage
from megatron_nft.config import load_config
from megatron_nft.families.flops import training_flops
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.observe.throughput import num_devices, throughput
from megatron_nft.plan.hardware import load_machine
from megatron_nft.rollout.api import DecodeSteps
from megatron_nft.run.usage import engine_load, memory, peak_flops, training_speed
from megatron_nft.types import TrainBatch, TrainSequence

RECIPE = "launch/recipes/quickstart.toml"
SEVEN_B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip


def test_operations_of_qwen2_7b(tmp_path):
    """6 N T of the 6.53 billion parameters of its layers' matrices, attention's 6 L d T^2, the logits of answers."""
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    layers = 28 * (3584 * 3584 * 2 + 3584 * 512 * 2 + 3 * 3584 * 18944)
    assert layers == 6_525_288_448
    by_hand = 6 * layers * 1000 + 6 * 28 * 3584 * 1000**2 + 6 * 3584 * 152064 * 600
    hf = read_hf_config(tmp_path)
    assert training_flops(hf, [(1000, 600)]) == pytest.approx(by_hand, rel=1e-12)
    frozen = by_hand - 2 * layers * 1000 - 2 * 3584 * 152064 * 600  # no product for the weights' own gradients
    assert training_flops(hf, [(1000, 600)], is_frozen=True) == pytest.approx(frozen, rel=1e-12)


def sequence(prompt, answer):
    return TrainSequence(
        token_ids_T=np.zeros(prompt + answer, np.int32), num_prompt_tokens=prompt, verdict=1.0, correct_rate=0.5,
        engine_logprobs_A=np.zeros(answer, np.float32),
    )  # fmt: skip


def test_utilisation_is_operations_over_what_the_devices_could_do():
    config = load_config(RECIPE)
    hf = read_hf_config(config.model.path)
    batch = TrainBatch.of([[[[sequence(10, 20)]]], [[[sequence(5, 40)]]]])
    speed = training_speed(batch, hf, config, 2.0, "")
    flops = training_flops(hf, [(30, 20), (45, 40)])
    assert speed["perf/train_tflops_per_gpu"] == pytest.approx(flops / 2.0 / 2 / 1e12)  # 2 s, 2 ranks
    assert speed["perf/mfu"] == pytest.approx(flops / 2.0 / 2 / 0.165e12)  # a core's, plan/hardware.toml
    assert training_speed(batch, hf, config, 0.0, "") == {}


def test_a_gpu_that_no_table_knows_has_no_utilisation():
    config = load_config(RECIPE)
    on_gpus = config.model_copy(update={"cluster": config.cluster.model_copy(update={"device": "cuda"})})
    assert peak_flops(on_gpus, "NVIDIA H100 80GB HBM3") == load_machine("H100").bf16_tflops * 1e12 > 9e14
    assert peak_flops(on_gpus, "GeForce 256") is None


def test_memory_is_that_of_the_fullest_process_of_each_phase():
    usages = [
        Usage(host_gib={"train_step": 1.0, "score": 2.0, "load": 9.0}, gpu_gib={"train_step": 50.0}),
        Usage(host_gib={"train_step": 1.5, "send_bucket": 0.5}),
        Usage(host_gib={"advance": 3.0, "update": 0.75, "finish_update": 0.6}),
    ]
    found = memory(usages)
    assert found.pop("memory/host_driver_gib") > 0.01
    assert found == {
        "memory/host_train_gib": 1.5, "memory/host_score_gib": 2.0, "memory/host_sync_gib": 0.75,
        "memory/host_rollout_gib": 3.0, "memory/gpu_train_gib": 50.0,
    }  # fmt: skip


def test_engine_load_counts_every_decode_step_once():
    one, other = DecodeSteps(), DecodeSteps()
    for running in (4, 2):
        one.add(running, 1, 0.5)
    other.add(9, 0, 0.9)
    load = engine_load([Usage(more={"rollouts": one, "evaluation": other}), Usage(more={"rollouts": other}), Usage()])
    assert load == {
        "engine/running_mean": 5.0, "engine/waiting_mean": pytest.approx(2 / 3),
        "engine/kv_use_mean": pytest.approx(1.9 / 3), "engine/kv_use_max": 0.9,
    }  # fmt: skip
    assert engine_load([Usage()]) == {}


def test_speed_per_device_and_hours_of_all():
    config = load_config(RECIPE, ["rollout.engines=3"])
    metrics = {"rollout/answers": 10, "rollout/answer_tokens_mean": 30.0, "time/rollout_s": 2.0, "actor/tokens": 800,
               "time/train_s": 4.0, "time/step_s": 8.0}  # fmt: skip
    assert num_devices(config) == (3, 2, 5)
    assert throughput(metrics, config, minutes=90.0) == {
        "perf/gpu_hours": 7.5, "perf/rollout_tokens_per_s": 150.0, "perf/rollout_tokens_per_s_per_gpu": 50.0,
        "perf/train_tokens_per_s": 200.0, "perf/train_tokens_per_s_per_gpu": 100.0,
    }  # fmt: skip
    ahead = {name: value for name, value in metrics.items() if name != "time/rollout_s"} | {"time/wait_s": 0.1}
    assert throughput(ahead, config, 0.0)["perf/rollout_tokens_per_s"] == 300 / 8
