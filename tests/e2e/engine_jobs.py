"""What test_engine.py has engines do, each function in a process of its own (engine_server.py)."""

import dataclasses
import os
import traceback
from pathlib import Path

import numpy as np
import psutil
import torch
from safetensors.torch import load_file

from megatron_nft.config import LoraConfig, RolloutConfig, load_config
from megatron_nft.rollout.api import EngineError, Sampling, answer_here, requests_of
from megatron_nft.rollout.vllm.arguments import engine_arguments, why_not
from megatron_nft.rollout.vllm.engine import VllmEngine
from megatron_nft.rollout.vllm.environment import engine_environment
from megatron_nft.types import Prompt
from tests.buckets import Buckets

LONG = [210, 257, 300]  # tokens: several whole blocks, so that a stale cache shows


def make_prompts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Prompt(
            prompt_id=f"toy/{i}",
            text="",
            token_ids_P=rng.integers(3, 256, size=length, dtype=np.int32),
            ground_truth="",
            data_source="toy",
        )
        for i, length in enumerate(lengths)
    ]


def make_engine(model, dtype, tp=1, max_model_len=512, lora=None, *, gives_experts=False, **settings):
    """lora: settings of [lora], for an engine whose updates are adapters."""
    config = RolloutConfig(dtype=dtype, tp=tp, **{"kv_cache_gib": 0.1, "max_concurrent": 64} | settings)
    lora = lora and LoraConfig(**lora)
    os.environ |= engine_environment("cpu", threads=1, tp=tp)
    return VllmEngine(
        str(model), config, device="cpu", max_model_len=max_model_len, seed=1, lora=lora, gives_experts=gives_experts
    )


def read_adapter(engine, folder):
    """Has vLLM read a PEFT folder itself, and answers with it."""
    from vllm.lora.request import LoRARequest

    assert engine._llm.llm_engine.add_lora(LoRARequest("policy", 1, str(folder)))


def greedy(engine):
    sampling = Sampling(group_size=1, temperature=0, max_answer_tokens=24, seed=1)
    return answer_here(engine, make_prompts(LONG), sampling)


def send(engine, model, version, drop=(), dtype=None, extra=None, num_buckets=3):
    """A whole weight update as the trainer would send it, or one spoilt by `drop`, `dtype` or `extra`."""
    tensors = load_file(Path(model) / "model.safetensors")
    engine.start_update(sorted(tensors))
    tensors = {name: t.to(dtype or t.dtype) for name, t in tensors.items() if name not in drop} | (extra or {})
    names, buckets = list(tensors), Buckets()
    for i in range(num_buckets):  # strided, so that the parts of a fused layer (q, k, v) come in different buckets
        engine.update([buckets.write({name: tensors[name] for name in names[i::num_buckets]}).to_dict()])
    engine.finish_update(version)


def send_one_by_one(engine, model, version):
    """A whole update in buckets of one tensor, each overwritten as soon as the engine has it."""
    tensors, buckets = load_file(Path(model) / "model.safetensors"), Buckets()
    engine.start_update(sorted(tensors))
    for name, tensor in tensors.items():
        manifest = buckets.write({name: tensor})
        engine.update([manifest.to_dict()])
        buckets.buffer(manifest).fill_(0xFF)
    engine.finish_update(version)


def refusal(verb, *arguments, **keywords):
    try:
        verb(*arguments, **keywords)
    except EngineError as error:
        return str(error)
    return "no error"


def fresh(model, dtype, tp=1):
    return greedy(make_engine(model, dtype, tp))


def there_and_back(old, new, dtype, tp, rounds):
    """Answers at the start and after each of several updates, to `new` and back in turn."""
    engine = make_engine(old, dtype, tp)
    answers = [greedy(engine)]
    for version in range(1, rounds + 1):
        send_one_by_one(engine, new if version % 2 else old, version)
        answers.append(greedy(engine))
    engine.shutdown()
    return answers


def memory_of_batch_sizes(model):
    """MiB that this process has more after batches of 150 sizes than after the largest of them."""
    engine = make_engine(model, "float32", max_concurrent=256)

    def resident(sizes):
        for size in sizes:
            sampling = Sampling(group_size=size, temperature=1.0, max_answer_tokens=3, seed=1)
            answer_here(engine, make_prompts([20]), sampling)
        return psutil.Process().memory_info().rss / 2**20

    return -resident([150] * 10) + resident(range(1, 151))


def tokens_of_first_step(model, num_prompt_tokens, group_size):
    """That vLLM computes for a group of answers to one prompt, all asked at once."""
    engine = make_engine(model, "float32")
    scheduler, counts = engine._llm.llm_engine.engine_core.engine_core.scheduler, []
    schedule = scheduler.schedule

    def counted(*arguments, **keywords):
        scheduled = schedule(*arguments, **keywords)
        counts.append(scheduled.total_num_scheduled_tokens)
        return scheduled

    scheduler.schedule = counted
    sampling = Sampling(group_size=group_size, temperature=1.0, max_answer_tokens=3, seed=1)
    answer_here(engine, make_prompts([num_prompt_tokens]), sampling)
    return counts[0]


def updated(old, new, dtype):
    engine = make_engine(old, dtype)
    before = greedy(engine)
    send(engine, new, version=3)
    return before, greedy(engine)


def quantized(old, new, quantization):
    """What the model holds after updates (two, the second of other weights than the first), and answers, beside a fresh
    engine's."""
    found = {}
    for name, model in (("updated", old), ("fresh", new)):
        engine = make_engine(model, "bfloat16", vllm={"quantization": quantization})
        if name == "updated":
            found["before"] = tensors_of(engine), greedy(engine)
            for version, weights in enumerate((new, old, new), 1):
                send(engine, weights, version)
        found[name] = tensors_of(engine), greedy(engine)
        engine.shutdown()
    return found


def tensors_of(engine):
    """Every parameter of vLLM's model as bytes, and its number format; in the engine's process."""
    model = engine._llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    return {
        name: (str(x.dtype), x.detach().contiguous().view(torch.uint8).numpy().tobytes())
        for name, x in model.named_parameters()
    }


def broken_updates(old, new):
    """Every way to spoil an update to `old` in turn, then a whole one to `new`, which must not be tainted."""
    engine = make_engine(old, "float32")
    one = "model.layers.1.self_attn.k_proj.weight"
    errors = {
        "names": refusal(engine.start_update, [one, "model.layers.9.strange"]),
        "not started": refusal(engine.update, [{}]),
    }
    still_good = greedy(engine)
    errors["incomplete"] = refusal(send, engine, old, 1, drop=[one])
    errors["refuses"] = refusal(greedy, engine)
    errors["dtype"] = refusal(send, engine, old, 1, dtype=torch.float64)
    errors["unknown"] = refusal(send, engine, old, 1, extra={"model.strange": torch.zeros(2)})
    errors["gone"] = refusal(send_removed, engine, old)
    tensors = load_file(Path(old) / "model.safetensors")
    engine.start_update(sorted(tensors))
    errors["refuses halfway"] = refusal(greedy, engine)
    del tensors[one]  # the rest of its layer stays buffered in vLLM
    buckets = Buckets()
    engine.update([buckets.write(tensors).to_dict()])
    send(engine, new, version=2)  # the sender died and another one starts
    after = greedy(engine)
    engine.shutdown()
    errors["shut down"] = refusal(greedy, engine)
    return errors, still_good, after


def under_way(old, new):
    """rollout.on_sync, or "asleep" -> answers that were under way when the weights became `new`, and answers of `new`
    alone. "asleep": with on_sync = "keep", while the engine has given its memory back."""
    sampling = Sampling(group_size=3, temperature=1.0, max_answer_tokens=40, seed=11)
    first, second = (requests_of(make_prompts(LONG), sampling, first_id) for first_id in (0, 10))
    results, engine = {}, make_engine(old, "float32")
    for on_sync in ("keep", "recompute", "restart", "asleep"):
        engine._on_sync, finished = "keep" if on_sync == "asleep" else on_sync, []
        for requests in (first, *[[]] * 11):  # a decode step each
            finished += engine.advance("rollouts", requests, [], 0.0)[0]
        if on_sync == "asleep":
            engine.sleep()
            engine.wake("weights")
        send(engine, new, version=3)
        if on_sync == "asleep":
            engine.wake("kv_cache")
        results[on_sync, "between"] = len(finished), greedy(engine)  # another stream, beside requests under way
        finished += engine.advance("rollouts", second, [], 0.0)[0]
        finished += engine.advance("rollouts", [], [second[0].request_id, 99], 60.0)[0]
        results[on_sync] = dict(finished)
        results[on_sync, "unfinished"] = engine._llm.llm_engine.has_unfinished_requests()
        send(engine, old, version=0)
    engine.shutdown()
    engine = make_engine(new, "float32")
    results["new"] = dict(engine.advance("rollouts", second, [], 60.0)[0])
    results["new", "between"] = greedy(engine)
    return results


def send_removed(engine, model):
    tensors = load_file(Path(model) / "model.safetensors")
    engine.start_update(sorted(tensors))
    buckets = Buckets()
    manifest = buckets.write(tensors)
    buckets.close()
    engine.update([manifest.to_dict()])


def forgotten(engine, prompts):
    """Of requests of a run that has ended, some of them answered: what a run after it hears, and what is under way."""
    short, long = (Sampling(group_size=1, temperature=1.0, max_answer_tokens=limit, seed=7) for limit in (2, 24))
    engine.advance("rollouts", requests_of(prompts, long), [], 0.0)
    engine.advance("evaluation", requests_of(prompts[:1], short), [], 0.0)
    engine.advance("rollouts", [], [], 0.0)  # has the evaluation's answer made, which nobody asks for
    engine.forget()
    heard = [engine.advance(stream, [], [], 0.0)[0] for stream in ("rollouts", "evaluation")]
    return heard, engine._llm.llm_engine.has_unfinished_requests()


def asked_again(engine, prompts):
    """Ids of a stream that was cut short, one answered and not heard of, one under way; the next one asks other prompts
    by them: what it hears, and whether anything is under way then, which no weight update would survive."""
    short, long = (Sampling(group_size=2, temperature=1.0, max_answer_tokens=limit, seed=7) for limit in (2, 24))
    engine.advance("evaluation", [*requests_of(prompts[:1], short), *requests_of(prompts[1:2], long, 1)], [], 0.0)
    engine.advance("rollouts", requests_of(prompts[:1], short), [], 60.0)
    heard = engine.advance("evaluation", requests_of(prompts[2:4], short), [], 60.0)[0]
    return [(key, group.prompt.prompt_id) for key, group in heard], engine._llm.llm_engine.has_unfinished_requests()


def sampling(model):
    """Sampled answers under one seed in several arrangements, from two other distributions, and the edges of
    `advance`."""
    engine = make_engine(model, "float32")
    prompts = make_prompts([5, 17, 40, 130, 200])

    def sample(num_engines=1, order=prompts, **changes):
        settings = {"group_size": 4, "temperature": 1.0, "max_answer_tokens": 24, "seed": 7} | changes
        shares = [order[i::num_engines] for i in range(num_engines)]
        groups = [group for share in shares for group in answer_here(engine, share, Sampling(**settings))]
        return {group.prompt.prompt_id: group for group in groups}

    progress = []
    twice = answer_here(
        engine,
        [prompts[0], prompts[0]],
        Sampling(group_size=2, temperature=1.0, max_answer_tokens=8, seed=7),
        lambda done, total: progress.append((done, total)),
    )
    too_long = refusal(sample, order=[*prompts, *make_prompts([600])])
    unfinished = engine._llm.llm_engine.has_unfinished_requests()
    return {
        "left by another run": forgotten(engine, prompts),
        "asked again": (asked_again(engine, prompts), [prompt.prompt_id for prompt in prompts]),
        "base": sample(),
        "again": sample(),
        "three engines, reversed": sample(3, prompts[::-1]),
        "one by one": {k: g for p in prompts for k, g in sample(order=[p]).items()},
        "other seed": sample(seed=8),
        "T=0.7": sample(temperature=0.7),
        "top_p=0.5": sample(top_p=0.5),
        "twice": twice,
        "progress": progress,
        "too long": too_long,
        "unfinished after refusal": unfinished,
        "after refusal": sample(),
    }


def ends(model):
    """Sampled answers, with their texts."""
    engine = make_engine(model, "float32")
    sampling = Sampling(group_size=8, temperature=1.0, max_answer_tokens=24, seed=7)
    return [rollout for group in answer_here(engine, make_prompts([5, 17]), sampling) for rollout in group.rollouts]


def answers_of(models):
    """A sampled answer of each of several models, or why there is none, from one engine after the other."""
    sampling = Sampling(group_size=1, temperature=1.0, max_answer_tokens=24, seed=7)
    answers = []
    for model in models:
        engine = None
        try:
            engine = make_engine(model, "float32", max_model_len=224)
            (group,) = answer_here(engine, make_prompts([200]), sampling)
            (answer,) = group.rollouts
            answers.append((group.prompt.token_ids_P, answer.token_ids_A, answer.engine_logprobs_A))
        except Exception:  # whatever vLLM raises
            answers.append(traceback.format_exc())
        if engine is not None:
            engine.shutdown()
    return answers


def asked_of_vllm(recipe, settings):
    """What vLLM has against each of these settings; names of all its arguments, and of those that the program gives."""
    words = [why_not(load_config(recipe, [f"rollout.vllm={given}", *more])) for given, *more in settings]
    rollout = load_config(recipe).rollout
    ours = {
        name
        for device in ("cpu", "cuda")
        for name in engine_arguments(
            "tests/assets/quickstart/model", rollout, device=device, max_model_len=192, seed=1, is_colocated=True,
            starts_empty=True, gives_experts=True, lora=LoraConfig(rank=4),
        )
    }  # fmt: skip
    from vllm.engine.arg_utils import EngineArgs

    return words, {field.name for field in dataclasses.fields(EngineArgs)}, ours
