"""A hub that answers garbage, breaks off or is missing: one line, nothing half written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hub
from toy import read_params, sentence, write_params

# In a process of its own, as libraries read the hub's address once; no waiting between retries
CHILD = """
import importlib, json, sys, time
import datasets
from infini.corpus.sources import read_texts
from infini.errors import InputError
from infini.model.base import load_base, load_tokenizer
from infini.model.base_info import base_info

time.sleep = lambda seconds: None
datasets.config.STREAMING_READ_MAX_RETRIES = 2
READ = {
    "base": lambda name: load_base(name).config._commit_hash,
    "tokenizer": lambda name: load_tokenizer(name).vocab_size > 0,
    "info": base_info,
    "texts": lambda name: len(list(read_texts(name))),
    "stage": lambda name: importlib.import_module("stages." + name).main(),
}
for what, name in json.loads(sys.argv[1]):
    try:
        result = READ[what](name)
    except InputError as error:
        result = str(error)
    print(json.dumps([what, name, result]), flush=True)
"""

NO_BASE = "base.model: no model at '{}', give a folder written by save_pretrained or a hub name"
NO_TEXT = "params.yaml: data.corpus: '{}' is no embedded corpus, folder or reachable hub dataset"
EXPECTED = {
    ("base", "some/fine"): hub.SHA,  # the commit that was read
    ("base", "some/short"): "base.model: 'some/short': its weights are not readable (Error while",
    ("base", "some/cut"): "base.model: 'some/cut': its weights are not readable (",
    ("base", "some/html"): NO_BASE,
    ("base", "some/500"): NO_BASE,
    ("base", "some/nothing"): NO_BASE,
    ("tokenizer", "some/fine"): True,
    ("tokenizer", "some/html"): NO_BASE,
    ("info", "some/fine"): ["gpt_neox", 2, 64, 64],
    ("info", "some/html"): None,  # loading the base raises the error
    ("texts", "some/fine"): 60,
    ("texts", "some/html"): NO_TEXT,
    ("texts", "some/500"): NO_TEXT,
    ("texts", "some/nothing"): NO_TEXT,
    ("texts", "some/late"): "params.yaml: data.corpus: 'some/late': row 61 could not be "
    "read, nothing is written; run again (",
    ("stage", "prepare_data"): "params.yaml: data.corpus: 'some/late': row 61 could",
}


@pytest.fixture
def repositories(tmp_path: Path, base_folder: Path) -> Path:
    root = tmp_path / "hub"
    for name in ("fine", "short", "cut"):
        shutil.copytree(base_folder, root / "models/some" / name)
    rows = [json.dumps({"text": sentence(20, seed)}) for seed in range(60)]
    for name, files in (("fine", 1), ("late", 2)):
        (folder := root / "datasets/some" / name).mkdir(parents=True)
        for number in range(1, files + 1):
            (folder / f"data{number}.jsonl").write_text("\n".join(rows) + "\n")
    return root


def test_hub_failures_are_one_line(project: Path, repositories: Path) -> None:
    content = read_params()
    content["data"]["corpus"] = "some/late"
    write_params(content)
    with hub.running(repositories) as server:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(list(EXPECTED))],
            env=server.environment(project / "cache"),
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    results = {(what, name): result for what, name, result in answers}
    assert results.keys() == EXPECTED.keys()
    for (what, name), expected in EXPECTED.items():
        result = results[what, name]
        if isinstance(expected, str):
            assert result.startswith(expected.format(name)), (what, name)
            assert "\n" not in result
        else:
            assert result == expected, (what, name)
    assert not Path("data").exists()  # nothing half written
