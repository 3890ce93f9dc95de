"""The command line: list the experiments, run one, or run it and print its table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bayes_sym.errors import BayesSymError


__all__ = ["app", "main"]

app = typer.Typer(
    help="Bayesian neural networks that learn their own symmetries: reproducible comparisons of inference schemes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_Name = Annotated[str, typer.Argument(help="The experiment; `bayes-sym list` shows all.")]
_Seed = Annotated[int, typer.Option(help="Seed of the split, the fits and the draws.", min=0)]
_Seeds = Annotated[int, typer.Option(help="How many seeds to run, from --seed on; each into OUT/seed-N if several.", min=1)]
_Steps = Annotated[int | None, typer.Option(help="Steps of every fit, in place of the experiment's own.", min=1)]
_Out = Annotated[
    Path | None, typer.Option(help="Where the results go. [default: results/NAME, or results/NAME/TASK]", show_default=False)
]
_Train = Annotated[int | None, typer.Option(help="Training images, in place of the experiment's own number.", min=1)]
_Task = Annotated[str | None, typer.Option(help="What to learn, where an experiment has several tasks; `list` shows them.")]
_Data = Annotated[Path | None, typer.Option(help="The folder with local files, for an experiment that reads them.")]
_Mesh = Annotated[int | None, typer.Option(help="Shard every batch over this many devices.", min=1)]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


@app.command("list")
def show() -> None:
    """The experiments, a line each."""
    from . import EXPERIMENTS

    width = max(map(len, EXPERIMENTS))
    for experiment in EXPERIMENTS.values():
        tasks = f" (--task {'|'.join(experiment.tasks)})" if experiment.tasks else ""
        typer.echo(f"{experiment.name:<{width}}  {experiment.summary}{tasks}")


@app.command()
def run(
    name: _Name,
    seed: _Seed = 0,
    seeds: _Seeds = 1,
    steps: _Steps = None,
    out: _Out = None,
    num_train: _Train = None,
    task: _Task = None,
    data_dir: _Data = None,
    mesh: _Mesh = None,
    quiet: _Quiet = False,
) -> None:
    """Runs an experiment, prints its table, and writes results.json and its figures into OUT.

    A comparison of schemes also writes table.csv and the posteriors.
    """
    import jax

    from . import EXPERIMENTS
    from .experiment import Options
    from .findings import Findings
    from .table import as_text

    if name not in EXPERIMENTS:
        _refuse(f"there is no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    if mesh is not None and mesh > jax.device_count():
        _refuse(f"--mesh {mesh} needs {mesh} devices, and this machine has {jax.device_count()}")
    experiment = EXPERIMENTS[name]
    if task is not None and task not in experiment.tasks:
        known = f"it has: {', '.join(experiment.tasks)}" if experiment.tasks else "it has no tasks to choose from"
        _refuse(f"{name} has no task {task!r}; {known}")
    if data_dir is not None and not experiment.reads_files:
        _refuse(f"{name} reads no local files: leave out --data-dir")
    devices = None if mesh is None else jax.make_mesh((mesh,), ("data",), devices=jax.devices()[:mesh])
    for chosen in range(seed, seed + seeds):
        started = time.perf_counter()
        folder = experiment.folder(out, task)
        try:
            results = experiment.run(Options(chosen, steps, num_train, devices, not quiet, task, data_dir))
            saved = results.save(folder if seeds == 1 else folder / f"seed-{chosen}")
        except BayesSymError as error:
            _refuse(str(error))
        except KeyboardInterrupt:
            typer.echo(f"\ninterrupted; results in {folder} are those of the last whole run", err=True)
            raise typer.Exit(130) from None
        typer.echo(results.text() if isinstance(results, Findings) else as_text(results.rows))
        typer.echo(f"\nseed {chosen}, {time.perf_counter() - started:.0f} s; everything is in {saved}")


app.command("compare", help="The same as `run`: runs a comparison of schemes and prints its table.")(run)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"bayes-sym: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """The entry point of the `bayes-sym` command."""
    app()


if __name__ == "__main__":
    main()
