"""Where there is no terminal, long work tells now and then how far it is."""

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
