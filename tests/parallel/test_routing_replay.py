"""Routing replay: with experts that a batch brings along, or that scoring has chosen, gradients are those of a
transformers model whose tokens are sent there, in every layout; and what nobody has chosen changes nothing.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_nft.actor.topology import data_parallel_rank
from megatron_nft.config import load_config
from megatron_nft.data.packing import pack
from tests.parallel.forced import own_experts
from tests.parallel.mixtures import MixtureLayout, gathered_gradients, make_mixture
from tests.parallel.oracle import OVERRIDES, load_model, make_updates, one_thread, train, under_hf_names
from tests.parallel.ranks import run_ranks
from tests.parallel.test_mixtures import BOUNDS, worst_of_tensors

pytestmark = pytest.mark.parallel

MODEL = "qwen3_moe mixed"
"""With a dense layer, whose rows say nothing."""
# fmt: off
LAYOUTS = [
    #             tp pp vpp cp dp ep etp recompute  microbatch
    MixtureLayout(1, 1, 1, 1, 1, 1, 1, "full",      "small",  MODEL),
    MixtureLayout(1, 2, 1, 1, 1, 1, 1, "none",      "small",  MODEL),
    MixtureLayout(1, 2, 1, 1, 1, 1, 1, "full",      "small",  MODEL),
    MixtureLayout(1, 1, 1, 2, 1, 2, 1, "selective", "small",  MODEL),
    MixtureLayout(2, 1, 1, 1, 1, 2, 1, "full",      "small",  MODEL),
]
AT_NIGHT = [
    MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none",      "small",  MODEL),
    MixtureLayout(1, 1, 1, 1, 1, 1, 1, "selective", "single", MODEL),
    MixtureLayout(1, 2, 2, 1, 1, 1, 1, "full",      "single", MODEL),
    MixtureLayout(1, 4, 1, 1, 1, 1, 1, "full",      "small",  MODEL),
    MixtureLayout(1, 1, 1, 1, 2, 2, 1, "full",      "small",  MODEL),
    MixtureLayout(2, 2, 1, 1, 1, 2, 1, "full",      "small",  MODEL),
    MixtureLayout(1, 2, 1, 2, 1, 2, 1, "full",      "small",  MODEL),
    MixtureLayout(2, 1, 1, 2, 1, 2, 2, "full",      "large",  MODEL),
    MixtureLayout(2, 1, 1, 1, 2, 2, 2, "full",      "small",  MODEL),
]
# fmt: on
SEVEN = 7
"""Microbatches of the first update, where the layout has one replica."""


def run_rank(rank, master, model, overrides, updates, scores_first, loser=None):
    """(log-probs by sequence, metrics, gradient of each update, microbatches of each) of one step of these updates.

    Args:
        loser: a rank that has lost the experts of the longest sequences.
    """
    torch.set_num_threads(1)
    from megatron_nft.actor.worker import Worker

    paths = [f"model.path={json.dumps(model)}", "data.max_prompt_tokens=40", "rollout.max_answer_tokens=80"]
    config = load_config("launch/recipes/quickstart.toml", [*paths, *OVERRIDES, *overrides])
    worker = Worker(config, rank=rank, master=master)
    replica, budget = data_parallel_rank(config.actor, rank), config.actor.tokens_per_microbatch
    share = [
        pack(groups, num_updates=1, dp=config.actor.dp, tokens_per_microbatch=budget).updates[0][replica]
        for groups in updates
    ]
    if rank == loser:
        share = [[replace(m, sequences=tuple(map(without_experts, m.sequences))) for m in update] for update in share]
    scores, gradients, step = {}, [], worker.optimizer.step
    if scores_first:
        flat = [m for update in (share[1:] if scores_first == "later" else share) for m in update]
        found = worker.score(flat)
        sequences = [s for m in flat for s in m.sequences]
        scores = {s.token_ids_T.tobytes(): x for s, x in zip(sequences, found, strict=True)} if found else {}

    def keep_then_step():
        gradients.append(gathered_gradients(worker))
        return step()

    worker.optimizer.step = keep_then_step
    metrics = worker.train_step(share)
    worker.shutdown()
    return scores, metrics, gradients, [len(update) for update in share]


def without_experts(sequence):
    return replace(sequence, experts_R=sequence.experts_R[:0]) if sequence.num_answer_tokens > 30 else sequence


def run(folder, layout, mode, updates, scores_first=True, loser=None):
    overrides = [*layout.overrides, f"actor.routing_replay={mode}"]
    ranks = run_ranks(layout.num_processes, run_rank, str(folder), overrides, updates, scores_first, loser)
    (metrics,) = [rank[1] for rank in ranks if rank[1]]
    return ranks, metrics


def worst_gradients(ranks, outcome):
    return [
        worst_of_tensors([rank[2][number] for rank in ranks], under_hf_names(expected), relative=True)
        for number, expected in enumerate(outcome.gradients)
    ]


@one_thread()
def with_experts(updates, experts_of):
    return [[[replace(s, experts_R=experts_of(s)) for s in group] for group in update] for update in updates]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = make_mixture(MODEL, tmp_path_factory.mktemp("mixture"))
    return folder, make_updates(folder)


@pytest.fixture(scope="module")
def at_random(mixture):
    """One update whose tokens go to experts of chance, some of them where the router sends them; and the oracle's."""
    folder, updates = mixture
    numbers = np.random.default_rng(5)

    def experts_of(sequence):
        known = sequence.num_tokens - 1 - 3 * (sequence.num_tokens % 2)
        return numbers.random((max(known, 0), 4, 8)).argsort(-1)[:, :, :2].astype(np.uint8)

    forced = with_experts(updates[:1], experts_of)
    return folder, forced, train(folder, forced), train(folder, updates[:1])


def check_forced_experts(at_random, layout):
    folder, updates, outcome, unforced = at_random
    ranks, metrics = run(folder, layout, "engine", updates)
    scores = {tokens: x for rank in ranks for tokens, x in rank[0].items()}
    assert scores.keys() == outcome.logprobs.keys()
    assert max(float(np.abs(scores[t] - x).max()) for t, x in outcome.logprobs.items()) < BOUNDS["log-probs"]
    assert max(float(np.abs(scores[t] - x).max()) for t, x in unforced.logprobs.items()) > 0.1
    ((worst, where),) = worst_gradients(ranks, outcome)
    assert worst < BOUNDS["gradients"], where
    assert metrics["actor/grad_norm"] == pytest.approx(outcome.metrics[0]["actor/grad_norm"], rel=1e-5)
    if layout.dp == 1 and layout.microbatch == "small":
        assert ranks[0][3] == [SEVEN]
    # Two experts of eight, by chance: three of four are others than the router's.
    assert 0.6 < metrics["actor/experts_differ"] < 0.9
    read = sum(s.num_tokens - 1 for group in updates[0] for s in group)
    known = sum(len(s.experts_R) for group in updates[0] for s in group)
    assert metrics["actor/experts_missing"] == pytest.approx(1 - known / read) and known < read


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_with_experts_of_chance_are_the_oracles(at_random, layout):
    check_forced_experts(at_random, layout)


@pytest.mark.night("two axes at once, virtual stages, data-parallel ranks, whole experts cut")
@pytest.mark.parametrize("layout", AT_NIGHT, ids=str)
def test_gradients_with_experts_of_chance_in_other_layouts(at_random, layout):
    check_forced_experts(at_random, layout)


def test_what_a_rank_has_lost_no_rank_replays(at_random):
    folder, updates, *_ = at_random
    outcome = train(folder, [[list(map(without_experts, group)) for group in updates[0]]])
    ranks, metrics = run(folder, LAYOUTS[1], "engine", updates, loser=1)
    ((worst, where),) = worst_gradients(ranks, outcome)
    assert worst < BOUNDS["gradients"], where
    assert metrics["actor/experts_missing"] > 0.5


def test_the_actors_own_choice_is_that_of_before_the_first_update(mixture):
    """Two updates of one step: in the second, other weights meet the experts of scoring."""
    folder, updates = mixture
    model = load_model(folder)
    outcome = train(folder, with_experts(updates[:2], lambda s: own_experts(model, s)))
    layout = MixtureLayout(1, 2, 1, 1, 1, 1, 1, "full", "small", MODEL)
    ranks, metrics = run(folder, layout, "actor", updates[:2])
    (first, _), (second, where) = worst_gradients(ranks, outcome)
    assert first < BOUNDS["gradients"] and second < BOUNDS["gradients"], where
    assert 0 < metrics["actor/experts_differ"] < 0.2 and "actor/experts_missing" not in metrics
    _, (chosen_anew, _) = worst_gradients(ranks, train(folder, updates[:2]))
    assert chosen_anew > 10 * BOUNDS["gradients"]


def test_in_fp32_the_routers_own_experts_change_nothing(mixture):
    folder, updates = mixture
    model = load_model(folder)
    layout = MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none", "small", MODEL)
    off, plain = run(folder, layout, "off", updates[:1])
    on, replayed = run(folder, layout, "engine", with_experts(updates[:1], lambda s: own_experts(model, s)[:-1]))
    assert replayed.pop("actor/experts_differ") == 0 and replayed.pop("actor/experts_missing") == 0
    gaps = [replayed.pop(f"rollout/unreplayed_gap_{name}") for name in ("mean", "p99")]
    assert gaps[1] > gaps[0] > 0  # of engine log-probs that are zeros here
    assert replayed == pytest.approx(plain, rel=1e-6)
    assert max(float(np.abs(off[0][0][tokens] - x).max()) for tokens, x in on[0][0].items()) <= 1e-6


def test_a_first_update_that_scores_itself_replays_the_engines_experts(at_random):
    folder, updates, *_ = at_random
    layout = MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none", "large", MODEL)
    unscored = [[[replace(s, old_logprobs_A=None) for s in group] for group in update] for update in updates]
    _, metrics = run(folder, layout, "engine", unscored, scores_first=False)
    assert 0.6 < metrics["actor/experts_differ"] < 0.9 and metrics["rollout/unreplayed_gap_mean"] > 0


def test_a_first_update_that_scores_itself_chooses_its_experts(mixture):
    folder, updates = mixture
    layout = MixtureLayout(1, 1, 1, 1, 1, 1, 1, "full", "large", MODEL)
    first = [[replace(s, old_logprobs_A=None) for s in group] for group in updates[0]]
    _, metrics = run(folder, layout, "actor", [first, updates[1]], scores_first="later")
    assert 0 < metrics["actor/experts_differ"] < 0.2


@pytest.mark.parametrize(
    ("mode", "experts", "words"),
    [
        ("engine", None, "a sequence comes without"),
        ("engine", (2, 2), r"\[2, 2\] a token.* the model has 4 layers, 2 experts a token"),
        ("actor", None, "was not scored before"),
    ],
)
def test_nothing_to_replay_is_refused(mixture, mode, experts, words):
    folder, updates = mixture
    layout = MixtureLayout(1, 1, 1, 1, 1, 1, 1, "none", "large", MODEL)
    given = with_experts(updates[:1], lambda s: experts and np.zeros((3, *experts), np.uint8))
    with pytest.raises(AssertionError, match=words):
        run(folder, layout, mode, given, scores_first=False)
