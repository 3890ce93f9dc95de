"""Quality of predictions: estimators against brute force, closed forms, scikit-learn and quadrature, intervals by their coverage."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats

from bayes_sym.diagnostics import (
    auroc,
    calibration,
    calibration_error,
    entropy_decomposition,
    log_predictive_density,
    reliability_diagram,
)
from bayes_sym.diagnostics.reliability_diagram import wilson
from bayes_sym.errors import DataError, ModelError, OptionError, ParetoWarning, ShapeError
from bayes_sym.inference import MAP, Laplace, Problem, fit
from bayes_sym.inference.held_out import held_out_density
from bayes_sym.inference.leave_one_out import leave_one_out


# The calibration error


def predictions(rng, count, shift=0.0):
    """Binary predictions of confidence c in 0.55..0.95, right with chance c - shift."""
    c = rng.uniform(0.55, 0.95, count)
    p = np.stack([c, 1 - c], axis=1)
    return p, (rng.random(count) >= c - shift).astype(int)


@pytest.mark.parametrize(("shift", "truth", "count"), [(0.0, 0.0, 600), (0.0, 0.0, 60), (0.12, 0.12, 600), (0.5, 0.5, 200)])
def test_the_interval_of_the_calibration_error_covers(shift, truth, count):
    """Calibrated predictions have an error of 0, which is in the interval; a constant shift is the same gap in every bin."""
    rng = np.random.default_rng(0)
    found = [calibration_error(*predictions(rng, count, shift), num_bins=10) for _ in range(300)]
    coverage = np.mean([f.low <= truth <= f.high for f in found])
    assert coverage > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 300)
    biased = np.mean([f.ece for f in found])
    if truth == 0:
        assert all(f.high > 0 for f in found)
        assert coverage < 0.998  # one-sided: 97.5%
        noise = np.mean([f.if_calibrated for f in found])
        assert biased == pytest.approx(noise, rel=0.08) and biased > 0.02
    if count >= 200 and shift:
        assert np.mean([f.high - f.low for f in found]) < 0.35
        assert np.mean([f.low > 0 for f in found]) > 0.97


def test_the_estimate_is_that_of_calibration():
    p, y = predictions(np.random.default_rng(1), 300, 0.1)
    for bins in ("equal-mass", "equal-width"):
        found = calibration_error(p, y, bins=bins, num_bins=7)
        assert found.ece == pytest.approx(calibration(p, y, bins=bins, num_bins=7).ece)
        assert 0 <= found.low < found.ece < found.high <= 1 and found.level == 0.95
    wide, narrow = (calibration_error(p, y, level=level) for level in (0.99, 0.5))
    assert wide.low <= narrow.low and wide.high > narrow.high
    with pytest.raises(OptionError, match="level is the coverage of an interval"):
        calibration_error(p, y, level=95)
    with pytest.raises(OptionError, match="num_bins must be a whole number"):
        calibration_error(p, y, num_bins=0)


def test_a_bin_of_hits_only_is_not_certain():
    p = np.tile([0.99, 0.01], (100, 1))
    found = calibration_error(p, np.zeros(100, int), num_bins=1)
    assert found.ece == pytest.approx(0.01) and found.low == 0 and found.high > 0.02


def test_the_reliability_diagram_shows_bins_bars_and_counts():
    p, y = predictions(np.random.default_rng(2), 200, 0.1)
    figure = reliability_diagram(p, y, num_bins=8)
    upper, lower = figure.axes
    heights = [patch.get_height() for patch in lower.patches]
    assert len(heights) == 8 and sum(heights) == 200
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    order = np.array_split(np.argsort(confidence), 8)
    line = next(line for line in upper.lines if len(line.get_xdata()) == 8)
    np.testing.assert_allclose(line.get_xdata(), [confidence[b].mean() for b in order])
    np.testing.assert_allclose(line.get_ydata(), [right[b].mean() for b in order])
    segments = upper.collections[0].get_segments()
    low, high = wilson(np.array([right[b].sum() for b in order]), np.full(8, 25), 0.95)
    np.testing.assert_allclose([segment[:, 1] for segment in segments], np.stack([low, high], axis=1), atol=1e-12)
    assert f"calibration error {calibration(p, y, num_bins=8).ece:.3f}" in upper.get_title(loc="left")
    wide = reliability_diagram(p, y, num_bins=10, bins="equal-width", figure=figure.figure.__class__())
    edges = sorted(patch.get_x() for patch in wide.axes[1].patches)
    np.testing.assert_allclose(edges, [0.5, 0.6, 0.7, 0.8, 0.9])


def test_wilson_against_scipy():
    for hits, count in [(0, 5), (3, 10), (10, 10)]:
        low, high = wilson(np.array([hits]), np.array([count]), 0.9)
        expected = scipy.stats.binomtest(hits, count).proportion_ci(0.9, method="wilson")
        assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)


# Entropy


def test_entropies_against_their_definition():
    p = np.random.default_rng(0).dirichlet([0.5, 1, 2], size=(7, 5))
    found = entropy_decomposition(p, correct=False)
    total = scipy.stats.entropy(p.mean(axis=0), axis=-1)
    aleatoric = scipy.stats.entropy(p, axis=-1).mean(axis=0)
    np.testing.assert_allclose(found.total_of, total)
    np.testing.assert_allclose(found.aleatoric_of, aleatoric)
    np.testing.assert_allclose(found.epistemic_of, total - aleatoric)
    corrected = entropy_decomposition(p)
    without = np.array([scipy.stats.entropy(np.delete(p, t, axis=0).mean(axis=0), axis=-1) for t in range(7)])
    np.testing.assert_allclose(corrected.total_of, 7 * total - 6 * without.mean(axis=0))
    assert corrected.total == pytest.approx(corrected.aleatoric + corrected.epistemic)
    epistemic = np.array([entropy_decomposition(np.delete(p, t, axis=0), correct=False).epistemic for t in range(7)])
    variance = 6 / 7 * ((epistemic - epistemic.mean()) ** 2).sum() + corrected.epistemic_of.var(ddof=1) / 5
    assert corrected.epistemic_se == pytest.approx(math.sqrt(variance))


def test_the_correction_removes_the_bias_of_few_draws():
    """Beta draws of a binary probability: H of the mean is known, and E H(p) by quadrature."""
    a, b, draws, sets = 2.0, 3.0, 8, 6000
    grid = np.linspace(0, 1, 20_001)[1:-1]
    density = scipy.stats.beta(a, b).pdf(grid)
    entropy = scipy.special.entr(grid) + scipy.special.entr(1 - grid)
    aleatoric = float((density * entropy).sum() / density.sum())
    total = float(scipy.special.entr(a / (a + b)) + scipy.special.entr(b / (a + b)))
    p = np.random.default_rng(0).beta(a, b, size=(draws, sets))  # every example has draws of its own
    p = np.stack([p, 1 - p], axis=-1)
    plain, corrected = entropy_decomposition(p, correct=False), entropy_decomposition(p)
    se = corrected.epistemic_of.std() / math.sqrt(sets)
    assert abs(corrected.epistemic - (total - aleatoric)) < 4 * se
    assert plain.epistemic - (total - aleatoric) < -10 * se
    assert abs(corrected.aleatoric - aleatoric) < 4 * corrected.aleatoric_of.std() / math.sqrt(sets)


def test_standard_errors_of_entropy_cover_the_truth():
    """Draws shared by the examples: p_ti depends on a common w_t and on the example; the truth is by brute force."""
    rng = np.random.default_rng(0)

    def sample(draws, examples):
        w, x = rng.standard_normal((draws, 1)), rng.standard_normal((1, examples))
        p = scipy.special.expit(w + 0.5 * x)
        return np.stack([p, 1 - p], axis=-1)

    truth = entropy_decomposition(sample(2000, 2000))
    inside = {name: [] for name in ("total", "aleatoric", "epistemic")}
    for _ in range(300):
        found = entropy_decomposition(sample(40, 40))
        for name, hits in inside.items():
            hits.append(abs(getattr(found, name) - getattr(truth, name)) < 2.02 * getattr(found, name + "_se"))
    for name, hits in inside.items():
        assert 0.9 < np.mean(hits) <= 0.99, name


def test_one_draw_has_no_epistemic_part_and_bad_input_is_refused():
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=(1, 6))
    found = entropy_decomposition(p)
    assert found.epistemic == 0 and found.total == found.aleatoric and found.total_se > 0
    certain = entropy_decomposition(np.tile([1.0, 0.0], (4, 3, 1)))
    assert certain.total == certain.epistemic == certain.total_se == 0
    with pytest.raises(ShapeError, match=r"must be \(num_draws, num_examples, classes\)"):
        entropy_decomposition(p[0])
    with pytest.raises(DataError, match="draw 0 at example 2, which sums to 2"):
        entropy_decomposition(np.where(np.arange(6)[None, :, None] == 2, 2 / 3, p))
    with pytest.raises(OptionError, match="two draws are too few"):
        entropy_decomposition(np.concatenate([p, p]))


# AUROC


def brute_force(a, b):
    """The value by all pairs, and DeLong's variance by its structural components."""
    wins = (a[:, None] > b[None, :]) + 0.5 * (a[:, None] == b[None, :])
    variance = wins.mean(axis=1).var(ddof=1) / len(a) + wins.mean(axis=0).var(ddof=1) / len(b)
    return wins.mean(), math.sqrt(variance)


@pytest.mark.parametrize("digits", [0, 8])
def test_auroc_against_all_pairs_and_scikit_learn(digits):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(0.7, 1, 37), digits), np.round(rng.normal(0, 1.5, 53), digits)
    found = auroc(a, b)
    assert (found.value, found.se) == pytest.approx(brute_force(a, b))
    assert found.value == pytest.approx(roc_auc_score([1] * 37 + [0] * 53, np.concatenate([a, b])))
    assert auroc(b, a).value == pytest.approx(1 - found.value) and auroc(b, a).se == pytest.approx(found.se)
    assert auroc(3 * a + 1, 3 * b + 1) == pytest.approx(found)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_auroc_intervals_cover(shift):
    rng = np.random.default_rng(0)
    truth = scipy.stats.norm.cdf(shift / math.sqrt(2))
    hits, values, ses = [], [], []
    for _ in range(1000):
        found = auroc(rng.normal(shift, 1, 40), rng.normal(0, 1, 60))
        low, high = found.interval()
        hits.append(low <= truth <= high)
        values.append(found.value)
        ses.append(found.se)
    assert abs(np.mean(hits) - 0.95) < 0.03
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(1000)
    assert np.mean(ses) == pytest.approx(np.std(values), rel=0.1)


def test_auroc_at_the_edges():
    apart = auroc([3.0, 4.0, 5.0], [0.0, 1.0])
    assert apart.value == 1 and apart.se == 0
    exact = scipy.stats.binomtest(2, 2).proportion_ci(0.95)
    assert apart.interval() == pytest.approx((exact.low, 1.0))
    assert auroc([0.0, 1.0], [3.0, 4.0, 5.0]).interval() == pytest.approx((0.0, 1 - exact.low))
    assert auroc([1.0, 1.0], [1.0, 1.0]).value == 0.5
    assert math.isnan(auroc([1.0], [0.0, 2.0]).se)
    with pytest.raises(ShapeError, match="second must be scores"):
        auroc([1.0], [])
    with pytest.raises(DataError, match="1 of the scores in first are not finite"):
        auroc([1.0, np.nan], [0.0])


# Log predictive density


def test_the_log_density_against_its_definition_and_brute_force():
    values = np.random.default_rng(0).normal(-800, 3, (9, 6))  # exp underflows
    found = log_predictive_density(values)
    expected = scipy.special.logsumexp(values, axis=0) - math.log(9)
    np.testing.assert_allclose(found.of_rows, expected)
    assert found.mean == pytest.approx(expected.mean()) and found.num_draws == 9
    without = np.array([(scipy.special.logsumexp(np.delete(values, t, axis=0), axis=0) - math.log(8)).mean() for t in range(9)])
    variance = 8 / 9 * ((without - without.mean()) ** 2).sum() + expected.var(ddof=1) / 6
    assert found.se == pytest.approx(math.sqrt(variance))
    assert found.bias == pytest.approx(8 * (without.mean() - expected.mean())) and found.bias < 0
    alone = log_predictive_density([[0.0, -1.0], [-900.0, -2.0], [-901.0, -3.0]])  # one draw has all of row 0
    rest = scipy.special.logsumexp([-900, -901]) - math.log(2)
    row_1 = [scipy.special.logsumexp(np.delete([-1.0, -2.0, -3.0], t)) - math.log(2) for t in range(3)]
    row_0 = [rest, -math.log(2), -math.log(2)]
    assert alone.bias == pytest.approx(2 * (np.mean(row_0 + row_1) - alone.mean), rel=1e-6)


def test_the_log_density_refuses_what_it_cannot_average():
    with pytest.raises(ShapeError, match="sum over further axes"):
        log_predictive_density(np.zeros((3, 2, 2)))
    with pytest.raises(DataError, match="NaN or plus infinity"):
        log_predictive_density([[np.nan, 0.0]])
    with pytest.raises(DataError, match="1 rows have likelihood 0 under every draw, the first is row 1"):
        log_predictive_density([[0.0, -np.inf], [0.0, -np.inf], [0.0, -np.inf]])
    assert np.isfinite(log_predictive_density([[0.0, -np.inf], [0.0, 0.0], [0.0, -1.0]]).mean)
    with pytest.raises(OptionError, match="two draws are too few"):
        log_predictive_density(np.zeros((2, 3)))


# Of fits


N, SD = 40, 0.5
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 2)).astype(np.float32)
Y = (X @ np.array([1.0, -0.5]) + SD * RNG.normal(size=N)).astype(np.float32)


def line(x, y=None):
    """Conjugate, so that every density is known in closed form."""
    w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, SD), obs=y)


def predictive(x, y, at):
    """Mean and variance of the predictive at `at` given (x, y)."""
    covariance = np.linalg.inv(np.eye(2) + x.T @ x / SD**2)
    mean = covariance @ x.T @ y / SD**2
    return at @ mean, np.einsum("ni,ij,nj->n", at, covariance, at) + SD**2


@pytest.fixture(scope="module")
def fitted():
    return fit(Problem(line), Laplace(curvature="full"), jax.random.key(0), X, Y, num_steps=1500, progress=False)


def test_held_out_density_is_that_of_the_conjugate_posterior(fitted):
    rng = np.random.default_rng(6)
    new = rng.normal(size=(30, 2)).astype(np.float32)
    y = (new @ np.array([1.0, -0.5]) + SD * rng.normal(size=30)).astype(np.float32)
    found = held_out_density(Problem(line), fitted, jax.random.key(1), new, y, num_draws=4000, draw_batch=1000, data_batch=13)
    mean, variance = predictive(X.astype(float), Y.astype(float), new.astype(float))
    expected = scipy.stats.norm.logpdf(y, mean, np.sqrt(variance))
    assert np.abs(found.of_rows - expected).max() < 0.08
    noise = math.sqrt(max(found.se**2 - found.of_rows.var(ddof=1) / 30, 0))  # of the draws alone
    assert noise < 0.01 and abs(found.mean - expected.mean()) < 4 * noise
    whole = held_out_density(Problem(line), fitted, jax.random.key(1), new, y, num_draws=4000, draw_batch=4000)
    np.testing.assert_allclose(whole.of_rows, found.of_rows, atol=1e-5)


def test_held_out_density_sums_over_sites_and_their_axes():
    def two(x, y=None, k=None):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("data", x.shape[0], dim=-2):
            with numpyro.plate("outputs", 3, dim=-1):
                numpyro.sample("y", dist.Normal((x @ w)[:, None], 1.0), obs=y)
            numpyro.sample("k", dist.Bernoulli(logits=(x @ w)[:, None]), obs=k)

    y, k = RNG.normal(size=(N, 3)).astype(np.float32), RNG.integers(0, 2, N)
    problem, k = Problem(two), k[:, None]
    done = fit(problem, MAP(), jax.random.key(0), X, y, k, num_steps=5, progress=False)
    found = held_out_density(problem, done, jax.random.key(1), X, y, k)
    f = X.astype(float) @ np.asarray(done.posterior.point["w"], float)
    expected = scipy.stats.norm.logpdf(y, f[:, None], 1).sum(axis=1) + scipy.stats.bernoulli.logpmf(
        k[:, 0], scipy.special.expit(f)
    )
    np.testing.assert_allclose(found.of_rows, expected, rtol=1e-4)
    assert found.num_draws == 1 and found.bias == 0


def test_leave_one_out_against_refits_in_closed_form(fitted):
    found = leave_one_out(fitted, Problem(line), jax.random.key(2), X, Y, num_draws=4000)
    x, y = X.astype(float), Y.astype(float)
    expected = []
    for i in range(N):
        mean, variance = predictive(np.delete(x, i, axis=0), np.delete(y, i), x[i : i + 1])
        expected.append(float(scipy.stats.norm.logpdf(y[i], mean[0], math.sqrt(variance[0]))))
    assert np.abs(found.elpd_of - expected).max() < 0.1
    assert found.elpd == pytest.approx(sum(expected), abs=0.3)
    assert found.se == pytest.approx(math.sqrt(N) * np.std(expected), rel=0.05)
    assert 1.0 < found.parameters < 3.0 and found.k.shape == (N,) and found.k.max() < 0.7 and found.num_draws == 4000


def test_leave_one_out_warns_of_heavy_tails():
    y = Y.copy()
    y[7] = 60.0  # a row that decides the fit
    done = fit(Problem(line), Laplace(curvature="full"), jax.random.key(0), X, y, num_steps=1500, progress=False)
    with pytest.warns(ParetoWarning, match=r"of 40 rows cannot be trusted.*at row 7"):
        found = leave_one_out(done, Problem(line), jax.random.key(2), X, y, num_draws=500)
    assert found.k[7] > 0.7


def test_leave_one_out_refuses_points_and_unknown_sites(fitted):
    point = fit(Problem(line), MAP(), jax.random.key(0), X, Y, num_steps=3, progress=False)
    with pytest.raises(OptionError, match="a point estimate has no draws to reweight"):
        leave_one_out(point, Problem(line), jax.random.key(0), X, Y)
    with pytest.raises(OptionError, match=r"site='z' of \['y'\]"):
        leave_one_out(fitted, Problem(line), jax.random.key(0), X, Y, num_draws=20, site="z")
    with pytest.raises(OptionError, match="linearise=True needs a Gaussian"):
        held_out_density(Problem(line), point, jax.random.key(0), X, Y, linearise=True)
    with pytest.raises(ModelError, match="nothing is observed under the data plate 'data'"):
        held_out_density(Problem(line), fitted, jax.random.key(1), X)
    with pytest.raises(OptionError, match="must be at least 1, got 0, 16, 128"):
        held_out_density(Problem(line), fitted, jax.random.key(0), X, Y, num_draws=0)
