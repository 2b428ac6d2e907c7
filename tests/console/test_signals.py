"""Signals: the first requests a stop, the second has its usual effect."""

import signal
from collections.abc import Iterator

import pytest

from infini.console.signals import stop_requests

KINDS = [signal.SIGINT, signal.SIGTERM]


class Handled(Exception):
    """Raised by the handlers set before."""


def handle(number: int, frame: object) -> None:
    raise Handled(signal.Signals(number).name)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Replace the default handlers: that of SIGTERM would end the test."""
    before = {kind: signal.signal(kind, handle) for kind in KINDS}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def handlers() -> list[object]:
    return [signal.getsignal(kind) for kind in KINDS]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_stop_requests_first_signal_requests_second_acts(
    first: signal.Signals, second: signal.Signals
) -> None:
    with stop_requests() as requested:
        assert not requested()
        signal.raise_signal(first)
        assert requested()
        with pytest.raises(Handled, match=second.name):
            signal.raise_signal(second)
        assert requested()
    assert handlers() == [handle, handle]


def test_stop_requests_second_ctrl_c_is_keyboard_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_requests() as requested:
        signal.raise_signal(signal.SIGINT)
        assert requested()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("signals", [[], KINDS[:1]])
def test_stop_requests_restores_handlers_after_error(signals: list[signal.Signals]) -> None:
    def stop() -> None:
        with stop_requests() as requested:
            assert handle not in handlers()
            for kind in signals:
                signal.raise_signal(kind)
            assert requested() == bool(signals)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop()
    assert handlers() == [handle, handle]
    with stop_requests() as requested:
        assert not requested()  # each block has a flag of its own
    assert handlers() == [handle, handle]
