"""Command `new-study`: write a study's folder with a minimal params.yaml."""

import os
import shutil
from argparse import Namespace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from infini.corpus.inputs import text_files
from infini.errors import InputError, shown
from infini.model.base_info import base_info
from infini.params import PARAMS_FILE, check_params
from infini.schema import Name

STUDIES = Path("studies")
SEGMENT, WINDOW = 256, 64  # tokens, at most a quarter of the base's context
SEGMENTS = 16  # of a document
MINIMAL_PARAMS = """\
# Keys, their defaults and ranges: the config.py files of infini/; versions: ../../docs/pipeline.md
seed: 0
seeds: []

base: {{model: {base}}}

data:
  corpus: {text}
  document_length: {document}
  segment_length: {segment}

replacements: {{}}

adapters:
  # a window in every layer, 128 retained pairs per head and a matrix memory
  memory:
    method: window
    layer: {{window: {window}, update: gated_delta, retained: 128}}
    objective: distillation

policies: {{names: [], budgets: []}}
policy_curve: {{names: [], budgets: []}}
ruler: {{policies: [], budgets: []}}

evaluate:
  full: {{context: {full}}}
"""
NO_BASE = """\
# No base in this folder

The study's base is what `base.model` of its `params.yaml` says.
"""


def run_new_study(arguments: Namespace) -> None:
    """Write studies/NAME/params.yaml; an invalid argument raises InputError."""
    folder = write_study(arguments.name, arguments.base, arguments.text)
    print(f"{folder / PARAMS_FILE}: written; run it with: make study STUDY={arguments.name}")


def write_study(name: str, base: str, text: str) -> Path:
    """Write the folder of a study in `STUDIES`, which is relative to the working directory.

    Args:
        name: the study's name.
        base: a folder written by save_pretrained, or a name on the hub.
        text: an embedded corpus, a folder of .txt or .jsonl files, or a hub dataset.

    Returns:
        The study's folder.

    Raises:
        InputError: an argument is invalid, or base and text do not suit each other.
    """
    folder = STUDIES / name
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise InputError(
            f"NAME must be letters, digits, - and _, at most 64, got {shown(name)}"
        ) from None
    if not Path("dvc.yaml").is_file():
        raise InputError("dvc.yaml: not found; run from the repository's root")
    if folder.exists():
        raise InputError(f"{folder}: exists already; choose another name, or edit its params.yaml")
    if (info := base_info(base)) is None:
        raise InputError(f"--base: the config of {base!r} cannot be read; is the hub reachable?")
    text_files(text)
    context = info.window_context or SEGMENT * SEGMENTS
    segment = min(SEGMENT, context // 4)
    content = MINIMAL_PARAMS.format(
        base=_quoted(_from_study(base, folder)),
        text=_quoted(_from_study(text, folder)),
        document=SEGMENTS * segment,
        segment=segment,
        window=min(WINDOW, context // 4),
        full=min(context, SEGMENTS * segment),
    )
    try:
        (folder / "data/base").mkdir(parents=True)
        (folder / "data/base/README.md").write_text(NO_BASE)
        (folder / PARAMS_FILE).write_text(content, encoding="utf-8")
        check_params(folder / PARAMS_FILE)
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def _from_study(name: str, folder: Path) -> str:
    """Return a relative path as seen from the study's folder; other names as they are."""
    path = os.path.expanduser(name)
    return os.path.relpath(path, folder) if os.path.exists(path) and path == name else name


def _quoted(text: str) -> str:
    """Return a YAML string."""
    return "'" + text.replace("'", "''") + "'"
