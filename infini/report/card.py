"""Model card of a released model, with the figures of its version.

A model is saved before it is evaluated, so that its first card has no figures. `write_card` writes
the card again, from committed metrics.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infini.errors import InputError
from infini.evaluation.config import PLAIN_WINDOW
from infini.evaluation.estimates import estimates_of
from infini.files import read_json, read_yaml
from infini.model.model_card import CARD_FILE, Release, render_card
from infini.paths import Version
from infini.report.cells import LEGEND
from infini.report.page import ReportTable
from infini.report.policies import ScoredPolicy, read_policies
from infini.report.results import (
    Figures,
    figures_at_windows,
    figures_of,
    opponent_of,
    read_curves,
    read_metrics,
)
from infini.report.tables import (
    HEADLINE,
    RETRIEVAL_COLUMNS,
    retrieval_table,
    row_of_figures,
    text_frame,
    with_baselines,
)
from infini.report.verdict import verdict

FULL_COLUMNS = {"nats per token": "full.nats", "state bytes": "full.state_bytes"}
CARD_COLUMNS = {
    "nats per token": "documents.nats",
    "state bytes": "state_bytes.total",
    **HEADLINE,
}


def write_card(
    folder: str | Path, version: str, *, licence: str, base: str, run: str | Path = "."
) -> None:
    """Write the README.md of a saved model, with the figures of its version.

    Args:
        folder: Folder of the saved model.
        version: Name of the version in the run's params.yaml.
        licence: Licence of the tensors, as the hub writes it, such as "mit".
        base: Name of the model's base on the hub.
        run: Folder of the pipeline: the repository's root, or a study.

    Raises:
        InputError: If the version was not evaluated, or the model has other settings than it.
    """
    folder, run = Path(folder), Path(run)
    settings = read_json(folder / "infini_config.json", "method", "layers", "base")
    if not (run / Version(version).metrics).is_file():
        raise InputError(f"{run / Version(version).metrics}: not found; run `dvc repro` there")
    params = read_yaml(run / "params.yaml")
    block = {**params["replacements"], **params["adapters"]}[version]
    _check_settings(settings, params, block, folder / "infini_config.json")
    metrics, policies = read_metrics(version, run), read_policies(run)
    curves = run / Version(version).curves
    figures = figures_of(metrics, read_curves(curves) if curves.is_file() else None, policies)
    opponents = {
        window: opponent_of(metrics, figures, policies, window)
        for window in (None, *figures_at_windows(figures))
    }
    base_figures = estimates_of(read_metrics("base", run))
    measured = _measured(params, block, version, figures, opponents, base_figures)
    about = _base_description(run, params)
    release = Release(licence, base, about, _training_data(params, block, figures), measured)
    (folder / CARD_FILE).write_text(render_card(settings, _count_parameters(folder), release))


def _check_settings(
    settings: dict[str, Any], params: dict[str, Any], block: dict[str, Any], file: Path
) -> None:
    """Raise InputError if the model is not what params.yaml makes of the version."""
    layer = {k: v for k, v in block["layer"].items() if v is not None and k in settings}
    for key, value in ({"method": block.get("method") or "replace"} | layer).items():
        if settings[key] != value:
            raise InputError(
                f"{file}: {key} must be the version's {value!r}, got {settings[key]!r}"
            )
    if (base := settings["base"]["model"]) != params["base"]["model"]:
        raise InputError(
            f"{file}: base must be the run's {params['base']['model']!r}, got {base!r}"
        )


def _count_parameters(folder: Path) -> int:
    """Count the elements of a saved model's tensors."""
    file = folder / "infini.safetensors"
    try:
        with safe_open(file, "numpy") as opened:
            return sum(opened.get_tensor(name).size for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: no readable safetensors file ({error})") from None


def _base_description(run: Path, params: dict[str, Any]) -> str:
    """Return what base/dvc.yaml says of the base, or else its name."""
    stages = read_yaml(run / "base/dvc.yaml").get("stages", {}).values()
    return next((stage["desc"] for stage in stages if "desc" in stage), params["base"]["model"])


def _training_data(params: dict[str, Any], block: dict[str, Any], figures: Figures) -> str:
    data = params["data"]
    length = block.get("length") or data["document_length"]
    count = figures.get("finetune.train_size")
    documents = "documents" if count is None else f"{count.value:,.0f} documents"
    return f"{documents} of `{data['corpus']}`, up to {length:,} tokens each"


def _measured(
    params: dict[str, Any],
    block: dict[str, Any],
    version: str,
    figures: Figures,
    opponents: dict[int | None, ScoredPolicy | None],
    base: Figures,
) -> str:
    """Return verdict, headline and retrieval of a version, in Markdown.

    opponents: what its gains are over, by another window that it was evaluated with, None its own;
    a policy, or None for the plain window.
    """
    data, window = params["data"], block["layer"].get("window")
    rows, baselines = {}, {}
    for other, version_figures in [(None, figures), *figures_at_windows(figures).items()]:
        size, policy = other or window, opponents[other]
        label = version if size is None else f"{version}, window {size}"
        rows[label] = row_of_figures(version_figures, CARD_COLUMNS)
        baselines[label] = PLAIN_WINDOW if policy is None else policy.name
    rows["base, full attention"] = row_of_figures(base, FULL_COLUMNS)
    parts = [
        f"Held-out text: {params['evaluate']['documents']:,} documents of `{data['corpus']}`, up "
        f"to {data['document_length']:,} tokens each. {LEGEND}",
        verdict(version, figures, opponents[None]),
        ReportTable(with_baselines(text_frame(rows), baselines), "version", "Headline").markdown(),
    ]
    if seeds := len(params["seeds"]) + len(block.get("seeds", [])):
        parts[0] += f" Means of {1 + seeds} trainings; these weights are one of them."
    for task in ("passkey", "recall"):
        retrieved = retrieval_table({"base": base, version: figures}, task)
        if len(retrieved):
            exact = retrieved[
                [column for column in list(RETRIEVAL_COLUMNS)[:3] if column in retrieved]
            ]
            parts.append(ReportTable(exact, task, task).markdown())
    return "\n\n".join(parts)
