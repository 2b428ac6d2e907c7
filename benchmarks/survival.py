"""Kill the pipeline's stages at random moments until `dvc repro` ends; compare its outputs.

Works in a fresh clone of the last commit, without its cache and metrics, so that everything
runs again. The committed dvc.lock has the hash of every model: it must not change, nor any
file under reports/ but the wall times.

    python -m benchmarks.survival --kills 20
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def stage_of(dvc: psutil.Process) -> psutil.Process | None:
    """Return the process of the stage that a `dvc repro` runs."""
    for child in dvc.children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if words[1:2] == ["-m"] and words[2].startswith("stages."):
            return child
    return None


def survive(folder: Path, kills: int, shortest: float, longest: float) -> None:
    """Run `dvc repro` to its end, killing `kills` stages after a random time each."""
    done = 0
    with (folder / "survival.log").open("w") as log:
        while True:
            repro = psutil.Popen(["dvc", "repro"], cwd=folder, stdout=log, stderr=log)
            while done < kills and repro.poll() is None:
                until = time.monotonic() + random.uniform(shortest, longest)
                while repro.poll() is None and time.monotonic() < until:
                    time.sleep(0.05)
                if stage := stage_of(repro):
                    words = " ".join(stage.cmdline()[2:])
                    stage.send_signal(signal.SIGKILL)
                    done += 1
                    print(f"kill {done}/{kills}: {words}", flush=True)
                    break
            if repro.wait() == 0:
                break
    if done < kills:
        sys.exit(f"the pipeline ended after {done} kills: use shorter times")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, nargs=2, default=(5.0, 40.0), help="between kills")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "clone"
        subprocess.run(["git", "clone", "--quiet", ".", folder], check=True)
        for file in (folder / "reports/metrics").glob("*.json"):
            file.unlink()
        survive(folder, arguments.kills, *arguments.seconds)
        status = ["git", "status", "--short", "--", "dvc.lock", "data", "reports"]
        changed = subprocess.run(
            [*status, ":!reports/times", ":!reports/compare.md", ":!reports/index.html"],
            cwd=folder, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    if changed:
        sys.exit(f"these files changed:\n{changed}")
    print(
        f"{arguments.kills} kills: models, metrics and plots equal the committed ones bit for bit"
    )


if __name__ == "__main__":
    main()
