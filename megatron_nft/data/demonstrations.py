"""Given answers to learn from: rows -> prompts and answers as tokens, in an endless, resumable order.

Called by run/supervised.py. Rows are those of data/rows.py, whose answer is a whole text: the last message, of the
assistant's, or else a column; what is right or wrong has no say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_nft.config import Config
from megatron_nft.data.chat import Renderer
from megatron_nft.data.errors import DataError
from megatron_nft.data.files import no_rows, read_rows, stem_of
from megatron_nft.data.prompts import PromptStream, messages_to_ask
from megatron_nft.data.rows import QUESTIONS, messages_of
from megatron_nft.data.tokenizer import stop_ids, tokenize
from megatron_nft.data.vocabulary import within_vocabulary
from megatron_nft.types import Prompt, TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("response", "completion", "solution", "answer")
"""Columns that a given answer may stand in; the first that a row has counts."""


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """All usable rows of some files, in the files' order."""

    prompts: tuple[Prompt, ...]  # whose ground truth is the answer's text
    answers: dict[str, np.ndarray]  # prompt_id -> int32 [A], with the token that ends an answer
    num_too_long: int  # left out: data.max_prompt_tokens, or rollout.max_answer_tokens
    num_blank: int = 0  # left out: an answer of nothing teaches to end at once

    def sequence(self, prompt: Prompt, *, learns_prompt: bool) -> TrainSequence:
        """A row, ready for the loss: to be learned is the answer, or all but the first token."""
        tokens = np.concatenate([prompt.token_ids_P, self.answers[prompt.prompt_id]]).astype(np.int32)
        num_given = 1 if learns_prompt else len(prompt.token_ids_P)
        return TrainSequence(
            token_ids_T=tokens,
            num_prompt_tokens=num_given,
            verdict=1.0,
            correct_rate=0.5,  # of no group
            engine_logprobs_A=(nothing_A := np.zeros(len(tokens) - num_given, np.float32)),
            old_logprobs_A=nothing_A,  # nothing asks for them
        )


class InOrder(PromptStream):
    """The rows as the files have them, epoch after epoch."""

    def _shuffled(self) -> np.ndarray:
        return np.arange(len(self.prompts))


def load_demonstrations(files: Sequence[str], tokenizer: "PreTrainedTokenizerBase", config: Config) -> Demonstrations:
    """Reads, renders and tokenizes the rows of all files.

    Raises:
        DataError: a file is missing or has another schema, a row has no prompt or no answer, or none is left.
    """
    renderer, prompts, answers = Renderer(tokenizer, config.data), [], {}
    num_too_long = num_blank = 0
    is_plain, stops = config.data.prompt_format == "plain", sorted(stop_ids(tokenizer))
    ends = [str(token) for token in tokenizer.convert_ids_to_tokens(stops) if token]
    for number, file in enumerate(files):
        rows = [(text, _as_ended(answer, ends)) for text, answer in _texts(file, config, renderer)]
        if not rows:
            raise no_rows(file)
        prompt_ids = within_vocabulary(tokenize([p for p, _ in rows], tokenizer, is_plain=is_plain), tokenizer)
        encoded = [np.array(tokenizer.encode(a, add_special_tokens=False), np.int32) for _, a in rows]
        answer_ids = within_vocabulary(encoded, tokenizer)
        for row, ((text, answer), prompt_P, answer_A) in enumerate(zip(rows, prompt_ids, answer_ids, strict=True)):
            if not len(answer_A):
                num_blank += 1
                continue
            if answer_A[-1] not in stops:  # an answer's text may have its end
                answer_A = np.append(answer_A, tokenizer.eos_token_id).astype(np.int32)
            if len(prompt_P) > config.data.max_prompt_tokens or len(answer_A) > config.rollout.max_answer_tokens:
                num_too_long += 1
                continue
            name = f"{stem_of(file)}~{number}/{row}"
            answers[name] = answer_A
            prompts.append(
                Prompt(prompt_id=name, text=text, token_ids_P=prompt_P, ground_truth=answer, data_source="given")
            )
    if not prompts:
        limits = (
            f"data.max_prompt_tokens = {config.data.max_prompt_tokens} or rollout.max_answer_tokens = "
            f"{config.rollout.max_answer_tokens}"
        )
        why = [f"{num_too_long} longer than {limits}, which may be raised"] * (num_too_long > 0)
        why += [f"{num_blank} with a blank answer, from which nothing is learned; write them"] * (num_blank > 0)
        raise DataError(f"no row left of {', '.join(files)}: {'; '.join(why)}")
    return Demonstrations(prompts=tuple(prompts), answers=answers, num_too_long=num_too_long, num_blank=num_blank)


def _as_ended(answer: str, ends: Sequence[str]) -> str:
    """Without spaces behind its own end; "" of one that has nothing else."""
    bare = answer
    for end in ends:
        bare = bare.replace(end, "")
    if not bare.strip():
        return ""
    return answer.rstrip() if answer.rstrip().endswith(tuple(ends)) else answer


def _texts(file: str, config: Config, renderer: Renderer) -> Iterator[tuple[str, str]]:
    """The prompt, rendered, and the answer of each row."""
    for number, row in read_rows(file, (*QUESTIONS, *ANSWERS)):
        where = f"{file}, row {number}"
        asked, answer = _asked_and_answer(row, where)
        yield renderer.render(messages_to_ask(asked, config.data), where), answer


def _asked_and_answer(row: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], str]:
    question = next((name for name in QUESTIONS if row.get(name) is not None), None)
    if question is None:
        raise DataError(f"{where}: no column {', '.join(QUESTIONS)}; it has {', '.join(map(str, row))}")
    messages = list(messages_of(row[question], question, where))
    if len(messages) > 1 and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    column = next((name for name in ANSWERS if isinstance(row.get(name), str)), None)
    if column is None:
        raise DataError(
            f"{where}: no answer to learn; it stands in a column {', '.join(ANSWERS)} as text, or is the last message, "
            "of the assistant"
        )
    return messages, row[column]
