"""An engine that is made wrong on purpose: the alarm goes off within two steps, by the name of what is wrong.

And what the engine says of its likeliest tokens: a run that is centred on them.
"""

import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from megatron_nft.observe.batches import load_batch
from tests.e2e.driver import steps, without_clock

pytestmark = pytest.mark.e2e
RUN = ["actor.tp=1", "data.held_out=[]", "weights.canary=never", "checkpoint.every=0", "optimizer.warmup_updates=0",
       "optimizer.learning_rate=1e-4"]  # fmt: skip


def ignore_syncs(process):
    """Takes the first weights of a run, and from then on stamps what it has with every version."""
    engine, synced = process.engine, []
    real = {name: getattr(engine, name) for name in ("start_update", "update", "finish_update")}

    def start_update(names):
        synced.append(names)
        if len(synced) == 1:
            real["start_update"](names)

    def update(manifests):
        if len(synced) == 1:
            real["update"](manifests)

    def finish_update(version):
        if len(synced) == 1:
            return real["finish_update"](version)
        engine.policy_version = version
        engine._llm.llm_engine.set_weight_version(str(version))
        engine._llm.reset_prefix_cache()

    engine.start_update, engine.update, engine.finish_update = start_update, update, finish_update


def add_noise(process):
    """To the log-probs that it says."""
    from megatron_nft.rollout.vllm import engine

    real, numbers = engine.rollout_of, np.random.default_rng(0)

    def rollout(prompt, answer, text):
        honest = real(prompt, answer, text)
        noise_A = numbers.normal(0, 0.05, len(honest.token_ids_A)).astype(np.float32)
        return replace(honest, engine_logprobs_A=honest.engine_logprobs_A + noise_A)

    engine.rollout_of, process.honest = rollout, {"rollout_of": real}


def sample_colder(process):
    """At nine tenths of the temperature that it is asked for."""
    from megatron_nft.rollout.vllm import engine

    real = engine.sampling_params

    def colder(sampling, seed_id):
        return real(replace(sampling, temperature=0.9 * sampling.temperature), seed_id)

    engine.sampling_params, process.honest = colder, {"sampling_params": real}


def be_honest(process):
    from megatron_nft.rollout.vllm import engine

    for name in ("start_update", "update", "finish_update"):
        vars(process.engine).pop(name, None)
    for name, real in vars(process).pop("honest", {}).items():
        setattr(engine, name, real)


@contextmanager
def wrong(shared, fault):
    shared._engines.do(fault)
    try:
        yield
    finally:
        shared._engines.do(be_honest)


@pytest.mark.parametrize(
    ("fault", "cause", "sound_steps", "more"),
    [
        (ignore_syncs, "weights", 1, []),
        (add_noise, "noise", 0, []),
        (sample_colder, "temperature", 0, []),
        (sample_colder, "temperature", 0, ["algorithm.old_logprobs=engine"]),
    ],
)
def test_a_wrong_engine_is_called_by_its_name(shared, tmp_path, fault, cause, sound_steps, more):
    """Older weights: those of the run's beginning, from its second step on."""
    with wrong(shared, fault):
        done = shared.train(
            tmp_path,
            *RUN,
            *more,
            f"train.steps={sound_steps + 2}",
            "observe.gap_stop_after=2",
            "train.evaluate_every=0",
        )
    run = tmp_path / "quickstart"
    alarms = [line for line in map(without_clock, done.out.splitlines()) if re.match(r"step \d+: gap alarm", line)]
    assert done.status == 1 and "and observe.gap_stop_after = 2; mend the engine" in done.err
    assert [line.split(": KL")[0] for line in alarms] == [
        f"step {sound_steps + n}: gap alarm ({cause})" for n in (1, 2)
    ]
    assert [r["rollout/gap_alarms"] for r in steps(run)] == [0] * sound_steps + [1, 1]
    assert len(load_batch(run / "gap" / f"step_{sound_steps + 1}.npz")) == (1 if more else 2)


def test_a_run_that_is_centred_on_what_the_engine_says(shared, tmp_path):
    done = shared.train(
        tmp_path, *RUN, "train.steps=2", "algorithm.score_centering=true", "algorithm.old_logprobs=engine",
        "rollout.top_logprobs=16", "observe.save_batches=true",
    )  # fmt: skip
    assert done.status == 0, done.err
    run = tmp_path / "quickstart"
    assert all(0.99 < r["rollout/top_mass"] <= 1.001 for r in steps(run))
    assert all(0 <= r["rollout/gap_kl"] < 1e-6 for r in steps(run)), "of the first update, by its forward pass"
    for sequence in load_batch(run / "batches" / "step_2.npz")[0]:
        ids_AK, logprobs_AK = sequence.columns["top_ids"], sequence.columns["top_logprobs"]
        assert ids_AK.shape == logprobs_AK.shape == (sequence.num_answer_tokens, 16)
        assert (np.diff(logprobs_AK, axis=1) <= 1e-6).all(), "the likeliest first"
        sampled_A = sequence.token_ids_T[sequence.num_prompt_tokens :]
        of_sampled = ids_AK == sampled_A[:, None]
        among = of_sampled.any(1)
        assert among.mean() > 0.9
        np.testing.assert_allclose(logprobs_AK[of_sampled], sequence.engine_logprobs_A[among], atol=1e-6)
