"""import_gguf.py of studies/smollm2 keeps the weights and the tokenizer of a GGUF file."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from infini.model.base import load_base, load_tokenizer

HEADS, GROUPS = 4, 2


@pytest.fixture
def import_gguf() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "studies/smollm2/import_gguf.py")))


@pytest.fixture
def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=GROUPS, intermediate_size=32, max_position_embeddings=64,
        tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def interleaved_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return a query's or key's rows in GGUF's order: the two of a rotation are neighbours."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def to_gguf(name: str, weight: np.ndarray) -> np.ndarray:
    heads = {"q_proj": HEADS, "k_proj": GROUPS}.get(name.split(".")[-2])
    return weight if heads is None else interleaved_rows(weight, heads)


def write_gguf(file: Path, model: PreTrainedModel, tokenizer: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer, config = gguf.GGUFWriter(file, "llama"), model.config
    writer.add_name("Run 7 Ep2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads((tokenizer / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(content["vocab"], key=content["vocab"].__getitem__))
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        value = to_gguf(name, weight.detach().numpy())
        writer.add_tensor(names.get_name(name, (".weight",)), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_convert_keeps_weights_and_tokenizer(
    import_gguf: SimpleNamespace, tmp_path: Path, llama: PreTrainedModel, base_folder: Path
) -> None:
    write_gguf(tmp_path / "Tiny-Llama.F32.gguf", llama, base_folder)
    import_gguf.convert(tmp_path / "Tiny-Llama.F32.gguf", tmp_path / "base")
    base, tokenizer = load_base(str(tmp_path / "base")), load_tokenizer(str(tmp_path / "base"))
    assert {name: p.dtype for name, p in base.named_parameters()} == {
        name: torch.float32 for name, _ in llama.named_parameters()
    }
    tokens = torch.arange(40)[None]
    torch.testing.assert_close(base(tokens).logits, llama(tokens).logits)
    text = "the state of the union"
    assert tokenizer(text).input_ids == AutoTokenizer.from_pretrained(base_folder)(text).input_ids
    config = (tmp_path / "base/config.json").read_text()
    assert "quantization" not in config
    assert "Ep2" not in config


def test_convert_rejects_a_damaged_file_in_one_line(
    import_gguf: SimpleNamespace, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03")
    message = r"^error: .*torn\.gguf: not a readable GGUF model \("
    with pytest.raises(SystemExit, match=message) as error:
        import_gguf.convert(tmp_path / "torn.gguf", tmp_path / "base")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "base").exists()


def test_packaged_file_names_a_missing_package_or_file(
    import_gguf: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_study").mkdir()
    monkeypatch.chdir(tmp_path / "my_study")
    message = "^error: package no_such_weights is missing: make study STUDY=my_study installs it$"
    with pytest.raises(SystemExit, match=message):
        import_gguf.packaged_file("no_such_weights", "x.gguf")
    for name in ("weights_of_it", "gguf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "weights_of_it/x.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert import_gguf.packaged_file("weights_of_it", "x.gguf") == tmp_path / "weights_of_it/x.gguf"
    with pytest.raises(SystemExit, match=r"^error: package weights_of_it has no file y\.gguf$"):
        import_gguf.packaged_file("weights_of_it", "y.gguf")
    assert "weights_of_it" not in sys.modules


def test_whole_file_joins_the_parts_of_several_packages_in_order(
    import_gguf: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"of_the_second": b"wo", "of_the_first": b"one t"}
    for number, name in ((1, "of_the_second"), (0, "of_the_first")):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / f"data/x.gguf.part{number:02}").write_bytes(parts[name])
    (tmp_path / "gguf").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    joined = import_gguf.whole_file(["of_the_first", "of_the_second"], "data/x.gguf", tmp_path)
    assert joined.name == "x.gguf"
    assert joined.read_bytes() == b"one two"
    with pytest.raises(SystemExit, match=r"^error: package of_the_second has no file .*\.part00$"):
        import_gguf.whole_file(["of_the_second", "of_the_first"], "data/x.gguf", tmp_path)
