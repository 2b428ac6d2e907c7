"""params.yaml: a wrong file is one line that names the key."""

from pathlib import Path

import pytest

from infini import params
from infini.corpus.config import Data
from infini.errors import InputError
from infini.training.config import Adapter, ReplacedLayer
from toy import read_params, write_params


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", -1, "seed: input should be greater than or equal to 0, got -1"),
        ("data.samples", "many", "data.samples: input should be a valid integer, got 'many'"),
        ("data.shares.test", 0.9, "data.shares: must sum to 1, got 1.7"),
        ("replacements.v2.distill.epochs", 0, "replacements.v2.distill.epochs: input should be"),
        ("replacements.v2.finetune.lr", "low", "finetune.lr: input should be a valid number"),
        ("replacements.v2.finetune.bptt_segments", 2, "bptt_segments must be 0 with update"),
        ("replacements.v2.layer.layers", [0, 1], "a replacement distils exactly one layer"),
        ("replacements.v1.distill.patience", 2, "replacements.v1.distill: patience needs hold_out"),
        ("adapters.v3.layer.local", "soft", "adapters.v3.layer.local: input should be 'softmax'"),
        ("adapters.v3.learning_rate", 1.0, "adapters.v3.learning_rate: unknown key; remove it"),
        ("adapters.v1", None, "adapters.v1: "),
        ("seeds", [-1], "seeds.0: input should be greater than or equal to 0"),
        ("evaluate.passkey.depths", [1.5], "evaluate.passkey.depths.0: input should be less"),
        (
            "data.segment_length",
            65,
            "data.segment_length: at most data.document_length, 64, got 65",
        ),
        (
            "evaluate.sliding.documents",
            3,
            "evaluate.sliding.documents: at most data.test.documents, 2",
        ),
        (
            "evaluate.short.samples",
            7,
            "evaluate.short.samples: at most data.test.samples, 6, got 7",
        ),
        (
            "replacements.v2.finetune.documents",
            7,
            "v2.finetune.documents: at most data.documents, 6",
        ),
        ("adapters.v3.documents", 7, "adapters.v3.documents: at most data.documents, 6, got 7"),
        ("evaluate.sliding.stride", 64, "stride: at most the context, 32, got 64"),
        ("audits.padding.of", "v8", "audits.padding.of: no version 'v8'"),
        ("audits.padding.distill", {"lrr": 1.0}, "audits.padding.distill.lrr: unknown key"),
        ("audits.carried_memory.finetune", {"lr": 2.0}, "audits.carried_memory.finetune.lr: input"),
        (
            "audits.carried_memory.mistake",
            "padding_counted",
            "'v3' is an adapter, nothing is distilled",
        ),
        ("audits.padding.mistake", "padding", "audits.padding.mistake: input should be 'none'"),
        ("audits.carried_memory.distill", {"lr": 0.1}, "'v3' is an adapter, nothing is distilled"),
    ],
)
def test_one_line_names_the_key(project: Path, key: str, value: object, message: str) -> None:
    content = read_params()
    *parents, last = key.split(".")
    block = content
    for parent in parents:
        block = block[parent]
    block[last] = value
    write_params(content)
    with pytest.raises(InputError) as error:
        params.load()
    assert message in str(error.value)
    assert str(error.value).startswith("params.yaml: ")
    assert "\n" not in str(error.value)


def test_a_missing_key_and_a_missing_file(project: Path) -> None:
    content = read_params()
    del content["data"]["documents"]
    write_params(content)
    with pytest.raises(InputError, match=r"params.yaml: data.documents: is missing; add it"):
        params.load()
    Path("params.yaml").unlink()
    with pytest.raises(InputError, match=r"params.yaml: not found"):
        params.load()


def test_a_misspelt_key_is_named_rather_than_the_one_it_misses(project: Path) -> None:
    content = read_params()
    content["data"]["sampels"] = content["data"].pop("samples")
    write_params(content)
    with pytest.raises(InputError, match=r"params.yaml: data.sampels: unknown key"):
        params.load()


def test_numbers_as_dvc_writes_them(project: Path) -> None:
    text = Path("params.yaml").read_text().replace("gate_lr: 0.01", "gate_lr: 1e-05")
    Path("params.yaml").write_text(text)
    assert params.read("adapters.v3.gate_lr", float) == 1e-5


def test_broken_yaml_is_one_line(project: Path) -> None:
    Path("params.yaml").write_text("seed: [")
    with pytest.raises(InputError, match=r"^params.yaml: not YAML: [^\n]*$"):
        params.load()


def test_read_gives_what_is_asked_for(project: Path) -> None:
    assert params.read("replacements.v2.finetune.patience", int) == 2
    assert params.read("data", Data).segment_length == 16
    assert list(params.read("adapters", dict[str, Adapter])) == ["v3"]
    assert list(params.versions()) == ["v1", "v2", "v3"]
    with pytest.raises(InputError, match=r"^params.yaml: replacements.v8.layer: no such key$"):
        params.read("replacements.v8.layer", ReplacedLayer)


def test_every_seed_is_trained_once(project: Path) -> None:
    write_params(read_params() | {"seed": 3, "seeds": [1, 3, 2]})
    assert params.every_seed() == [3, 1, 2]
