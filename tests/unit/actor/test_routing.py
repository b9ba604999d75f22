"""What a router takes: the replayed expert where one is known, with its own probability; and what is counted of it."""

import numpy as np
import pytest
import torch

pytest.importorskip("megatron.core")
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function

from megatron_nft.actor.packed import pack_tokens
from megatron_nft.actor.routing import RoutedPass, _Router
from megatron_nft.actor.topology import Topology
from megatron_nft.types import MicroBatch, TrainSequence

LOGITS = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [4.0, 1.0, 2.0, 3.0]])


def routed(now, **settings):
    """Of Megatron's own function: [tokens, experts] probabilities."""
    logits, router = LOGITS.clone().requires_grad_(), _Router(5)
    router.now = now
    return topk_routing_with_score_function(logits, 2, router_replay=router, **settings)[0], logits


def replay(known=(True, True, False)):
    experts = torch.tensor([[0, 3], [3, 2], [2, 1]], dtype=torch.uint8)
    counts = torch.zeros(2, dtype=torch.float64)
    return RoutedPass({5: experts}, torch.tensor(known), differing=counts)


def softmax(*values):
    return torch.tensor(values).softmax(0).tolist()


def test_known_tokens_go_where_they_went_and_others_where_they_would():
    now = replay()
    probabilities, _ = routed(now)
    a, b = softmax(4.0, 1.0)
    c, d = softmax(4.0, 3.0)
    expected = [[a, 0, 0, b], [0, 0, d, c], [c, 0, 0, d]]
    torch.testing.assert_close(probabilities, torch.tensor(expected))
    # Of the four choices that are replayed, the router would have made all but the first token's second.
    assert now.differing.tolist() == [1, 4]


def test_probabilities_of_all_experts_stay_their_own():
    """Softmax before the choice, as without norm_topk_prob; and a sigmoid's."""
    probabilities, _ = routed(replay(), use_pre_softmax=True)
    everything = LOGITS.softmax(-1).tolist()
    assert probabilities[0].tolist() == pytest.approx([everything[0][0], 0, 0, everything[0][3]])
    scores = LOGITS.sigmoid().tolist()
    biased, _ = routed(replay(), score_function="sigmoid", expert_bias=torch.tensor([0.0, 0.0, 9.0, 0.0]))
    total = scores[0][0] + scores[0][3]
    assert biased[0].tolist() == pytest.approx([scores[0][0] / total, 0, 0, scores[0][3] / total])


def test_the_gradient_reaches_the_replayed_experts_logits():
    probabilities, logits = routed(replay())
    probabilities[0, 3].backward()
    a, b = softmax(4.0, 1.0)
    assert logits.grad[0].tolist() == pytest.approx([-a * b, 0, 0, a * b]) and not logits.grad[1:].any()


def test_what_is_recorded_replays_to_the_same():
    recorded = {}
    plain, _ = routed(None)
    first, _ = routed(RoutedPass(recorded_TK=recorded))
    again, _ = routed(RoutedPass(recorded))
    assert torch.equal(first, plain) and torch.equal(again, plain)
    assert recorded[5].tolist() == [[0, 1], [3, 2], [0, 3]] and recorded[5].dtype == torch.int16


@pytest.mark.parametrize("cp", [1, 2])
def test_a_pack_says_whose_tokens_it_has(cp):
    """Of two sequences, padded for context parallelism and to a multiple of three: each rank's own, in its order."""
    sequences = [
        TrainSequence(
            token_ids_T=np.arange(first, first + length, dtype=np.int32), num_prompt_tokens=1, verdict=1.0,
            correct_rate=0.5, engine_logprobs_A=np.zeros(length - 1, np.float32),
        )
        for first, length in ((100, 7), (200, 5))
    ]  # fmt: skip
    tokens = np.concatenate([s.token_ids_T for s in sequences])
    found = []
    for rank in range(cp):
        topology = Topology(
            tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, cp_rank=rank, cp_size=cp, dp_rank=0, dp_size=1,
            device=torch.device("cpu"),
        )  # fmt: skip
        pack = pack_tokens(MicroBatch(sequences=tuple(sequences)), topology, multiple_of=5)
        source, real = pack.source_T.numpy(), pack.source_T.numpy() >= 0
        assert pack.token_ids_T.numpy()[real].tolist() == tokens[source[real]].tolist()
        assert not pack.token_ids_T.numpy()[~real].any()
        found += source[real].tolist()
    assert sorted(found) == list(range(len(tokens)))
    empty = pack_tokens(MicroBatch(sequences=()), topology, multiple_of=5)
    assert len(empty.source_T) == len(empty.token_ids_T)
