"""What a recipe's verdicts need, found out before a run: graders of one's own that can be used, and say what the method
takes.

    python -m megatron_nft.verdict.check RECIPE [section.key=value ...]

Judge and doctor call it. Exit status 0, or 2 with the reasons.
"""

import argparse
import sys
from collections.abc import Collection, Iterable, Sequence

from megatron_nft.config import OWN_GRADER, RecipeError, VerdictConfig, add_overrides, load_config
from megatron_nft.data.errors import DataError
from megatron_nft.families.hf_config import ModelFolderError
from megatron_nft.types import Prompt
from megatron_nft.verdict.graders import mode_of
from megatron_nft.verdict.own_grader import loads
from megatron_nft.verdict.pool import PRELOAD, GradingPool, nothing
from megatron_nft.verdict.tries import try_graders

IMPORT_DEADLINE_S = 60.0


def own_graders(config: VerdictConfig) -> list[str]:
    """The graders of one's own that the recipe names, each once."""
    return list(dict.fromkeys(mode for mode in config.modes.values() if OWN_GRADER.fullmatch(mode)))


def check_own_graders(config: VerdictConfig) -> None:
    """Imports them in a worker process of the run's memory limit, not here.

    Raises:
        RecipeError: one can't be imported, isn't a function, or doesn't take what it is given.
    """
    names = own_graders(config)
    if not names:
        return
    pool = GradingPool(1, nothing, PRELOAD, config.memory_gib)
    try:
        verdicts = dict(zip(names, pool.run([(loads, name) for name in names], IMPORT_DEADLINE_S), strict=True))
    finally:
        pool.close()
    problems = [
        f"  verdict.modes: {source!r} = {name!r}: {_reason(verdicts[name].kind, verdicts[name].detail)}"
        for source, name in config.modes.items()
        if name in verdicts and not verdicts[name].is_right
    ]
    if problems:
        raise RecipeError("\n".join(["graders that can't be used:", *problems]))


def check_rewards(config: VerdictConfig, sources: Collection[str]) -> None:
    """A run that trains pays for what its graders call right.

    Args:
        sources: data sources of the prompts that are trained on; what is held out earns nothing.

    Raises:
        RecipeError: whole_text is to pay for answers of a data source that verdict.loose_rewards doesn't name.
    """
    loose = [source for source, mode in config.modes.items() if mode == "whole_text" and source in sources]
    unnamed = sorted(set(loose) - set(config.loose_rewards))
    if unnamed:
        raise RecipeError(
            f"verdict.modes grades {', '.join(map(repr, unnamed))} by whole_text, which is unfit for rewards "
            '("41 or 42" is right for 42): choose another mode, or name them in verdict.loose_rewards'
        )


ASKED_BY = {"boxed": "boxed", "strict_boxed": "boxed", "dapo_line": "answer:", "answer_line": "answer"}
"""Mode -> what a prompt says, in lower case, that asks for what the mode reads."""


def silent_prompts(prompts: Iterable[Prompt], config: VerdictConfig) -> list[str]:
    """A line for each data source of which no prompt asks for what its mode reads."""
    counts: dict[str, list[int]] = {}
    for prompt in prompts:
        word = ASKED_BY.get(mode_of(prompt.data_source, config.modes), "")
        its = counts.setdefault(prompt.data_source, [0, 0])
        its[0] += 1
        its[1] += word in prompt.text.lower()
    return [
        f"none of the {total} prompts of {source!r} has the word {ASKED_BY[mode]!r}, and mode {mode!r} reads no other "
        "answer: let data.system_prompt or the data ask for it, or choose another in verdict.modes"
        for source, (total, asking) in counts.items()
        if not asking and (mode := mode_of(source, config.modes))
    ]


def _reason(kind: str, detail: str) -> str:
    if kind == "timeout":
        return f"not imported within {IMPORT_DEADLINE_S:g} s; have its module do less when it is imported"
    return detail


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_nft.verdict.check",
        description="Checks before a run what its verdicts need: that graders of one's own can be used, and that the "
        "method takes what they say of made answers to the first training prompts.",
    )
    parser.add_argument("recipe", help="TOML file")
    add_overrides(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(arguments.recipe, arguments.overrides)
        check_own_graders(config.verdict)
        try_graders(config, own_graders(config.verdict))
    except (RecipeError, ModelFolderError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    for name in own_graders(config.verdict):
        print(f"ok   {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
