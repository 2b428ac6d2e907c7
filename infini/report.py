"""The comparison report: what it shows, in which order.

A version named in params.yaml becomes a row or a column of every table, a line of every plot.
"""

from typing import Any

from infini import findings, plots, tables
from infini.page import Card, Drawing, Report, Section, Table
from infini.params import Audit, Base, Data, SlidingProtocol
from infini.results import Results

UNITS = {"distill": "mean squared error", "finetune": "nats a token"}
ERRORS = (
    "± is one standard error over test texts, paired with the base where it is a difference; with "
    "several seeds it is one standard deviation over seeds. ~ marks a difference within two errors "
    "of none: noise."
)


def build(
    results: Results,
    *,
    base: Base,
    data: Data,
    sliding: SlidingProtocol,
    audits: dict[str, Audit],
    replacements: list[str],
    provenance: dict[str, str],
) -> Report:
    """The whole report."""
    sections = [
        _versions(results, sliding),
        Section("The seed's comparison", [
            "The rows of the research log's own table, measured on held-out text.",
            Table(tables.versus({v: results.metrics[v] for v in replacements}, tables.SEED_ROWS),
                  "metric", "Replacements: " + " | ".join(replacements)),
        ]),
        _seed_audit(results, audits, replacements),
        _where(results, data),
        _retrieval(results),
        _memory(results),
        _costs(results),
        _training(results),
        _settings(results),
        _origin(results, base, data, provenance),
    ]  # fmt: skip
    return Report(
        "Does the memory pay?",
        findings.of_all(results.metrics),
        _cards(results.metrics),
        [section for section in sections if section.parts],
    )


def _cards(metrics: dict[str, dict[str, Any]]) -> list[Card]:
    base = metrics["base"]
    cards = [
        Card(
            "Untouched base",
            f"{base['segmented']['ppl']:.2f}",
            f"perplexity by segments; {base['sliding']['ppl']:.2f} with full attention",
        )
    ]
    for version, tree in metrics.items():
        if version != "base":
            note = f"context recovery; perplexity {tree['segmented']['ppl']:.2f}, "
            note += f"{tree['memory_off']['ppl']:.2f} with the memory kept empty"
            cards.append(Card(version, findings.recovered(tree), note))
    return cards


def _versions(results: Results, sliding: SlidingProtocol) -> Section:
    return Section("All versions", [
        f"Every figure is on held-out test text. Full attention: the base over windows of "
        f"{sliding.context:,} tokens moving by {sliding.stride:,}. {ERRORS}",
        Table(tables.all_versions(results.metrics), "version", "All versions against the base"),
        Drawing("perplexity", plots.perplexity(results.metrics),
                "Perplexity of long test documents against the base, by version"),
    ])  # fmt: skip


def _seed_audit(results: Results, audits: dict[str, Audit], replacements: list[str]) -> Section:
    parts: list[Any] = [
        findings.of_the_seed(results.metrics, results.audits),
        Table(tables.double_shift(results.metrics, replacements), "model",
              "The same models, perplexity by two scorings of the same documents"),
    ]  # fmt: skip
    if results.audits:
        parts += [
            "The log's other suspects, each put into a version once more; perplexity on long test "
            f"documents. Of the short samples here {100 * results.padding:.1f} % is padding.",
            Table(tables.audits(results.audits, audits), "audit", "Audits"),
        ]
    return Section("What the research log measured", parts)


def _where(results: Results, data: Data) -> Section:
    return Section("Where in the document", [
        "By segment the memory has read; the first segment's memory is empty.",
        Drawing("segments", plots.by(results.losses, "segment", "segment"),
                "Perplexity against the base by segment index"),
        Table(tables.by(results.losses, "segment"), "segment",
              f"Perplexity by segment of {data.segment_length} tokens"),
        Drawing("distance", plots.by(results.losses, "distance", "tokens since the start"),
                "Perplexity against the base by distance to the document's start"),
        Table(tables.by(results.losses, "distance"), "tokens from",
              "Perplexity by distance to the document's start"),
    ])  # fmt: skip


def _retrieval(results: Results) -> Section:
    return Section("Retrieval", [
        "A pass key hidden in test text and asked for at its end: the log-probability of the key "
        "(nats), the mean rank of its tokens (0 is the likeliest), and how often greedy decoding "
        "gives it. Blue: the memory helps.",
        Table(tables.retrieval(results.metrics), "version", "Passkey, with the memory and without"),
        Drawing("retrieval", plots.retrieval(results.passkey),
                "Nats that the memory adds to the key, by depth and length"),
    ])  # fmt: skip


def _memory(results: Results) -> Section:
    alphas = tables.group(results.metrics, "alpha")
    parts: list[Any] = [
        Drawing("gates", plots.gates(results.gates), "Share of the memory in every head"),
    ]
    if len(alphas):
        parts.insert(0, Table(alphas, "α", "Weight of the memory beside its layer"))
    return Section("Gates and α", parts)


def _costs(results: Results) -> Section:
    if not len(results.costs):
        return Section("What a memory costs", [])
    return Section("What a memory costs", [
        "Against the base with a full cache of keys and values.",
        Drawing("costs", plots.costs(results.costs), "State, speed and peak memory by length"),
        Table(tables.costs(results.costs), "tokens", "Cost by length"),
    ])  # fmt: skip


def _training(results: Results) -> Section:
    parts: list[Any] = []
    for step, unit in UNITS.items():
        parts += [
            Drawing(step, plots.curves(results.curves[step], unit), f"Loss by epoch: {step}"),
            Table(tables.group(results.metrics, step), step, f"Training: {step}"),
        ]
    return Section("Training", parts)


def _settings(results: Results) -> Section:
    shown, differ = tables.settings(results.versions)
    return Section("Settings", [Table(shown, "setting", "Settings by version", differ)])


def _origin(results: Results, base: Base, data: Data, provenance: dict[str, str]) -> Section:
    return Section("Where this comes from", [
        f"Base `{base.model}`, corpus `{data.corpus}`, documents of {data.document_length:,} "
        f"tokens in segments of {data.segment_length}.",
        Table(tables.listed(provenance), "origin", "Provenance"),
        Table(tables.prepared(results.prepared), "split", "Text by split"),
        Table(tables.times(results.times), "stage", "Wall time, seconds"),
    ], folded=True)  # fmt: skip
