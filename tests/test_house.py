"""The house: small files and functions, a core that stands alone, names that are there."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file.relative_to(ROOT)
    for folder in ("infini", "stages", "benchmarks", "tests")
    for file in (ROOT / folder).rglob("*.py")
)
PIPELINE = ("pydantic", "ruamel", "pandas", "dvc", "dvclive", "accelerate", "tqdm", "datasets")


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("file", FILES, ids=str)
def test_files_functions_and_parameter_lists_are_short(file: Path) -> None:
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            assert len([name for name in names if name not in ("self", "cls")]) <= 7, node.name


def test_tests_mirror_the_folders() -> None:
    """Every folder's tests in one of the same name; every test file named after a module."""
    folders = {p.name for p in (ROOT / "infini").iterdir() if (p / "__init__.py").is_file()}
    assert {p.name for p in (ROOT / "tests").iterdir() if list(p.glob("test_*.py"))} == folders
    for file in (ROOT / "tests").glob("*/test_*.py"):
        name = file.stem.removeprefix("test_")
        assert (ROOT / "infini" / file.parent.name / f"{name}.py").is_file(), file


def test_every_public_name_is_there_after_a_bare_import() -> None:
    code = "import infini; print(infini.memory.compressive_memory.__name__)\n"
    code += "print(*[getattr(infini, name) for name in infini.__all__], sep='\\n')"
    first, shown = python(code).split("\n", 1)
    assert first == "compressive_memory"
    for name in ("InfiniAttention", "load", "load_memory", "memory", "remove", "retrofit"):
        assert name in shown
    assert "<function retrofit" in shown  # not a module of that name


def test_the_library_alone_brings_nothing_of_the_pipeline() -> None:
    """Nothing beyond what a model of transformers that writes a text brings by itself."""
    small = "vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2"
    write = "model.generate(torch.ones(1, 9, dtype=int), max_new_tokens=2)\n"
    code = "import sys, torch\n"
    code += "from transformers import AutoModelForCausalLM, DynamicCache\n"
    code += "from transformers import GPTNeoXConfig, GPTNeoXForCausalLM\n"
    code += f"model = GPTNeoXForCausalLM(GPTNeoXConfig({small}, intermediate_size=8))\n"
    code += f"{write}plain = set(sys.modules)\n"
    code += f"import infini; infini.retrofit(model, segment_length=4)\n{write}"
    code += "ours = {name.split('.')[0] for name in set(sys.modules) - plain}\n"
    code += f"print('infini' in ours, *(ours & {set(PIPELINE)}))"
    assert python(code).split() == ["True"]


def test_a_loaded_model_starts_no_accelerator(tmp_path: Path) -> None:
    code = f"""
import sys, infini
from transformers import AutoModelForCausalLM
model = infini.retrofit(AutoModelForCausalLM.from_pretrained("{ROOT}/data/base"), segment_length=4)
model.save_pretrained("{tmp_path}")
loaded = infini.load("{tmp_path}")
print(loaded.device, "infini.processes" in sys.modules, "accelerate.state" in sys.modules
      and bool(sys.modules["accelerate.state"].PartialState._shared_state))
"""
    assert python(code).split() == ["cpu", "False", "False"]


def test_checking_params_needs_no_torch() -> None:
    code = "import sys, infini.params as p; p.load(); print('torch' in sys.modules)"
    assert python(f"import os; os.chdir('{ROOT}')\n{code}").strip() == "False"


def test_a_wheel_has_every_module_and_template(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    copy = tmp_path / "source"
    copy.mkdir()
    for name in ("infini", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    subprocess.run([*build, str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("infini/")}
    wanted = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "infini").rglob("*")
        if file.suffix in (".py", ".j2", ".css", ".js")
    }
    assert names == wanted
    code = f"import sys; sys.path.insert(0, '{wheel}'); import infini; print(infini.__file__)"
    assert python(code).startswith(str(wheel))
