"""Display of a running training: a bar or log lines, and live curves of DVCLive."""

import logging
import shutil
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

from dvclive import Live
from scmrepo.exceptions import SCMError
from tqdm import tqdm

from infini.console.progress import LINE_SECONDS, on_terminal, time_left
from infini.errors import InputError

log = logging.getLogger(__name__)

LIVE = Path("live")  # a folder a training, deleted at its end: the final curves are outputs
POINT_SECONDS = 1.0  # between two points of a live curve


class TrainingCallback(Protocol):
    """Receives the course of a training."""

    def on_step_end(self, loss: float, tokens: int) -> None:
        """Receive an optimizer step's loss and the tokens that it read."""

    def on_epoch_end(self, row: dict[str, float], best: dict[str, float]) -> None:
        """Receive an epoch's row of the training curve, and the best row so far."""


class ProgressView(AbstractContextManager["ProgressView"]):
    """A bar on a terminal, log lines elsewhere."""

    def __init__(self, title: str, steps: int, done: int, epochs: int):
        self.title, self.steps, self.done, self.epochs = title, steps, done, epochs
        self.step, self.tokens, self.best = done, 0, ""
        self.started = self.line = self.shown = time.perf_counter()
        self.bar = tqdm(
            total=steps, initial=done, desc=title, unit="step", disable=not on_terminal()
        )

    @property
    def rate(self) -> str:
        """Tokens per second so far."""
        return f"{self.tokens / (time.perf_counter() - self.started):,.0f} tokens/s"

    @property
    def left(self) -> str:
        """Remaining time at most, since a training may stop early; empty at its start and end."""
        done, total = self.step - self.done, self.steps - self.done
        if not 0 < done < total:
            return ""
        return time_left(done, total, time.perf_counter() - self.started)

    def on_step_end(self, loss: float, tokens: int) -> None:
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        self.bar.update()
        now = time.perf_counter()
        if not self.bar.disable and now - self.shown > POINT_SECONDS:
            self.shown = now
            self.bar.set_postfix_str(f"loss {loss:.4g}, {self.rate}{self.best}")
        if self.bar.disable and now - self.line > LINE_SECONDS:
            self.line = now
            at, state = f"step {self.step}/{self.steps}", f"{self.rate}{self.best}{self.left}"
            log.info("%s: %s loss %.4g, %s", self.title, at, loss, state)

    def on_epoch_end(self, row: dict[str, float], best: dict[str, float]) -> None:
        losses = {name: value for name, value in row.items() if value == value and name != "epoch"}
        validated = "val_loss" in losses
        if validated:
            self.best = f", best val {best['val_loss']:.4g}"
        if self.bar.disable:
            values = " ".join(f"{k.removesuffix('_loss')}={v:.6g}" for k, v in losses.items())
            mark = " *" if row is best and validated else ""
            at = f"epoch {row['epoch']:.0f}/{self.epochs}"
            log.info("%s: %s %s%s (%s%s)", self.title, at, values, mark, self.rate, self.left)
            self.line = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        self.bar.close()


class LiveCurves(AbstractContextManager["LiveCurves"]):
    """Curves under live/ for `dvc plots show` and DVC's extension of VS Code.

    They stay after a failure: a run that continues extends them.
    """

    def __init__(self, title: str, steps: int, done: int, epochs: int):
        self.step, self.point = done, time.perf_counter()
        self.folder = LIVE / title.replace(" ", "-")
        try:
            self.live = Live(str(self.folder), resume=done > 0, save_dvc_exp=False, dvcyaml=None)
        except SCMError as error:
            raise InputError(f"Git: {error}; commit once, DVCLive needs a commit") from None

    def on_step_end(self, loss: float, tokens: int) -> None:
        self.step += 1
        now = time.perf_counter()
        if now - self.point >= POINT_SECONDS:
            self.point = now
            self._log({"step loss": loss})

    def on_epoch_end(self, row: dict[str, float], best: dict[str, float]) -> None:
        self._log({k: value for k, value in row.items() if value == value and k != "epoch"})

    def _log(self, values: dict[str, float]) -> None:
        self.live.step = self.step
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.sync()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # others' curves are in it, or they have just removed it
                LIVE.rmdir()
