"""transformers knows our saved models whichever is imported first, and no sooner than need be."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import infini
from architectures import L

KNOWN = "print('infini' in CONFIG_MAPPING)\n"
CONFIGS = "from transformers.models.auto.configuration_auto import CONFIG_MAPPING\n"


def python(code: str) -> list[str]:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_library_imports_neither_transformers_nor_torch() -> None:
    code = "import sys, infini\nprint('transformers' in sys.modules, 'torch' in sys.modules)\n"
    code += f"{CONFIGS}{KNOWN}print('infini.model.loading' in sys.modules)"
    assert python(code) == ["False", "False", "True", "False"]


@pytest.mark.parametrize("first", ["import infini\n", "from infini.model.loading import load\n"])
def test_a_folder_is_loaded_though_transformers_comes_later(
    first: str, model: PreTrainedModel, tmp_path: Path
) -> None:
    infini.retrofit(model, "parallel", [1], L).save_pretrained(tmp_path)
    code = f"{first}from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    code += f"model = AutoModelForCausalLM.from_pretrained('{tmp_path}')\n"
    code += f"print(model.infini_config['method'], AutoTokenizer.from_pretrained('{tmp_path}'))"
    assert python(code)[0] == "parallel"


def test_a_transformers_that_is_there_already_is_told_at_once() -> None:
    assert python(f"{CONFIGS}{KNOWN}import infini\n{KNOWN}") == ["False", "True"]
