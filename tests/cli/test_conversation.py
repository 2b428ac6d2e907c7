"""Conversation: prompts, answers from one memory, constant memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import infini
from infini.cli import conversation as module
from infini.cli import long_text
from infini.cli.conversation import Conversation, prompt_frame
from infini.cli.long_text import token_ids
from infini.errors import InputError
from infini.model.architectures import CACHE
from infini.model.base import load_base, load_tokenizer
from infini.model.window.cache import WindowCache
from toy import sentence

W, S = 8, 2
TEMPLATE = "<s>{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant:{% endif %}"
GREEDY = {"do_sample": False, "max_new_tokens": 9}


@pytest.fixture
def tokenizer(base_folder: Path) -> Tokenizer:
    return load_tokenizer(str(base_folder))


@pytest.fixture(params=["window", "parallel"])
def talk(
    request: pytest.FixtureRequest, model: PreTrainedModel, tokenizer: Tokenizer
) -> Conversation:
    options: dict[str, Any] = {"segment_length": W}
    if request.param == "window":
        options = {"window": W, "sinks": S, "update": "none", "retained": 3}
    return Conversation(infini.retrofit(model, request.param, **options), tokenizer)


def book(folder: Path, words: int = 300) -> Path:
    (folder / "book.txt").write_text(sentence(words, 3))
    return folder / "book.txt"


def answer(talk: Conversation, question: str, capsys: pytest.CaptureFixture[str]) -> str:
    talk.answer(question, GREEDY["max_new_tokens"])
    return capsys.readouterr().out.rstrip("\n")


def expected(talk: Conversation, text: str) -> str:
    """Return what the model generates after a text that it reads at once."""
    tokens = torch.tensor([token_ids(talk.tokenizer, text)])
    new = talk.model.generate(tokens, **GREEDY)[0, tokens.shape[1] :]
    return talk.tokenizer.decode(new, skip_special_tokens=True)


def test_question_may_begin_as_the_text_does(
    talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "s.txt").write_text("the state of trade")
    talk.read(file)
    question = "the state of trade the union"
    assert answer(talk, question, capsys) == expected(talk, file.read_text() + question)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_answer_equals_generation_after_whole_text(
    talk: Conversation, template: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk.tokenizer.chat_template = template
    talk.frame = prompt_frame(talk.tokenizer)
    before, between, after = ("<s>user: ", "\n\n", "\nassistant:") if template else ("", "", "")
    file = book(tmp_path)
    fresh = answer(talk, "the state", capsys)
    assert fresh == expected(talk, f"{before}the state{after}")
    assert talk.read(file) == len(token_ids(talk.tokenizer, before + file.read_text()))
    for question in (" of the union", " to trade", " of the union"):  # each from the same memory
        whole = f"{before}{file.read_text()}{between}{question}{after}"
        assert answer(talk, question, capsys) == expected(talk, whole)


def test_saved_memory_answers_and_reads_on(
    talk: Conversation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = book(tmp_path)
    talk.read(file)
    once = answer(talk, " of", capsys)
    talk.save(tmp_path / "memory.safetensors")
    talk.read(file)
    twice = answer(talk, " of", capsys)
    again = Conversation(talk.model, talk.tokenizer)
    again.load(tmp_path / "memory.safetensors")
    assert answer(again, " of", capsys) == once
    again.read(file)
    assert answer(again, " of", capsys) == twice


def test_read_needs_constant_memory(
    talk: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PREFILL_SEGMENTS", 2)
    talk = Conversation(talk.model, talk.tokenizer)
    widths, sizes = [], []
    decoder = talk.model.get_decoder()
    decoder.register_forward_pre_hook(lambda _, args: widths.extend(x.shape[1] for x in args))
    for words in (100, 5000):
        talk.memory = None
        talk.read(book(tmp_path, words))
        assert talk.memory is not None
        sizes.append(talk.memory.nbytes)
    assert max(widths) == 2 * W
    segment_bytes = W * 2 * 2 * 16 * 4 if talk.model.infini_config["method"] == "parallel" else 0
    assert abs(sizes[0] - sizes[1]) <= segment_bytes  # a segment's keys and values, of two layers


@pytest.mark.parametrize("content", [b"", "\ufeff☃".encode()])
def test_read_handles_split_characters(
    content: bytes,
    talk: Conversation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(long_text, "PIECE_BYTES", 1)
    (tmp_path / "text.txt").write_bytes(content)
    text = content.decode("utf-8-sig")
    assert talk.read(tmp_path / "text.txt") == len(token_ids(talk.tokenizer, text))
    assert answer(talk, " of", capsys) == expected(talk, f"{text} of")


def test_prompt_frame_without_template(tokenizer: Tokenizer) -> None:
    assert prompt_frame(tokenizer) == ("", "", "")
    first = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", first)]
    )
    assert prompt_frame(tokenizer) == (tokenizer.bos_token, "", "")


def test_prompt_frame_rejects_template_without_message(tokenizer: Tokenizer) -> None:
    tokenizer.chat_template = "hello"
    with pytest.raises(InputError, match="does not contain the user's message"):
        prompt_frame(tokenizer)


def test_conversation_takes_end_token_of_tokenizer(
    model: PreTrainedModel, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    infini.retrofit(model, "window", window=W, sinks=S)
    model.generation_config.eos_token_id = None
    talk = Conversation(model, tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    model.generation_config.eos_token_id = 7
    Conversation(model, tokenizer)
    assert model.generation_config.eos_token_id == 7
    with pytest.raises(InputError, match="--prompt must have at least one character"):
        talk.answer("", 3)


def test_load_names_file_of_another_models_memory(
    talk: Conversation, base_folder: Path, tmp_path: Path
) -> None:
    other = infini.retrofit(load_base(str(base_folder)), "window", window=W + 1, sinks=S)
    file = tmp_path / "other.safetensors"
    with torch.no_grad():
        tokens = torch.ones(1, 40, dtype=torch.int64)
        infini.save_memory(getattr(other(tokens), CACHE), file)
    with pytest.raises(InputError, match=rf"^{file}: the memory was written by other memory lay"):
        talk.load(file)
    file.write_bytes(b"")
    with pytest.raises(InputError, match=rf"^{file}: no readable safetensors file"):
        talk.load(file)
    assert talk.memory is None


SYSTEM = "the state of trade"


def retained_positions(talk: Conversation) -> list[list[int]]:
    """Positions of the retained pairs of every layer and head."""
    assert isinstance(talk.memory, WindowCache)
    states = talk.memory.states.values()
    return [x for state in states for x in state.retained.positions[0].tolist()]


@pytest.fixture
def pinning(model: PreTrainedModel, tokenizer: Tokenizer) -> tuple[PreTrainedModel, Tokenizer]:
    tokenizer.chat_template = TEMPLATE
    return infini.retrofit(model, "window", window=W, sinks=S, retained=40), tokenizer


def test_system_prompt_is_pinned(
    pinning: tuple[PreTrainedModel, Tokenizer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = f"<s>system: {SYSTEM}\nuser: "
    talk = Conversation(*pinning, SYSTEM)
    assert talk.frame.before == before
    end = len(token_ids(talk.tokenizer, before))
    text = f"{before}the state\nassistant:"
    tokens = torch.tensor([token_ids(talk.tokenizer, text)])
    pinned = torch.arange(tokens.shape[1])[None] < end
    new = talk.model.generate(tokens, pinned=pinned, **GREEDY)[0, tokens.shape[1] :]
    expected = talk.tokenizer.decode(new, skip_special_tokens=True)
    assert answer(talk, "the state", capsys) == expected, "without a text"
    talk.read(book(tmp_path, 600))
    assert all(set(range(S, end)) <= set(own) for own in retained_positions(talk))
    talk.read(book(tmp_path, 600))
    assert all(set(range(S, end)) <= set(own) for own in retained_positions(talk))
    free = Conversation(*pinning, SYSTEM, pin_system=False)
    free.read(book(tmp_path, 600))
    assert not all(set(range(S, end)) <= set(own) for own in retained_positions(free))


def test_system_prompt_that_does_not_fit(
    pinning: tuple[PreTrainedModel, Tokenizer], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    long = " ".join([SYSTEM] * 20)
    talk = Conversation(*pinning, long)
    assert "more than 40 retained pairs: it is not pinned" in caplog.text
    talk.read(book(tmp_path))
    assert isinstance(talk.memory, WindowCache)
    assert not talk.memory.pinned.numel()
    with pytest.raises(InputError, match=r"--pin-system: the system prompt has \d+ tokens, more"):
        Conversation(*pinning, long, pin_system=True)


def test_template_without_system_prompt_is_refused(
    pinning: tuple[PreTrainedModel, Tokenizer],
) -> None:
    _, tokenizer = pinning
    tokenizer.chat_template = "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="--system: the tokenizer's chat template does not cont"):
        prompt_frame(tokenizer, SYSTEM)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="chat template refuses the messages: no system role"):
        prompt_frame(tokenizer, SYSTEM)
