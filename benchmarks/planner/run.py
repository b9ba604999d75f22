"""Published step times, beside what the planner says of the same models, layouts and lengths.

    python -m benchmarks.planner.run [--markdown]

One set of efficiencies (megatron_nft/plan/hardware.toml) for all rows; a row is its published settings and the
assumptions that its publication leaves open, which are printed with it.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.planner.rows import COMMON, MODELS, NOT_PLANNED, ROWS, Row
from megatron_nft.config import Config
from megatron_nft.families.hf_config import HFConfig, read_hf_config
from megatron_nft.plan.hardware import load_machine
from megatron_nft.plan.planner import Plan, make_plan
from megatron_nft.plan.report import plain
from megatron_nft.plan.workload import Assumptions

WITHIN = 0.25


def plan_row(row: Row, folder: Path) -> Plan:
    """The planner's view of a row."""
    (folder / "config.json").write_text(json.dumps(COMMON | MODELS[row.model]))
    path = str(folder)
    config = Config.model_validate({**row.settings, "model": {"path": path, "reference": path}})
    machine = load_machine(row.machine)
    spread = 1e-9 if "TFLOP" in row.unit else Assumptions().answer_spread
    return make_plan(
        config,
        read_hf_config(path),
        replace(machine, **row.changed),
        Assumptions(
            prompt_tokens=row.prompt_tokens,
            answer_tokens=row.answer_tokens,
            mixed_share=row.mixed_share,
            answer_spread=spread,
        ),
    )


def figure(row: Row, plan: Plan) -> float:
    """What was published, as the planner has it."""
    seconds = {stage.name: stage.seconds for stage in plan.stages}
    if row.unit == "s a sync":
        return seconds["sync"]
    if row.unit == "s a step":
        if not row.is_overlapped:
            return plan.seconds + own_copies(row, plan) + first_scoring(plan)
        generation, own = seconds["rollout"] + seconds["verdict"], own_copies(row, plan) + first_scoring(plan)
        return max(generation, seconds["log-prob"] + seconds["train"] + own) + seconds["sync"]
    tokens = plan.workload.trained * plan.workload.sequence_tokens
    return (
        model_flops_per_token(plan.hf, plan.workload.sequence_tokens)
        * tokens
        / seconds["train"]
        / 1e12
        / (plan.config.actor.world_size)
    )


def own_copies(row: Row, plan: Plan) -> float:
    """Seconds of the copies of a rank's weights that the row's program makes, and this one doesn't."""
    e, size = plan.machine.efficiency, 2 * max(rank.elements for rank in plan.ranks) / 1e9
    return size * (row.weights_out / e.to_host_gb_s + row.weights_back / e.from_host_gb_s)


def first_scoring(plan: Plan) -> float:
    """Seconds of the first update's old log-probs, which others score apart, and this program doesn't."""
    updates, kl = plan.workload.updates, bool(plan.config.algorithm.kl_weight)
    return plan.seconds_of("log-prob") / (updates - 1 + kl * updates) if updates > 1 or kl else 0.0


def model_flops_per_token(hf: HFConfig, tokens: float) -> float:
    """Forward and backward pass, causal attention counted once: what the published TFLOP/s count."""
    parameters = hf.num_hidden_layers * hf.layer_parameters + hf.vocab_size * hf.hidden_size
    return 6 * parameters + 6 * hf.num_hidden_layers * hf.num_attention_heads * hf.head_dim * tokens


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="a table for a results page")
    markdown = parser.parse_args().markdown
    if markdown:
        print("| row | published | planned | difference | stages, s | assumed |\n| --- | --- | --- | --- | --- | --- |")
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_row(row, Path(folder))
        planned, (low, high) = figure(row, plan), row.published
        difference = planned / high - 1 if planned > high else planned / low - 1 if planned < low else 0.0
        stages = ", ".join(f"{stage.name} {stage.seconds:.1f}" for stage in plan.stages)
        for what, own in (("copies", own_copies(row, plan)), ("scoring", first_scoring(plan))):
            stages += f", its own {what} {own:.1f}" if own else ""
        if "step" not in row.unit:
            stages = ""
        published = plain(low) if low == high else f"{plain(low)}-{plain(high)}"
        mark = f"{difference:+.0%}" + ("" if abs(difference) <= WITHIN else " (out)")
        if markdown:
            print(f"| {row.name} | {published} {row.unit} | {plain(planned, 3)} | {mark} | {stages} | {row.assumed} |")
        else:
            print(f"{row.name:60} {published:>9} {row.unit:14} planned {planned:7.1f} {mark:12} {stages}")
    for line in NOT_PLANNED:
        print(f"{'- ' if markdown else ''}not planned: {line}")


if __name__ == "__main__":
    main()
