"""Score centering (Marek and Ryabinin, arXiv 2609.20807): of each token's gradient, what its sampler expects of it is
taken out, so that a policy is not drawn to whatever sampled. Pure functions; called by actor/pipeline.py.

At one place of an answer let q be the sampler's distribution over the next token v, p that of the policy which is
trained, and s(v) = dlog p(v) its score. A method pushes the sampled token by a weight c_r(v), which depends on how the
answer ended (r: its verdict, its advantage) and on the token's likelihood ratio p(v) / q(v):

    E_q[ c_r s(v) ]  =  E_q[ sum_u q(u) c_r(u) s(u) ]  +  E_q[ c_r s(v) - sum_u q(u) c_r(u) s(u) ]
                        drift                             signal

Where r says nothing of the token, both answers' ends being as likely after any, the signal is 0: nothing is to be
learned there. The drift is not: it is c_r sum_u q(u) s(u) for a constant weight, the gradient of the cross-entropy
between q and p, which draws p to q (right answers) or away from it (wrong ones), gap by gap, step by step, whatever is
right. Only where q = p is it sum_u p(u) s(u) = 0. So it is subtracted, and no expectation of anything that r knows of
goes with it. What stays of the signal is still an average over q, not p: centering is no importance weighting.

c_r(u) is minus the slope of the method's loss at the log-prob of u, of NFT as of any other, found by differentiating
that loss itself: NFT's are w(q) for right answers, and for wrong ones, with R = p / q,
-w(q) neg_weight (rate R / (1 - rate)) / max((1 - rate R) / (1 - rate), eps). Every method whose loss is a token's own
can be centred.

The engine says q of its k likeliest tokens only. The others are taken together as one more token, of probability
q_rest = 1 - sum q, and p_rest likewise. With s(rest) = dlog p_rest = -sum_head p(u) s(u) / p_rest, that is the paper's
tail, proportional to p; it is exact for k = all, and 0 for q = p whatever k is, since then
sum_head p s + p_rest s(rest) = d(1) = 0.

Shape suffixes: _A answer tokens of any number of sequences, end to end, _K the engine's likeliest tokens, _V those and
the rest.
"""

import torch
from torch import Tensor

from megatron_nft.config import AlgorithmConfig
from megatron_nft.nft.methods import Columns, Method

TOP_IDS, TOP_LOGPROBS = "top_ids", "top_logprobs"
"""Columns that the engine brings with rollout.top_logprobs: ids and log-probs of the likeliest tokens, [A, k]."""
MIN_REST = 1e-6
"""Of q_rest and p_rest: a sum of float32 probabilities may come to 1 and more."""


def centering(
    top_logprobs_AK: Tensor, engine_logprobs_AK: Tensor, columns: Columns, method: Method, algorithm: AlgorithmConfig
) -> Tensor:
    """What to add to each token's loss: 0, with the gradient that takes the sampler's expectation out.

    Args:
        top_logprobs_AK: log-probs of the engine's likeliest tokens under the policy being trained; carry the gradient.
        engine_logprobs_AK: the engine's.
        columns: that the method takes, of the sampled tokens.
    """
    now_AV, engine_AV = with_rest(top_logprobs_AK), with_rest(engine_logprobs_AK)
    slopes_AV = _slopes(now_AV.detach(), engine_AV, columns, method, algorithm)
    return -(engine_AV.exp() * slopes_AV * (now_AV - now_AV.detach())).sum(1)


def with_rest(logprobs_AK: Tensor) -> Tensor:
    """And the log-prob of all other tokens together, [A, K + 1]."""
    rest_A = (1 - logprobs_AK.exp().sum(1)).clamp(min=MIN_REST).log()
    return torch.cat([logprobs_AK, rest_A[:, None]], 1)


def _slopes(now_AV: Tensor, engine_AV: Tensor, columns: Columns, method: Method, algorithm: AlgorithmConfig) -> Tensor:
    """The derivative of the method's loss at each token that the sampler might have taken, held to the sampler's
    log-probs, with all else as it is of the token that was sampled."""
    num_each = now_AV.shape[1]
    of_all = {name: column.repeat_interleave(num_each, 0) for name, column in columns.items()}
    of_all |= {name: engine_AV.flatten() for name in ("old_logprobs", "engine_logprobs") if name in of_all}
    with torch.enable_grad():
        logprobs = now_AV.flatten().requires_grad_()
        losses = method.losses(logprobs, of_all, algorithm)
        (slopes,) = torch.autograd.grad(losses.sum(), logprobs)
    return slopes.view_as(now_AV)
