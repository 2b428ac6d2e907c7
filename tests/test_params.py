"""params.yaml: an invalid file is one line that names the key, what it takes and the value."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from bad_params import BAD, BROKEN, HUGE
from infini import params
from infini.choices import REPLACEABLE, Policy
from infini.corpus.config import Data
from infini.corpus.pieces import train_val_sizes
from infini.errors import InputError
from infini.memory.eviction import policy_names
from infini.model.architectures import PROJECTION_READERS
from infini.model.segmented.config import ReplaceConfig
from infini.training.config import Adapter
from toy import read_params, write_params

ROOT = Path(__file__).parents[1]
LR = {"lr": 0.5}


def put(content: dict[str, Any], key: Any, value: object) -> None:
    """Set a dotted key, blocks on the way made; a number is an index of a list."""
    block: Any = content
    *parents, last = key.split(".") if isinstance(key, str) else [key]
    for parent in parents:
        block = block[int(parent)] if isinstance(block, list) else block.setdefault(parent, {})
    block[int(last) if isinstance(block, list) else last] = value


def load_error() -> str:
    """Return the message of loading params.yaml, one line."""
    with pytest.raises(InputError) as error:
        params.load_params()
    message = str(error.value)
    assert message.startswith("params.yaml: ")
    assert "\n" not in message
    return message.removeprefix("params.yaml: ")


def test_invalid_value_names_key_and_value(project: Path, subtests: pytest.Subtests) -> None:
    assert len(BAD) >= 80
    good = read_params()
    for key, value, expected in BAD:
        with subtests.test(key=key, value=value):
            content = copy.deepcopy(good)
            put(content, key, value)
            write_params(content)
            message = expected if expected[0] not in ": " else key + expected
            assert load_error().startswith(message)


def test_key_with_control_characters_is_escaped(project: Path) -> None:
    Path("params.yaml").write_text('"\\e[31mred": 1\n')
    assert "\\x1b[31mred: unknown key" in load_error()


def test_invalid_yaml_is_one_line(project: Path, subtests: pytest.Subtests) -> None:
    for text, expected in BROKEN.items():
        with subtests.test(text=text[:20]):
            Path("params.yaml").write_text(text)
            assert expected in load_error()


def test_unreadable_file_is_one_line(project: Path) -> None:
    Path("params.yaml").write_bytes("seed: ü".encode("latin-1"))
    assert "not readable as UTF-8 text" in load_error()
    Path("params.yaml").unlink()
    assert load_error() == "not found; run from the repository's root, or a study's folder"
    Path("params.yaml").mkdir()
    assert "not readable" in load_error()


def test_missing_keys_are_listed_all_at_once(project: Path) -> None:
    content = read_params()
    del content["data"]["corpus"], content["evaluate"]["full"], content["seeds"]
    del content["policies"]["names"]
    del content["replacements"]["v1"]["finetune"], content["adapters"]["v5"]["layer"]
    write_params(content)
    assert load_error() == (
        "missing keys: seeds, data.corpus, replacements.v1.finetune.lr, adapters.v5.layer, "
        "policies.names, evaluate.full.context"
    )
    write_params({})
    assert load_error() == (
        "missing keys: seed, seeds, base.model, data.corpus, data.segment_length, replacements, "
        "adapters, policies.names, policies.budgets, policy_curve.names, policy_curve.budgets, "
        "ruler.policies, ruler.budgets, evaluate.full.context"
    )


def test_minimal_file_has_defaults(project: Path) -> None:
    content = read_params()
    version = {"method": "window", "layer": {"window": 64}}
    write_params(
        {
            "seed": 0,
            "seeds": [],
            "base": {"model": content["base"]["model"]},
            "data": {"corpus": "text", "segment_length": 32},
            "replacements": {"r": {"layer": {"layers": [0]}, "distill": None, "finetune": LR}},
            "adapters": {"w": version, "p": {"method": "parallel", "layer": {"layers": [1]}}},
            "policies": {"names": [], "budgets": []},
            "policy_curve": {"names": [], "budgets": []},
            "ruler": {"policies": [], "budgets": []},
            "evaluate": {"full": {"context": 64}},
        }
    )
    read = params.load_params()
    assert (read.data.document_length, read.data.test.documents) == (4096, 16)
    assert sum(read.data.shares.model_dump().values()) == pytest.approx(1)
    assert read.evaluate.full.stride == 64
    assert (read.evaluate.documents, read.evaluate.short.samples) == (None, None)
    assert read.versions["w"].document_recipe.lr == 3e-3
    assert read.versions["p"].document_recipe.lr == 2e-3
    assert read.versions["r"].document_recipe.lr == LR["lr"]
    for version in read.versions.values():
        recipe = version.document_recipe
        assert (recipe.epochs, recipe.batch_size, recipe.hold_out) == (1, 1, True)


@pytest.mark.parametrize("documents", range(3, 40))
def test_control_needs_two_val_documents_of_its_length(project: Path, documents: int) -> None:
    content = read_params()
    content["replacements"], content["data"]["documents"] = {}, documents
    content["adapters"]["v5"]["length"] = 48
    write_params(content)
    if train_val_sizes(documents)[1] > 1:
        assert params.load_params().data.documents == documents
    else:
        assert load_error().startswith("adapters.v5.length must be null with control: true")


def test_misspelt_key_is_named_before_the_missing_one(project: Path) -> None:
    content = read_params()
    content["data"]["sampels"] = content["data"].pop("samples")
    write_params(content)
    assert load_error().startswith("data.sampels: unknown key; did you mean samples?")


def test_version_names_are_unique(project: Path) -> None:
    content = read_params()
    content["adapters"]["v1"] = content["adapters"]["v3"]
    write_params(content)
    assert load_error() == "adapters.v1: replacements.v1 has this name too; rename one"
    del content["adapters"]["v1"]
    content["adapters"]["base"] = content["adapters"]["v3"]
    write_params(content)
    assert load_error() == "adapters.base: base is the untouched base's name; rename it"


def test_policy_curve_has_no_figure_of_policies(project: Path) -> None:
    budgets = [{"window_size": size, "policy_window": 8} for size in (16, 20)]
    content = read_params() | {"policies": {"names": ["tova", "window"], "budgets": budgets[:1]}}
    write_params(content | {"policy_curve": {"names": ["tova"], "budgets": budgets}})
    assert load_error() == (
        "policy_curve: tova-16-8 (policy, window_size, policy_window) is in policies too: remove "
        "it from one"
    )
    write_params(content | {"policy_curve": {"names": ["tova"], "budgets": budgets[1:]}})
    targets = params.load_params().targets()
    assert targets[-1] == "evaluate_policies_curve@tova-budget0"


def check_error() -> str:
    """Return the message of checking params.yaml against base and corpus."""
    params.load_params()  # valid in itself
    with pytest.raises(InputError) as error:
        params.check_params()
    return str(error.value).removeprefix("params.yaml: ")


NO_CORPUS = " must be sotu, kjv, a folder of .txt or .jsonl files, or a hub dataset"
NO_MODEL = " must be an existing folder or a hub name, got "
BLOCK = " + sinks + 31 for retained pairs"
LAYERS, CONTEXT = (
    " must be < 2, the number of layers of 'here'",
    " must be ≤ 64, the context of 'here'",
)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        *(
            ("data.corpus", name, NO_CORPUS)
            for name in ("./nowhere", "~/nowhere", "params.yaml", "", "~nobody/x", "x /" * 2000)
        ),
        ("data.corpus", "empty", ": folder 'empty' has no .txt or .jsonl file"),
        *(
            ("base.model", name, NO_MODEL)
            for name in ("./nowhere", "~/nowhere", "~nobody/base", "x /" * 2000, "a b")
        ),
        ("base.model", "text", ": no config.json in 'text'"),
        ("base.model", "pickled", ": no .safetensors file in 'pickled': no pickle is"),
        ("base.model", "torn", ": torn/config.json: not a model's config"),
        ("adapters.v3.layer.layers", [0, 2], f"{LAYERS}, got [0, 2]"),
        ("replacements.v1.layer.layers", [7], f"{LAYERS}, got [7]"),
        ("base.model", "opt", "replacements.v1: method replace needs a base of gpt_neox, llama, "),
        ("evaluate.full.context", 65, f"{CONTEXT}, got 65"),
        ("evaluate.window.sizes", [8, 63], f" + sinks{CONTEXT}, got 65"),
        ("evaluate.window.extra_sizes", [63], f" + sinks{CONTEXT}, got 65"),
        (
            "adapters.v5.layer",
            {"window": 32, "retained": 1},
            f"adapters.v5.layer.window{BLOCK}{CONTEXT}, got 67",
        ),
        ("adapters.v5.windows", [8, 32], f"{BLOCK}{CONTEXT}, got 65"),
        ("evaluate.window.extra_sizes", [8, 32], f"{BLOCK}{CONTEXT}, got 65"),
        ("data.corpus", "/", " must be a folder of texts alone, got '/', which holds the pipeline"),
        ("data.corpus", ".", " must be a folder of texts alone, got '.', which holds the pipeline"),
        ("evaluate.passkey.lengths", [2, 12], ": facts and questions take "),
        ("evaluate.recall.segments", 2, "evaluate.recall.pairs: facts and questions take "),
        ("adapters.v3.question_share", 0.5, ": a document of 128 tokens is too short for a fact"),
        ("replacements.v4.finetune.question_share", 0.1, ": a document of 128 tokens is too short"),
        ("data.segment_length", 65, f"{CONTEXT}, got 65"),
    ],
)
def test_check_params_against_base_and_corpus(
    project: Path, base_folder: Path, key: str, value: Any, expected: str
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
    content["base"]["model"], content["data"]["document_length"] = "here", 128
    if ".window.extra" in key or key.endswith(".windows"):
        content["adapters"]["v5"]["layer"]["retained"] = int(value != [63])
    if value == 65:
        content["evaluate"]["full"]["context"] = 66
    put(content, key, value)
    write_params(content)
    assert check_error().startswith(expected if expected[0] not in ": " else key + expected)


@pytest.mark.parametrize("rope", ["rope_scaling", "rope_parameters"])
def test_windows_stay_within_the_context_that_longrope_extended(
    project: Path, base_folder: Path, rope: str
) -> None:
    Path("long").mkdir()
    for file in base_folder.iterdir():
        Path("long", file.name).write_bytes(file.read_bytes())
    config = json.loads(Path("long/config.json").read_text())
    config.pop("rope_parameters", None)
    config[rope] = {"rope_type": "longrope", "original_max_position_embeddings": 17}
    Path("long/config.json").write_text(json.dumps(config))
    content = read_params()
    content["base"]["model"] = "long"
    write_params(content)
    assert check_error() == (
        "evaluate.window.sizes + sinks must be ≤ 17, the context of 'long', got 18"
    )


def test_check_params_reads_a_cached_hub_config(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_params()
    content["base"]["model"], content["data"]["corpus"] = "some/model", "some/texts"
    content["adapters"]["v3"]["layer"]["layers"] = [2]
    write_params(content)
    assert params.check_params().base.model == "some/model"  # tests reach no hub
    snapshot = Path("cache/models--some--model/snapshots/0123")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((base_folder / "config.json").read_text())
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").resolve()))
    assert (
        "adapters.v3.layer.layers must be < 2, the number of layers of 'some/model'"
        in check_error()
    )


def test_choices_match_the_library() -> None:
    assert set(REPLACEABLE) == PROJECTION_READERS.keys()
    assert set(get_args(Policy)) <= set(policy_names())


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        ("infini params", "seed", HUGE),
        ("infini params", "data.samples", 0),
        ("stages.check_inputs", "data.corpus", "./nowhere"),
    ],
)
def test_command_exits_with_2_in_one_line(
    project: Path, command: str, key: str, value: object
) -> None:
    content = read_params()
    put(content, key, value)
    write_params(content)
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: params.yaml: {key}")
    assert done.stderr.count("\n") == 1


def test_load_params_reads_yaml_1_2_numbers(project: Path) -> None:
    text = Path("params.yaml").read_text().replace("gate_lr: 0.01", "gate_lr: 1e-05")
    Path("params.yaml").write_text(text)
    assert params.get("adapters.v3.gate_lr", float) == 1e-5


def test_get_returns_typed_values(project: Path) -> None:
    assert params.get("replacements.v2.finetune.patience", int) == 2
    assert params.get("data", Data).segment_length == 16
    assert next(iter(params.get("adapters", dict[str, Adapter]))) == "v3"
    assert list(params.all_versions())[:2] == ["v1", "v2"]
    with pytest.raises(InputError, match=r"^params.yaml: replacements.v8.layer: no such key$"):
        params.get("replacements.v8.layer", ReplaceConfig)


def test_all_seeds_begins_with_seed(project: Path) -> None:
    write_params(read_params() | {"seed": 3, "seeds": [1, 2]})
    assert params.all_seeds() == [3, 1, 2]
