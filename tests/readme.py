"""Commands of README.md and docs/pipeline.md, by their heading, and a clone to run them in."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


def blocks(file: str, heading: str, language: str = "bash") -> list[str]:
    """Return the code of a document under a heading, up to the next one of its level."""
    level = heading.split()[0]
    text = (ROOT / file).read_text(encoding="utf-8")
    section = text.split(f"\n{heading}\n")[1].split(f"\n{level} ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


class Clone:
    """Clean clone of what is committed, with the tests' environment and short runs."""

    def __init__(self, folder: Path):
        self.folder = folder
        who = {"NAME": "A reader", "EMAIL": "reader@example.org"}
        author = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in who.items()}
        path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        self.env = os.environ | author | {"PATH": path, "PYTHONPATH": "."}
        subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
        (folder / ".venv").symlink_to(ROOT / ".venv")
        for name in ("pyproject.toml", "constraints.txt"):
            os.utime(folder / name, (0, 0))  # the environment is newer: nothing to install
        (folder / ".git/info/exclude").write_text(".venv\n")
        self.shorten()
        self.run("git commit -qam 'Shorter runs'")

    def shorten(self) -> None:
        """Give params.yaml a few short documents, and one epoch per training."""
        yaml, file = YAML(), self.folder / "params.yaml"
        content = yaml.load(file)
        content["data"] |= {
            "samples": 16, "documents": 6, "document_length": 512, "segment_length": 64,
            "test": {"samples": 6, "documents": 3},
        }  # fmt: skip
        for version in content["replacements"].values():
            if version["distill"] is not None:
                version["distill"]["epochs"] = 1
            version["finetune"] |= {"epochs": 1, "documents": 3}
        for version in content["adapters"].values():
            version["epochs"] = 1
        content["evaluate"] |= {
            "short": {"samples": 6}, "documents": 3, "double_shift": {"documents": 2},
            "full": {"context": 256, "stride": 128},
            "window": {"sizes": [16, 64], "sinks": 4},
            "passkey": {"lengths": [2], "depths": [0.0], "samples": 1},
            "recall": {"pairs": [4], "questions": 2, "segments": 4, "samples": 1},
        }  # fmt: skip
        yaml.dump(content, file)

    def run(self, commands: str) -> str:
        """Return what shell commands print, on stderr too; AssertionError if one fails."""
        done = subprocess.run(
            ["bash", "-ec", commands], cwd=self.folder, env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout[-4000:]}"
        return done.stdout

    def give(self, name: str, source: Path) -> None:
        """Copy a folder into the clone."""
        shutil.copytree(source, self.folder / name)
