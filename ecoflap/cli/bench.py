"""Measure the dense model and pruned ones side by side: size, operations, load time, speed, and the metric.

    ecoflap bench RUN [RUN ...] [--json FILE] [--batch-size 1 8] [--repeats 10] [--tokens 32]

The runs must be of one model and have saved it (model.save=true). All models are loaded into one process and
take turns, so that other load on the machine affects them equally. A language model writes tokens; any other
model runs on calibration samples. The figures are written to bench.json in the first run's folder, where
ecoflap report finds them, and to FILE if one is given. OMP_NUM_THREADS sets the number of threads; with one
thread on a CPU, the clock is the CPU time of the process, which excludes other work. Exit code 0: measured.
2: nothing could be measured.
"""

from __future__ import annotations

import argparse

from ecoflap.console.arguments import ArgumentParser, complain, given_path
from ecoflap.console.tables import table
from ecoflap.errors import UserError
from ecoflap.storage.file_names import BENCH, RESULT


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        bench(options)
    except BrokenPipeError:  # the figures are written
        raise
    except (UserError, OSError) as error:
        from ecoflap.run.refusals import describe  # not for --help: it imports Hydra

        return complain(f"nothing measured: {describe(error) or error}")
    return 0


def bench(options: argparse.Namespace) -> None:
    """Measure, write the record, and print the table.

    Raises:
        UserError: if the runs can't be measured together.
    """
    from ecoflap.storage.results.bench import cells_of, columns_of, machine_line
    from ecoflap.sweeps.bench.forms import read_runs
    from ecoflap.sweeps.bench.measure import measure

    for name in ("repeats", "tokens"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} must be at least 1")
    if min(options.batch_size) < 1:
        raise UserError(f"--batch-size {min(options.batch_size)} must be at least 1")
    sizes = list(dict.fromkeys(options.batch_size))
    measured = measure(read_runs(options.runs), sizes, options.repeats, options.tokens)
    files = [options.runs[0] / BENCH, *([options.json] if options.json else [])]
    for file in files:
        measured.write(file)
    table(f"{measured.model}: {measured.work}", columns_of(measured), cells_of(measured))
    print(machine_line(measured))
    for note in measured.notes:
        print(f"note: {note}")
    print(f"written: {', '.join(map(str, files))}")


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="ecoflap bench", description=__doc__)
    parser.add_argument(
        "runs",
        type=given_path,
        nargs="+",
        metavar="RUN",
        help=f"folder of a run, with {RESULT} and a saved model",
    )
    parser.add_argument("--json", type=given_path, metavar="FILE", help="another file for the figures")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8], help="samples at a time")
    parser.add_argument("--repeats", type=int, default=10, help="timed repeats of each model and batch size")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that a language model writes")
    return parser
