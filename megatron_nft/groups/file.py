"""Graded groups as a file of a checkpoint: numpy arrays without pickles, end to end, with the lengths beside them.

Prompts are kept by their id: whoever reads the file has them. Called by run/checkpoints.py for the groups of queue.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_nft.cluster.elsewhere import lend
from megatron_nft.groups.queue import Kept
from megatron_nft.observe.batches import column_arrays, read_columns
from megatron_nft.observe.experts_file import add_experts, read_experts
from megatron_nft.types import Prompt, Rollout, RolloutGroup, Verdict


def save_groups(kept: Sequence[Kept], path: Path) -> None:
    """Writes the groups; they must be judged."""
    rollouts = [rollout for item in kept for rollout in item.group.rollouts]
    verdicts = [verdict for item in kept for verdict in item.group.verdicts]
    np.savez(
        path,
        request_id=[item.request_id for item in kept],
        is_ready=[item.is_ready for item in kept],
        is_reported=[item.is_reported for item in kept],
        num_rollouts=[len(item.group.rollouts) for item in kept],
        truncated=[rollout.truncated for rollout in rollouts],
        policy_version=[rollout.policy_version for rollout in rollouts],
        num_newer=[len(rollout.newer_versions) for rollout in rollouts],
        newer=np.array([pair for rollout in rollouts for pair in rollout.newer_versions], np.int64).reshape(-1, 2),
        num_tokens=[len(rollout.token_ids_A) for rollout in rollouts],
        token_ids=np.concatenate([rollout.token_ids_A for rollout in rollouts]),
        engine_logprobs=np.concatenate([rollout.engine_logprobs_A for rollout in rollouts]),
        score=[np.nan if verdict.score is None else verdict.score for verdict in verdicts],
        **column_arrays(rollouts),
        **_texts("prompt_id", [item.group.prompt.prompt_id for item in kept]),
        **_texts("text", [rollout.text for rollout in rollouts]),
        **_texts("kind", [verdict.kind for verdict in verdicts]),
        **_texts("detail", [verdict.detail for verdict in verdicts]),
        **_texts("rule", [verdict.rule for verdict in verdicts]),
    )
    add_experts(path, rollouts)


def load_groups(path: Path, prompts: Mapping[str, Prompt]) -> list[Kept]:
    """The groups of `save_groups`.

    Args:
        prompts: by id; those of the run that wrote the file.
    """
    with np.load(path, allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    ends = np.cumsum(data["num_tokens"])[:-1]
    parts = zip(
        _read_texts(data, "text"),
        np.split(data["token_ids"], ends),
        np.split(data["engine_logprobs"], ends),
        data["truncated"].tolist(),
        data["policy_version"].tolist(),
        np.split(data["newer"], np.cumsum(data["num_newer"])[:-1]),
        read_columns(data, data["num_tokens"]),
        read_experts(data, len(data["num_tokens"])),
        strict=True,
    )
    rollouts = iter(
        [
            Rollout(
                text=text,
                token_ids_A=token_ids,
                engine_logprobs_A=logprobs,
                truncated=truncated,
                policy_version=version,
                newer_versions=tuple((int(first), int(newer)) for first, newer in pairs),
                columns=further,
                experts_R=experts,
            )
            for text, token_ids, logprobs, truncated, version, pairs, further, experts in parts
        ]
    )
    kinds, details = _read_texts(data, "kind"), _read_texts(data, "detail")
    # Neither is in files of earlier versions.
    scores = data.get("score", np.full(len(kinds), np.nan)).tolist()
    rules = _read_texts(data, "rule") if "rule_bytes" in data else [""] * len(kinds)
    verdicts = iter(
        [
            Verdict(kind=kind, detail=detail, rule=rule, score=None if np.isnan(score) else score)
            for kind, detail, rule, score in zip(kinds, details, rules, scores, strict=True)
        ]
    )
    return [
        Kept(
            request_id=request_id,
            group=RolloutGroup(
                prompt=prompts[prompt_id],
                rollouts=tuple(next(rollouts) for _ in range(count)),
                verdicts=tuple(next(verdicts) for _ in range(count)),
            ),
            is_ready=is_ready,
            is_reported=is_reported,
        )
        for request_id, prompt_id, count, is_ready, is_reported in zip(
            data["request_id"].tolist(),
            _read_texts(data, "prompt_id"),
            data["num_rollouts"].tolist(),
            data["is_ready"].tolist(),
            data["is_reported"].tolist(),
            strict=True,
        )
    ]


def fitting(item: Kept, replays_engine: bool) -> Kept:
    """A group of a checkpoint, whose run may have had another actor.routing_replay: one without the experts that are to
    be replayed is not trained on, and another is sampled in its place."""
    rollouts = item.group.rollouts
    if not replays_engine:
        without = tuple(replace(rollout, experts_R=None) for rollout in rollouts)
        return replace(item, group=replace(item.group, rollouts=without))
    if any(rollout.experts_R is None for rollout in rollouts):
        return replace(item, is_ready=False)
    return replace(item, group=lend(item.group))


def _texts(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """UTF-8 end to end: numpy's own arrays of texts give each the room of the longest."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_bytes": [len(text) for text in encoded]}


def _read_texts(data: Mapping[str, np.ndarray], name: str) -> list[str]:
    whole, ends = data[name].tobytes(), np.cumsum(data[f"{name}_bytes"]).tolist()
    return [whole[a:b].decode("utf-8", "surrogatepass") for a, b in zip([0, *ends], ends, strict=False)]
