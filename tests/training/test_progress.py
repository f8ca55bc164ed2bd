"""Where there is no terminal, long work tells now and then how far it is."""

import io

import pytest

from multigate.training import progress
from multigate.training.progress import Reporter


def test_a_long_stage_has_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    with Reporter() as report, Reporter(quiet=True) as quiet:
        for done in range(0, 101, 10):
            report("reading", done, 100)
            quiet("reading", done, 100)
            clock[0] += progress.EVERY / 4
        report("runs (trainings)", 3, None)
        clock[0] += 2 * progress.EVERY
        report("runs (trainings)", 9, None)
        clock[0] += 1
        report("runs (trainings)", 10, None)
    lines = capsys.readouterr().err.splitlines()
    each = progress.EVERY / 4  # seconds of ten rows
    assert lines == [
        f"reading: 40 of 100 rows  {10 / each:,.0f} rows/s",
        f"reading: 80 of 100 rows  {10 / each:,.0f} rows/s",
        f"runs: 9 trainings  {2 * progress.EVERY / 6:,.0f} s each",
    ]


class OnlyWrites:
    """What stands in place of stderr where a program writes to a log; it may be a pipe that nobody reads."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.text = error, ""

    def write(self, text: str) -> None:
        if self.error is not None:
            raise self.error
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("error", [None, BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_nothing_is_lost_where_lines_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    stream = OnlyWrites(error)
    monkeypatch.setattr("sys.stderr", stream)
    with Reporter() as report:
        report.line("one")
        report("reading", 1, 2)
        report.line("two")
    assert stream.text == ("one\ntwo\n" if error is None else "")


def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    with Reporter() as report:
        report.line("one")
    assert not report.live
