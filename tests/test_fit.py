"""The fitting loop: what it traces, how it batches, stops, resumes and fails, and which problems it refuses."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from bayes_sym import groups, layers, representations, tap
from bayes_sym.errors import (
    CheckpointError,
    CurvatureError,
    DataError,
    GroupActionError,
    ModelError,
    NonFiniteError,
    OptionError,
    PriorError,
    ShapeError,
    TapError,
)
from bayes_sym.inference import MAP, NUTS, Laplace, Problem, Variational, expand, fit, full_orbit
from bayes_sym.inference.chunks import RowStream
from bayes_sym.priors import IndependentScales, SoftEquivariantNormal


KEY = jax.random.key(3)
C4 = groups.cyclic(4)
X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
Y = (X @ np.array([1.0, -0.5, 0.3, 0.0]) + 0.1).astype(np.float32)
SPEC = layers.Sequential((layers.Dense(4, 3), layers.Activation("tanh"), layers.Dense(3, 1)))
TRACES = []


def model(x, y=None):
    TRACES.append(x.shape)
    s = numpyro.sample("scale", dist.LogNormal(0.0, 0.3))
    net = layers.random_module("net", SPEC, prior=IndependentScales(s))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(net(x)[:, 0], 0.3), obs=y)


PROBLEM = Problem(model)
FAST = optax.adam(0.03)
SCHEMES = {
    "map": MAP(FAST),
    "laplace": Laplace(FAST, curvature="diag", optimise=("scale",), burn_in=5, refresh=5, hyper_steps=2),
    "variational": Variational(optimizer=FAST, symmetrise=expand(representations.regular(C4), at=6)),
    "nuts": NUTS(num_warmup=6, max_tree_depth=2),
}
OPTIONS = {"num_steps": 16, "chunk": 4, "progress": False}
every_scheme = pytest.mark.parametrize("name", SCHEMES)


def run(name="map", key=KEY, data=(X, Y), **options):
    return fit(PROBLEM, SCHEMES[name], key, *data, **{**OPTIONS, **options})


@pytest.fixture(scope="session")
def fits(tmp_path_factory):
    """name -> (the fit, the folder of its checkpoints, times the model was traced)."""
    folder = tmp_path_factory.mktemp("fits")

    @functools.cache
    def of(name):
        path = folder / name
        path.mkdir()
        before = len(TRACES)
        done = run(
            name,
            checkpoint=path / "last",
            callbacks=[lambda progress: shutil.copy(path / "last", path / str(progress.step)) and None],
        )
        return done, path, len(TRACES) - before

    return of


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(*(jax.tree.leaves(jax.tree.map(_plain, tree)) for tree in (a, b)), strict=True)
    )


def _plain(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


# Tracing, keys, losses


@every_scheme
def test_a_second_fit_traces_the_model_never(fits, name):
    first, _, traces = fits(name)
    assert traces > 0
    before = len(TRACES)
    again = run(name)
    other = run(name, key=jax.random.key(4))
    assert len(TRACES) == before
    assert same(again.state, first.state) and np.array_equal(again.losses, first.losses)
    assert same(again.posterior.sample(KEY, 3), first.posterior.sample(KEY, 3))
    assert not np.array_equal(other.losses, first.losses)


@every_scheme
def test_losses_are_finite_one_per_step_and_fall(fits, name):
    done = fits(name)[0]
    assert done.losses.shape == (16,) and np.isfinite(done.losses).all()
    assert done.status() == (True, "finished", 16, "") and done.status(raise_if_failed=True).ok
    if name in ("map", "laplace"):  # the others' are random, or restart where the net is expanded
        assert done.losses[-1] < done.losses[0] - 0.5
    assert done.seconds > 0 and done.scheme == SCHEMES[name]


def test_map_climbs_the_joint_density(fits):
    done = fits("map")[0]
    start, end = np.asarray(done.losses)[[0, -1]]
    density = jax.jit(lambda z: PROBLEM.log_density(z, (X, Y)))(done.posterior.point)
    assert -float(density.likelihood + density.prior) / 12 < end < start


def test_the_net_is_expanded_on_the_way(fits):
    done = fits("variational")[0]
    shapes = {name: mean.shape for name, mean in done.state.params.mean.items()}
    assert shapes == {
        "scale": (),
        "net.0.weight": (4, 12),
        "net.0.bias": (12,),
        "net.2.weight": (12, 1),
        "net.2.bias": (1,),
    }
    assert dict(done.problem.modules)["net"].num_weights() == 73
    assert done.posterior.problem == done.problem


# Rows


@pytest.mark.parametrize(("count", "batch"), [(12, 5), (7, 7), (10, 1), (9, 4)])
def test_every_row_is_used_equally_often(count, batch):
    stream = RowStream(KEY, count, batch)
    steps = 3 * count  # a whole number of passes
    table = np.asarray(stream.table(0, steps, steps))
    assert (np.bincount(table.ravel(), minlength=count) == 3 * batch).all()
    passes = table.ravel().reshape(-1, count)
    assert (np.sort(passes, axis=1) == np.arange(count)).all()
    if count < 12 or batch > 1:
        assert len({tuple(order) for order in passes}) > 1
    for start, end in [(0, 4), (4, 5), (5, steps)]:  # chunks cut the same stream
        padded = np.asarray(stream.table(start, end, steps))
        assert (padded[: end - start] == table[start:end]).all()
    assert (np.asarray(RowStream(jax.random.key(9), count, batch).table(0, steps, steps)) != table).any()


def test_densities_of_subsets_average_to_the_full_one():
    z = jax.tree.map(lambda site: 0.1 * jnp.ones(site.unconstrained), dict(PROBLEM.structure(X, Y).latent), is_leaf=_is_site)
    density = jax.jit(lambda x, y, factor: PROBLEM.log_density(z, (x, y), factor=factor))
    full = density(X, Y, 1.0)
    parts = [density(X[i : i + 3], Y[i : i + 3], 4.0) for i in range(0, 12, 3)]
    assert np.mean([part.likelihood for part in parts]) == pytest.approx(float(full.likelihood), rel=1e-5)
    assert np.std([part.likelihood for part in parts]) > 0.1
    for part in parts:
        assert float(part.prior) == pytest.approx(float(full.prior), rel=1e-6)
        assert float(part.log_det) == pytest.approx(float(full.log_det), rel=1e-6)


def _is_site(leaf):
    return hasattr(leaf, "unconstrained")


def subsampled(x, y):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4]).to_event(1))
    with numpyro.plate("data", x.shape[0], subsample_size=3):
        rows, targets = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(rows @ w, 0.5), obs=targets)


def test_models_that_subsample_by_themselves_have_an_unbiased_density():
    w = jnp.array([0.5, 0.0, -1.0, 0.2])
    likelihood = jax.jit(jax.vmap(lambda key: Problem(subsampled).log_density({"w": w}, (X, Y), key=key).likelihood))
    found = np.asarray(likelihood(jax.random.split(KEY, 4000)))
    residual = (Y - X @ np.asarray(w)) / 0.5
    full = (-0.5 * residual**2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum()
    se = found.std() / np.sqrt(len(found))
    assert 0 < se < 0.05 * abs(full)
    assert abs(found.mean() - full) < 5 * se


def test_losses_on_batches_average_to_that_on_all_rows():
    # at this rate the point hardly moves, so the losses of one pass average to that of all rows
    rate = MAP(optax.sgd(1e-6))
    done = fit(PROBLEM, rate, KEY, X, Y, num_steps=4, batch_size=3, progress=False)
    whole = fit(PROBLEM, rate, KEY, X, Y, num_steps=1, progress=False)
    assert done.losses.mean() == pytest.approx(whole.losses[0], rel=1e-4)
    assert done.losses.std() > 1e-3


# Callbacks and progress


def test_a_callback_sees_the_fit_and_can_stop_it():
    seen = []

    def watch(progress):
        seen.append((progress.step, len(progress.losses), progress.num_steps))
        assert progress.posterior().sample(KEY, 2)["net.0.weight"].shape == (2, 4, 3)
        return progress.step >= 8

    done = run(callbacks=[watch, lambda progress: None])
    assert seen == [(4, 4, 16), (8, 8, 16)]
    assert done.status() == (True, "stopped", 8, "") and len(done.losses) == 8


def test_the_bar_goes_to_stderr_and_only_if_asked(capsys):
    run()
    silent = capsys.readouterr()
    run(progress=True)
    shown = capsys.readouterr()
    assert (silent.out, silent.err, shown.out) == ("", "", "")
    assert "MAP" in shown.err and "/16" in shown.err


# Checkpoints


@every_scheme
def test_a_resumed_fit_ends_bit_for_bit_like_an_uninterrupted_one(fits, name, tmp_path):
    whole, folder, _ = fits(name)
    # the variational net is expanded before step 6, the Laplace strengths move before steps 5, 10 and 15
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name != "last")
    assert steps[-1] == 16 and (6 in steps or name != "variational") and len(steps) >= 4
    for step in steps:
        resumed = run(name, resume=folder / str(step), checkpoint=tmp_path / "again")
        assert same(resumed.state, whole.state), step
        assert np.array_equal(resumed.losses, whole.losses)
        assert same(resumed.posterior.sample(KEY, 3), whole.posterior.sample(KEY, 3))
        assert resumed.problem == whole.problem


def test_an_interrupt_leaves_a_checkpoint_to_resume_from(fits, tmp_path):
    def interrupt(progress):
        if progress.step == 8:
            raise KeyboardInterrupt

    path = tmp_path / "new" / "folder" / "fit"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, callbacks=[interrupt])
    resumed = run(resume=path, checkpoint=path)
    whole = fits("map")[0]
    assert same(resumed.state, whole.state) and np.array_equal(resumed.losses, whole.losses)
    assert [file.name for file in path.parent.iterdir()] == ["fit"]


def other_model(x, y=None):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ w, 0.3), obs=y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: fit(Problem(other_model), SCHEMES["map"], KEY, X, Y, resume=path, **OPTIONS), r"model: .*\.model there"),
        (lambda path: run(resume=path, data=(X + 1, Y)), "another fit .data: .* checksum"),
        (lambda path: run(resume=path, data=(X[:11], Y[:11])), r"data: \(12, 4\), \(12,\), .* there, \(11, 4\)"),
        (lambda path: run(resume=path, key=jax.random.key(7)), r"key: \[0, 3\] there, \[0, 7\] here"),
        (lambda path: run("laplace", resume=path), "scheme: MAP there, Laplace here"),
        (lambda path: run(resume=path, batch_size=4), "batch size: None there, 4 here"),
        (lambda path: fit(PROBLEM, MAP(optax.sgd(0.1)), KEY, X, Y, resume=path, **OPTIONS), "the scheme's options"),
    ],
    ids=["model", "data", "shape", "key", "scheme", "batch size", "optimiser"],
)
def test_a_checkpoint_continues_only_its_own_fit(fits, change, message):
    with pytest.raises(CheckpointError, match=message):
        change(fits("map")[1] / "8")


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "array", "archive"])
def test_files_that_are_no_checkpoints_are_refused(fits, kind, tmp_path):
    path = tmp_path / "fit"
    good = (fits("map")[1] / "8").read_bytes()
    content = {"empty": b"", "text": b"losses: 3, 2, 1\n", "truncated": good[: len(good) // 2]}.get(kind)
    if content is not None:
        path.write_bytes(content)
    elif kind != "missing":
        with path.open("wb") as file:
            np.save(file, np.zeros(3)) if kind == "array" else np.savez(file, losses=np.zeros(3))
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*fit"):
        run(resume=path)


# Failures


EXPLODING = MAP(optax.sgd(1e30))


def test_infinite_losses_stop_the_fit_with_their_step_and_sites():
    with pytest.raises(NonFiniteError, match=r"MAP met a loss of .* at step [12]: the .* Lower the learning rate") as caught:
        fit(PROBLEM, EXPLODING, KEY, X, Y, num_steps=6, progress=False)
    assert caught.value.step in (1, 2)
    assert caught.value.sites and set(caught.value.sites) <= {*PROBLEM.structure(X, Y).latent, "y"}


def test_a_failed_fit_can_be_returned_as_it_stood():
    done = fit(PROBLEM, EXPLODING, KEY, X, Y, num_steps=6, progress=False, on_failure="return")
    status = done.status()
    assert (status.ok, status.reason) == (False, "non-finite") and "Lower the learning rate" in status.message
    assert len(done.losses) == status.step and np.isfinite(done.losses).all()
    assert done.posterior is None
    with pytest.raises(NonFiniteError):
        done.status(raise_if_failed=True)


def test_values_that_the_last_step_breaks_are_noticed():
    with pytest.raises(NonFiniteError, match="at step 0: the values of") as caught:
        fit(PROBLEM, MAP(optax.sgd(float("inf"))), KEY, X, Y, num_steps=1, progress=False)
    assert set(caught.value.sites) <= set(PROBLEM.structure(X, Y).latent)


# Bad inputs


def _linear(x, y=None, *, plate="data", names=("w", "y")):
    w = numpyro.sample(names[0], dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with numpyro.plate(plate, x.shape[0]):
        numpyro.sample(names[1], dist.Normal(x @ w, 0.3), obs=y)


def outside(x, y):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ w, 0.3).to_event(1), obs=y)


def twice(x, y):
    numpyro.sample("w", dist.Normal(0, 1))
    _linear(x, y)


def discrete(x, y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(k * x[:, 0], 0.3), obs=y)


def local(x, y):
    with numpyro.plate("data", x.shape[0]):
        u = numpyro.sample("u", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(u, 0.3), obs=y)


def parametric(x, y):
    numpyro.param("p", 1.0)
    _linear(x, y)


def nothing_latent(x, y):
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x[:, 0], 0.3), obs=y)


def _tapped(call):
    def tapped(x, y):
        w = numpyro.sample("w", dist.Normal(0, 1).expand([4, 4]).to_event(2))
        z = call(w, x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(z.sum(axis=-1), 0.3), obs=y)

    return tapped


def _once(w, x, name="z", weight="w"):
    return tap(name, x @ w, inputs=x, weight=weight)


def _under_vmap(w, x):
    return jax.vmap(lambda row: _once(w, row))(x)


def _in_scan(w, x):
    return jax.lax.scan(lambda h, _: (_once(w, h), None), x, None, length=2)[0]


def _of_constants(w, x):
    return _once(w, jnp.ones((x.shape[0], 4)))


def test_a_tap_may_see_inputs_that_are_constants():
    structure = Problem(_tapped(_of_constants)).structure(X, Y)
    assert structure.taps["z"].shape == (12, 4) and structure.weights == ("w",)


def labels(x, y):
    w = numpyro.sample("w", dist.Normal(0, 1).expand([4, 3]).to_event(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=x @ w), obs=y)


IMAGES = np.random.default_rng(1).standard_normal((12, 4, 4, 1)).astype(np.float32)
CLASSES = np.arange(12) % 3
CONV = layers.Sequential((layers.Conv(1, 2), layers.Activation(), layers.Pool(), layers.Dense(2, 3)))


def conv(x, y=None):
    net = layers.random_module("net", CONV)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Categorical(logits=net(x)), obs=y)


def soft(x, y):
    rep = (representations.regular(C4) * representations.trivial(C4, 1)).reshape(4, 1)
    w = numpyro.sample("w", SoftEquivariantNormal(rep, 1.0, 0.1))
    with numpyro.plate("data", x.shape[0]):
        z = tap("z", x @ w, inputs=x, weight="w")
        numpyro.sample("y", dist.Normal(z[:, 0], 0.3), obs=y)


def _with(array, index, value):
    array = array.copy()
    array[index] = value
    return array


ACTION = representations.image(C4, (4, 4))
WIDE = np.zeros((12, 4, 6, 1), np.float32)


@pytest.mark.parametrize(
    ("model", "scheme", "data", "options", "error", "message"),
    [
        (_linear, MAP(), (_with(X, (3, 1), np.nan), Y), {}, DataError, r"holds 1 values that are NaN .* first at \(3, 1\)"),
        (_linear, MAP(), (X, _with(Y, 5, np.inf)), {}, DataError, r"argument 1 .* first at \(5,\) \(inf\)"),
        (labels, MAP(), (X, CLASSES + 1), {}, DataError, "'y' lie outside the support .* they run from 1 to 3"),
        (_linear, MAP(), (X, Y[:7]), {}, DataError, r"observes values of shape \(7,\), but .* shape \(12,\)"),
        (_linear, MAP(), (), {}, DataError, "there are no data"),
        (_linear, MAP(), (X[:0], Y[:0]), {}, DataError, "the data have no rows"),
        (outside, MAP(), (X, Y), {}, ModelError, r"observed sites \['y'\] stand outside the data plate 'data'"),
        (functools.partial(_linear, plate="rows"), MAP(), (X, Y), {}, ModelError, "stand outside the data plate 'data' .plates"),
        (_linear, MAP(), (X,), {}, ModelError, "'y' stands inside the data plate"),
        (twice, MAP(), (X, Y), {}, ModelError, "site name 'w' occurs twice"),
        (functools.partial(_linear, names=("y", "y")), MAP(), (X, Y), {}, ModelError, "site name 'y' occurs twice"),
        (discrete, MAP(), (X, Y), {}, ModelError, "latent site 'k' is discrete"),
        (local, MAP(), (X, Y), {}, ModelError, "latent site 'u' stands inside the data plate"),
        (parametric, MAP(), (X, Y), {}, ModelError, "site 'p' is a numpyro.param"),
        (nothing_latent, MAP(), (X, Y), {}, ModelError, "no latent sites"),
        (_tapped(_under_vmap), MAP(), (X, Y), {}, TapError, "tap 'z' stands under vmap"),
        (_tapped(_in_scan), MAP(), (X, Y), {}, TapError, "inside lax.scan"),
        (_tapped(lambda w, x: _once(w, _once(w, x))), MAP(), (X, Y), {}, TapError, "tap 'z' occurs twice"),
        (_tapped(functools.partial(_once, weight="v")), MAP(), (X, Y), {}, TapError, r"taps name the sites \['v'\]"),
        (lambda x: _linear(x, Y), MAP(), (X,), {}, ModelError, "it closes over data"),
        (lambda x: _linear(X, Y) if x.size else None, MAP(), (X,), {}, ModelError, "given one row, the model still observes"),
        (_linear, MAP(), (X, Y), {"batch_size": 13}, OptionError, "batch_size=13, but the data have 12 rows"),
        (_linear, MAP(), (X, Y), {"batch_size": 0}, OptionError, "batch_size=0"),
        (_linear, NUTS(), (X, Y), {"batch_size": 4}, OptionError, "NUTS needs all rows at every step, got batch_size=4"),
        (_linear, MAP(), (X, Y), {"num_steps": 0}, OptionError, "num_steps and chunk must be at least 1, got num_steps=0"),
        (_linear, MAP(), (X, Y), {"chunk": 0}, OptionError, "chunk=0"),
        (_linear, MAP(), (X, Y), {"on_failure": "ignore"}, OptionError, "on_failure must be 'raise' or 'return'"),
        (_linear, NUTS(num_warmup=20), (X, Y), {}, OptionError, "num_warmup=20 leaves no draws of num_steps=16"),
        (_linear, NUTS(num_chains=0), (X, Y), {}, OptionError, "num_chains must be at least 1"),
        (_linear, Laplace(optimise=("scale",)), (X, Y), {}, ModelError, "no latent site matches 'scale'; the model has"),
        (_linear, Laplace(optimise="w"), (X, Y), {}, OptionError, "optimise must be a tuple of names"),
        (_linear, Laplace(optimise=("w",)), (X, Y), {}, OptionError, "names every site"),
        (_linear, Laplace(curvature="exact"), (X, Y), {}, CurvatureError, "unknown curvature 'exact'"),
        (_linear, Laplace(curvature="ntk"), (X, Y), {}, CurvatureError, "gives no posterior over the weights"),
        (_linear, Laplace(update="newton"), (X, Y), {}, OptionError, "update must be 'gradient' or 'mackay'"),
        (_linear, Laplace(probes=0), (X, Y), {}, OptionError, "probes must be 'exact' or a number"),
        (_linear, Laplace(subset="last"), (X, Y), {}, OptionError, "the model has no taps"),
        (_linear, Laplace(subset="w"), (X, Y), {}, OptionError, "subset must be a tuple of names or 'last'"),
        (soft, Laplace(curvature="kfac"), (X, Y), {}, PriorError, "prices one scalar variance per site"),
        (conv, MAP(), (np.zeros((12, 4, 4, 3), np.float32), CLASSES), {}, ShapeError, r"takes images .*got .*4, 4, 3"),
        (conv, Variational(augment=full_orbit(ACTION)), (WIDE, CLASSES), {}, ShapeError, "C4 acts on arrays of shape"),
        (conv, Variational(symmetrise=expand(ACTION)), (WIDE, CLASSES), {}, GroupActionError, r"inputs of shape \(4, 4\), but"),
        (conv, Variational(symmetrise=expand(ACTION, at=16)), (IMAGES, CLASSES), {}, OptionError, "comes at step 16"),
        (_linear, Variational(symmetrise=expand(representations.regular(C4))), (X, Y), {}, OptionError, "which module"),
        (
            conv,
            Variational(symmetrise=expand(ACTION, module="other")),
            (IMAGES, CLASSES),
            {},
            OptionError,
            r"module='other'.*\['net'\]",
        ),
        (_linear, Variational(augment_weight="max"), (X, Y), {}, OptionError, "augment_weight must be 'mean' or 'sum'"),
        (_linear, Variational(num_particles=0), (X, Y), {}, OptionError, "num_particles must be at least 1"),
    ],
)
def test_bad_problems_are_refused_before_any_compute(model, scheme, data, options, error, message):
    with pytest.raises(error, match=message):
        fit(Problem(model), scheme, KEY, *data, **{**OPTIONS, **options})


def test_rows_must_match_where_they_are_named():
    with pytest.raises(DataError, match="argument 1 is in row_args, so it needs 12 rows"):
        fit(Problem(_linear, row_args=(0, 1)), MAP(), KEY, X, Y[:7], **OPTIONS)


def test_a_group_that_cannot_turn_the_image_is_refused_when_the_action_is_made():
    with pytest.raises(GroupActionError, match="C4"):
        representations.image(C4, (4, 6))
