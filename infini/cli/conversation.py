"""Questions about what a model with a memory has read, each answered from the same memory."""

import copy
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, TextStreamer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.cli.long_text import read_tokens, token_ids
from infini.corpus.special_tokens import beginning_of_text
from infini.errors import InputError
from infini.model.architectures import CACHE
from infini.model.generation import PINNED, PREFILL_SEGMENTS
from infini.model.memory_file import load_memory, save_memory
from infini.model.segmented.cache import SegmentedCache
from infini.model.window.cache import WindowCache

log = logging.getLogger(__name__)

CONTENT = "\ufffc"  # stands for the user's message in a rendered chat template


class PromptFrame(NamedTuple):
    """Text around the long text and the question, which are one message of the user."""

    before: str
    between: str
    after: str


def prompt_frame(tokenizer: Tokenizer, system: str | None = None) -> PromptFrame:
    """Return the tokenizer's chat template, rendered; without one, a question continues the text.

    Args:
        tokenizer: the tokenizer.
        system: a system prompt; None: the template's own, where it has one.

    Raises:
        InputError: the template does not contain the user's message or the system prompt.
    """
    if system is not None and not tokenizer.chat_template:
        raise InputError("--system needs a tokenizer with a chat template")
    if not tokenizer.chat_template:
        return PromptFrame(tokenizer.decode(beginning_of_text(tokenizer)), "", "")
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": CONTENT})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise InputError(f"the tokenizer's chat template refuses the messages: {error}") from None
    before, content, after = text.partition(CONTENT)
    if not content:
        raise InputError("the tokenizer's chat template does not contain the user's message")
    if system is not None and system.strip() not in before:
        raise InputError("--system: the tokenizer's chat template does not contain a system prompt")
    return PromptFrame(before, "\n\n", after)


class Conversation:
    """A model with a memory, and what it has read.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        system: a system prompt; None: that of the tokenizer's chat template, where it has one.
        pin_system: whether the template's text up to the user's message, system prompt included,
            is pinned; None: where the model has as many retained pairs.

    Raises:
        InputError: the template has no such prompt, or it cannot be pinned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        system: str | None = None,
        pin_system: bool | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.frame = prompt_frame(tokenizer, system)
        self.num_pinned = self._num_pinned(pin_system, system is not None)
        self.memory: SegmentedCache | WindowCache | None = None  # None: nothing read
        config = model.infini_config
        size = config["window" if config["method"] == "window" else "segment_length"]
        self.chunk = PREFILL_SEGMENTS * size  # tokens per forward pass
        generation = model.generation_config
        if generation.eos_token_id is None:
            generation.eos_token_id = tokenizer.eos_token_id
        if generation.pad_token_id is None:  # transformers would warn of its own choice
            generation.pad_token_id = tokenizer.eos_token_id

    def _num_pinned(self, pin_system: bool | None, has_system: bool) -> int:
        """Return how many tokens at the beginning of a text are pinned."""
        config = self.model.infini_config
        num_tokens = len(token_ids(self.tokenizer, self.frame.before))
        if pin_system is False or not self.tokenizer.chat_template or not num_tokens:
            if pin_system:
                raise InputError("--pin-system: the tokenizer has no chat template")
            return 0
        retained, sinks = config.get("retained", 0), config.get("sinks", 0)
        if num_tokens - sinks <= retained:
            return num_tokens if retained else 0
        problem = f"the system prompt has {num_tokens} tokens, more than {retained} retained pairs"
        if pin_system:
            raise InputError(f"--pin-system: {problem} and {sinks} sinks")
        if has_system:
            log.warning("%s: it is not pinned, and may be forgotten", problem)
        return 0

    def _pinned(self, start: int, num_tokens: int) -> Tensor | None:
        """Return which tokens of a text are pinned, (1, T) bool, from token `start` on."""
        pinned = torch.arange(start, start + num_tokens)[None] < self.num_pinned
        return pinned if bool(pinned.any()) else None

    def load(self, file: Path) -> None:
        """Load a saved memory; raise InputError if another model wrote it."""
        try:
            self.memory = load_memory(file, self.model)
        except InputError as error:
            place = "" if str(error).startswith(str(file)) else f"{file}: "
            raise InputError(f"{place}{error}") from None

    def save(self, file: Path) -> None:
        """Save the memory; raise InputError if the file cannot be written."""
        assert self.memory is not None
        save_memory(self.memory, file)

    @torch.no_grad()
    def read(self, file: Path) -> int:
        """Read a text file into the memory, in constant space.

        Args:
            file: a UTF-8 text.

        Returns:
            How many tokens it has.

        Raises:
            InputError: the file is not readable, or no UTF-8 text.
        """
        decoder = self.model.get_decoder()
        before, count = "", 0
        is_new = self.memory is None
        if self.memory is None:
            before, self.memory = self.frame.before, decoder.new_cache()
        for tokens in filter(None, read_tokens(file, self.tokenizer, before)):
            for part in torch.tensor([tokens], device=self.model.device).split(self.chunk, 1):
                pinned = self._pinned(count, part.shape[1]) if is_new else None
                decoder(part, use_cache=True, **{CACHE: self.memory, PINNED: pinned})
                count += part.shape[1]
        return count

    def answer(self, question: str, max_new_tokens: int) -> None:
        """Print an answer token by token; the memory stays as it is.

        Args:
            question: the question, or the text to continue.
            max_new_tokens: length of the answer at most, in tokens.

        Raises:
            InputError: the question is empty.
        """
        before = self.frame.before if self.memory is None else self.frame.between
        prompt = token_ids(self.tokenizer, before + question + self.frame.after)
        if not prompt:
            raise InputError("--prompt must have at least one character")
        inputs, memory = torch.tensor([prompt], device=self.model.device), None
        if self.memory is not None:
            memory = copy.deepcopy(self.memory)
            memory.reset_sequence()
        pinned = self._pinned(0, len(prompt)) if memory is None else None
        self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **{CACHE: memory, PINNED: pinned},
        )
