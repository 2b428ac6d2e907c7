"""Questions about what a model with a memory has read, each answered from the same memory."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, TextStreamer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.cli.long_text import read_tokens, token_ids
from infini.errors import InputError
from infini.model.architectures import CACHE
from infini.model.generation import PREFILL_SEGMENTS
from infini.model.memory_file import load_memory, save_memory
from infini.model.segmented.cache import SegmentedCache
from infini.model.window.cache import WindowCache

CONTENT = "\ufffc"  # stands for the user's message in a rendered chat template


class PromptFrame(NamedTuple):
    """Text around the long text and the question, which are one message of the user."""

    before: str
    between: str
    after: str


def prompt_frame(tokenizer: Tokenizer) -> PromptFrame:
    """Return the tokenizer's chat template, rendered; without one, a question continues the text.

    Raises:
        InputError: the template does not contain the user's message.
    """
    if not tokenizer.chat_template:
        begins = tokenizer.bos_token_id in tokenizer.encode("")
        return PromptFrame(tokenizer.bos_token if begins else "", "", "")
    message = [{"role": "user", "content": CONTENT}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    before, content, after = text.partition(CONTENT)
    if not content:
        raise InputError("the tokenizer's chat template does not contain the user's message")
    return PromptFrame(before, "\n\n", after)


class Conversation:
    """A model with a memory, and what it has read."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.frame = prompt_frame(tokenizer)
        self.memory: SegmentedCache | WindowCache | None = None  # None: nothing read
        config = model.infini_config
        size = config["window" if config["method"] == "window" else "segment_length"]
        self.chunk = PREFILL_SEGMENTS * size  # tokens per forward pass
        generation = model.generation_config
        if generation.eos_token_id is None:
            generation.eos_token_id = tokenizer.eos_token_id
        if generation.pad_token_id is None:  # transformers would warn of its own choice
            generation.pad_token_id = tokenizer.eos_token_id

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
        if self.memory is None:
            before, self.memory = self.frame.before, decoder.new_cache()
        for tokens in filter(None, read_tokens(file, self.tokenizer, before)):
            count += len(tokens)
            for part in torch.tensor([tokens], device=self.model.device).split(self.chunk, 1):
                decoder(part, use_cache=True, **{CACHE: self.memory})
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
        self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **{CACHE: memory},
        )
