"""Questions to what a model with a memory has read, each answered from the same memory."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, TextStreamer
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.cli.long_text import encode, tokens_of
from infini.errors import InputError
from infini.model.architectures import CACHE
from infini.model.generation import PREFILL_SEGMENTS
from infini.model.memory_file import load_memory, save_memory
from infini.model.segmented.cache import SegmentedCache
from infini.model.window.cache import WindowCache

CONTENT = "\ufffc"  # stands, in a rendered chat template, for what the user says


class Frame(NamedTuple):
    """What stands around the long text and the question, which are one message of the user."""

    before: str
    between: str
    after: str


def frame_of(tokenizer: Tokenizer) -> Frame:
    """The tokenizer's chat template; without one a question goes on where the text ends."""
    if not tokenizer.chat_template:
        begins = tokenizer.bos_token_id in tokenizer.encode("")
        return Frame(tokenizer.bos_token if begins else "", "", "")
    message = [{"role": "user", "content": CONTENT}]
    shown = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    before, found, after = shown.partition(CONTENT)
    if not found:
        raise InputError("the tokenizer's chat template does not show what the user says")
    return Frame(before, "\n\n", after)


class Conversation:
    """A model, and the memory of what it was given to read."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.frame = frame_of(tokenizer)
        self.memory: SegmentedCache | WindowCache | None = None  # nothing read yet
        settings = model.infini_config
        size = settings["window" if settings["method"] == "window" else "segment_length"]
        self.chunk = PREFILL_SEGMENTS * size  # tokens that are read at once
        generation = model.generation_config
        if generation.eos_token_id is None:
            generation.eos_token_id = tokenizer.eos_token_id
        if generation.pad_token_id is None:  # or transformers tells of its own choice
            generation.pad_token_id = tokenizer.eos_token_id

    def load(self, file: Path) -> None:
        """Take a saved memory; InputError for what this model did not write."""
        try:
            self.memory = load_memory(file, self.model)
        except InputError as error:
            place = "" if str(error).startswith(str(file)) else f"{file}: "
            raise InputError(f"{place}{error}") from None

    def save(self, file: Path) -> None:
        """Write the memory of what was read; InputError where it cannot be written."""
        assert self.memory is not None
        save_memory(self.memory, file)

    @torch.no_grad()
    def read(self, file: Path) -> int:
        """Read a text file into the memory, in constant space; returns how many tokens it has.

        InputError for what is no UTF-8 text.
        """
        decoder = self.model.get_decoder()
        before, count = "", 0
        if self.memory is None:
            before, self.memory = self.frame.before, decoder.new_cache()
        for tokens in filter(None, tokens_of(file, self.tokenizer, before)):
            count += len(tokens)
            for part in torch.tensor([tokens], device=self.model.device).split(self.chunk, 1):
                decoder(part, use_cache=True, **{CACHE: self.memory})
        return count

    def answer(self, question: str, tokens: int) -> None:
        """Print at most so many tokens, as they are written; the memory stays as it is.

        InputError for an empty question.
        """
        before = self.frame.before if self.memory is None else self.frame.between
        prompt = encode(self.tokenizer, before + question + self.frame.after)
        if not prompt:
            raise InputError("--prompt: at least one character is needed")
        inputs, memory = torch.tensor([prompt], device=self.model.device), None
        if self.memory is not None:
            memory = copy.deepcopy(self.memory)
            memory.reset_sequence()
        self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            streamer=TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            **{CACHE: memory},
        )
