"""What is seen of a training while it runs: a bar or lines, and DVC's live curves."""

import logging
import shutil
import time
from pathlib import Path
from types import TracebackType

from dvclive import Live
from tqdm import tqdm

from infini import engine
from infini.progress import on_terminal

log = logging.getLogger(__name__)

# By training; gone when it is done: the final curves are outputs. Not in .gitignore: DVC
# would not look there.
ROOT = Path("live")
DVC_YAML = "plots:\n- plots/metrics:\n    x: step\n"
LINE_SECONDS = 30.0  # between two lines within an epoch, off a terminal
POINT_SECONDS = 1.0  # between two points of a live curve


class LiveView:
    """Bar, lines and live curves of one training; nothing in the processes beside the main one."""

    def __init__(self, title: str, steps: int, done: int):
        self.title, self.step, self.best = title, done, ""
        self.main = engine.is_main()
        self.tokens, self.started = 0, time.perf_counter()
        self.line = self.point = self.started
        self.bar = tqdm(
            total=steps,
            initial=done,
            desc=title,
            unit="step",
            disable=not self.main or not on_terminal(),
        )
        if self.main:
            self.folder = ROOT / title.replace(" ", "-")
            self.live = Live(str(self.folder), save_dvc_exp=False, dvcyaml=None)
            (self.folder / "dvc.yaml").write_text(DVC_YAML)

    def __enter__(self) -> "LiveView":
        return self

    def took_step(self, loss: float, tokens: int) -> None:
        """After every optimizer step: its loss, and the tokens it read."""
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        self.bar.update()
        now = time.perf_counter()
        if not self.main or now - self.point < POINT_SECONDS:
            return
        self.point = now
        self._log({"step loss": loss})
        rate = self.tokens / (now - self.started)
        self.bar.set_postfix_str(f"loss {loss:.4g}, {rate:,.0f} tokens/s{self.best}")
        if self.bar.disable and now - self.line > LINE_SECONDS:
            self.line = now
            log.info(
                "%s: step %d/%d loss %.4g, %s tokens/s%s",
                self.title, self.step, self.bar.total, loss, f"{rate:,.0f}", self.best,
            )  # fmt: skip

    def ended_epoch(self, row: dict[str, float], epochs: int, best: dict[str, float]) -> None:
        """After every epoch: its row of the curve, and the best one so far."""
        shown = {name: value for name, value in row.items() if value == value}
        if "val_loss" in shown:
            self.best = f", best val {best['val_loss']:.4g}"
        if not self.main:
            return
        epoch = int(shown.pop("epoch"))
        self._log(shown)
        if self.bar.disable:
            rate = self.tokens / (time.perf_counter() - self.started)
            values = " ".join(f"{k.removesuffix('_loss')}={v:.6g}" for k, v in shown.items())
            mark = " *" if row is best and "val_loss" in shown else ""
            log.info(
                "%s: epoch %d/%d %s%s (%s tokens/s)",
                self.title, epoch, epochs, values, mark, f"{rate:,.0f}",
            )  # fmt: skip
            self.line = time.perf_counter()

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
        self.bar.close()
        if self.main and error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            if not any(ROOT.iterdir()):
                ROOT.rmdir()
