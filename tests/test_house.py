"""The library stands alone, and the wheel is complete."""

import subprocess
import sys
import zipfile
from pathlib import Path

from conftest import ROOT

PIPELINE = ("pydantic", "ruamel", "pandas", "dvc", "dvclive", "accelerate", "tqdm", "datasets")


def run_python(code: str) -> str:
    """Return what a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tests_mirror_the_folders() -> None:
    folders = {p.name for p in (ROOT / "infini").iterdir() if (p / "__init__.py").is_file()}
    tested = {p.name for p in (ROOT / "tests").iterdir() if list(p.glob("test_*.py"))}
    assert tested == folders | {"audits"}


def test_import_gives_every_public_name() -> None:
    code = "import infini; print(infini.memory.compressive_memory.__name__)\n"
    code += "print(*[getattr(infini, name) for name in infini.__all__], sep='\\n')"
    first, shown = run_python(code).split("\n", 1)
    assert first == "compressive_memory"
    for name in ("InfiniAttention", "load", "load_memory", "memory", "remove", "retrofit"):
        assert name in shown
    assert "<function retrofit" in shown  # not a module of that name


def test_library_imports_nothing_of_the_pipeline() -> None:
    """Compared with what a plain transformers model imports when it generates."""
    small = "vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2"
    generate = "model.generate(torch.ones(1, 9, dtype=int), max_new_tokens=2)\n"
    code = "import sys, torch\n"
    code += "from transformers import AutoModelForCausalLM, DynamicCache\n"
    code += "from transformers import GPTNeoXConfig, GPTNeoXForCausalLM\n"
    code += f"model = GPTNeoXForCausalLM(GPTNeoXConfig({small}, intermediate_size=8))\n"
    code += f"{generate}plain = set(sys.modules)\n"
    code += f"import infini; infini.retrofit(model, segment_length=4)\n{generate}"
    code += "ours = {name.split('.')[0] for name in set(sys.modules) - plain}\n"
    code += f"print('infini' in ours, *(ours & {set(PIPELINE)}))"
    assert run_python(code).split() == ["True"]


def test_load_starts_no_accelerator(tmp_path: Path) -> None:
    code = f"""
import sys, infini
from transformers import AutoModelForCausalLM
model = infini.retrofit(AutoModelForCausalLM.from_pretrained("{ROOT}/data/base"), segment_length=4)
model.save_pretrained("{tmp_path}")
loaded = infini.load("{tmp_path}")
print(loaded.device, "infini.processes" in sys.modules, "accelerate.state" in sys.modules
      and bool(sys.modules["accelerate.state"].PartialState._shared_state))
"""
    assert run_python(code).split() == ["cpu", "False", "False"]


def test_import_registers_auto_classes_and_imports_nothing_of_the_pipeline() -> None:
    code = "import sys, torch\n"
    code += "from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer\n"
    code += "from transformers import PreTrainedConfig, PreTrainedModel\n"
    code += "plain = set(sys.modules)\nimport infini\n"
    code += "ours = {name.split('.')[0] for name in set(sys.modules) - plain}\n"
    code += "print('infini' in AutoConfig.for_model('infini').model_type, "
    code += f"*(ours & {set(PIPELINE)}))"
    assert run_python(code).split() == ["True"]


def test_wheel_has_every_module_and_template(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("infini", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("infini/")}
    wanted = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "infini").rglob("*")
        if file.suffix in (".py", ".j2", ".css", ".js")
    }
    assert names == wanted
    code = f"import sys; sys.path.insert(0, '{wheel}'); import infini; print(infini.__file__)"
    assert run_python(code).startswith(str(wheel))
