"""The seeds of a run's rollouts: the same on every machine, different in every round."""

import numpy as np


def sampling_seed(run_seed: int, step: int, sampling_round: int) -> int:
    """The seed of one sampling round of one step. An answer's own seed is made of it, its prompt and its place in the
    group (rollout/vllm/engine.py), so it depends on no engine."""
    return int(np.random.SeedSequence([run_seed, step, sampling_round]).generate_state(1)[0])
