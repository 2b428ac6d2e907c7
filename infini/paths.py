"""Paths of every stage's files, relative to the folder of a pipeline."""

from dataclasses import dataclass
from pathlib import Path

INPUTS = Path("data/inputs")
DISTILLATION = INPUTS / "distillation.json"
SAMPLES, DOCUMENTS = Path("data/prepared/samples"), Path("data/prepared/documents")
TEACHER = Path("data/teacher/train.safetensors")
MODELS = Path("data/models")
EVALUATION = Path("data/evaluation")
CHECKPOINTS = Path(".checkpoints")  # of unfinished trainings; no stage's output
LOCKS = Path("data/locks")  # of running stages; not in Git
TIMES = Path("data/times")  # of each stage's last run on this machine; not in Git

# Committed results
REPORTS = Path("reports")
PREPARED = REPORTS / "prepared.json"
METRICS, CURVES, TRAINING = REPORTS / "metrics", REPORTS / "curves", REPORTS / "training"
POLICIES = REPORTS / "policies"  # nats of every document, by retention policy
RULER = REPORTS / "ruler"  # retrieval by task, by retention policy
COSTS, COSTS_LOCK = REPORTS / "costs.csv", REPORTS / "dvc.lock"
PLOTS, PAGE = REPORTS / "plots", REPORTS / "index.html"


@dataclass(frozen=True)
class Version:
    """Paths of a trained version, or of the untouched base (name `base`).

    A version's steps are `distill`, `finetune` and `control`.
    """

    name: str
    seed: int = 0  # decides model_folder and checkpoint_name only: other files hold every seed

    def step_folder(self, step: str) -> Path:
        """Return the folder of a step's models, one subfolder a seed."""
        return MODELS / self.name / step

    def model_folder(self, step: str) -> Path:
        """Return the folder of the model that a step trained with this seed."""
        return self.step_folder(step) / f"seed{self.seed}"

    def checkpoint_name(self, step: str) -> str:
        """Return the name of a step's training checkpoints, without key and suffix."""
        return f"{self.name}-{step}-seed-{self.seed}"

    def training_record(self, step: str) -> Path:
        """Return the JSON file of a training's figures, by seed."""
        return TRAINING / self.name / f"{step}.json"

    def training_curve(self, step: str) -> Path:
        """Return the CSV file of a training's losses, a row an epoch and seed."""
        return TRAINING / self.name / f"{step}.csv"

    @property
    def metrics(self) -> Path:
        """JSON file of its metrics."""
        return METRICS / f"{self.name}.json"

    @property
    def curves(self) -> Path:
        """CSV file of its curves."""
        return CURVES / f"{self.name}.csv"

    @property
    def evaluation_folder(self) -> Path:
        """Folder of its evaluation's data, not in Git."""
        return EVALUATION / self.name

    @property
    def losses(self) -> Path:
        """Parquet file of its loss tables (`infini.evaluation.score.Score.table`)."""
        return self.evaluation_folder / "losses.parquet"
