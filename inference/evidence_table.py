"""Tables of evidence, ranked within each kind of estimate and never across kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bayes_sym.errors import OptionError

from .fit import Fit


if TYPE_CHECKING:
    import pandas


__all__ = ["evidence_table", "ranked"]


def evidence_table(fits: Mapping[str, Fit]) -> pandas.DataFrame:
    """The evidence of each fit, grouped by kind.

    An ELBO, a full Laplace evidence and a Kronecker-factored one differ by more than models do, so `rank` and
    `difference` (nats below the best) compare fits of one kind only. All fits must be of the same observations.

    Args:
        fits: fits by name.

    Returns:
        One row per fit, indexed by name, with the columns scheme, evidence_kind, log_evidence, rank (1 is best) and
        difference. Fits without an evidence (MAP, samplers, failed fits) come last, with missing values.
    """
    import pandas

    if not fits:
        raise OptionError("there are no fits to compare: pass a dict from names to fits")
    table = pandas.DataFrame(
        {
            "scheme": [type(fit.scheme).__name__ for fit in fits.values()],
            "evidence_kind": [None if fit.posterior is None else fit.posterior.evidence_kind for fit in fits.values()],
            "log_evidence": [
                float("nan") if fit.posterior is None or fit.posterior.log_evidence is None else float(fit.posterior.log_evidence)
                for fit in fits.values()
            ],
        },
        index=pandas.Index(fits, name="fit"),
    )
    return ranked(table, ["evidence_kind"])


def ranked(table: pandas.DataFrame, comparable: Sequence[str]) -> pandas.DataFrame:
    """The table with `rank` and `difference` of log_evidence among rows that agree in the `comparable` columns, in that order."""
    within = table.groupby(list(comparable))["log_evidence"]
    table["rank"] = within.rank(ascending=False, method="min").astype("Int64")
    table["difference"] = table["log_evidence"] - within.transform("max")
    return table.sort_values([*comparable, "rank"], na_position="last", kind="stable")
