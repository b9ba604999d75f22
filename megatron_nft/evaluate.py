"""The benchmarks: a model folder and data files in, accuracies with intervals and the paper's table out.

    megatron-nft evaluate --model runs/nft/hf --data aime24.parquet math500.parquet --n 32 --n-of math500=1
    megatron-nft evaluate my.toml evaluate.samples=4                 (model.path on data.held_out)

vLLM engines answer (sharded over rollout.engines of them; no actor is started), the judge grades. An
interrupted evaluation goes on where it was: answers are kept as they come. Written to --out:

    samples.jsonl     every answer, a prompt a line
    model_files.json  sizes, times and digests of the model's files: what is unchanged isn't read again
    verdicts.jsonl    what became of each, in the same order
    evaluation.json   all numbers, under the names of observe/metrics.py
    table.txt         the tables
    report.html       the tables, and answers to read
    recipe.toml       the resolved settings

A run evaluates itself as it goes (data.held_out, train.evaluate_every): run/held_out.py.

Exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from megatron_nft.cluster.fleet import Fleet
from megatron_nft.cluster.nodes import ClusterError
from megatron_nft.cluster.placement import ray_cluster
from megatron_nft.cluster.stream import stream_answers
from megatron_nft.config import Config, RecipeError, to_toml
from megatron_nft.data.benchmarks import Benchmark, load_benchmarks, prompts_of
from megatron_nft.data.prompts import DataError, load_tokenizer
from megatron_nft.evaluation.command_line import parse_arguments, read_settings
from megatron_nft.evaluation.model_files import model_digest
from megatron_nft.evaluation.page import render_evaluation
from megatron_nft.evaluation.samples import SamplesError, SamplesFile
from megatron_nft.evaluation.scores import BenchmarkScores, GradedPrompt, average, score
from megatron_nft.evaluation.table import text_tables
from megatron_nft.families.hf_config import ModelFolderError, read_hf_config
from megatron_nft.families.serving import check_served
from megatron_nft.families.weight_files import check_weights
from megatron_nft.observe.published import column_of
from megatron_nft.observe.terminal import Progress
from megatron_nft.rollout.api import EngineError, Request, requests_of
from megatron_nft.rollout.vllm.arguments import check_arguments
from megatron_nft.run.held_out import evaluation_sampling
from megatron_nft.types import Prompt
from megatron_nft.verdict.check import silent_prompts
from megatron_nft.verdict.graders import mode_of
from megatron_nft.verdict.grading import final_answer, opens_thought
from megatron_nft.verdict.judge import Judge, JudgeError

SAMPLES, MODEL_FILES = "samples.jsonl", "model_files.json"


def evaluate_benchmarks(config: Config, out: Path) -> list[BenchmarkScores]:
    """An evaluation from its settings to its tables; leaves the files in `out`.

    Raises:
        ModelFolderError, DataError, SamplesError, RecipeError: before any engine starts.
    """
    start = time.perf_counter()
    hf = read_hf_config(config.model.path)
    check_weights(config.model.path, hf)
    check_served(hf, config.model.path, max_tokens=config.max_sequence_tokens, device=config.cluster.device)
    check_arguments(config, starts_empty=False)
    tokenizer = load_tokenizer(config.model.path)
    benchmarks = load_benchmarks(config.data.held_out, tokenizer, config.data, config.evaluate.max_prompts)
    num_samples = samples_of(config, benchmarks)
    for benchmark in benchmarks:
        k = num_samples[benchmark.name]
        prompts = f"{benchmark.num_prompts} prompts{benchmark.remarks}"
        _say(f"{benchmark.name}: {prompts}, {k} answer{'s' if k > 1 else ''} each")
    for line in silent_prompts(prompts_of(benchmarks), config.verdict):
        _say(f"data: {line}")
    settings = sampling_settings(config, out)
    with ExitStack() as parts:
        samples = parts.enter_context(SamplesFile(out / SAMPLES, settings))
        (out / "recipe.toml").write_text(to_toml(config), encoding="utf-8")
        judge = parts.enter_context(Judge(config.verdict))
        judge.warm_up()  # before hours of sampling, not after
        missing = find_missing(benchmarks, num_samples, samples)
        num_missing = sum(map(len, missing.values()))
        if num_kept := sum(len(benchmark.prompts) for benchmark in benchmarks) - num_missing:
            _say(f"{num_kept} prompts are answered already, {num_missing} are left")
        if missing:
            sample_with_engines(config, missing, samples)
        graded = {b.name: grade(b, num_samples[b.name], samples, judge, config) for b in benchmarks}
    scores = [
        score(
            b.name,
            column_of(b.name, b.data_source),
            graded[b.name],
            b.num_too_long,
            num_samples[b.name],
            config.run.seed,
            mode_of(b.data_source, config.verdict.modes),
        )
        for b in benchmarks
    ]
    _write_results(out, config, settings, benchmarks, graded, scores)
    _say(f"\n{(out / 'table.txt').read_text(encoding='utf-8')}")
    _say(f"done in {time.perf_counter() - start:.0f} s; everything is in {out}")
    return scores


def samples_of(config: Config, benchmarks: Sequence[Benchmark]) -> dict[str, int]:
    """Benchmark -> answers per prompt: evaluate.samples_of, or else evaluate.samples.

    Raises:
        RecipeError: evaluate.samples_of names no benchmark, or nothing is to be sampled.
    """
    names = [benchmark.name for benchmark in benchmarks]
    for name in config.evaluate.samples_of:
        if name not in names:
            raise RecipeError(
                f"evaluate.samples_of (--n-of) names {name!r}, which is no benchmark here: {', '.join(names)}"
            )
    counts = {name: config.evaluate.samples_of.get(name, config.evaluate.samples) for name in names}
    for name, count in counts.items():
        if count < 1:
            raise RecipeError(
                f"evaluate.samples (--n) = {count}: nothing would be sampled for {name}; set it to 1 or more"
            )
    return counts


def sampling_settings(config: Config, out: Path) -> dict[str, Any]:
    """All that an answer depends on, besides its prompt. Reads a model that `out` doesn't know, a second a GB."""
    return {
        "model": model_digest(Path(config.model.path), out / MODEL_FILES),
        "temperature": config.evaluate.temperature,
        "top_p": config.evaluate.top_p,
        "max_answer_tokens": config.rollout.max_answer_tokens,
        "seed": config.run.seed,
        "dtype": config.rollout.dtype,
    }


def find_missing(
    benchmarks: Sequence[Benchmark], num_samples: dict[str, int], samples: SamplesFile
) -> dict[int, list[Prompt]]:
    """Answers per prompt -> the prompts of which so many aren't kept."""
    missing: dict[int, list[Prompt]] = {}
    for benchmark in benchmarks:
        count = num_samples[benchmark.name]
        for prompt in benchmark.prompts:
            if samples.answers(prompt, count) is None:
                missing.setdefault(count, []).append(prompt)
    return missing


def sample_with_engines(config: Config, missing: dict[int, list[Prompt]], samples: SamplesFile) -> None:
    """Starts engines and has them answer the missing prompts."""
    rollout = config.rollout
    _say(f"{rollout.engines} vLLM engines (tp {rollout.tp}, {rollout.dtype}, {config.cluster.device}) | starting ...")
    with ray_cluster(config, with_actors=False) as placement:
        engines = Fleet(config, placement)
        engines.begin_build().wait()
        sample(engines, config, missing, samples)


def sample(engines: Fleet, config: Config, missing: dict[int, list[Prompt]], samples: SamplesFile) -> None:
    """Has the engines answer the prompts; keeps each one's answers as soon as they are whole."""
    progress = Progress(sys.stdout, "sampling", sum(map(len, missing.values())), "prompts")
    requests: list[Request] = []
    # Many answers first: the engines are then never left with a few prompts and much to do.
    for count, prompts in sorted(missing.items(), reverse=True):
        requests += requests_of(prompts, evaluation_sampling(config, count), len(requests))
    for done, (_, group) in enumerate(stream_answers(engines, requests, config.rollout), 1):
        samples.append(group)
        progress.update(done)
    progress.clear()


def grade(
    benchmark: Benchmark, num_samples: int, samples: SamplesFile, judge: Judge, config: Config
) -> list[GradedPrompt]:
    """The benchmark's prompts with their answers and verdicts."""
    answers = [samples.answers(prompt, num_samples) for prompt in benchmark.prompts]
    cases = [
        (answer.text, prompt)
        for prompt, its_answers in zip(benchmark.prompts, answers, strict=True)
        for answer in its_answers
    ]
    texts, prompts = zip(*cases, strict=True)
    golds, sources = [p.ground_truth for p in prompts], [p.data_source for p in prompts]
    verdicts = iter(judge.judge_answers(texts, golds, sources, prompts=prompts))
    return [
        GradedPrompt(
            answers=its_answers,
            finals=tuple(
                final_answer(
                    answer.text,
                    mode_of(prompt.data_source, config.verdict.modes),
                    config.verdict.thoughts,
                    opens_thought(prompt),
                )
                for answer in its_answers
            ),
            verdicts=tuple(next(verdicts) for _ in its_answers),
        )
        for prompt, its_answers in zip(benchmark.prompts, answers, strict=True)
    ]


def _write_results(
    out: Path,
    config: Config,
    sampled_with: dict[str, Any],
    benchmarks: Sequence[Benchmark],
    graded: dict[str, list[GradedPrompt]],
    scores: Sequence[BenchmarkScores],
) -> None:
    with (out / "verdicts.jsonl").open("w", encoding="utf-8") as file:
        for benchmark in benchmarks:
            for prompt, result in zip(benchmark.prompts, graded[benchmark.name], strict=True):
                record = {"prompt_id": prompt.prompt_id, "rights": result.rights}
                record |= {
                    "verdicts": [v.kind for v in result.verdicts],
                    "details": [v.detail for v in result.verdicts],
                    "rules": [v.rule for v in result.verdicts],
                }
                file.write(json.dumps(record) + "\n")
    mean = average(scores)
    results = {
        "model": config.model.path,
        "settings": sampled_with,
        "benchmarks": {
            s.name: {"column": s.column, **s.metrics, "pass_at": {str(k): x for k, x in s.pass_at.items()}}
            for s in scores
        },
        "average": None if mean is None else dict(zip(("avg_at_k", "low", "high"), mean, strict=True)),
    }
    (out / "evaluation.json").write_text(json.dumps(results, indent=1) + "\n")
    model = Path(config.model.path).resolve().name
    settings = ", ".join(f"{name} {value}" for name, value in sampled_with.items() if name != "model")
    (out / "table.txt").write_text(text_tables(model, scores) + "\n", encoding="utf-8")
    answers = {b.name: list(zip(b.prompts, graded[b.name], strict=True)) for b in benchmarks}
    page = render_evaluation(model, settings, scores, answers, config.run.seed)
    (out / "report.html").write_text(page, encoding="utf-8")


def _say(line: str) -> None:
    print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    arguments = parse_arguments(__doc__, argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config, out = read_settings(arguments)
        evaluate_benchmarks(config, out)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except (ClusterError, EngineError, JudgeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RecipeError, ModelFolderError, DataError, SamplesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
