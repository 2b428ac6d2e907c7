"""What is seen of a training while it runs: a bar or lines, and DVC's live curves."""

import logging
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol

from dvclive import Live
from scmrepo.exceptions import SCMError
from tqdm import tqdm

from infini.console.progress import LINE_SECONDS, left, on_terminal
from infini.errors import InputError

log = logging.getLogger(__name__)

ROOT = Path("live")  # by training; gone when it is done: the final curves are outputs
POINT_SECONDS = 1.0  # between two points of a live curve


class Watcher(Protocol):
    """What is told how a training goes."""

    def took_step(self, loss: float, tokens: int) -> None:
        """After every optimizer step: its loss, and the tokens it read."""

    def ended_epoch(self, row: dict[str, float], best: dict[str, float]) -> None:
        """After every epoch: its row of the curve, and the best one so far."""


class ProgressView(AbstractContextManager["ProgressView"]):
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, steps: int, done: int, epochs: int):
        self.title, self.step, self.epochs, self.best = title, done, epochs, ""
        self.tokens, self.done, self.started = 0, done, time.perf_counter()
        self.line = self.shown = self.started
        self.steps = steps
        self.bar = tqdm(
            total=steps, initial=done, desc=title, unit="step", disable=not on_terminal()
        )

    @property
    def rate(self) -> str:
        """Speed so far."""
        return f"{self.tokens / (time.perf_counter() - self.started):,.0f} tokens/s"

    @property
    def left(self) -> str:
        """How long it takes at most: a training may stop early."""
        done, total = self.step - self.done, self.steps - self.done
        return left(done, total, time.perf_counter() - self.started) if 0 < done < total else ""

    def took_step(self, loss: float, tokens: int) -> None:
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        self.bar.update()
        now = time.perf_counter()
        if not self.bar.disable and now - self.shown > POINT_SECONDS:
            self.shown = now
            self.bar.set_postfix_str(f"loss {loss:.4g}, {self.rate}{self.best}")
        if self.bar.disable and now - self.line > LINE_SECONDS:
            self.line = now
            at = f"step {self.step}/{self.bar.total}"
            log.info(
                "%s: %s loss %.4g, %s", self.title, at, loss, f"{self.rate}{self.best}{self.left}"
            )

    def ended_epoch(self, row: dict[str, float], best: dict[str, float]) -> None:
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()


class LiveCurves(AbstractContextManager["LiveCurves"]):
    """Curves under live/, which `dvc plots show` and the DVC extension of VS Code find."""

    def __init__(self, title: str, steps: int, done: int, epochs: int):
        self.step, self.point = done, time.perf_counter()
        self.folder = ROOT / title.replace(" ", "-")
        try:
            self.live = Live(str(self.folder), resume=done > 0, save_dvc_exp=False, dvcyaml=None)
        except SCMError as error:
            raise InputError(
                f"Git: {error}: git commit once, DVC's curves are of a commit"
            ) from None

    def took_step(self, loss: float, tokens: int) -> None:
        self.step += 1
        now = time.perf_counter()
        if now - self.point >= POINT_SECONDS:
            self.point = now
            self._log({"step loss": loss})

    def ended_epoch(self, row: dict[str, float], best: dict[str, float]) -> None:
        self._log({k: value for k, value in row.items() if value == value and k != "epoch"})

    def _log(self, values: dict[str, float]) -> None:
        self.live.step = self.step
        for name, value in values.items():
            self.live.log_metric(name, value)
        self.live.sync()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kept after a failure: a run that goes on draws further."""
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(ROOT.iterdir()):
                ROOT.rmdir()
