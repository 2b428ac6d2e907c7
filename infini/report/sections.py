"""The comparison report: which tables and plots it has, in which order.

A version of params.yaml becomes a row or column of every table and a line of every plot. A section
whose files are missing is one line that names the command.
"""

from pathlib import Path

from infini.report import plots, tables
from infini.report.cells import LEGEND
from infini.report.page import Report, ReportPart, ReportPlot, ReportSection, ReportTable
from infini.report.policies import have_curves
from infini.report.provenance import COSTS_PIPELINE
from infini.report.results import Results
from infini.report.verdict import beats_both, verdict

LOSS_UNITS = {"distill": "mean squared error", "finetune": "nats per token"}
RULER_FIGURES = {
    "exact": "RULER's tasks of random words, question after the memory: whole answers, %",
    "nats": "The same: nats per token of the right answer",
}
# Columns of the curve tables: curve, label of x, caption.
RETRIEVAL_CURVES = {
    "passkey_exact_by_distance": ("distance, tokens ≥", "Pass keys retrieved, %, by distance"),
    "recall_exact_by_pairs": ("pairs", "Codes retrieved, %, by how many are in the text"),
    "recall_exact_by_distance": ("distance, tokens ≥", "Codes retrieved, %, by distance"),
}


def build_report(
    results: Results,
    run: dict[str, str],
    times: dict[str, dict[str, float]],
    *,
    costs_are_stale: bool = False,
) -> Report:
    """Build the whole report.

    Args:
        results: Results of all versions.
        run: Commit, software and hardware of this run, by label; on the page only.
        times: Wall times by stage, in seconds; on the page only.
        costs_are_stale: Whether settings have changed since the costs were measured.

    Returns:
        The report; a section without tables, plots or a note is left out.
    """
    versions = {name: figures for name, figures in results.figures.items() if name != "base"}
    sections = [
        _versions(results),
        _policies(results),
        _research_log(results),
        _positions(results),
        _retrieval(results),
        _memory(results),
        _costs(results, costs_are_stale),
        _training(results),
        _settings(results),
        _provenance(results),
        _this_run(run, times),
    ]
    return Report(
        title="Which versions beat the baseline and their control?",
        verdicts=sorted(
            [
                (verdict(name, figures, results.opponent(name)), beats_both(figures))
                for name, figures in versions.items()
            ],
            key=lambda line: not line[1],
        ),
        sections=[section for section in sections if section.parts],
    )


def _missing(what: str, command: str) -> str:
    return f"{what}: `{command}` writes it."


def _versions(results: Results) -> ReportSection:
    figures, full = results.figures, results.setup.full
    parts: list[ReportPart] = [
        f"{LEGEND} Full attention: windows of {full.context:,} tokens, stride {full.stride:,}."
    ]
    if results.missing:
        parts.append(_missing(f"No metrics of {', '.join(results.missing)}", "dvc repro"))
    parts.append(ReportTable(tables.headline_table(results), "version", "Headline"))
    other = tables.other_windows_table(results)
    if len(other):
        parts.append(ReportTable(other, "version", "The same weights with other windows"))
    if "base" in figures:
        styles = plots.version_styles(results)
        parts += [
            ReportPlot(
                "state_bytes",
                plots.state_bytes_plot(results, styles),
                "Nats per token by state bytes; the line is the base's window",
            ),
            ReportTable(
                tables.window_curve_table(figures["base"]), "window", "Sliding windows of the base"
            ),
        ]
    by_item = tables.versions_table(figures, tables.STATE_BYTES)
    perplexity = tables.versions_table(figures, tables.PERPLEXITY).T
    gains = tables.versions_table(figures, tables.OTHER_GAINS).T
    return ReportSection("All versions", [
        *parts,
        ReportTable(by_item, "version", "State bytes by item"),
        ReportTable(perplexity, "perplexity", "Perplexity"),
        ReportTable(gains, "nats per token", "Other differences, and added parameters"),
    ])  # fmt: skip


def _policies(results: Results) -> ReportSection:
    parts: list[ReportPart] = []
    budgets = dict.fromkeys((policy.window_size, policy.window) for policy in results.policies)
    for size, window in budgets:
        same = [x for x in results.policies if (x.window_size, x.window) == (size, window)]
        parts.append(
            ReportTable(
                tables.policies_table(same),
                "policy",
                f"State bytes of a window of {size} tokens, a window of {window} for the policies; "
                "bold: best on validation documents",
            )
        )
    if parts:
        plot = plots.policy_gains_plot(results)
        caption = "Gains over the plain window of equal state bytes; ± one standard error"
        parts.insert(0, ReportPlot("policies", plot, caption))
    if have_curves(results.policies):
        caption = "Nats per token of policies by state bytes (`plots/policy_curves.csv`)"
        parts.insert(1, ReportPlot("policy_curves", plots.policy_curves_plot(results), caption))
    for figure, caption in RULER_FIGURES.items():
        if results.ruler:
            table = tables.ruler_table(results.ruler, figure)
            parts.append(ReportTable(table, "task", caption))
    return ReportSection("Retention policies, nothing trained", parts)


def _research_log(results: Results) -> ReportSection:
    figures = results.figures
    versions = [name for name in results.setup.replacements if name in figures]
    if not versions:
        return ReportSection("The research log's table", [])
    replacements = {name: figures[name] for name in versions}
    return ReportSection("The research log's table", [
        ReportTable(tables.research_log_table(replacements), "metric",
                    "Rows of the research log's table, on held-out text"),
        ReportTable(tables.double_shift_table(figures, versions), "model",
                    "Perplexity of the same documents by two scorings"),
        "The repository's `audits/README.md` tests the log's suspects one by one.",
    ])  # fmt: skip


def _positions(results: Results) -> ReportSection:
    title, curves = "By position in the document", results.curves
    if not curves:
        return ReportSection(title, [_missing("No `reports/curves/`", "dvc repro")])
    styles, length = plots.version_styles(results), results.setup.data.segment_length
    return ReportSection(title, [
        ReportPlot("segments", plots.position_plot(curves, "segment", "segment", styles),
                   "Nats per token above the base's segments without memory, by segment"),
        ReportTable(tables.version_curves_table(curves, "ppl_by_segment"), "segment",
                    f"Perplexity by segment of {length} tokens"),
        ReportPlot("distance",
                   plots.position_plot(curves, "distance", "tokens since the start", styles),
                   "Nats per token above the base's segments without memory, by distance"),
        ReportTable(tables.version_curves_table(curves, "ppl_by_distance"), "distance, tokens ≥",
                    "Perplexity by distance to the document's start"),
    ])  # fmt: skip


def _retrieval(results: Results) -> ReportSection:
    figures, curves = results.figures, results.curves
    captions = {"passkey": "Pass keys: one key hidden in test text, asked for at its end",
                "recall": "Recall: several codes hidden in test text, some asked for"}  # fmt: skip
    parts: list[ReportPart] = [
        ReportTable(table, "version", caption)
        for task, caption in captions.items()
        if len(table := tables.retrieval_table(figures, task))
    ]
    if any((table["curve"] == "passkey_gain_by_depth").any() for table in curves.values()):
        caption = "Gain over memory off for the pass key, by depth and length; blue: memory helps"
        parts.append(ReportPlot("retrieval", plots.retrieval_plot(curves), caption))
    for curve, (corner, caption) in RETRIEVAL_CURVES.items():
        if len(table := tables.version_curves_table(curves, curve)):
            parts.append(ReportTable(table, corner, caption))
    return ReportSection("Retrieval", parts)


def _memory(results: Results) -> ReportSection:
    parts: list[ReportPart] = []
    if len(alphas := tables.block_table(results.figures, "alpha")):
        parts.append(ReportTable(alphas, "α", "Weight α of the memory beside its layer"))
    if any((table["curve"] == "gate").any() for table in results.curves.values()):
        plot = plots.gates_plot(results.curves, plots.version_styles(results))
        parts.append(ReportPlot("gates", plot, "Gate of the memory in every head"))
    return ReportSection("Gates and α", parts)


def _costs(results: Results, stale: bool) -> ReportSection:
    title, command = "Costs", f"dvc repro {COSTS_PIPELINE}"
    if results.costs.empty and not Path(COSTS_PIPELINE).is_file():
        return ReportSection(title, [])  # a study: it has no pipeline of costs
    if results.costs.empty:
        return ReportSection(title, [_missing("No `reports/costs.csv`", command)])
    plot = plots.cost_plot(results.costs, plots.version_styles(results))
    note = f"Settings have changed since; `{command}` measures again."
    return ReportSection(title, [
        *([note] if stale else []),
        ReportPlot("costs", plot, "State bytes, speed and peak memory by length"),
        ReportTable(tables.cost_table(results.costs), "version", "Costs by length"),
    ])  # fmt: skip


def _training(results: Results) -> ReportSection:
    parts: list[ReportPart] = []
    styles = plots.version_styles(results)
    for step, unit in LOSS_UNITS.items():
        if len(table := results.training[step]):
            plot = plots.training_plot(table, unit, styles)
            parts.append(ReportPlot(step, plot, f"Loss by epoch: {step}"))
        if len(figures := tables.block_table(results.figures, step)):
            parts.append(ReportTable(figures, step, f"Training: {step}"))
    return ReportSection("Training", parts)


def _settings(results: Results) -> ReportSection:
    table = tables.settings_table(results.setup.versions)
    return ReportSection("Settings", [ReportTable(table, "setting", "Settings by version")])


def _provenance(results: Results) -> ReportSection:
    base, data, prepared = results.setup.base, results.setup.data, results.prepared
    origin = {
        "base": base.model,
        "corpus": data.corpus,
        "documents": f"up to {data.document_length:,} tokens, segments of {data.segment_length}",
    }
    title = "Provenance"
    if not prepared:
        return ReportSection(title, [
            ReportTable(tables.list_table(origin), "source", "Sources"),
            _missing("No `reports/prepared.json`", "dvc repro prepare_data"),
        ])  # fmt: skip
    origin["padding in samples"] = f"{100 * prepared['padding_share']:.1f} %"
    origin["SHA-256 of the prepared text"] = prepared["sha256"]
    return ReportSection(title, [
        ReportTable(tables.list_table(origin), "source", "Sources"),
        ReportTable(tables.text_frame(prepared["splits"]), "split", "Text by split"),
    ])  # fmt: skip


def _this_run(run: dict[str, str], times: dict[str, dict[str, float]]) -> ReportSection:
    parts: list[ReportPart] = [ReportTable(tables.list_table(run), "", "Code, software, hardware")]
    if times:
        parts.append(ReportTable(tables.time_table(times), "stage", "Wall time, seconds"))
    return ReportSection("This run", parts, page_only=True)
