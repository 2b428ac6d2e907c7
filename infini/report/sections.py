"""The comparison report: what it shows, in which order.

A version named in params.yaml becomes a row or a column of every table, a line of every plot.
"""

from infini.report import cards, findings, plots, retrieval, tables, window_plot
from infini.report.cells import LEGEND
from infini.report.page import Drawing, Part, Report, Section, Table
from infini.report.results import Figures, Results, Setup
from infini.report.window_curve import WindowCurve

UNITS = {"distill": "mean squared error", "finetune": "nats a token"}


def build(
    results: Results,
    origin: dict[str, str],
    this_run: dict[str, str],
    times: dict[str, dict[str, float]],
) -> Report:
    """The whole report.

    origin: label → hash of what the results come from. this_run and times, label → text and
    stage → seconds, differ from run to run: only the page shows them.
    """
    setup, figures = results.setup, results.figures
    curve = WindowCurve(figures["base"], setup.full.context)
    sections = [
        _versions(results, curve),
        _log_comparison(figures, list(setup.replacements)),
        _log_audit(results),
        _places(results),
        _retrieval(results),
        _memory(results),
        _costs(results),
        _training(results),
        _settings(setup),
        _origin(results, origin),
        _this_run(this_run, times),
    ]
    return Report(
        "Does the memory pay?",
        findings.of_all(figures, curve),
        cards.of_all(figures),
        [section for section in sections if section.parts],
    )


def _versions(results: Results, curve: WindowCurve) -> Section:
    figures, full = results.figures, results.setup.full

    def by_version(columns: dict[str, str], caption: str) -> Table:
        return Table(tables.all_versions(figures, columns), "version", caption)

    def by_figure(rows: dict[str, str], corner: str, caption: str) -> Table:
        return Table(tables.all_versions(figures, rows).T, corner, caption)

    others = tables.other_windows(figures)
    other: list[Part] = [Table(others, "version", "The same weights at other windows")]
    return Section("All versions", [
        "Every figure is on held-out test text. **Gain at equal bytes**: nats a token below the "
        "untouched base with the smallest window of at least as many bytes. **Worth**: nats a "
        "token below the version's control, of the same parameters and training, whose memory is "
        "always that of another document. **Recovery**: that worth as a share of what lies between "
        "that window and full attention. A version **pays** where gain and worth are both above "
        f"two standard errors. Full attention: windows of {full.context:,} tokens moving by "
        f"{full.stride:,}. {LEGEND}",
        by_version(tables.HEADLINE, "Does it pay? Nats a token, and bytes carried"),
        *(other if len(others) else []),
        Drawing("bytes", window_plot.carried(figures, results.losses, curve),
                "Bytes carried against nats a token: the base with its last tokens alone, every "
                "version, and hollow its control; a memory pays below the curve and its control"),
        Table(tables.windows(figures["base"], curve), "last tokens", "The base's window curve"),
        by_version(tables.BYTES, "Bytes carried from one token to the next"),
        by_figure(tables.PERPLEXITY, "perplexity", "Perplexity of each, beside its opponents"),
        by_figure(tables.DIFFERENCES, "nats a token", "Older comparisons, and what is added"),
        Drawing("perplexity", plots.perplexity(figures),
                "Perplexity of long test documents against the base in blind segments, by version"),
    ])  # fmt: skip


def _log_comparison(figures: dict[str, Figures], replacements: list[str]) -> Section:
    if not replacements:
        return Section("The log's comparison", [])
    return Section("The log's comparison", [
        "The rows of the research log's own table, measured on held-out text.",
        Table(tables.versus({v: figures[v] for v in replacements}, tables.LOG_ROWS),
              "metric", "Replacements: " + " | ".join(replacements)),
    ])  # fmt: skip


def _log_audit(results: Results) -> Section:
    setup = results.setup
    parts: list[Part] = [
        findings.of_the_log(results.figures["base"], results.audits, setup.audits),
        Table(tables.double_shift(results.figures, list(setup.replacements)), "model",
              "The same models, perplexity by two scorings of the same documents"),
    ]  # fmt: skip
    if results.audits:
        parts += [
            "The log's other suspects, each put into a version once more; perplexity on long test "
            f"documents. Of the short samples here {100 * results.padding:.1f} % is padding.",
            Table(tables.audits(results.audits, setup.audits), "audit", "Audits"),
        ]
    if results.foreign:
        parts.append(
            f"Left out, being of another base, text or recipe: {', '.join(results.foreign)}; "
            "`dvc repro audits/dvc.yaml` measures them anew."
        )
    return Section("What the research log measured", parts)


def _places(results: Results) -> Section:
    length = results.setup.data.segment_length
    return Section("Where in the document", [
        "By segment the memory has read; the first segment's memory is empty.",
        Drawing("segments", plots.perplexity_by(results.losses, "segment", "segment"),
                "Perplexity against the base in blind segments, by segment index"),
        Table(tables.perplexity_by(results.losses, "segment"), "segment",
              f"Perplexity by segment of {length} tokens"),
        Drawing("distance",
                plots.perplexity_by(results.losses, "distance", "tokens since the start"),
                "Perplexity against the base in blind segments, by distance to the start"),
        Table(tables.perplexity_by(results.losses, "distance"), "tokens from",
              "Perplexity by distance to the document's start"),
    ])  # fmt: skip


def _retrieval(results: Results) -> Section:
    figures, cases = results.figures, results.passkey
    parts: list[Part] = [
        "A pass key hidden in test text and asked for at its end: the log-probability of the key "
        "(nats), the mean rank of its tokens (0 is the likeliest), and how often greedy decoding "
        "gives it. With its memory kept empty, a version by window is the base's plain window. "
        "Full attention: the untouched base, on the texts that it holds. Blue: the memory helps.",
        Table(tables.retrieval(figures, "passkey"), "version",
              "Passkey, with the memory and without"),
        Drawing("retrieval", plots.retrieval(cases),
                "Nats that the memory adds to the key, by depth and length"),
    ]  # fmt: skip
    captions = {
        ("passkey", "distance"): "Passkeys retrieved, per cent, by tokens between key and answer",
        ("recall", "pairs"): "Codes retrieved, per cent, by how many are hidden",
        ("recall", "distance"): "Codes retrieved, per cent, by tokens between code and answer",
    }
    if any("recall.exact" in found for found in figures.values()):
        recalled = Table(tables.retrieval(figures, "recall"), "version",
                         "Recall: codes of several words, some asked for")  # fmt: skip
        parts.append(recalled)
    for (task, place), caption in captions.items():
        if len(table := retrieval.exact_by(cases, task, place)):
            parts.append(Table(table, f"{place} from" if place == "distance" else place, caption))
    return Section("Retrieval", parts)


def _memory(results: Results) -> Section:
    alphas = tables.block(results.figures, "alpha")
    parts: list[Part] = [
        Drawing("gates", plots.gates(results.gates), "Gate of the memory in every head"),
    ]
    if len(alphas):
        parts.insert(0, Table(alphas, "α", "Weight of the memory beside its layer"))
    return Section("Gates and α", parts)


def _costs(results: Results) -> Section:
    if not len(results.costs):
        return Section("What a memory costs", [])
    return Section("What a memory costs", [
        "Against the base with a full cache of keys and values. Every length here ends a segment, "
        "where what reads by segments carries least.",
        Drawing("costs", plots.costs(results.costs), "State, speed and peak memory by length"),
        Table(tables.costs(results.costs), "tokens", "Cost by length"),
    ])  # fmt: skip


def _training(results: Results) -> Section:
    parts: list[Part] = []
    for step, unit in UNITS.items():
        curves, figures = results.curves[step], tables.block(results.figures, step)
        if len(curves):
            parts.append(
                Drawing(step, plots.training_curves(curves, unit), f"Loss by epoch: {step}")
            )
        if len(figures):
            parts.append(Table(figures, step, f"Training: {step}"))
    return Section("Training", parts)


def _settings(setup: Setup) -> Section:
    shown, differ = tables.settings(setup.versions)
    parts: list[Part] = [Table(shown, "setting", "Settings by version", differ)]
    return Section("Settings", parts if len(shown) else [])


def _origin(results: Results, origin: dict[str, str]) -> Section:
    base, data = results.setup.base, results.setup.data
    return Section("Where this comes from", [
        f"Base `{base.model}`, corpus `{data.corpus}`, documents of {data.document_length:,} "
        f"tokens in segments of {data.segment_length}.",
        Table(tables.listed(origin), "origin", "Provenance"),
        Table(tables.prepared(results.prepared), "split", "Text by split"),
    ], folded=True)  # fmt: skip


def _this_run(this_run: dict[str, str], times: dict[str, dict[str, float]]) -> Section:
    parts: list[Part] = [Table(tables.listed(this_run), "origin", "Code, software and hardware")]
    if times:
        parts.append(Table(tables.times(times), "stage", "Wall time, seconds"))
    return Section("This run", parts, folded=True, page_only=True)
