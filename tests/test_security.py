"""Files from anywhere: no code in them is run, no path in them is followed."""

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from infini.errors import InputError
from infini.model.base import load_base, load_tokenizer
from toy import read_params, sentence, stage, write_params

OURS = sorted(file for folder in ("infini", "stages") for file in (ROOT / folder).rglob("*.py"))
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
# Calls that unpickle, run text as code, or use a shell: the whole name, or its end.
BUILT_IN = {"eval", "exec"}
UNSAFE = (
    "torch.load", "torch.save", "np.load", "np.save", "read_pickle", "to_pickle", "os.system",
    "os.popen", "yaml.load", "yaml.unsafe_load",
)  # fmt: skip
ARGUMENTS = {"shell", "allow_pickle", "weights_only", "trust_remote_code"}  # unless False


def unsafe(tree: ast.AST) -> list[str]:
    """Return calls and imports of a module that could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in PICKLES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [name] if name in BUILT_IN or name.endswith(UNSAFE) else []
            found += [
                str(keyword.arg)
                for keyword in node.keywords
                if keyword.arg in ARGUMENTS and ast.unparse(keyword.value) != "False"
            ]
    return found


@pytest.mark.parametrize("file", OURS, ids=lambda file: str(file.relative_to(ROOT)))
def test_module_has_no_unsafe_call(file: Path) -> None:
    assert unsafe(ast.parse(file.read_text())) == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from dill import loads", "torch.load(f)", "np.load(f, allow_pickle=True)",
     "pd.read_pickle(f)", "eval(x)", "exec(x)", "os.system(x)", "subprocess.run(x, shell=True)",
     "A.from_pretrained(x, trust_remote_code=True)", "torch.load(f, weights_only=True)"],
)  # fmt: skip
def test_unsafe_finds(code: str) -> None:
    assert unsafe(ast.parse(code))


def test_from_pretrained_allows_no_code_and_no_pickles() -> None:
    calls = [
        node
        for node in ast.walk(ast.parse((ROOT / "infini/model/base.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("from_pretrained")
    ]
    assert len(calls) == 3
    for call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given["trust_remote_code"] == "False"
        if "AutoModel" in ast.unparse(call.func):
            assert given["use_safetensors"] == "True"


CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil: pass\n"


def own_code(folder: Path, seen: Path, kind: str) -> None:
    """Make a base ask for its own code."""
    (folder / "evil.py").write_text(CODE.format(str(seen)))
    for name, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "Auto")):
        file = folder / name
        content = json.loads(file.read_text())
        content["auto_map"] = {key: "evil.Evil", "AutoConfig": "evil.Evil"}
        content["auto_map"]["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
        if name == "config.json":
            content["model_type"] = kind
        file.write_text(json.dumps(content))


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def pickled_weights(folder: Path, seen: Path, kind: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(seen)))


@pytest.mark.parametrize("change", [own_code, pickled_weights])
@pytest.mark.parametrize("kind", ["gpt_neox", "evil"])
def test_load_base_runs_no_code_of_the_base(
    tmp_path: Path, base_folder: Path, change: Callable[[Path, Path, str], None], kind: str
) -> None:
    folder, seen = tmp_path / "base", tmp_path / "seen"
    shutil.copytree(base_folder, folder)
    change(folder, seen, kind)
    for load in (load_base, load_tokenizer):
        with suppress(InputError):
            load(str(folder))
        assert not seen.exists()


def test_names_in_a_corpus_are_no_paths(project: Path) -> None:
    folder = Path("text <img src=x onerror=y> $(touch seen)")
    folder.mkdir()
    ids = ["../../evil", "/tmp/evil", "..", "a\0b", "\x1b[31m", "data/models", "a/../../b", "<b>"]
    rows = [
        {"id": f"{ids[i % len(ids)]}{i}", "text": sentence(90 + i, i)} for i in range(30)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = read_params()
    content["data"]["corpus"] = str(folder)
    write_params(content)
    outputs = ("data", "reports")
    before = {f for f in project.parent.rglob("*") if not {*outputs} & {*f.parts}}
    stage("check_inputs")
    stage("prepare_data")
    written = {file.relative_to(project) for file in project.rglob("*") if file.is_file()}
    after = {f for f in project.parent.rglob("*") if not {*outputs} & {*f.parts}}
    assert after == before
    assert {file.parts[:2] for file in written if file.parts[0] in outputs} == {
        ("data", "inputs"), ("data", "prepared"), ("data", "times"), ("reports", "prepared.json"),
    }  # fmt: skip
