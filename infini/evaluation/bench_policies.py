"""Retention policies on a user's own model and texts, at equal state bytes: `infini.bench`.

For every budget of bytes the table has the sliding window that fits into it, and each policy with
as many retained pairs as the budget pays for. All rows read the same tokens, so that differences
are paired by text.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.choices import check_integer
from infini.console.progress import progress
from infini.corpus.prepare import Piece
from infini.errors import InputError
from infini.evaluation.byte_budget import (
    StateSize,
    parse_bytes,
    show_bytes,
)
from infini.evaluation.estimates import difference, perplexity_metrics, with_errors
from infini.evaluation.own_texts import (
    Reader,
    encode_texts,
    full_attention_reader,
    load_any_model,
    most_state_bytes,
    named_texts,
    pad_pieces,
    read_in_chunks,
    untouched_copies,
    window_reader,
)
from infini.evaluation.prefill_meter import PrefillMeter
from infini.memory.eviction import RetentionPolicy, as_policy, policy_names
from infini.model.architectures import context_length
from infini.model.fit_policy import fit_policy
from infini.model.loading import loaded
from infini.model.modules import has_memory, retained_modules
from infini.model.retrofit import retained_pairs
from infini.model.serialization import CONFIG_FILE

log = logging.getLogger(__name__)

# The best on SmolLM2-135M, one of each kind: decay per token, sub-caches, mean, last query, block
DEFAULT_POLICIES = ("a2sf", "cascading", "observed_attention", "tova", "snapkv")
FITTED_POLICIES = ("learned", "learned_no_attention")  # with `fit_texts`
SMALLEST_WINDOW = 16  # by default
WARM_UP_TOKENS = 128

_COLUMNS = (
    "policy", "budget", "state_bytes", "window", "retained", "nats", "nats_se", "gain", "gain_se",
    "behind", "behind_se", "tokens_per_second", "peak_mib", "texts", "tokens",
)  # fmt: skip
_COUNTS = ("budget", "state_bytes", "window", "retained", "texts", "tokens")

Fitted = dict[int, dict[str, Tensor]]  # tensors of a policy by layer and name


def bench(  # noqa: PLR0913 (options by name)
    model: PreTrainedModel | str | Path,
    texts: str | Sequence[str] | Mapping[str, str],
    state_bytes: int | str | Sequence[int | str] = ("4M", "8M", "16M"),
    *,
    policies: str | Sequence[str | RetentionPolicy] | None = None,
    saved: str | Path | Sequence[str | Path] = (),
    window: int | None = None,
    sinks: int = 4,
    max_tokens: int = 2048,
    fit_texts: str | Sequence[str] | Mapping[str, str] | None = None,
    tokenizer: Tokenizer | None = None,
) -> pd.DataFrame:
    """Compare retention policies on your own model and texts, at equal state bytes.

    Needs the extra `infini[pipeline]`. Nothing is trained. Every token but a text's first is
    scored once. Standard errors are over texts; one text gives none, and two give rough ones.

    Args:
        model: A base without a memory: loaded, its folder or its hub name. A loaded model is itself
            again afterwards.
        texts: A text, several, or several by name; of any lengths. Names are for error messages.
        state_bytes: Budgets of one text's cache in bytes, as 4000000, "4M" or "4MiB".
        policies: Names of retention policies, or policy objects; "all": every registered one;
            None: `a2sf`, `cascading`, `observed_attention`, `tova` and `snapkv`, and with
            `fit_texts` also `learned` and `learned_no_attention`.
        saved: Folders that `save_pretrained` of a model with a memory over this base wrote. The
            bytes of each are a further budget, at which all policies are compared with it.
        window: Tokens of the policies' window. None: of each budget, the largest power of two up to
            3/8 of the tokens that its bytes would hold, at least 16. About half of the bytes are
            retained pairs then; of the windows that SmolLM2-135M was read with at 4, 8 and 16 MB,
            none was more than 0.004 nats better.
        sinks: First tokens that are always attended to.
        max_tokens: First tokens of each text that are read.
        fit_texts: Texts that policies such as "learned" are fitted to, none of which is scored.
            None: these policies are left out.
        tokenizer: The model's; None: it is loaded from where the model was.

    Returns:
        A table with a row for each budget and way to read the texts, and a last one for full
        attention, up to the base's own context. Columns:

            - `policy`: its name; "window": the plain sliding window with sinks; "full"; or the
              folder of a saved model.
            - `budget` and `state_bytes` (bytes), `window` (tokens) and `retained` (pairs of a
              key-value head). `state_bytes` is at most the budget; a policy's own scores,
              statistics and positions are part of it.
            - `nats` per token; `gain`: nats per token below the plain window of the same budget;
              `behind`: nats per token above the best row of the budget. Gain and behind are paired
              by text. Each figure's standard error is in `<name>_se`.
            - `tokens_per_second`: reading speed, a text at a time; `peak_mib`: most memory held
              meanwhile beyond the model, in MiB (Linux, or an accelerator).
            - `texts`, and `tokens` scored.

        What does not exist is missing (NaN). A policy that a budget does not pay for has no row;
        a warning says how many bytes it needs.

    Raises:
        InputError: No policy fits into any budget, a text without two tokens, a model that cannot
            be loaded, or options that do not fit it.

    Examples:
        >>> texts = [open(file).read() for file in files]
        >>> table = infini.bench("HuggingFaceTB/SmolLM2-135M", texts, ("8M", "16M"))
        >>> table.sort_values("nats")[["policy", "budget", "nats", "gain", "gain_se"]]
    """
    budgets = _as_budgets(state_bytes)
    chosen = _as_policies(policies, fitted=fit_texts is not None)
    if window is not None:
        check_integer("window", window, 1)
    check_integer("sinks", sinks, 0)
    check_integer("max_tokens", max_tokens, 2)
    named = named_texts(texts)
    fit_named = {} if fit_texts is None else named_texts(fit_texts)
    if shared := set(named.values()) & set(fit_named.values()):
        name = next(name for name, text in named.items() if text in shared)
        raise InputError(f"{name}: a text of fit_texts must not be scored too")
    base = load_any_model(model)
    if has_memory(base):
        raise InputError(
            "model must be a base without a memory: give the base, and the folder of the saved "
            "model as saved"
        )
    pieces = encode_texts(named, base, tokenizer, max_tokens)
    fit_pieces = encode_texts(fit_named, base, tokenizer, max_tokens) if fit_named else []
    with untouched_copies(base) as (_, own):
        longest = torch.tensor([max((piece.tokens for piece in pieces), key=len)])
        fit_tokens = [torch.tensor(piece.tokens) for piece in fit_pieces]
        opponents = _Opponents(own, longest, window, sinks, fit_tokens)
        saved_readers = [opponents.saved_reader(folder) for folder in _as_folders(saved)]
        readers = opponents.readers(budgets, chosen, saved_readers)
        return _table(readers, _read(own, readers, pieces))


class _Opponents:
    """All ways to read the texts, by budget.

    Args:
        base: The untouched base.
        longest: Tokens of the longest text, (1, T).
        window: Tokens of the policies' window; None: by budget.
        sinks: First tokens that are always attended to.
        fit_tokens: Tokens of the texts that policies are fitted to, (T,) each.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        longest: Tensor,
        window: int | None,
        sinks: int,
        fit_tokens: list[Tensor],
    ):
        self.base, self.longest, self.window, self.sinks = base, longest, window, sinks
        self.fit_tokens = fit_tokens
        self.sizes: dict[tuple[str, int], StateSize] = {}
        self.window_size = StateSize.by_window(base, sinks)
        self.full = full_attention_reader(base, longest.shape[1])

    def saved_reader(self, folder: Path) -> Reader:
        """Return a saved model; its budget is its own bytes."""
        with loaded(folder, self.base) as model:
            total, window = most_state_bytes(model, self.longest), model.infini_config.get("window")
            retained = model.infini_config.get("retained")
        score, reading = partial(read_in_chunks, self.base), loaded(folder, self.base)
        return Reader(
            str(folder), str(folder), window, total, score, reading, retained=retained, budget=total
        )

    def readers(
        self,
        budgets: list[int],
        policies: list[RetentionPolicy],
        saved: list[Reader],
    ) -> list[Reader]:
        """Return the rows of all budgets in order, and full attention.

        Raises:
            InputError: No policy fits into any budget, or all hold the longest text whole.
        """
        if self.full.state_bytes <= min(budgets):
            raise InputError(
                f"state_bytes must be < {self.full.state_bytes:,}, with which the longest text is "
                f"held whole, got {min(budgets):,}"
            )
        largest = max([*budgets, *(reader.state_bytes for reader in saved)])
        least = min(self._size(policy, largest).with_one for policy in policies)
        if self.full.state_bytes <= least:
            raise InputError(
                f"texts must be longer: the longest is held whole with {self.full.state_bytes:,} "
                f"bytes; the window and one retained pair take {least:,}"
            )
        if largest < least:
            raise InputError(
                f"state_bytes must be ≥ {least:,}, what a window of {self.window_of(largest)} "
                f"tokens and one retained pair take, got {largest:,}"
            )
        readers: list[Reader] = []
        for budget in sorted({*budgets, *(reader.state_bytes for reader in saved)}):
            own = [reader for reader in saved if reader.state_bytes == budget]
            if budget >= self.full.state_bytes and not own:
                log.warning(
                    "%s holds the longest text whole (%s bytes): left out",
                    show_bytes(budget), f"{self.full.state_bytes:,}",
                )  # fmt: skip
                continue
            sizes = {policy.name: self._size(policy, budget) for policy in policies}
            readers += self._plain_window(budget)
            readers += [
                self._policy(policy, sizes[policy.name], budget)
                for policy in policies
                if sizes[policy.name].most_within(budget)
            ]
            readers += own
            _warn_of_missing(budget, sizes)
        return [*readers, self.full]

    def window_of(self, budget: int) -> int:
        """Return the tokens of the policies' window."""
        if self.window is not None:
            return self.window
        tokens = 3 * (self.window_size.most_within(budget) + self.sinks - 1) // 8
        return max(SMALLEST_WINDOW, 1 << tokens.bit_length() >> 1)

    def _size(self, policy: RetentionPolicy, budget: int) -> StateSize:
        """Measure a policy's state with the window of a budget, once."""
        key = policy.name, self.window_of(budget)
        if key not in self.sizes:
            self.sizes[key] = StateSize.by_retained(self.base, policy, key[1], self.sinks)
        return self.sizes[key]

    def _plain_window(self, budget: int) -> list[Reader]:
        """Return the largest plain window within a budget, where there is one."""
        size = self.window_size.most_within(budget)
        if context := context_length(self.base):
            size = min(size, context - self.sinks)
        if size < 1:
            return []
        reader = window_reader(self.base, size, self.sinks, self.longest.shape[1])
        return [reader._replace(name="window", budget=budget)]

    def _policy(self, policy: RetentionPolicy, size: StateSize, budget: int) -> Reader:
        """Return a policy with as many pairs as a budget pays for, fitted if it has to be."""
        retained, window, name = size.most_within(budget), self.window_of(budget), policy.name
        tensors: Fitted = {}
        if policy.needs_fit:
            with retained_pairs(self.base, policy, window, self.sinks, retained) as model:
                fit_policy(model, self.fit_tokens)
                layers = retained_modules(model).items()
                tensors = {
                    index: {key: x.data.clone() for key, x in own.policy_weights.items()}
                    for index, own in layers
                }
        reading = _fitted_pairs(self.base, policy, window, self.sinks, retained, tensors)
        score, held = partial(read_in_chunks, self.base), size.of(retained)
        return Reader(name, name, window, held, score, reading, retained=retained, budget=budget)


def _warn_of_missing(budget: int, sizes: dict[str, StateSize]) -> None:
    """Warn, in one line, of policies that a budget does not pay for."""
    missing = [
        f"{name} needs {size.with_one:,}"
        for name, size in sizes.items()
        if not size.most_within(budget)
    ]
    if missing:
        log.warning("%s: %s bytes: left out", show_bytes(budget), ", ".join(missing))


@contextmanager
def _fitted_pairs(
    base: PreTrainedModel,
    policy: RetentionPolicy,
    window: int,
    sinks: int,
    retained: int,
    fitted: Fitted,
) -> Iterator[PreTrainedModel]:
    """Read with retained pairs, as `retained_pairs`, the policy's own tensors set."""
    with retained_pairs(base, policy, window, sinks, retained) as model:
        for index, own in retained_modules(model).items():
            for name, tensor in fitted.get(index, {}).items():
                own.policy_weights[name].data.copy_(tensor)
        yield model


class _Reading(NamedTuple):
    """Losses of all texts by one reader, and its speed and memory."""

    losses: pd.DataFrame  # a loss table with a row per text
    tokens_per_second: float
    peak_mib: float


def _read(base: PreTrainedModel, readers: list[Reader], pieces: list[Piece]) -> list[_Reading]:
    """Read every text with every reader, one at a time, under one progress bar."""
    _warm_up(base, pieces[0])
    jobs = [(index, text) for index in range(len(readers)) for text in range(len(pieces))]
    readings = []
    with ExitStack() as stack:
        for index, group in groupby(progress(jobs, "bench"), key=lambda job: job[0]):
            stack.enter_context(readers[index].context)
            tables = []
            with PrefillMeter(base.get_decoder(), base.device) as meter:
                for _, text in group:
                    score = readers[index].score(pad_pieces(pieces, [text]), "")
                    tables.append(score.table(score.nats.shape[1]).assign(piece=text))
            stack.close()
            losses = pd.concat(tables)
            readings.append(_Reading(losses, meter.tokens_per_second, meter.peak_mib))
    return readings


@torch.no_grad()
def _warm_up(base: PreTrainedModel, piece: Piece) -> None:
    """Read some tokens: a process's first pass takes longer."""
    base.get_decoder()(torch.tensor([piece.tokens[:WARM_UP_TOKENS]], device=base.device))


def _table(readers: list[Reader], readings: list[_Reading]) -> pd.DataFrame:
    """Return figures, gains and distances to the best row of the same budget."""
    losses = [reading.losses for reading in readings]
    rows = []
    for index, (reader, reading) in enumerate(zip(readers, readings, strict=True)):
        row: dict[str, Any] = {"policy": reader.name, "texts": reading.losses["text"].nunique()}
        row |= {name: getattr(reader, name) for name in ("budget", "state_bytes", "window")}
        row |= {"retained": reader.retained, "tokens": int(reading.losses["tokens"].sum())}
        row |= perplexity_metrics(reading.losses)
        row["tokens_per_second"] = round(reading.tokens_per_second, 1)
        row["peak_mib"] = round(reading.peak_mib, 1)
        if reader.budget is not None:
            peers = [i for i, other in enumerate(readers) if other.budget == reader.budget]
            window = next((i for i in peers if readers[i].is_baseline), index)
            best = min(peers, key=lambda i: losses[i]["nats"].sum())
            if window != index:
                row |= with_errors(gain=difference(losses[window], losses[index]))
            if best != index:
                row |= with_errors(behind=difference(losses[index], losses[best]))
            else:
                row["behind"] = 0.0
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=_COLUMNS)
    kinds = {name: "Int64" if name in _COUNTS else "float64" for name in _COLUMNS[1:]}
    return table.astype(kinds)


def _as_budgets(state_bytes: int | str | Sequence[int | str]) -> list[int]:
    """Return the budgets in bytes, sorted."""
    if isinstance(state_bytes, int | str):
        state_bytes = [state_bytes]
    if not isinstance(state_bytes, Sequence) or not state_bytes:
        raise InputError(f"state_bytes must be a list of ≥ 1 budget, got {state_bytes!r}")
    return sorted({parse_bytes(size) for size in state_bytes})


def _as_policies(
    policies: str | RetentionPolicy | Sequence[str | RetentionPolicy] | None, fitted: bool
) -> list[RetentionPolicy]:
    """Return the policies, each name once; without those that must be fitted, unless `fitted`."""
    if policies is None:
        policies = (*DEFAULT_POLICIES, *(FITTED_POLICIES if fitted else ()))
    if isinstance(policies, str | RetentionPolicy):
        policies = policy_names() if policies == "all" else [policies]
    if not isinstance(policies, Sequence):
        raise InputError(
            f"policies must be a list of names or RetentionPolicy objects, got {policies!r}"
        )
    by_name: dict[str, RetentionPolicy] = {}
    for policy in map(as_policy, dict.fromkeys(policies)):
        if policy.name in by_name:
            raise InputError(
                f"policies: two are named {policy.name!r}: register one under another name, "
                f'infini.register_policy("my_{policy.name}", lambda: …)'
            )
        by_name[policy.name] = policy
    unfitted = [name for name, policy in by_name.items() if policy.needs_fit]
    if unfitted and not fitted:
        log.warning(
            "%s must be fitted, and fit_texts (--fit-text) is not given: left out",
            " and ".join(unfitted),
        )
        by_name = {name: policy for name, policy in by_name.items() if name not in unfitted}
    if not by_name:
        raise InputError("policies must have ≥ 1 policy that can be used, got 0")
    return list(by_name.values())


def _as_folders(saved: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the folders of saved models; InputError for any other folder."""
    folders = [Path(x).expanduser() for x in ([saved] if isinstance(saved, str | Path) else saved)]
    for folder in folders:
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(
                f"{folder}: no saved model with a memory, its folder has no {CONFIG_FILE}"
            )
    return folders
