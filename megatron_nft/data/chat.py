"""A problem's messages as the text that a model goes on from: a chat template's, held to what generation needs, or
plain.

A template is a program of the model's folder, run here with a clock that stands still. What it leaves out of a prompt
is seen before anything starts. Called by data/prompts.py, a `Renderer` for each file.
"""

import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from megatron_nft.config import DataConfig
from megatron_nft.data.errors import DataError
from megatron_nft.data.tokenizer import num_added, stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
ANSWER = "forty-two"
"""Stands for an answer, where a template's text around it is looked at."""


class Renderer:
    """Renders messages with a tokenizer's chat template, or joins them as they are."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> None:
        """
        Raises:
            DataError: the tokenizer has no chat template, and the recipe wants one.
        """
        self._tokenizer, self._is_chat = tokenizer, config.prompt_format == "chat"
        self._day = date.fromisoformat(config.date)
        self._checked: set[tuple[str, ...]] = set()  # roles of messages whose answers were looked at
        if self._is_chat and not tokenizer.chat_template:
            raise DataError(
                f'the tokenizer of {tokenizer.name_or_path!r} has no chat template; set data.prompt_format = "plain", '
                "or add a chat_template to its tokenizer_config.json"
            )

    def render(self, messages: Messages, place: str) -> str:
        """
        Args:
            place: file and row, for messages.

        Raises:
            DataError: nothing is asked, or the template refuses the messages, leaves one out, or doesn't begin the
                answer.
        """
        if not any(message["content"].strip() for message in messages if message["role"] != "system"):
            raise DataError(f"{place}: the prompt is empty; write the question, or leave the row out")
        if not self._is_chat:
            return "\n".join(message["content"] for message in messages)
        try:
            text = self._apply(messages, begins_answer=True)
        except Exception as error:  # the template is a program: it may refuse a role or an order
            raise DataError(
                f"{place}: the chat template refuses the prompt: {' '.join(str(error).split())}; change its messages "
                'or the template, or set data.prompt_format = "plain"'
            ) from error
        _check_whole(messages, text, place)
        if (roles := tuple(message["role"] for message in messages)) not in self._checked:
            self._checked.add(roles)
            self._check_answer(messages, text, place)
        return text

    def _apply(self, messages: Messages, *, begins_answer: bool) -> str:
        return self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=begins_answer,
            tokenize=False,
            strftime_now=self._day.strftime,  # of the template, in place of today's
        )

    def _check_answer(self, messages: Messages, text: str, place: str) -> None:
        """How the template begins and ends an answer; and what the tokenizer would put before the prompt."""
        try:
            closed = self._apply(messages, begins_answer=False)
            answered = self._apply([*messages, {"role": "assistant", "content": ANSWER}], begins_answer=False)
        except Exception:  # it refuses such messages: nothing can be said
            return
        head, _, tail = answered.removeprefix(text).rpartition(ANSWER)
        if text == closed and answered.startswith(text) and head.strip():
            raise DataError(
                f"{place}: the chat template ignores add_generation_prompt: an answer would begin without {head!r}, "
                "and the model would have to write that itself; take a template that heeds it, or "
                'data.prompt_format = "plain"'
            )
        tokenizer, stops = self._tokenizer, stop_ids(self._tokenizer)
        if tail.strip() and not stops & set(tokenizer(tail, add_special_tokens=False)["input_ids"]):
            warnings.warn(
                f"{tokenizer.name_or_path}: the chat template ends an answer with {tail.strip()!r}, which ends none "
                f"here ({tokenizer.convert_ids_to_tokens(sorted(stops))} do): add it to eos_token_id in "
                "generation_config.json, unless the model ends its answers otherwise",
                stacklevel=2,
            )
        bos = tokenizer.bos_token
        if bos and num_added(tokenizer)[0] and not text.startswith(bos):
            warnings.warn(
                f"{tokenizer.name_or_path}: the chat template begins without {bos!r}, which the tokenizer puts before "
                "texts; if the model was trained with it, add it to the template",
                stacklevel=2,
            )


def _check_whole(messages: Messages, text: str, place: str) -> None:
    """Whether all that is asked stands in a prompt. The longest first: "1" is no system prompt in "What is 1 + 1?"."""
    asked = [(message["content"].strip(), message["role"]) for message in messages if message["role"] != "assistant"]
    for content, role in sorted(asked, key=lambda one: -len(one[0])):
        if content not in text:
            raise DataError(
                f"{place}: the chat template leaves the {role} message out: {content[:60]!r}; put its words into "
                "another message, or mend the template"
            )
        text = text.replace(content, "\0", 1) if content else text
