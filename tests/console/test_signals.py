"""A signal asks a training to stop; asked twice, it stops at once."""

import signal
from collections.abc import Iterator

import pytest

from infini.console.signals import stop_requests

KINDS = [signal.SIGINT, signal.SIGTERM]


class Handled(Exception):
    """What the handlers of before raise."""


def handle(number: int, frame: object) -> None:
    raise Handled(signal.Signals(number).name)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Handlers of the test's own: the default of SIGTERM would end it."""
    before = {kind: signal.signal(kind, handle) for kind in KINDS}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


def handlers() -> list[object]:
    return [signal.getsignal(kind) for kind in KINDS]


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_the_first_signal_asks_and_any_second_has_its_old_effect(
    first: signal.Signals, second: signal.Signals
) -> None:
    with stop_requests() as asked:
        assert not asked()
        signal.raise_signal(first)
        assert asked()
        with pytest.raises(Handled, match=second.name):
            signal.raise_signal(second)
        assert asked()
    assert handlers() == [handle, handle]


def test_the_second_ctrl_c_is_a_keyboard_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stop_requests() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("signals", [[], KINDS[:1]])
def test_the_old_handlers_are_back_however_it_ends(signals: list[signal.Signals]) -> None:
    def stop() -> None:
        with stop_requests() as asked:
            assert handle not in handlers()
            for kind in signals:
                signal.raise_signal(kind)
            assert asked() == bool(signals)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stop()
    assert handlers() == [handle, handle]
    with stop_requests() as asked:
        assert not asked()  # each block has a flag of its own
    assert handlers() == [handle, handle]
