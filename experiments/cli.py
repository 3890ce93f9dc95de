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
_Out = Annotated[Path | None, typer.Option(help="Where the results go. [default: results/NAME]", show_default=False)]
_Train = Annotated[int, typer.Option(help="Training images.", min=1)]
_Mesh = Annotated[int | None, typer.Option(help="Shard every batch over this many devices.", min=1)]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


@app.command("list")
def show() -> None:
    """The experiments, a line each."""
    from . import EXPERIMENTS

    for experiment in EXPERIMENTS.values():
        typer.echo(f"{experiment.name:<12} {experiment.summary}")


@app.command()
def run(
    name: _Name,
    seed: _Seed = 0,
    seeds: _Seeds = 1,
    steps: _Steps = None,
    out: _Out = None,
    num_train: _Train = 300,
    mesh: _Mesh = None,
    quiet: _Quiet = False,
) -> None:
    """Runs an experiment, prints its table, and writes results.json, table.csv, tradeoff.png and the posteriors into OUT."""
    import jax

    from . import EXPERIMENTS
    from .experiment import Options
    from .table import as_text

    if name not in EXPERIMENTS:
        _refuse(f"there is no experiment {name!r}; there are: {', '.join(EXPERIMENTS)}")
    if mesh is not None and mesh > jax.device_count():
        _refuse(f"--mesh {mesh} needs {mesh} devices, and this machine has {jax.device_count()}")
    experiment = EXPERIMENTS[name]
    devices = None if mesh is None else jax.make_mesh((mesh,), ("data",), devices=jax.devices()[:mesh])
    for chosen in range(seed, seed + seeds):
        started = time.perf_counter()
        folder = experiment.folder(out)
        try:
            comparison = experiment.run(Options(chosen, steps, num_train, devices, not quiet))
            saved = comparison.save(folder if seeds == 1 else folder / f"seed-{chosen}")
        except BayesSymError as error:
            _refuse(str(error))
        except KeyboardInterrupt:
            typer.echo(f"\ninterrupted; results in {folder} are those of the last whole run", err=True)
            raise typer.Exit(130) from None
        typer.echo(as_text(comparison.rows))
        typer.echo(f"\nseed {chosen}, {time.perf_counter() - started:.0f} s; results, figure and posteriors in {saved}")


app.command("compare", help="The same as `run`: runs a comparison of schemes and prints its table.")(run)


def _refuse(message: str) -> NoReturn:
    typer.echo(f"bayes-sym: {message}", err=True)
    raise typer.Exit(2)


def main() -> None:
    """The entry point of the `bayes-sym` command."""
    app()


if __name__ == "__main__":
    main()
