"""The command line: list the experiments, run one, compare its methods, say what it would cost, and report on results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bayes_sym.errors import BayesSymError, NonFiniteError

from .notices import plain_warnings, say


if TYPE_CHECKING:
    from bayes_sym.inference import Comparison

    from .experiment import Experiment, Options
    from .findings import Findings

__all__ = ["app", "main"]

_EXIT_CODES = """\b
Exit codes:
    0    done
    1    a bug, with Python's traceback
    2    bad input: an unknown name or option, or data that cannot be used
    3    a fit met NaN or infinity
    130  interrupted with ctrl-C
"""

app = typer.Typer(
    help="""Bayesian neural networks that learn their own symmetries: reproducible comparisons of inference schemes.

    \b
    First steps:
        bayes-sym list                          what there is to run
        bayes-sym compare digits-c4             fit and compare; results in results/digits-c4
        bayes-sym report results                all results on one page, results/report.html
        bayes-sym --install-completion          names and options by the tab key
    """,
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _complete_name(incomplete: str) -> list[tuple[str, str]]:
    from . import EXPERIMENTS

    return [(e.name, e.summary) for e in EXPERIMENTS.values() if e.name.startswith(incomplete)]


def _complete_task(context: typer.Context, incomplete: str) -> list[str]:
    from . import EXPERIMENTS

    given = [word for word in (context.params.get("name"), *context.args) if word in EXPERIMENTS]
    return [task for name in given[:1] for task in EXPERIMENTS[name].tasks if task.startswith(incomplete)]


_Name = Annotated[str, typer.Argument(help="The experiment; `bayes-sym list` shows all.", autocompletion=_complete_name)]
_Seed = Annotated[int, typer.Option(help="Seed of the split, the fits and the draws.", min=0)]
_Seeds = Annotated[int, typer.Option(help="How many seeds to run, from --seed on; each into OUT/seed-N if several.", min=1)]
_Steps = Annotated[int | None, typer.Option(help="Steps of every fit, in place of the experiment's own.", min=1)]
_Out = Annotated[
    Path | None, typer.Option(help="Where the results go. [default: results/NAME, or results/NAME/TASK]", show_default=False)
]
_Train = Annotated[int | None, typer.Option(help="Training images, in place of the experiment's own number.", min=1)]
_Task = Annotated[
    str | None,
    typer.Option(help="What to learn, where an experiment has several tasks; `list` shows them.", autocompletion=_complete_task),
]
_Data = Annotated[Path | None, typer.Option(help="The folder with local files, for an experiment that reads them.")]
_Epochs = Annotated[int | None, typer.Option(help="Passes over the data, for an experiment that counts in them.", min=1)]
_Group = Annotated[str | None, typer.Option(help="The group, where an experiment has several; `list` shows them.")]
_Mesh = Annotated[int | None, typer.Option(help="Shard every batch over this many devices.", min=1)]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Only say how long it would take and how much memory it would need.")]
_Json = Annotated[
    bool, typer.Option("--json", help="Print the rows as one JSON array on standard output, and nothing else there.")
]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result: no progress bars, no closing line.")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also versions and devices; errors with Python's traceback.")]


@app.command("list")
def show(as_json: _Json = False) -> None:
    """The experiments, a line each.

    \b
    Examples:
        bayes-sym list
        bayes-sym list --json
    """
    from . import EXPERIMENTS

    if as_json:
        known = [
            {"name": e.name, "summary": e.summary, "tasks": list(e.tasks), "groups": list(e.groups), "reads_files": e.reads_files}
            for e in EXPERIMENTS.values()
        ]
        typer.echo(json.dumps(known, indent=1))
        return
    width = max(map(len, EXPERIMENTS))
    for experiment in EXPERIMENTS.values():
        tasks = f" (--task {'|'.join(experiment.tasks)})" if experiment.tasks else ""
        choices = f" (--group {'|'.join(experiment.groups)})" if experiment.groups else ""
        typer.echo(f"{experiment.name:<{width}}  {experiment.summary}{tasks}{choices}")


@app.command(epilog=_EXIT_CODES)
def run(
    name: _Name,
    seed: _Seed = 0,
    seeds: _Seeds = 1,
    steps: _Steps = None,
    out: _Out = None,
    num_train: _Train = None,
    task: _Task = None,
    data_dir: _Data = None,
    epochs: _Epochs = None,
    group: _Group = None,
    mesh: _Mesh = None,
    dry_run: _Dry = False,
    as_json: _Json = False,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
) -> None:
    """Runs an experiment, prints its table, and writes results.json and its figures into OUT.

    A comparison of schemes also writes table.csv and the posteriors. Interrupted with ctrl-C, it finishes the steps under way and saves;
    killed, it has saved after every chunk of steps. The same command then goes on where it was. A second ctrl-C ends at once.
    Experiments of many short pieces keep those that are finished. Of several seeds, the first alone compiles.

    \b
    Examples:
        bayes-sym run digits-c4 --dry-run           how long would it take?
        bayes-sym run digits-c4 --steps 50 -q       a quick look
        bayes-sym run digits-c4 --seeds 3           three splits, and intervals over them
        bayes-sym run quadrant --task quadrant      one of several tasks
        bayes-sym run digits-c4 --json | jq '.[] | {method, nll}'
    """
    from . import EXPERIMENTS
    from .compiled import kept_compiled
    from .experiment import Options
    from .table import as_text

    plain_warnings()
    if name not in EXPERIMENTS:
        _refuse(f"there is no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    experiment = EXPERIMENTS[name]
    _check(experiment, task, data_dir, epochs, group, mesh)
    home = experiment.folder(out, task)
    if verbose:
        _say_versions()
    options = Options(seed, steps, num_train, _mesh(mesh), not quiet, task, data_dir, home, epochs, group)
    if dry_run:
        with _clean_ends(verbose):
            _estimate(experiment, options, seeds, as_json, quiet)
        return
    several = [(chosen, home if seeds == 1 else home / f"seed-{chosen}") for chosen in range(seed, seed + seeds)]
    rows: list[dict[str, Any]] = []
    with kept_compiled(home / "compiled"):
        for chosen, folder in several:
            started = time.perf_counter()
            with _clean_ends(verbose, folder):
                results = experiment.run(replace(options, seed=chosen, folder=folder))
                saved = results.save(folder)
            rows += [{"experiment": name, "task": task, "seed": chosen, **row} for row in results.rows]
            if not as_json:
                typer.echo(_as_table(results))
            if not quiet:
                typer.echo(f"\nseed {chosen}, {time.perf_counter() - started:.0f} s; everything is in {saved}", err=as_json)
    for _, folder in several:  # only an interrupted command needs what was finished
        shutil.rmtree(folder / "cells", ignore_errors=True)
    if as_json:
        _print_json(rows)
    elif seeds > 1 and all("method" in row for row in rows):
        from bayes_sym.inference.intervals import over_seeds

        bars = ", +- half of the 95% interval" if seeds > 2 else "; intervals need 3"
        typer.echo(f"\nMeans over {seeds} seeds{bars}:\n\n{as_text(over_seeds(rows))}")


app.command("compare", help="The same as `run`: runs a comparison of schemes and prints its table.", epilog=_EXIT_CODES)(run)


@app.command(epilog=_EXIT_CODES)
def report(
    folder: Annotated[Path, typer.Argument(help="A folder with results, at any depth.")],
    out: Annotated[Path | None, typer.Option(help="The page to write. [default: FOLDER/report.html]", show_default=False)] = None,
    quiet: _Quiet = False,
    verbose: _Verbose = False,
) -> None:
    """Puts every results.json below FOLDER, and the figures beside them, on one HTML page that needs no other file.

    \b
    Examples:
        bayes-sym report results
        bayes-sym report results/digits-c4 --out digits.html
    """
    from .report import write_report

    with _clean_ends(verbose):
        written = write_report(folder, folder / "report.html" if out is None else out)
    if not quiet:
        typer.echo(written)


def _check(
    experiment: Experiment, task: str | None, data_dir: Path | None, epochs: int | None, group: str | None, mesh: int | None
) -> None:
    """Refuses options that the experiment does not know, or this machine cannot meet."""
    if mesh is not None:
        import jax

        if mesh > jax.device_count():
            _refuse(f"--mesh {mesh} needs {mesh} devices, and this machine has {jax.device_count()}")
    if task is not None and task not in experiment.tasks:
        known = f"it has: {', '.join(experiment.tasks)}" if experiment.tasks else "it has no tasks to choose from"
        _refuse(f"{experiment.name} has no task {task!r}; {known}")
    if data_dir is not None and not experiment.reads_files:
        _refuse(f"{experiment.name} reads no local files: leave out --data-dir")
    if epochs is not None and not experiment.has_epochs:
        _refuse(f"{experiment.name} does not count in epochs: use --steps")
    if group is not None and group not in experiment.groups:
        known = f"it has: {', '.join(experiment.groups)}" if experiment.groups else "it has one group only"
        _refuse(f"{experiment.name} has no group {group!r}; {known}")


def _mesh(count: int | None) -> Any:
    import jax

    return None if count is None else jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])


@contextmanager
def _clean_ends(verbose: bool, folder: Path | None = None) -> Iterator[None]:
    """Turns errors on purpose and ctrl-C into a line on standard error and an exit code."""
    from bayes_sym.inference.interrupt import Interrupted

    try:
        yield
    except BayesSymError as error:
        if verbose:
            raise
        _refuse(str(error), 3 if isinstance(error, NonFiniteError) else 2)
    except OSError as error:
        if verbose:
            raise
        _refuse(str(error))
    except Interrupted as error:
        say(f"interrupted: {error}")
        say("the same command goes on from there")
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        kept = "" if folder is None else f"; results in {folder} are those of the last whole run"
        finished = folder is not None and (folder / "cells").exists()
        say(f"interrupted{kept}{'; the same command goes on from what is finished' if finished else ''}")
        raise typer.Exit(130) from None


def _estimate(experiment: Experiment, options: Options, seeds: int, as_json: bool, quiet: bool) -> None:
    from .dry_run import COLUMNS, dry_run
    from .table import as_text

    rows, how = dry_run(experiment, options)
    if as_json:
        _print_json([{"experiment": experiment.name, **row} for row in rows])
        return
    typer.echo(as_text(rows, COLUMNS))
    if seeds > 1:
        typer.echo(f"\n{seeds} seeds: {seeds * rows[-1]['seconds']:.0f} s")
    if not quiet:
        typer.echo(f"\nNothing was run. {how}")


def _as_table(results: Comparison | Findings) -> str:
    from .findings import Findings
    from .table import as_text

    return results.text() if isinstance(results, Findings) else as_text(results.summary())


def _print_json(rows: list[dict[str, Any]]) -> None:
    from bayes_sym.inference.results import plain

    typer.echo(json.dumps([plain(row) for row in rows], indent=1, allow_nan=False))


def _say_versions() -> None:
    from bayes_sym.inference.results import versions

    say(", ".join(f"{name} {version}" for name, version in versions().items()))


def _refuse(message: str, code: int = 2) -> NoReturn:
    say(message)
    raise typer.Exit(code)


def main() -> None:
    """The entry point of the `bayes-sym` command."""
    app()


if __name__ == "__main__":
    main()
