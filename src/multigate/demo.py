"""The whole road on a simulated content feed whose true probabilities are known."""

import time
from collections.abc import Sequence
from pathlib import Path
from shlex import join, quote

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape

from multigate.analysis.compare import compare
from multigate.bundle import load
from multigate.datasets.feed import Feed, write_feed
from multigate.draft import draft
from multigate.errors import MultigateError, RunError
from multigate.experiment import read_experiment
from multigate.folders import at_home
from multigate.metrics import auc
from multigate.report.page import require_extra
from multigate.report.write import write_report
from multigate.score import score_table, write_predictions
from multigate.tables import metric_table
from multigate.training.interrupts import interruptible
from multigate.training.train import train

TASKS = ("click", "buy|click", "like", "watch_seconds")
EPOCHS = 6
SEEDS = 2
STRUCTURES = ("single_task", "shared_bottom", "omoe", "mmoe")


def demo(out: Path, *, rows: int = 60_000) -> None:
    """Simulate a feed, then ``init``, ``train``, ``score``, ``predict`` and ``compare`` on it, telling what happens.

    Raises ``RunError`` where ``out`` holds anything already.
    """
    out = at_home(out)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunError(f"the demo wants a folder of its own and {out} is not empty; delete it or choose another --out")
    with interruptible(lambda: f"for the whole demo delete {quote(str(out))} and run the same command again"):
        _show(out, rows)


def _show(out: Path, rows: int) -> None:
    """The road itself."""
    console = Console(soft_wrap=True)
    began = time.perf_counter()

    def tell(text: str, *words: object, into: Path | None = None) -> None:
        """What comes next, and the command that does it, as a shell reads it."""
        console.print(f"\n[bold]{escape(text)}[/bold]", highlight=False)
        if words:
            command = join(["multigate", *map(str, words)]) + (f" > {quote(str(into))}" if into else "")
            console.print(f"[green]$ {escape(command)}[/green]", highlight=False)

    tables = out / "feed"
    tell(
        f"1. A simulated feed of {rows:,} exposures: clicks, purchases after clicks, likes (some unknown), watch time."
    )
    write_feed(Feed(rows=rows), tables)
    for path in sorted(tables.glob("*.parquet")):
        console.print(f"   {path}  {pq.read_metadata(path).num_rows:,} rows", highlight=False, markup=False)

    file = out / "feed.yaml"
    settings = [f"valid={tables / 'valid.parquet'}", f"test={tables / 'test.parquet'}", f"epochs={EPOCHS}"]
    typed = [word for setting in (f"tasks={','.join(TASKS)}", *settings) for word in ("--set", setting)]
    tell("2. An experiment file, drafted from the table.", "init", tables / "train.parquet", *typed, into=file)
    text = draft(tables / "train.parquet", TASKS, settings)
    file.write_text(text, encoding="utf-8")
    console.print("\n".join(f"   {line}" for line in text.splitlines() if line), highlight=False, markup=False)

    run_folder = out / "mmoe"
    tell("3. Train MMoE on it; the weights best on the validation rows are kept.", "train", file, "--out", run_folder)
    experiment = read_experiment(file)
    train(experiment, run_folder)

    test = tables / "test.parquet"
    tell("4. Score the rows of the last days, which nothing has seen yet.", "score", run_folder, test)
    bundle = load(run_folder)
    metrics, intervals = score_table(bundle, test, replicates=100)
    shown = {name: value for name, value in metrics.items() if name.endswith(("/auc", "/ne", "/calibration", "/r2"))}
    console.print(metric_table("Test rows", shown, intervals))
    truth = pq.read_table(tables / "test_truth.parquet")
    labels = pq.read_table(test, columns=["click"]).column("click").to_numpy()
    best = auc(_logit(truth.column("p_click").to_numpy()), labels)
    console.print(
        f"   The simulation's own probabilities reach click/auc {best:.4f}: no model can do better.", highlight=False
    )

    predictions = out / "predictions.parquet"
    tell("5. Predict from raw rows, strings and nulls as they come.", "score", run_folder, test, "--out", predictions)
    write_predictions(bundle, test, predictions)
    row = pq.read_table(test).slice(0, 1).to_pylist()[0]
    named = bundle.predict({name: row[name] for name in bundle.schema.columns(labels=False, carried=False)})
    console.print(
        f"   first row: { ({name: round(float(value), 4) for name, value in named.items()}) }", highlight=False
    )

    tell(
        "6. Does sharing pay? Four structures, one budget, the same rows and seeds.",
        *("compare", file, "--structures", ",".join(STRUCTURES), "--seeds", SEEDS, "--out", out / "compare"),
    )
    comparison = compare(experiment, out / "compare", structures=STRUCTURES, seeds=SEEDS)
    Console(width=max(console.width, 110)).print(comparison.table())

    page = out / "report.html"
    tell(
        "7. Why? Gates, experts, calibration, relatedness and differences on one page, to open in a browser.",
        *("report", run_folder, out / "compare", "--out", page),
    )
    console.print(f"   {escape(_reported([run_folder, comparison.folder], page))}", highlight=False)
    console.print(
        f"\nDone in {time.perf_counter() - began:.0f} s; everything is in {out}.", highlight=False, markup=False
    )


def _reported(runs: Sequence[Path], page: Path) -> str:
    """Where the page is, or what is missing to write one."""
    try:
        require_extra()
    except MultigateError as missing:
        return str(missing)
    return str(write_report(runs, page))


def _logit(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(p) - np.log1p(-p))
