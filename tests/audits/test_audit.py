"""The log's mistakes as audits put them into a training, and the check of audits/params.yaml."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from transformers import PreTrainedModel

from audits import audit, table
from audits.audit import Audit, LabelsShiftedTwice, MemoryCarried, audited_version, padding_counted
from infini import params
from infini.errors import InputError
from infini.evaluation.layer_error import LayerData
from infini.evaluation.losses import cross_entropy, next_token
from infini.evaluation.perplexity import score_double_shift
from infini.files import write_json
from infini.model.architectures import output_head
from infini.model.retrofit import retrofit
from infini.model.segmented.run import run_segments
from infini.training.config import Adapter
from infini.training.long_context import DocumentBatch, DocumentTraining
from toy import long_recipe, some_pieces

L = 16


def test_labels_shifted_twice_equals_double_shift(model: PreTrainedModel) -> None:
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=0.0)  # no memory to differ in
    text = some_pieces([64, 50], 64)
    shifted = LabelsShiftedTwice(model, text, L, long_recipe())
    losses = list(shifted.losses(DocumentBatch(torch.arange(2))))
    expected = score_double_shift(model, text, L)
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.total, rel=1e-5)
    assert sum(loss.items for loss in losses) == expected.tokens
    assert shifted.validate(text) == pytest.approx(expected.mean)


def test_memory_carried_starts_with_the_document_before(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    text = some_pieces([64, 64], 64)
    documents = MemoryCarried(model, text, L, long_recipe())
    first, second = documents.batches(seed=0)
    (opening,) = documents.losses(first)
    (carried,) = documents.losses(second)
    plain = DocumentTraining(model, text, L, long_recipe())
    torch.testing.assert_close(opening.total, next(plain.losses(first)).total)
    order = torch.cat([first.rows, second.rows])
    with torch.no_grad():
        hidden, _ = run_segments(model, text.tokens[order].flatten()[None], L)
        targets = next_token(text.tokens[second.rows], text.mask[second.rows])
        expected = cross_entropy(hidden[:, 64:], output_head(model), targets).sum()
    torch.testing.assert_close(carried.total, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(carried.total, next(plain.losses(second)).total, rtol=1e-5)


def test_padding_counted_masks_nothing() -> None:
    data = LayerData(torch.zeros(2, 4, 3), torch.ones(2, 4, 3), torch.arange(4) < torch.tensor(2))
    assert padding_counted(data).mask.all()
    assert not data.mask.all()


def test_repository_audits_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    audits = audit.read_audits()
    assert set(audits) == {file.stem for file in audit.RESULTS.glob("*.json")}
    for name, found in audits.items():
        changed = audited_version(found, params.all_versions())
        settings = changed.model_dump() if isinstance(changed, Adapter) else changed.finetune
        assert found.finetune.items() <= dict(settings).items(), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": "v9"}, "version must be one of v1, v2, v4, v3, v5, got 'v9'"),
        ({"version": "v5"}, "version must read by segments, as the log does, got 'v5'"),
        ({"distill": {"lr": 0.1}}, "distill: 'v3' has no distillation"),
        ({"mistake": "padding_counted"}, "mistake: 'v3' has no distillation"),
        ({"finetune": {"layer": {"layers": [9]}}}, "finetune.layer: not a setting of a training"),
        ({"finetune": {"lr": 2.0}}, "lr: "),
        ({"version": "v2", "distill": {"lrr": 1.0}}, "distill.lrr: "),
        (
            {"mistake": "labels_shifted_twice", "finetune": {"objective": "distillation"}},
            "mistake: a teacher has no labels to shift",
        ),
    ],
)
def test_audited_version_rejects_invalid_audits(
    project: Path, changed: dict[str, Any], message: str
) -> None:
    invalid = Audit(**({"version": "v3", "question": "?"} | changed))
    with pytest.raises(InputError) as error:
        audited_version(invalid, params.all_versions())
    assert str(error.value).startswith(message)


def test_read_audits_names_file_and_key(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({"audits": {"padding": {"version": "v2"}}}))
    with pytest.raises(InputError, match=r"params\.yaml: audits\.padding\.question: "):
        audit.read_audits(file)


def test_audit_table_has_the_results_in_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = table.audit_table()
    assert set(found.frame["audit"]) == {f"`{name}`" for name in audit.read_audits()}
    assert "–" not in found.frame.to_numpy()
    assert found.markdown() in table.PAGE.read_text()


def test_audit_table_keeps_the_rest_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table.PAGE.parent.mkdir()
    table.PAGE.write_text(f"first\n{table.START}old{table.END}\nlast\n")
    audits = {"padding": {"version": "v2", "question": "Padding?"}}
    (table.FOLDER / "params.yaml").write_text(yaml.safe_dump({"audits": audits}))
    write_json(
        table.FOLDER / "results/padding.json",
        {"vs_version": {"nats": 0.1, "nats_se": 0.02}, "after": {"segmented": {"ppl": 30.0}}},
    )
    for _ in range(2):
        table.main()
        page = table.PAGE.read_text()
        assert page.startswith("first\n")
        assert page.endswith("\nlast\n")
        assert "old" not in page
        assert page.count("| Padding?") == 1
        assert "0.100 ± 0.020" in page
