"""params.yaml: a wrong file is one line that names the key, what is needed and what is there."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from infini import params
from infini.choices import REPLACEABLE
from infini.corpus.config import Data
from infini.errors import InputError
from infini.model.architectures import PROJECTIONS
from infini.training.config import Adapter, ReplacedLayer
from toy import read_params, write_params

ROOT = Path(__file__).parents[1]
HUGE = 10**30

# A key, what it is set to, and what the line says behind the key.
BAD: list[tuple[str, Any, str]] = [
    ("seed", -1, "a whole number from 0 to 4,294,967,295 is needed, got -1"),
    ("seed", HUGE, f"a whole number from 0 to 4,294,967,295 is needed, got {HUGE}"),
    ("seed", 1.0, "a whole number from 0 to 4,294,967,295 is needed, got 1.0"),
    ("seed", True, "a whole number from 0 to 4,294,967,295 is needed, got true"),
    ("seed", None, "a whole number from 0 to 4,294,967,295 is needed, got null"),
    (
        "seeds",
        3,
        "a list of 0 or more (each a whole number from 0 to 4,294,967,295) is needed, got 3",
    ),
    ("seeds", [1, 1], "different ones, also from seed (0), are needed, got [1, 1]"),
    ("seeds", [0], "different ones, also from seed (0), are needed, got [0]"),
    ("base", "data/base", "a block of model, revision is needed, got 'data/base'"),
    ("base.model", None, "text is needed, got null"),
    ("base.model", 3, "text is needed, got 3"),
    ("base.revision", 1.5, "text or null is needed, got 1.5"),
    ("base.modle", "x", "unknown key; did you mean model? (known: model, revision)"),
    ("pretrain.vocab_size", 256, "a whole number from 257 on is needed, got 256"),
    ("pretrain.width", 0, "a whole number from 1 to 1,000,000,000 is needed, got 0"),
    ("pretrain.width", 191, "a multiple of pretrain.heads, 6, is needed, got 191"),
    ("pretrain.lr", 0.0, "a number above 0 up to 1 is needed, got 0.0"),
    ("pretrain.lr", 1.5, "a number above 0 up to 1 is needed, got 1.5"),
    ("pretrain.weight_decay", -0.1, "a number from 0 on is needed, got -0.1"),
    ("pretrain.weight_decay", float("inf"), "a number from 0 on is needed, got inf"),
    ("pretrain.phases", [], "a list of 1 or more"),
    ("data", [], "a block of corpus, shares, samples"),
    ("data.corpus", ["sotu"], "text is needed, got ['sotu']"),
    ("data.shares", 0.5, "a block of base, train, val, test is needed, got 0.5"),
    ("data.shares.test", 0.9, "must sum to 1, got 1.7"),
    ("data.shares.base", -0.2, "a number from 0 to 1 is needed, got -0.2"),
    ("data.shares.val", 0.0, "a number above 0 up to 1 is needed, got 0.0"),
    ("data.shares.train", float("nan"), "a number above 0 up to 1 is needed, got nan"),
    ("data.shares.train", "17%", "a number above 0 up to 1 is needed, got '17%'"),
    ("data.samples", "many", "a whole number from 2 to 1,000,000,000 is needed, got 'many'"),
    ("data.samples", 1, "a whole number from 2 to 1,000,000,000 is needed, got 1"),
    ("data.samples", HUGE, "a whole number from 2 to 1,000,000,000 is needed"),
    ("data.documents", 1, "a whole number from 2 to 1,000,000,000 is needed, got 1"),
    ("data.documents", 2.5, "a whole number from 2 to 1,000,000,000 is needed, got 2.5"),
    ("data.document_length", 1, "a whole number from 2 to 1,000,000,000 is needed, got 1"),
    ("data.segment_length", 3, "a whole number from 4 to 1,000,000,000 is needed, got 3"),
    ("data.segment_length", "256", "a whole number from 4 to 1,000,000,000 is needed, got '256'"),
    ("data.segment_length", 65, "at most data.document_length, 64, got 65"),
    ("data.test.samples", 0, "a whole number from 1 to 1,000,000,000 is needed, got 0"),
    ("data.test.documents", [2], "a whole number from 1 to 1,000,000,000 is needed, got [2]"),
    ("data.segment_lenght", 16, "unknown key; did you mean segment_length? (known: corpus, "),
    ("data.zzz", 16, "unknown key; remove it (known: corpus, "),
    ("replacements", None, "a block of names is needed, got null"),
    ("replacements.a b", {}, "a name of up to 64 letters, digits, - and _ is needed, got 'a b'"),
    ("replacements.$(ls)", {}, "a name of up to 64 letters, digits, - and _ is needed, got '$(l"),
    (f"replacements.{'v' * 65}", {}, "a name of up to 64 letters, digits, - and _ is needed"),
    ("replacements.v1", None, "a block of layer, distill, finetune is needed, got null"),
    ("replacements.v1.layer.layers", 0, "a list of 1 or more (each a whole number from 0"),
    ("replacements.v1.layer.layers", [], "a list of 1 or more (each a whole number from"),
    ("replacements.v1.layer.layers.0", -1, "a whole number from 0 on is needed, got -1"),
    ("replacements.v2.layer.layers", [0, 1], "exactly one layer is distilled"),
    ("replacements.v2.layer.init", "pretrained", "one of 'teacher', 'random' is needed, got 'pre"),
    ("replacements.v1.layer.init", "teacher", "teacher has the base's own local: softmax, and"),
    ("replacements.v1.layer.update", "dleta", "one of 'linear', 'delta' is needed, got 'dleta'"),
    ("replacements.v1.layer.local", 1, "one of 'softmax', 'linear' is needed, got 1"),
    ("replacements.v1.layer.position", "rop", "one of 'none', 'alibi', 'rope' or null is needed"),
    ("replacements.v1.distill", 3, "a block of epochs, lr, gate_lr, batch_size, hold_out, patien"),
    ("replacements.v2.distill.epochs", 0, "a whole number from 1 to 1,000,000,000 is needed"),
    ("replacements.v2.distill.batch_size", -8, "a whole number from 1 to 1,000,000,000 is needed"),
    ("replacements.v2.distill.hold_out", "yes", "true or false is needed, got 'yes'"),
    ("replacements.v2.distill.hold_out", 1, "true or false is needed, got 1"),
    ("replacements.v2.distill.patience", 0, "a whole number from 1 to 1,000,000,000 or null is"),
    ("replacements.v1.distill.patience", 2, "patience needs hold_out"),
    ("replacements.v2.finetune.lr", "low", "a number above 0 up to 1 is needed, got 'low'"),
    ("replacements.v2.finetune.lr", 2, "a number above 0 up to 1 is needed, got 2"),
    ("replacements.v2.finetune.gate_lr", -1.0, "a number above 0 up to 1 is needed, got -1.0"),
    ("replacements.v2.finetune.update", "token", "one of 'segment', 'document' is needed"),
    ("replacements.v2.finetune.bptt_segments", 2, "bptt_segments must be 0 with update"),
    ("replacements.v2.finetune.bptt_segments", -1, "a whole number from 0 on or null is needed"),
    ("replacements.v2.finetune.documents", 1, "a whole number from 2 to 1,000,000,000 or null is"),
    ("replacements.v2.finetune.documents", 7, "at most data.documents, 6, got 7"),
    ("replacements.v2.fintune", {}, "unknown key; did you mean finetune? (known: layer, distill, "),
    ("adapters", [], "a block of names is needed, got []"),
    ("adapters.v3.alpha", float("nan"), "a number is needed, got nan"),
    ("adapters.v3.method", "beside", "one of 'parallel', 'window' is needed, got 'beside'"),
    ("adapters.v3.control", "no", "true or false is needed, got 'no'"),
    ("adapters.v3.layer.window", 64, "unknown key; remove it (known: layers, update, local, pos"),
    ("adapters.v5.layer.window", 0, "a whole number from 1 to 1,000,000,000 is needed, got 0"),
    ("adapters.v5.layer.sinks", -1, "a whole number from 0 on is needed, got -1"),
    ("adapters.v5.layer.layers", [], "a list of 1 or more (each a whole number from 0 on) or nul"),
    ("adapters.v5.layer.update", "forget", "one of 'linear', 'delta', 'gated_delta' is needed"),
    ("adapters.v5.alpha", 0.0, "unknown key; remove it (known: epochs, lr, gate_lr, batch_size"),
    ("adapters.v3.alpha", "0", "a number is needed, got '0'"),
    ("adapters.v3.documents", 7, "at most data.documents, 6, got 7"),
    ("adapters.v3.learning_rate", 1.0, "unknown key; "),
    ("adapters.v3.Alpha", 1.0, "unknown key; did you mean alpha?"),
    ("adapters.v3.layer.local", "soft", "one of 'softmax', 'linear' is needed, got 'soft'"),
    ("adapters.v3.layer.layers.0", "first", "a whole number from 0 on is needed, got 'first'"),
    ("evaluate.short.samples", 7, "at most data.test.samples, 6, got 7"),
    ("evaluate.short.samples", 0, "a whole number from 1 to 1,000,000,000 is needed, got 0"),
    ("evaluate.documents", 1, "a whole number from 2 on is needed, got 1"),
    ("evaluate.documents", 3, "at most data.test.documents, 2, got 3"),
    ("evaluate.double_shift.documents", 3, "at most evaluate.documents, 2, got 3"),
    ("evaluate.full.stride", 64, "at most the context, 32, got 64"),
    ("evaluate.full.context", 0, "a whole number from 1 to 1,000,000,000 is needed, got 0"),
    ("evaluate.window.sizes", [16, 8], "in rising order, none twice, got [16, 8]"),
    ("evaluate.window.sizes", [], "a list of 1 or more (each a whole number from 1 to"),
    ("evaluate.passkey.depths", [], "a list of 1 or more (each a number from 0 to 1)"),
    ("evaluate.passkey.depths.0", 1.5, "a number from 0 to 1 is needed, got 1.5"),
    ("evaluate.passkey.lengths.0", 1, "a whole number from 2 on is needed, got 1"),
    ("evaluate.passkey.samples", None, "a whole number from 1 to 1,000,000,000 is needed, got nul"),
    ("evaluate.pass_key", {}, "unknown key; did you mean passkey?"),
    ("cost.lengths", [], "a list of 1 or more (each a whole number from 1 to"),
    ("cost.repeats", 0, "a whole number from 1 to 1,000,000,000 is needed, got 0"),
    ("audits.padding.of", "v8", "one of v1, v2, v4, v3, v5 is needed, got 'v8'"),
    ("audits.padding.question", None, "text is needed, got null"),
    ("audits.padding.mistake", "padding", "one of 'none', 'labels_shifted_twice', 'memory_carr"),
    ("audits.padding.distill.lrr", 1.0, "unknown key; did you mean lr?"),
    ("audits.carried_memory.finetune.lr", 2.0, "a number above 0 up to 1 is needed, got 2.0"),
    ("audits.carried_memory.distill", {"lr": 0.1}, "nothing of 'v3' is distilled"),
    ("audits.padding.of", "v5", "'v5' reads by window, the log's loop is of segments"),
    ("audits.costs", {"of": "v2", "question": "?"}, "is the costs' name in the report: rename"),
    ("sede", 1, "unknown key; did you mean seed? (known: seed, seeds, base"),
]

# Whole files.
BROKEN = {
    "": "a block of seed, seeds, base, pretrain, data",
    "- seed\n": "a block of seed, seeds, base, pretrain, data",
    "seed: [": "not YAML: ",
    "seed: 1\nseed: 2\n": "seed: is there twice, again in line 2; keep one",
    "data: {samples: 3, samples: 4}\n": "samples: is there twice, again in line 1; keep one",
    "seed: \x01\n": "not YAML: ",
    "seed: !!python/object:os.system x\n": "not YAML: ",
    "a: &a [*a]\n": "",
    "[" * 400: "not YAML: ",
    f"seed: {'9' * 5000}\n": "not YAML: ",
}


def put(content: dict[str, Any], key: str, value: object) -> None:
    """Set a dotted key, blocks on the way made; a number is an index of a list."""
    block: Any = content
    *parents, last = key.split(".")
    for parent in parents:
        block = block[int(parent)] if isinstance(block, list) else block.setdefault(parent, {})
    block[int(last) if isinstance(block, list) else last] = value


def refusal() -> str:
    """What loading params.yaml says; one line."""
    with pytest.raises(InputError) as error:
        params.load()
    message = str(error.value)
    assert message.startswith("params.yaml: ")
    assert "\n" not in message
    return message.removeprefix("params.yaml: ")


def test_one_line_names_key_and_range_and_value(project: Path, subtests: pytest.Subtests) -> None:
    assert len(BAD) >= 80
    good = read_params()
    for key, value, wanted in BAD:
        with subtests.test(key=key, value=value):
            content = copy.deepcopy(good)
            put(content, key, value)
            write_params(content)
            message = refusal()
            assert wanted in message
            of_a_block = ("must sum", "patience needs", "bptt_segments must")
            whole = key.rpartition(".")[0] if wanted.startswith(of_a_block) else key
            assert message.startswith(f"{whole}: ")


def test_a_file_that_is_no_yaml_of_ours_is_one_line(
    project: Path, subtests: pytest.Subtests
) -> None:
    for text, wanted in BROKEN.items():
        with subtests.test(text=text[:20]):
            Path("params.yaml").write_text(text)
            assert wanted in refusal()


def test_what_is_no_text_is_one_line(project: Path) -> None:
    Path("params.yaml").write_bytes("seed: ü".encode("latin-1"))
    assert "not readable as UTF-8 text" in refusal()
    Path("params.yaml").unlink()
    assert refusal() == "not found; run from the repository's root"
    Path("params.yaml").mkdir()
    assert "not readable" in refusal()


def test_a_missing_key_says_what_it_holds(project: Path) -> None:
    content = read_params()
    del content["data"]["documents"]
    write_params(content)
    wanted = "data.documents: is missing; add it: a whole number from 2 to 1,000,000,000"
    assert refusal() == wanted


def test_a_misspelt_key_is_named_rather_than_the_one_it_misses(project: Path) -> None:
    content = read_params()
    content["data"]["sampels"] = content["data"].pop("samples")
    write_params(content)
    assert refusal().startswith("data.sampels: unknown key; did you mean samples?")


def test_a_name_is_one_versions(project: Path) -> None:
    content = read_params()
    content["adapters"]["v1"] = content["adapters"]["v3"]
    write_params(content)
    assert refusal() == "adapters.v1: is a replacement's name too: rename one"
    del content["adapters"]["v1"]
    content["adapters"]["base"] = content["adapters"]["v3"]
    write_params(content)
    assert refusal() == "adapters.base: is the untouched base's name: rename the version"


def checked() -> str:
    """What checking params.yaml against base and text says."""
    params.load()  # which knows of neither
    with pytest.raises(InputError) as error:
        params.check()
    return str(error.value).removeprefix("params.yaml: ")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("data.corpus", "./nowhere", "data.corpus: sotu, kjv, a folder of .txt or .jsonl files or"),
        ("data.corpus", "~/nowhere", "data.corpus: sotu, kjv, a folder of .txt or .jsonl files or"),
        ("data.corpus", "params.yaml", "hub dataset's name is needed, got 'params.yaml'"),
        ("data.corpus", "empty", "data.corpus: no .txt or .jsonl file in folder 'empty'"),
        ("base.model", "./nowhere", "base.model: an existing folder or a hub name is needed, got"),
        ("base.model", "~/nowhere", "base.model: an existing folder or a hub name is needed, got"),
        ("base.model", "a b", "base.model: an existing folder or a hub name is needed, got 'a b'"),
        ("base.model", "text", "base.model: no config.json in 'text'"),
        ("base.model", "pickled", "base.model: no .safetensors file in 'pickled': pickles are not"),
        ("base.model", "torn", "base.model: torn/config.json: not a model's config"),
        (
            "adapters.v3.layer.layers",
            [0, 2],
            "adapters.v3.layer.layers: 0 to 1, the layers of 'here', got 2",
        ),
        (
            "replacements.v1.layer.layers",
            [7],
            "replacements.v1.layer.layers: 0 to 1, the layers of 'here', got 7",
        ),
        (
            "base.model",
            "opt",
            "replacements.v1: a layer of opt ('opt') cannot be replaced, of gpt_neox, llama, "
            "mistral, qwen2, qwen3, gpt2 it can; make it an adapter, or remove it",
        ),
        (
            "evaluate.full.context",
            65,
            "evaluate.full.context: up to 64 tokens, the context of 'here', got 65",
        ),
        (
            "evaluate.window.sizes",
            [8, 63],
            "evaluate.window: sizes + sinks: up to 64 tokens, the context of 'here', got 65",
        ),
        (
            "adapters.v5.layer.window",
            63,
            "adapters.v5.layer: window + sinks: up to 64 tokens, the context of 'here', got 65",
        ),
        (
            "data",
            {"segment_length": 65, "document_length": 128},
            "data.segment_length: up to 64 tokens, the context of 'here', got 65",
        ),
    ],
)
def test_what_base_and_text_cannot_do_is_refused(
    project: Path, base_folder: Path, key: str, value: Any, wanted: str
) -> None:
    Path("empty").mkdir()
    Path("here").symlink_to(base_folder)
    config = json.loads((base_folder / "config.json").read_text())
    for folder, kind in (("opt", "opt"), ("torn", None), ("pickled", "llama")):
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(json.dumps(config | {"model_type": kind}))
        Path(folder, f"model.{'bin' if folder == 'pickled' else 'safetensors'}").touch()
    Path("torn/config.json").write_text("{")
    content = read_params()
    content["base"]["model"] = "here"
    put(content, key, content["data"] | value if key == "data" else value)
    write_params(content)
    assert wanted in checked()


def test_what_is_on_a_hub_is_checked_when_it_is_loaded(project: Path) -> None:
    content = read_params()
    content["base"]["model"], content["data"]["corpus"] = "some/model", "some/texts"
    write_params(content)
    assert params.check().base.model == "some/model"


def test_the_architectures_that_can_be_replaced_are_those_that_are_known() -> None:
    assert set(REPLACEABLE) == PROJECTIONS.keys()


@pytest.mark.parametrize(
    ("module", "key", "value"),
    [
        ("infini.params", "seed", HUGE),
        ("infini.params", "adapters.v3.layer.layers", [9]),
        ("stages.check_inputs", "data.corpus", "./nowhere"),
    ],
)
def test_a_shell_sees_one_line_and_2_at_once(
    project: Path, module: str, key: str, value: object
) -> None:
    content = read_params()
    put(content, key, value)
    write_params(content)
    code = (
        f"import runpy, sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
        f"runpy.run_module('{module}', run_name='__main__')"
    )
    began = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert time.process_time() - began < 2
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith(f"error: params.yaml: {key}: ")
    assert done.stderr.count("\n") == 1


def test_numbers_as_dvc_writes_them(project: Path) -> None:
    text = Path("params.yaml").read_text().replace("gate_lr: 0.01", "gate_lr: 1e-05")
    Path("params.yaml").write_text(text)
    assert params.read("adapters.v3.gate_lr", float) == 1e-5


def test_read_gives_what_is_asked_for(project: Path) -> None:
    assert params.read("replacements.v2.finetune.patience", int) == 2
    assert params.read("data", Data).segment_length == 16
    assert next(iter(params.read("adapters", dict[str, Adapter]))) == "v3"
    assert list(params.versions())[:2] == ["v1", "v2"]
    with pytest.raises(InputError, match=r"^params.yaml: replacements.v8.layer: no such key$"):
        params.read("replacements.v8.layer", ReplacedLayer)


def test_the_seed_comes_first(project: Path) -> None:
    write_params(read_params() | {"seed": 3, "seeds": [1, 2]})
    assert params.every_seed() == [3, 1, 2]
