"""A released model's card, with what was measured of its version.

A model is saved before it is evaluated, so that its first card has no figures: whoever releases
it, in the folder of the run that made it, writes the card once more.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infini.errors import InputError
from infini.files import read_json
from infini.model.card import CARD, Release, render
from infini.report.cells import LEGEND, Cell
from infini.report.findings import of_retrieval
from infini.report.page import Table
from infini.report.studies import Reading, Study, read_studies
from infini.report.tables import HEADLINE, frame, row_of

COLUMNS = {
    "nats a token": "documents.nats",
    "bytes": "bytes.total",
    "the base's window of as many": "equal_bytes.nats",
} | HEADLINE


def write(
    folder: str | Path, version: str, *, licence: str, base: str, run: str | Path = "."
) -> None:
    """The README.md of the saved model in `folder`: a version of the run whose folder is `run`.

    licence: of the tensors, as the hub writes it, say "mit"; base: what the model's base is called
    there. InputError where the version was not measured, or the model has other settings than it.
    """
    folder = Path(folder)
    settings = read_json(folder / "infini_config.json", "method", "layers", "base")
    study = next(iter(read_studies(Path(run))), None)
    readings = [r for r in study.readings if r.version == version] if study else []
    if study is None or not readings:
        raise InputError(f"{version}: no metrics of it in {run}: dvc repro")
    block = {**study.params["replacements"], **study.params["adapters"]}[version]
    _check(settings, study.params, block, folder / "infini_config.json")
    release = Release(
        licence, base, study.about, _data(study, block, readings[0]), _measured(study, readings)
    )
    (folder / CARD).write_text(render(settings, _parameters(folder), release))


def _check(
    settings: dict[str, Any], params: dict[str, Any], block: dict[str, Any], file: Path
) -> None:
    """InputError where the model is not what params.yaml says of the version."""
    layer = {k: v for k, v in block["layer"].items() if v is not None and k in settings}
    wanted = {"method": block.get("method") or "replace"} | layer
    for key, value in wanted.items():
        if settings[key] != value:
            raise InputError(f"{file}: {key} is {settings[key]!r}, of the version {value!r}")
    if (base := settings["base"]["model"]) != params["base"]["model"]:
        raise InputError(f"{file}: base is {base!r}, of the run {params['base']['model']!r}")


def _parameters(folder: Path) -> int:
    """How many are in a saved model's tensors."""
    file = folder / "infini.safetensors"
    try:
        with safe_open(file, "numpy") as opened:
            return sum(opened.get_tensor(name).size for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: no readable safetensors file ({error})") from None


def _data(study: Study, block: dict[str, Any], reading: Reading) -> str:
    """What the version was trained on, in words."""
    data = study.params["data"]
    tokens = block.get("length") or data["document_length"]
    count = reading.figures.get("finetune.train_size")
    some = "documents" if count is None else f"{count.value:,.0f} documents"
    return f"{some} of `{data['corpus']}`, up to {tokens:,} tokens each"


def _measured(study: Study, readings: list[Reading]) -> str:
    """The table of a version's readings, and what it needs to be understood."""
    data, own = study.params["data"], readings[0]
    base = {"nats a token": "full.nats", "bytes": "full.bytes"}
    rows: dict[str, dict[str, Cell]] = {r.label: row_of(r.figures, COLUMNS) for r in readings}
    rows["the base, full attention"] = row_of(study.base, base)
    table = Table(frame(rows), "version", "Measured").markdown()
    retrieved = of_retrieval({"base": study.base, own.version: own.figures})
    several = (
        f"Means of {own.seeds} trainings that differ in their seed; these weights are one of them. "
        if own.seeds > 1
        else ""
    )
    return (
        f"On {study.params['evaluate']['documents']:,} held-out documents of `{data['corpus']}`, "
        f"up to {data['document_length']:,} tokens each. {several}**Gain**: nats a token below the "
        "untouched base with the smallest window of at least as many bytes. **Worth**: nats a "
        "token below a control of the same parameters and training, whose memory is always another "
        "document's. **Recovery**: that worth as a share of what lies between that window and full "
        "attention. A version **pays** where gain and worth are both above two standard errors. "
        f"{LEGEND}\n\n{table}\n\n{retrieved}"
    )
