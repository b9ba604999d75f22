"""The charts of a run's page and of the page of several: which metrics each draws, and what in it is good or bad.

A chart is a row here; it is on a page if one of its metrics was measured, whoever reports it (a method's own, too).
What no chart draws is in the page's table of all metrics, with a small curve. Charts of a `kind` are drawn by code of
their own in page/specs.js. Read by `observe.html` and `observe.compare`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

Lines = tuple[tuple[str, str], ...]
"""(label, metric) of each line."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One of a page."""

    title: str  # "{method}" becomes the run's
    unit: str
    lines: Lines
    good: str  # one sentence: what is good, and what is not
    factor: float = 1  # from the metric's unit to this one
    kind: str = "lines"
    rest: dict[str, Any] = field(default_factory=dict)  # page/charts.js says what there is


NOISY = {"smooth": True}
FROM_0 = {"floor": 0, "smooth": True}
SHARE = {"floor": 0, "ceiling": 100, "smooth": True}
LOG = {"log": True, "smooth": True}
PHASES = ("rollout", "score", "train", "checkpoint", "sync")

LEARNING = (
    Chart(
        title="Mean of the benchmarks", unit="%", kind="average", lines=(("this run", "eval/average"),),
        good="Should rise and then level off; a fall that lasts beyond the shaded interval is a loss, not noise.",
        factor=100, rest={"ceiling": 100},
    ),
    Chart(
        title="Held-out accuracy", unit="%", kind="accuracy",
        lines=(("greedy", "eval/greedy_accuracy"), ("avg@k", "eval/avg_at_k"), ("pass@k", "eval/pass_at_k")),
        good="Should rise; if it stands still while the correct rate below rises, the run learns its prompts by heart.",
        factor=100, rest={"ceiling": 100},
    ),
    Chart(
        title="Benchmarks", unit="%", kind="benchmarks", lines=(("", "eval/avg_at_k"), ("", "eval/greedy_accuracy")),
        good="Each file by itself: of 30 problems one is 3 points, so look at the intervals first.",
        factor=100, rest={"ceiling": 100},
    ),
    Chart(
        title="Correct rate of rollouts", unit="%", lines=(("right answers", "nft/correct_rate"),),
        good="Should rise over tens of steps; near 0 or 100% hardly any group is mixed, and nothing is left to learn.",
        factor=100, rest={"ceiling": 100, **NOISY},
    ),
    Chart(
        title="Groups by correct rate", unit="right in a group", kind="heat", lines=(("groups", "rollout/answers"),),
        good="The bulk should move upwards; what is dark at both ends only, no group can be trained on.",
    ),
    Chart(
        title="{method} loss", unit="nats/token",
        lines=(("loss", "nft/loss"), ("right answers", "nft/loss_right"), ("wrong answers", "nft/loss_wrong")),
        good="{loss}", rest=NOISY,
    ),
    Chart(
        title="Gradient norm", unit="norm", lines=(("before clipping", "actor/grad_norm"),),
        good="Should stay of one size; a rise of ten times over few steps comes before a run breaks.", rest=FROM_0,
    ),
    Chart(
        title="Learning rate", unit="1/update", lines=(("last update", "actor/learning_rate"),),
        good="Should be what the recipe says: up over the warm-up, then level.", rest={"floor": 0},
    ),
    Chart(
        title="Likelihood ratio", unit="ratio", lines=(("mean", "nft/ratio_mean"), ("max", "nft/ratio_max")),
        good="The mean should stay within a few hundredths of 1; far from it the updates of a step go too far.",
        rest=LOG,
    ),
    Chart(
        title="Clamped and clipped tokens", unit="%",
        lines=(("clamped", "nft/clamped_fraction"), ("clipped", "nft/clipped_fraction"),
               ("importance capped", "rollout/importance_capped_fraction")),
        good="A level share is fine; one that grows says that updates go further than the answers bear: learn slower.",
        factor=100, rest=FROM_0,
    ),
    Chart(
        title="Entropy", unit="nats/token", lines=(("policy", "nft/entropy"),),
        good="Falls slowly as the model gets sure; a fall to 0 is a collapse, a steep rise is the way to noise.",
        rest=FROM_0,
    ),
    Chart(
        title="KL to the reference", unit="nats/token", lines=(("estimate", "nft/kl"),),
        good="Grows slowly; a leap says that the policy has left what the reference knows.", rest=FROM_0,
    ),
)  # fmt: skip

ANSWERS = (
    Chart(
        title="Verdicts", unit="%", kind="verdicts",
        lines=tuple((kind, f"verdict/{kind}") for kind in ("right", "wrong", "unparsable", "timeout", "error")),
        good="Right should grow at wrong's expense; a share unparsable that stays is a format the model wasn't taught.",
        rest={"floor": 0, "ceiling": 100},
    ),
    Chart(
        title="Answer length", unit="tokens",
        lines=(("mean", "rollout/answer_tokens_mean"), ("median", "rollout/answer_tokens_p50"),
               ("90th percentile", "rollout/answer_tokens_p90"), ("99th", "rollout/answer_tokens_p99"),
               ("given up at the tail, so far", "rollout/cut_tokens_mean")),
        good="May grow as the model learns to think; at the limit answers are cut, and count as wrong.", rest=FROM_0,
    ),
    Chart(
        title="Groups beyond a step's own", unit="groups",
        lines=(("not needed", "rollout/groups_surplus"), ("under way at the tail", "rollout/groups_cut")),
        good='A tenth or less. With rollout.tail = "drop" those under way are the longest, and are lost.', rest=FROM_0,
    ),
    Chart(
        title="Length of right and wrong answers", unit="tokens",
        lines=(("right, median", "rollout/right_tokens_p50"), ("right, 90th", "rollout/right_tokens_p90"),
               ("wrong, median", "rollout/wrong_tokens_p50"), ("wrong, 90th", "rollout/wrong_tokens_p90")),
        good="Wrong ones are longer as a rule; if only they grow, the run learns to ramble.", rest=FROM_0,
    ),
    Chart(
        title="Truncated answers", unit="%", lines=(("cut at the limit", "rollout/truncated_fraction"),),
        good="Should be near 0; above a few percent raise rollout.max_answer_tokens.", factor=100, rest=SHARE,
    ),
    Chart(
        title="Groups of a step", unit="groups",
        lines=(("mixed", "rollout/groups_mixed"), ("all right", "rollout/groups_all_right"),
               ("all wrong", "rollout/groups_all_wrong"), ("surplus", "rollout/groups_surplus"),
               ("cut", "rollout/groups_cut")),
        good="Only mixed ones teach; if the others outgrow them, the prompts have become too easy or too hard.",
        rest=FROM_0,
    ),
    Chart(
        title="Right by a rule", unit="% of right", kind="rules",
        lines=(("evaluation", "verdict/by_evaluation"), ("rounding", "verdict/by_rounding"),
               ("omission", "verdict/by_omission")),
        good="Should stay level; a rise says that the model has found what the grader lets pass.", rest=FROM_0,
    ),
    Chart(
        title="Log-prob gap, engine to actor", unit="nats/token",
        lines=(("mean", "rollout/logprob_gap_mean"), ("99th percentile", "rollout/logprob_gap_p99"),
               ("max", "rollout/logprob_gap_max"), ("canary", "weights/canary_gap")),
        good="1e-7 in fp32 and 1e-2 in bf16 are rounding; more, or a rise, says that the engines hold other weights.",
        rest=LOG,
    ),
)  # fmt: skip

SPEED = (
    Chart(
        title="Time of a step", unit="s", kind="stages", lines=(("step", "time/step_s"),),
        good="Most should be rollout and train; a stage that grows from step to step grows with the answers, or leaks.",
        rest={"floor": 0},
    ),
    Chart(
        title="Tokens per second and GPU", unit="tokens/s",
        lines=(("rollout", "perf/rollout_tokens_per_s_per_gpu"), ("train", "perf/train_tokens_per_s_per_gpu")),
        good="Level is good; a fall of rollout with longer answers is the KV cache, one of train is imbalance.",
        rest=FROM_0,
    ),
    Chart(
        title="Model FLOPs utilisation", unit="%", lines=(("updates", "perf/mfu"),), factor=100, rest=FROM_0,
        good="30 to 50% is good for dense models in bf16 on H100; below 15% layout or microbatches are too small.",
    ),
    Chart(
        title="Answers on an engine", unit="answers",
        lines=(("decoding", "engine/running_mean"), ("waiting", "engine/waiting_mean")),
        good="Decoding should be near rollout.max_concurrent, and some should wait; few of both is an idle engine.",
        rest=FROM_0,
    ),
    Chart(
        title="KV cache in use", unit="%",
        lines=(("mean", "engine/kv_use_mean"), ("fullest", "engine/kv_use_max")),
        good="Below 100% at its fullest; at 100% answers are thrown out and begun again.", factor=100, rest=SHARE,
    ),
    Chart(
        title="GPU memory, peak by phase", unit="GiB",
        lines=tuple((phase, f"memory/gpu_{phase}_gib") for phase in PHASES),
        good="Should be level from the second step on, and some GiB below what the GPU has.", rest={"floor": 0},
    ),
    Chart(
        title="Host memory, peak by phase", unit="GiB",
        lines=(*((phase, f"memory/host_{phase}_gib") for phase in PHASES), ("driver", "memory/host_driver_gib")),
        good="Should be level from the second step on; what grows for ever ends a run in the night.",
        rest={"floor": 0},
    ),
    Chart(
        title="GPU hours", unit="hours", lines=(("so far", "perf/gpu_hours"),), rest={"floor": 0},
        good="A straight line; a bend upwards is a step that has become slower.",
    ),
    Chart(
        title="Weight sync", unit="GiB/s", lines=(("throughput", "weights/gib_per_s"),), rest=FROM_0,
        good="Level is good; a sync should be a few percent of a step.",
    ),
    Chart(
        title="Staleness of trained tokens", unit="weight syncs", rest={"floor": 0},
        lines=(("mean", "async/staleness_mean"), ("oldest", "async/staleness_max")),
        good="Lower is closer to the policy that trains; it never passes rollout.max_staleness.",
    ),
    Chart(
        title="Groups ahead of the trainer", unit="groups", rest=FROM_0,
        lines=(("ready", "async/queue_groups"), ("under way", "async/groups_under_way"),
               ("carried over a sync", "async/groups_carried"), ("dropped", "async/groups_dropped"),
               ("restarted", "async/groups_restarted")),
        good="Some should be ready; dropped ones are work thrown away: fewer engines, or a larger max_staleness.",
    ),
    Chart(
        title="Idle", unit="s", rest=FROM_0,
        lines=(("trainer", "time/wait_s"), ("engines", "async/engine_idle_s")),
        good="Both small is a balanced run; whichever is large has too many GPUs.",
    ),
)  # fmt: skip

SECTIONS: tuple[tuple[str, tuple[Chart, ...]], ...] = (
    ("Learning", LEARNING),
    ("Answers", ANSWERS),
    ("Speed and memory", SPEED),
)

LOSSES = {
    "nft": "Is negative, falls, then rises towards 0 as accuracy comes: that is success; a leap or a gap in it is not.",
    "rft": "Of right answers only: falls towards 0 as they get likelier; a leap or a gap in it is bad.",
}
"""What is good in the loss, by algorithm.name."""
OTHER_LOSS = "A policy gradient's loss says little: it stays near 0 by design; a leap or a gap in it is bad."


def sections(method: str, measured: Iterable[str]) -> list[dict[str, Any]]:
    """The charts to draw, with the lines that were measured; sections without any are left out.

    Args:
        method: algorithm.name; empty: of several.
        measured: names of all metrics that were.
    """
    there = set(measured)
    words = {"method": method.upper().replace("_", " "), "loss": LOSSES.get(method, OTHER_LOSS)}
    found = []
    for section, charts in SECTIONS:
        drawn = []
        for chart in charts:
            if lines := [line for line in chart.lines if line[1] in there]:
                title = chart.title.format(**words).strip()
                texts = {"title": title[0].upper() + title[1:], "good": chart.good.format(**words)}
                drawn.append({**asdict(chart), **texts, "lines": lines})
        if drawn:
            found.append({"title": section, "charts": drawn})
    return found
