"""Drawn config.json variants: training refuses them by name, or its actor computes what transformers and the engine do.

Of each accepted one a random model is made; the engine answers a prompt of 200 tokens with 24, and the actor's
log-probs of them are held against transformers' and the engine's. Every log-prob, not their mean.
"""

import json
import warnings
from dataclasses import dataclass

import numpy as np
import pytest

from megatron_nft.config import RecipeError, load_config
from megatron_nft.families.family import ModelFolderError
from megatron_nft.families.hf_config import read_hf_config
from megatron_nft.families.serving import check_served
from megatron_nft.types import TrainSequence
from tests.parallel.ranks import run_ranks
from tests.variants import MIXTURES, draw, for_engines, make_model, mixture_variants, variants

pytestmark = pytest.mark.e2e

LENGTHS = ["data.train=['x.jsonl']", "data.max_prompt_tokens=200", "rollout.max_answer_tokens=24"]
TRANSFORMERS_GAP, ENGINE_GAP = 2e-5, 1e-4
AT_A_TIME = 10


@dataclass(frozen=True)
class Outcome:
    """What became of a variant: why it was refused, or how far the others' log-probs are from the actor's, at most."""

    keys: dict
    refusal: str = ""
    engine_error: str = ""
    from_transformers: float = 0.0
    from_engine: float = 0.0


def refusal(folder):
    """Why training refuses the folder; empty: it doesn't."""
    try:
        config = load_config(None, [f"model.path={str(folder)!r}", *LENGTHS])
        check_served(read_hf_config(folder), folder, max_tokens=config.max_sequence_tokens, device="cpu")
    except (ModelFolderError, RecipeError) as error:
        return str(error)
    return ""


def both_logprobs(rank, master, cases):
    """Of each case's answer: the actor's log-probs, loaded as training does, and transformers'."""
    import torch

    from megatron_nft.actor.topology import destroy_topology, init_topology
    from megatron_nft.config import ActorConfig

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    actor, results = ActorConfig(precision="fp32"), []
    topology = init_topology(actor, rank=rank, master=master, device="cpu", seed=0)
    from megatron_nft.actor.attention import pack_bounds
    from megatron_nft.actor.hf_weights import load_hf_weights
    from megatron_nft.actor.model import build_chunks, output_weight
    from tests.parallel.oracle import answer_logprobs

    for folder, prompt_P, answer_A in cases:
        hf = read_hf_config(folder)
        (chunk,) = build_chunks(hf, actor, topology)
        load_hf_weights([chunk], folder, hf, topology)
        sequence = TrainSequence(
            token_ids_T=np.concatenate([prompt_P, answer_A]), num_prompt_tokens=len(prompt_P), verdict=1.0,
            correct_rate=0.5, engine_logprobs_A=np.zeros(len(answer_A), np.float32),
        )  # fmt: skip
        ids = torch.from_numpy(sequence.token_ids_T).long()
        with torch.no_grad():
            hidden = chunk.eval()(
                input_ids=ids[None], position_ids=torch.arange(len(ids))[None], attention_mask=None,
                packed_seq_params=pack_bounds([len(ids)], topology.device),
            )  # fmt: skip
            logits = (hidden[0] @ output_weight(chunk).T)[:, : hf.vocab_size]
            ours = logits.log_softmax(-1)[len(prompt_P) - 1 : -1].gather(1, ids[len(prompt_P) :, None])[:, 0]
            theirs = answer_logprobs(_transformers_model(folder), sequence)
        results.append((ours.numpy(), theirs.numpy()))
    destroy_topology()
    return results


def _transformers_model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def compare(engine_server, drawn, tmp_path, after_the_engine=lambda folder: None):
    """An Outcome each, in their order."""
    outcomes, folders = {}, {}
    for number, changes in enumerate(drawn):
        keys = for_engines(changes)
        folder = tmp_path / str(number)
        try:
            folders[number] = make_model(keys, folder, number)
        except Exception as error:  # transformers refuses the config.json, in whatever words: training must as well
            words = refusal(folder)
            assert words, (keys, error)
            outcomes[number] = Outcome(keys, words)
            continue
        if words := refusal(folder):
            outcomes[number] = Outcome(keys, words)
            del folders[number]
    answers = engine_server.run({"variants": ("answers_of", {"models": list(folders.values())})})["variants"]
    assert not isinstance(answers, str), answers
    answered = {}
    for number, answer in zip(folders, answers, strict=True):
        if isinstance(answer, str):
            outcomes[number] = Outcome(for_engines(drawn[number]), engine_error=answer)
        else:
            answered[number] = answer
    for number in answered:
        after_the_engine(folders[number])
    cases = [(folders[number], prompt_P, answer_A) for number, (prompt_P, answer_A, _) in answered.items()]
    (scores,) = run_ranks(1, both_logprobs, cases) if cases else ([],)
    for (number, (*_, engine_A)), (ours_A, theirs_A) in zip(answered.items(), scores, strict=True):
        gaps = (float(np.abs(ours_A - other_A).max()) for other_A in (theirs_A, engine_A))
        outcomes[number] = Outcome(for_engines(drawn[number]), "", "", *gaps)
    return [outcomes[number] for number in range(len(drawn))]


def check(outcomes):
    """Each refusal names a key or a setting, and each model that is accepted is one model to all three."""
    for outcome in outcomes:
        assert not outcome.refusal or any(key in outcome.refusal for key in [*outcome.keys, "rope type"]), outcome
        assert not outcome.engine_error, outcome
        assert outcome.from_transformers < TRANSFORMERS_GAP and outcome.from_engine < ENGINE_GAP, outcome


def first_accepted(drawn, kind, folder, key="rope_scaling"):
    """The first of these that training takes and that has rope of this kind in force, or another key of this value."""
    for changes in drawn:
        (folder / "config.json").write_text(json.dumps(for_engines(changes)))
        value = changes.get(key)
        if kind in ((value or {}).values() if key == "rope_scaling" else [value]) and not refusal(folder):
            return changes
    raise AssertionError(f"none of {len(drawn)} draws has {kind}")


def test_drawn_models_are_refused_or_the_same_to_actor_transformers_and_engine(engine_server, tmp_path):
    drawn = draw(300)
    accepted = [first_accepted(drawn, kind, tmp_path) for kind in ("yarn", "linear")]
    outcomes = compare(engine_server, [*accepted, *drawn[-8:]], tmp_path)
    check(outcomes)
    assert [outcome.refusal for outcome in outcomes[:2]] == ["", ""] and any(outcome.refusal for outcome in outcomes)


def test_drawn_mixtures_are_the_same_to_actor_transformers_and_engine(engine_server, tmp_path):
    """One of each family, one with a dense layer, and one whose experts' weights are not normalised."""
    drawn = draw(200, mixture_variants)
    wanted = [("model_type", family) for family in MIXTURES]
    wanted += [("decoder_sparse_step", 2), ("norm_topk_prob", False)]
    accepted = [first_accepted(drawn, value, tmp_path, key) for key, value in wanted]
    outcomes = compare(engine_server, accepted, tmp_path)
    check(outcomes)
    assert not any(outcome.refusal for outcome in outcomes)


def test_a_model_that_the_engine_read_otherwise_shows(engine_server, tmp_path):
    """Another base of rope behind the engine's back."""

    def change(folder):
        keys = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(keys | {"rope_theta": 500000.0}))

    (outcome,) = compare(engine_server, [{"model_type": "qwen2"}], tmp_path, after_the_engine=change)
    assert outcome.from_transformers < TRANSFORMERS_GAP and outcome.from_engine > 0.1
    (outcome,) = compare(engine_server, [{"model_type": "qwen2", "head_dim": 8}], tmp_path / "other")
    assert "head_dim = 32, but vLLM takes hidden_size / num_attention_heads = 64" in outcome.refusal


@pytest.mark.night("300 draws, about half of them with an engine")
@pytest.mark.parametrize("strategy", [variants, mixture_variants], ids=["dense", "mixtures"])
def test_more_drawn_models(engine_server, tmp_path, strategy):
    drawn = draw(300, strategy)
    for start in range(0, len(drawn), AT_A_TIME):
        check(compare(engine_server, drawn[start : start + AT_A_TIME], tmp_path / str(start)))
