"""A chat over several turns: saved, loaded elsewhere and continued, it is the same chat."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import infini
from infini.errors import InputError
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base, load_tokenizer
from infini.model.modules import infini_parameters

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTIONS = ["the state of trade", "of the union", "a report to congress", "peace", "the nation"]
METHODS: dict[str, dict[str, Any]] = {
    "window": {"method": "window", "window": 16, "sinks": 2, "retained": 3},
    "parallel": {"method": "parallel", "segment_length": 16, "alpha": 0.7},
    "replace": {"method": "replace", "segment_length": 16},
    "parallel_full": {
        "method": "parallel", "segment_length": 16, "alpha": 0.7, "segmented": False,
    },
}  # fmt: skip
GREEDY: dict[str, Any] = {
    "max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip


@pytest.fixture(params=METHODS)
def folder(request: pytest.FixtureRequest, base_folder: Path, tmp_path: Path) -> Path:
    """A saved model with a memory that changes its answers."""
    model = infini.retrofit(load_base(str(base_folder)), **METHODS[request.param])
    torch.manual_seed(1)
    for parameter in infini_parameters(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tokenizer(base_folder: Path) -> Tokenizer:
    tokenizer = load_tokenizer(str(base_folder))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


class Chat:
    """A chat of which the whole transcript is given every turn, as Transformers does."""

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, cache: Any):
        self.model, self.tokenizer, self.cache = model, tokenizer, cache
        self.tokens = torch.zeros(1, 0, dtype=torch.int64)

    def turn_tokens(self, question: str) -> Tensor:
        """Return the tokens that a question adds to the transcript."""
        text: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        text = ("\n" if self.tokens.numel() else "") + text
        return self.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids

    def ask(self, question: str) -> tuple[Tensor, Tensor]:
        """Return answer and logits."""
        prompt = torch.cat([self.tokens, self.turn_tokens(question)], 1)
        out = self.model.generate(prompt, **{CACHE: self.cache}, **GREEDY)
        self.tokens, self.cache = out.sequences, cache_of(out)
        return out.sequences[:, prompt.shape[1] :], torch.stack(out.logits, 1)


def test_chat_restarted_equals_chat_not_restarted(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = infini.load(folder)
    chat = Chat(model, tokenizer, None)
    restarted = Chat(infini.load(folder), tokenizer, None)
    for turn, question in enumerate(QUESTIONS):
        answer, logits = chat.ask(question)
        again, same_logits = restarted.ask(question)
        assert torch.equal(again, answer), turn
        assert torch.equal(same_logits, logits), turn
        whole = model(chat.tokens, use_cache=False).logits[:, -7:-1]
        torch.testing.assert_close(logits, whole, rtol=1e-3, atol=1e-4)
        # Every turn elsewhere: another process would have no more than the two files
        file = tmp_path / f"{turn}.safetensors"
        infini.save_memory(restarted.cache, file)
        restarted.model = infini.load(folder)
        restarted.cache = infini.load_memory(file, restarted.model)
        read = chat.tokens.shape[1] - 1  # but the last answer's last token
        for cache in (chat.cache, restarted.cache):
            assert cache.seen_tokens == cache.get_seq_length() == read
        assert restarted.cache.nbytes == chat.cache.nbytes > 0


@pytest.mark.parametrize("with_book", [False, True])
def test_new_tokens_over_a_loaded_memory_are_new(
    with_book: bool, folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = infini.load(folder)
    book = torch.randint(300, (1, 50), generator=torch.Generator().manual_seed(0))
    cache = cache_of(model(book)) if with_book else None
    chats = [Chat(model, tokenizer, cache), Chat(model, tokenizer, None)]
    chats[0].ask(QUESTIONS[0])
    infini.save_memory(chats[0].cache, tmp_path / "memory")
    chats[1].cache = infini.load_memory(tmp_path / "memory", model)
    for question in QUESTIONS[1:]:  # each alone, behind all that was read
        for chat in chats:
            chat.tokens = chat.tokens[:, :0]
        (answer, logits), (again, same_logits) = (chat.ask(question) for chat in chats)
        assert torch.equal(again, answer)
        assert torch.equal(same_logits, logits)
    assert chats[1].cache.seen_tokens > chats[1].cache.get_seq_length()


def test_transcript_since_the_first_token_continues_a_memory_of_several_prompts(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = infini.load(folder)
    book = torch.randint(300, (1, 50), generator=torch.Generator().manual_seed(0))
    chat = Chat(model, tokenizer, cache_of(model(book)))
    chat.ask(QUESTIONS[0])
    whole = torch.cat([book, chat.tokens], 1)
    infini.save_memory(chat.cache, tmp_path / "memory")
    for tokens in (chat.tokens, whole):
        chat.cache, chat.tokens = infini.load_memory(tmp_path / "memory", model), tokens
        _, logits = chat.ask(QUESTIONS[1])
        read = torch.cat([book, chat.tokens], 1) if tokens is not whole else chat.tokens
        expected = model(read, use_cache=False).logits[:, -7:-1]
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
        assert chat.cache.seen_tokens == read.shape[1] - 1


def change_token(tokens: Tensor, place: int) -> Tensor:
    tokens = tokens.clone()
    tokens[:, place] = (tokens[:, place] + 1) % 300
    return tokens


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "first token": lambda tokens: change_token(tokens, 0),
    "a token": lambda tokens: change_token(tokens, 20),
    "last token read": lambda tokens: change_token(tokens, -9),
    "a turn less": lambda tokens: torch.cat([tokens[:, :-30], tokens[:, -7:]], 1),
    "without its beginning": lambda tokens: tokens[:, 10:],
    "another beginning": lambda tokens: torch.cat([tokens[:, -7:], tokens], 1),
    "nothing new": lambda tokens: tokens[:, :-8],
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_transcript_is_refused_before_it_is_read(
    name: str, folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = infini.load(folder)
    chat = Chat(model, tokenizer, None)
    for question in QUESTIONS[:3]:
        chat.ask(question)
    infini.save_memory(chat.cache, tmp_path / "memory")
    new = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    prompt = CHANGES[name](torch.cat([chat.tokens, new], 1))
    for cache in (chat.cache, infini.load_memory(tmp_path / "memory", model)):
        seen = cache.seen_tokens
        with pytest.raises(InputError, match=r"^the prompt repeats .* go on: [^\n]*$"):
            model.generate(prompt, **{CACHE: cache}, **GREEDY)
        assert cache.seen_tokens == seen
        # The way out that the line names
        cache.reset_sequence()
        out = model.generate(prompt, **{CACHE: cache}, **GREEDY)
        assert cache.seen_tokens == seen + out.sequences.shape[1] - 1


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows of tokens as a batch padded on the left, and its mask."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.int64)
    for sample, row in enumerate(rows):
        ids[sample, width - len(row) :], mask[sample, width - len(row) :] = row, 1
    return ids, mask


def test_batch_of_transcripts_is_continued_or_refused(folder: Path) -> None:
    model, draw = infini.load(folder), torch.Generator().manual_seed(0)
    first = [torch.randint(1, 300, (length,), generator=draw) for length in (40, 50)]
    more = [torch.randint(1, 300, (length,), generator=draw) for length in (30, 10)]
    ids, mask = left_padded(first)
    out = model.generate(ids, attention_mask=mask, **GREEDY)
    answers = out.sequences[:, 50:]
    whole = [torch.cat(parts) for parts in zip(first, answers, more, strict=True)]
    ids, mask = left_padded(whole)  # padded anew: other columns
    with pytest.raises(InputError, match="give the whole text unchanged, padding too, or new"):
        model.generate(ids, attention_mask=mask, **{CACHE: cache_of(out)}, **GREEDY)
    # The last answered token has not been read: it goes before the new ones
    new, its_mask = left_padded(
        [torch.cat([a[-1:], x]) for a, x in zip(answers, more, strict=True)]
    )
    continued = model.generate(new, attention_mask=its_mask, **{CACHE: cache_of(out)}, **GREEDY)
    fresh = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(continued.sequences[:, -6:], fresh.sequences[:, -6:])
    logits, expected = (torch.stack(x.logits, 1) for x in (continued, fresh))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert cache_of(continued).token_counts.tolist() == [40 + 6 + 30 + 5, 50 + 6 + 10 + 5]


def test_batch_of_which_one_transcript_has_changed_is_refused(folder: Path) -> None:
    model = infini.load(folder)
    tokens = torch.randint(1, 300, (2, 100), generator=torch.Generator().manual_seed(0))
    cache = cache_of(model(tokens))
    prompt = torch.cat([tokens, tokens[:, :20]], 1)
    prompt[0, 8:100] = prompt[0, 8:100].roll(1)
    with pytest.raises(InputError, match="the prompt repeats some of the 100 tokens"):
        model.generate(prompt, **{CACHE: cache}, **GREEDY)
    assert cache.token_counts.tolist() == [100, 100]


def test_mask_of_past_and_new_tokens_says_that_tokens_are_new(
    folder: Path, tokenizer: Tokenizer
) -> None:
    model = infini.load(folder)
    chat = Chat(model, tokenizer, None)
    chat.ask(QUESTIONS[0])
    seen, prompt = chat.cache.seen_tokens, chat.tokens
    mask = torch.ones(1, seen + prompt.shape[1], dtype=torch.int64)
    out = model.generate(prompt, attention_mask=mask, **{CACHE: chat.cache}, **GREEDY)
    expected = model(torch.cat([chat.tokens[:, :seen], out.sequences], 1), use_cache=False)
    logits = torch.stack(out.logits, 1)
    torch.testing.assert_close(logits, expected.logits[:, -7:-1], rtol=1e-3, atol=1e-4)


def test_memory_of_another_format_is_refused(folder: Path, tmp_path: Path) -> None:
    model = infini.load(folder)
    cache = cache_of(model(torch.tensor([[1, 2, 3]])))
    cache.file_format = cache.file_format[:-1] + "1"
    infini.save_memory(cache, tmp_path / "memory")
    with pytest.raises(InputError, match="saved by another version of infini"):
        infini.load_memory(tmp_path / "memory", model)


@torch.no_grad()
def test_decoder_returns_a_tuple_where_it_is_asked_to(folder: Path) -> None:
    decoder = infini.load(folder).get_decoder()
    tokens = torch.randint(1, 300, (1, 40), generator=torch.Generator().manual_seed(0))
    options = {"use_cache": True, "output_hidden_states": True}
    out = decoder(tokens, **options)
    last, cache, hidden = decoder(tokens, return_dict=False, **options)
    assert torch.equal(last, out.last_hidden_state)
    assert cache.seen_tokens == 40
    assert len(hidden) == len(out.hidden_states)
