"""NFT and its baselines on a real Megatron model: on-policy equalities, layouts, KL, entropy, broken updates."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import AlgorithmConfig, load_config
from megatron_nft.data.packing import pack
from megatron_nft.observe.batches import load_batch
from tests.parallel.algorithms import ALGORITHMS, BOUNDS, with_top
from tests.parallel.ranks import run_ranks
from tests.parallel.test_layouts import ASSETS, _moved

pytestmark = pytest.mark.parallel
# Too small a rate to move a weight: every method then meets the same model.
STILL = ["actor.tp=1", "optimizer.learning_rate=1e-30", "optimizer.weight_decay=0"]


def sequences():
    """16 answers to prompts of three correct rates, right and wrong ones of each."""
    return load_batch(ASSETS / "batch.npz")[0][:32:2]


def build(rank, master, overrides, stored):
    """A worker, and this rank's microbatches of the given sequences."""
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    config = load_config("launch/recipes/quickstart.toml", [*STILL, *overrides])
    worker = Worker(config, rank=rank, master=master)
    batch = pack([stored], num_updates=1, dp=config.actor.dp, tokens_per_microbatch=config.actor.tokens_per_microbatch)
    return worker, list(batch.updates[0][data_parallel_rank(config.actor, rank)])


def with_scores(worker, microbatches):
    """On-policy: old log-probs as this very worker computes them (at dp=1)."""
    logprobs = [x.cpu().numpy() for x in worker.pipeline.score(microbatches)]
    scored = []
    for microbatch, logprobs_A in zip(microbatches, logprobs, strict=True):
        ends = np.cumsum([s.num_answer_tokens for s in microbatch.sequences])[:-1]
        parts = np.split(logprobs_A, ends)
        pairs = zip(microbatch.sequences, parts, strict=True)
        scored.append(replace(microbatch, sequences=tuple(replace(s, old_logprobs_A=x) for s, x in pairs)))
    return scored


def with_advantages(microbatches, normalize):
    """Advantages from verdicts: reward - p, over the standard deviation for normalize = 2."""

    def advantage(s):
        deviation = (s.correct_rate * (1 - s.correct_rate)) ** 0.5 if normalize == 2 else 1.0
        return replace(s, advantage=(s.verdict - s.correct_rate) / deviation)

    return [replace(m, sequences=tuple(advantage(s) for s in m.sequences)) for m in microbatches]


def gradient(worker, microbatches, **algorithm):
    """This rank's gradient of one update under another algorithm."""
    worker.pipeline.algorithm = AlgorithmConfig(**algorithm)
    worker.pipeline.forward_backward(microbatches)
    return torch.cat([buffer.grad_data.clone() for buffer in worker.model[0].buffers])


# --- On-policy, NFT is GRPO ------------------------------------------------------------------------------------------


def on_policy_gradients(rank, master):
    worker, microbatches = build(rank, master, ["actor.tp=2"], sequences())
    microbatches = with_scores(worker, microbatches)
    found = {}
    for normalize, name in ((1, "dr_grpo"), (2, "grpo")):
        given = with_advantages(microbatches, normalize)
        found[name] = (
            gradient(worker, given, name="nft", normalize=normalize).numpy(),
            gradient(worker, given, name=name, reduction="tokens").numpy(),
        )
    only_right = [replace(m, sequences=tuple(s for s in m.sequences if s.verdict)) for m in microbatches]
    # "published" divides by a constant, so leaving answers out changes nothing else.
    scale = {"reduction": "published", "published_ranks": 1}
    found["rft"] = (
        gradient(worker, microbatches, name="rft_script", **scale).numpy(),
        gradient(worker, [m for m in only_right if m.sequences], name="rft_script", **scale).numpy(),
    )
    halves = [gradient(worker, microbatches, neg_weight=w, **scale).numpy() for w in (0.5, 1.0)]
    # neg_weight is linear: NFT 1 = RFT + 2 (NFT 0.5 - RFT).
    found["linear"] = (halves[1], found["rft"][0] + 2 * (halves[0] - found["rft"][0]))
    worker.shutdown()
    return found


@cache
def on_policy():
    return run_ranks(2, on_policy_gradients)


@pytest.mark.parametrize("name", ["dr_grpo", "grpo", "rft", "linear"])
def test_gradients_agree_at_tp_2(name):
    """dr_grpo: NFT normalize=1 against Dr. GRPO; grpo: normalize=2 against GRPO; the constant between them is 1."""
    for rank in on_policy():
        mine, other = rank[name]
        assert np.linalg.norm(mine) > 1e-3
        assert np.linalg.norm(mine - other) <= 1e-6 * np.linalg.norm(other)


# --- Layouts ---------------------------------------------------------------------------------------------------------


def metrics_of_all(rank, master, overrides, reference):
    """Metrics of one update under every algorithm, from the rank that speaks; and the weights' change."""
    moved = [with_top(_moved(s)) for s in sequences()]
    kl = ["algorithm.kl_weight=0.1", f"model.reference={reference}", "observe.entropy=true"]
    worker, microbatches = build(rank, master, [*overrides, *kl], moved)
    reference_logprobs = worker._by_sequence(microbatches, worker.pipeline.score(microbatches, worker.reference))
    if reference_logprobs is None:  # only the rank that speaks has them, as in a run, where the driver hands them out
        reference_logprobs = [np.zeros(s.num_answer_tokens) for m in microbatches for s in m.sequences]
    if worker.topology.tp_size * worker.topology.cp_size > 1:  # in a run the driver hands the log-probs to all ranks
        box = [reference_logprobs]
        group = worker_group(worker)
        torch.distributed.broadcast_object_list(box, group=group, group_src=0)
        reference_logprobs = box[0]
    each = iter(reference_logprobs)
    microbatches = [
        replace(m, sequences=tuple(replace(s, reference_logprobs_A=next(each)) for s in m.sequences))
        for m in microbatches
    ]
    found = {}
    for name, algorithm in ALGORITHMS.items():
        worker.pipeline.algorithm = AlgorithmConfig(**algorithm)
        found[name] = worker.train_step([microbatches])
    worker.shutdown()
    return found


def worker_group(worker):
    """Of a replica's ranks, which are laid out along one axis here."""
    from megatron.core import parallel_state

    along_context = worker.topology.cp_size > 1
    return getattr(parallel_state, f"get_{'context' if along_context else 'tensor_model'}_parallel_group")()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The model with its last layers' weights scaled: another policy of the same shape."""
    folder = tmp_path_factory.mktemp("reference")
    for file in (ASSETS / "model").iterdir():
        if file.suffix == ".safetensors":
            tensors = load_file(file)
            changed = {k: v * 1.02 if "layers.3" in k else v for k, v in tensors.items()}
            save_file(changed, folder / file.name, {"format": "pt"})
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def oracle(reference):
    return run_ranks(1, metrics_of_all, [], str(reference))[0]


LAYOUTS = [["actor.tp=2", "actor.tokens_per_microbatch=300"], ["actor.dp=2"], ["actor.cp=2"]]


@pytest.mark.parametrize("overrides", LAYOUTS, ids=" ".join)
def test_every_algorithm_is_the_same_in_every_layout(oracle, reference, overrides):
    ranks = run_ranks(2, metrics_of_all, overrides, str(reference))
    for name in ALGORITHMS:
        (metrics,) = [rank[name] for rank in ranks if rank[name] is not None]
        rel = (
            1e-4 if name == "nft, a ratio per answer" else 1e-5
        )  # the exp of a sum over tokens, and of their roundings
        for metric, expected in oracle[name].items():
            assert metrics[metric] == pytest.approx(expected, rel=rel, abs=1e-7), (name, metric)


def test_each_correction_cuts_some_of_these_answers(oracle):
    shares = {"truncate": "truncated", "mask": "masked", "k1": "rejected", "k3": "rejected"}
    for name in BOUNDS:
        share = oracle[f"nft, {name}"][f"nft/{shares[name.split('_')[1]]}_fraction"]
        assert 0.02 < share < 0.98, name
    assert oracle["nft, centred"]["rollout/top_mass"] == pytest.approx(0.71, abs=0.02)


def without_the_rejected(rank, master):
    """(Gradient with answers rejected, gradient without them in the batch) by reduction."""
    moved = [_moved(s) for s in sequences()]
    worker, microbatches = build(rank, master, [], moved)
    d = [(s.old_logprobs_A - s.engine_logprobs_A).astype(np.float64) for s in moved]
    kept = [np.mean(np.expm1(x) - x) <= BOUNDS["sequence_k3"] for x in d]
    assert 0 < sum(kept) < len(kept)
    tokens = {s.token_ids_T.tobytes() for s, keep in zip(moved, kept, strict=True) if keep}
    fewer = [
        replace(m, sequences=tuple(s for s in m.sequences if s.token_ids_T.tobytes() in tokens)) for m in microbatches
    ]
    found = {}
    for reduction in ("tokens", "sequences", "constant"):
        rejecting = {"reduction": reduction, "corrections": {"sequence_k3": BOUNDS["sequence_k3"]}}
        found[reduction] = (
            gradient(worker, microbatches, **rejecting).numpy(),
            gradient(worker, [m for m in fewer if m.sequences], reduction=reduction).numpy(),
        )
    worker.shutdown()
    return found


def test_what_is_rejected_leaves_the_denominator():
    """As if it had not been sampled."""
    for mine, other in run_ranks(1, without_the_rejected)[0].values():
        assert np.linalg.norm(mine) > 1e-3
        assert np.linalg.norm(mine - other) <= 1e-5 * np.linalg.norm(other)


def test_a_centred_gradient_equals_that_of_transformers(oracle):
    """AsymRE's: -A (log pi - sum q log p, the rest of the vocabulary as one token), by autograd."""
    model, sampled = transformers_model(ASSETS / "model"), [with_top(_moved(s)) for s in sequences()]
    loss = 0.0
    for sequence in sampled:
        tokens, first = torch.from_numpy(sequence.token_ids_T).long(), sequence.num_prompt_tokens
        logprobs = torch.log_softmax(model(tokens[None]).logits[0], -1)[first - 1 : -1]
        top = logprobs.gather(1, torch.from_numpy(sequence.columns["top_ids"]).long())
        engine = torch.from_numpy(sequence.columns["top_logprobs"]).exp()
        rest, engine_rest = (1 - top.exp().sum(1)).log(), 1 - engine.sum(1)
        expected = (engine * top).sum(1) + engine_rest * rest
        loss = loss - sequence.advantage * (logprobs.gather(1, tokens[first:, None])[:, 0] - expected).sum()
    (loss / sum(s.num_answer_tokens for s in sampled)).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert norm > 1e-2 and abs(oracle["asymre"]["actor/grad_norm"] - norm) > 1e-3 * norm
    assert oracle["asymre, centred"]["actor/grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_published_scale_is_the_sum_over_tokens_by_1000_and_their_ranks(oracle):
    tokens = sum(s.num_answer_tokens for s in sequences())
    plain = run_ranks(1, plain_step)[0]
    for metric in ("nft/loss", "actor/grad_norm"):
        assert oracle["published"][metric] == pytest.approx(plain[metric] * tokens / 1000 / 2, rel=1e-5)


def plain_step(rank, master):
    worker, microbatches = build(rank, master, [], [_moved(s) for s in sequences()])
    return worker.train_step([microbatches])


def transformers_model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_a_ratio_per_answer_counts_an_answer_once(oracle):
    """By hand: the mean over answers of each one's loss at the product of its tokens' ratios, whatever its length."""
    model, losses, lengths = transformers_model(ASSETS / "model"), [], set()
    for sequence in map(_moved, sequences()):
        tokens, first, p = (
            torch.from_numpy(sequence.token_ids_T).long(),
            sequence.num_prompt_tokens,
            sequence.correct_rate,
        )
        with torch.no_grad():
            logprobs = torch.log_softmax(model(tokens[None]).logits[0], -1)[first - 1 : -1]
        moved = float(logprobs.gather(1, tokens[first:, None])[:, 0].sum()) - float(sequence.old_logprobs_A.sum())
        wrong = math.log(max((1 - p * math.exp(min(moved, 10))) / (1 - p), 1.0))
        losses.append(-(1 - p) * (min(moved, 10) if sequence.verdict else wrong))
        lengths.add(sequence.num_answer_tokens)
    assert max(lengths) > 2 * min(lengths)
    assert oracle["nft, a ratio per answer"]["nft/loss"] == pytest.approx(np.mean(losses), rel=1e-3, abs=1e-5)


def test_kl_and_entropy_equal_those_of_transformers(oracle, reference):
    policy, frozen = map(transformers_model, (ASSETS / "model", reference))
    entropies, divergences = [], []
    for sequence in sequences():
        tokens = torch.from_numpy(sequence.token_ids_T).long()
        first = sequence.num_prompt_tokens
        with torch.no_grad():
            now, other = (
                torch.log_softmax(model(tokens[None]).logits[0], -1)[first - 1 : -1] for model in (policy, frozen)
            )
        entropies.append(-(now.exp() * now).sum(-1))
        difference = (other - now).gather(1, tokens[first:, None])[:, 0]
        divergences.append(difference.exp() - difference - 1)
    assert oracle["dapo"]["nft/entropy"] == pytest.approx(torch.cat(entropies).mean().item(), rel=1e-4)
    assert oracle["dapo, kl"]["nft/kl"] == pytest.approx(torch.cat(divergences).mean().item(), rel=1e-3)
    assert "nft/kl" not in oracle["dapo"]
    weighted = oracle["dapo"]["nft/loss"] + 0.1 * oracle["dapo, kl"]["nft/kl"]
    assert oracle["dapo, kl"]["nft/loss"] == pytest.approx(weighted, rel=1e-5)


def weights_by_the_step(rank, master):
    """Losses of wrong answers in each of three steps of two updates, in a second step by its number, and those at the
    weights that are to hold."""
    schedule = ["algorithm.neg_weight_end=0.5", "algorithm.schedule_steps=2"]
    worker, microbatches = build(rank, master, schedule, [_moved(s) for s in sequences()])
    found = [worker.train_step([microbatches] * 2, step)["nft/loss_wrong"] for step in (None, None, None, 2)]
    worker.pipeline.algorithm = AlgorithmConfig()
    whole = worker.train_step([microbatches])["nft/loss_wrong"]
    worker.shutdown()
    return found, [weight * whole for weight in (1.0, 0.75, 0.5, 0.75)]


def test_weights_go_by_the_step():
    found, expected = run_ranks(1, weights_by_the_step)[0]
    assert found == pytest.approx(expected, rel=1e-5) and abs(found[0]) > 1e-4


# --- Updates that are not finite -------------------------------------------------------------------------------------


def train_on_broken(rank, master, overrides):
    """Three updates, the second with a log-prob that is not a number on data-parallel rank 1."""
    worker, whole = build(rank, master, ["actor.dp=2", "optimizer.learning_rate=1e-3", *overrides], sequences())
    before = [p.detach().clone() for p in worker.model[0].parameters()]
    broken = whole
    if worker.topology.dp_rank == 1:
        first, *others = whole[0].sequences
        nan = replace(first, old_logprobs_A=np.full_like(first.old_logprobs_A, np.nan))
        broken = [replace(whole[0], sequences=(nan, *others)), *whole[1:]]
    moved = []
    reports = []
    for updates in ([broken], [whole], [whole, broken, whole]):
        reports.append(worker.train_step(updates))
        moved.append(max(float((a - b).abs().max()) for a, b in zip(worker.model[0].parameters(), before, strict=True)))
    worker.shutdown()
    return reports, moved


@pytest.mark.parametrize("skip", [True, False])
def test_a_broken_update_never_reaches_the_weights(skip):
    ranks = run_ranks(2, train_on_broken, [f"optimizer.skip_nonfinite={str(skip).lower()}"])
    (reports,) = [rank[0] for rank in ranks if rank[0][0] is not None]
    for _, moved in ranks:
        assert moved[0] == 0 and moved[1] > 0 and np.isfinite(moved).all()
        # Skipping, the third update of the last batch runs; else the broken one is the last.
    assert [r["actor/nonfinite_updates"] for r in reports] == [1, 0, 1]
    answer_tokens = sum(s.num_tokens for s in sequences())
    assert reports[2]["actor/tokens"] == (3 if skip else 2) * answer_tokens
    assert np.isfinite(reports[1]["actor/grad_norm"])
