"""Variational inference: the reparametrised ELBO with exact KL, augmentation, and symmetrisation on the way."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayes_sym import _numpyro
from bayes_sym.errors import OptionError

from . import rows
from .augment import Augmentation, check_targets
from .chunks import start_state
from .conjugate import check_conjugate, conjugate_family, conjugate_update
from .families import Family, MeanField, OrbitGaussian, PerSite
from .families.prior_terms import expected_log_prior
from .local_noise import LocalNoise, local_sites
from .map import ADAM
from .natural import NaturalGradient, check_natural
from .posterior import FamilyPosterior, GaussianPosterior
from .problem import Problem, Values
from .row_blocks import RowBlocks, mean_gradient
from .rows import Data
from .scheme import Info, Scheme, check_start
from .structure import Structure
from .symmetrisation import Symmetrisation, TrainingAccuracy, hold


__all__ = ["Variational"]

_EVIDENCE_DRAWS = 64


class VariationalState(NamedTuple):
    """The variational parameters and the optimiser's state."""

    params: Any
    optimizer: Any


class _Draw(NamedTuple):
    """One draw of z, or with a leading axis several: the noise of q, keys of the model's and of local noise, and its sign."""

    noise: Any
    key: jax.Array
    key_local: jax.Array
    sign: jax.Array


@dataclass(frozen=True)
class Variational(Scheme):
    """Maximises E_q[log p(data | z)] - KL(q || prior) by reparametrised gradients.

    The entropy of q is exact, and so are expected log priors that have a closed form (Gaussian and soft-equivariant ones given the
    sampled strengths, Gamma and Beta ones); others are estimated.

    Attributes:
        family: the form of q.
        optimizer: an optax optimiser of the parameters of q, which sees the gradient of -ELBO per row, or a `NaturalGradient`.
        augment: None, `full_orbit(action)` or `random_orbit(action, n)`.
        augment_weight: ``"mean"`` counts every row once, however many copies of it there are; ``"sum"`` counts every copy
            (a posterior tempered by the number of copies, as in the reference implementation of the paper).
        symmetrise: None, `average(...)`, `project(...)`, `expand(...)` or `tie(...)`.
        num_particles: draws of z per step, in antithetic pairs if even.
        noise: ``"weights"`` draws weights; ``"local"`` draws the noise of tapped pre-activations instead, row by row, which has
            the same expectation and less variance (factorised Gaussians only; other sites are drawn as before).
        conjugate: Gamma-distributed prior precisions, by name, that get the closed-form optimum after every step.
        start: what the first weights are multiplied with.
        rows_at_once: None sees all draws and rows of a step at once; a number takes the draws one by one and the rows in blocks
            of so many, which must divide them. The estimate is the same (local noise is drawn per block), in the memory of one
            draw and block: on a CPU faster where all draws of a layer's outputs do not fit the caches.
    """

    family: Family = MeanField()
    optimizer: optax.GradientTransformation | NaturalGradient = ADAM
    augment: Augmentation | None = None
    augment_weight: str = "mean"
    symmetrise: Symmetrisation | None = None
    num_particles: int = 2
    noise: str = "weights"
    conjugate: tuple[str, ...] = ()
    start: float = 1.0
    rows_at_once: int | None = None
    _crossed: bool = field(default=False, repr=False)

    @property
    def vmaps_seeds(self) -> bool:  # type: ignore[override]
        """Unless each seed crosses at a step of its own."""
        return self.symmetrise is None or not isinstance(self.symmetrise.at, TrainingAccuracy)

    def check(self, problem: Problem, structure: Structure, num_steps: int) -> None:
        """Refuses options out of range."""
        check_start(self.start)
        if self.augment_weight not in ("mean", "sum"):
            raise OptionError(f"augment_weight must be 'mean' or 'sum', got {self.augment_weight!r}")
        if self.num_particles < 1:
            raise OptionError(f"num_particles must be at least 1, got {self.num_particles}")
        if self.noise not in ("weights", "local"):
            raise OptionError(f"noise must be 'weights' or 'local', got {self.noise!r}")
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise OptionError(f"rows_at_once must be None or at least 1, got {self.rows_at_once}")
        if self.family.support != "real":
            raise OptionError(f"{type(self.family).__name__} is no family for all sites: use PerSite(((pattern, family), ...))")
        if self.noise == "local" and not local_sites(self.family, structure):
            raise OptionError(
                "noise='local' needs tapped weights with a factorised Gaussian q, each used by one tap, and the model has none: use "
                f"noise='weights' (family {type(self.family).__name__}, taps {list(structure.taps)})"
            )
        missing = [site for site in self.conjugate if site not in structure.latent]
        if missing:
            raise OptionError(
                f"conjugate={self.conjugate}: the model has no latent sites {missing}, only {list(structure.latent)}"
            )
        if self.symmetrise is not None:
            self.symmetrise.target(structure)
            step = self.symmetrise.step(num_steps)
            if step >= num_steps:
                name = type(self.symmetrise).__name__
                raise OptionError(f"{name}(at={self.symmetrise.at}) comes at step {step}, but there are only {num_steps} steps")

    def check_data(self, problem: Problem, data: Data) -> None:
        """Refuses data on which the group cannot act, and nets, families or priors that cannot be treated as asked."""
        check_targets(self.augment, data)
        state = jax.eval_shape(partial(start_state, self, problem), jax.random.key(0), data)
        family = self.resolved(problem, data)
        if len(family.points(state.params)) == len(problem.structure(*data).latent):
            raise OptionError(
                f"{self.family!r} is a Point at every site, which is no variational inference: use MAP(), or PerSite with another family "
                "for some of the sites"
            )
        if isinstance(self.optimizer, NaturalGradient):
            check_natural(self.optimizer, family, state.params)
        if self.symmetrise is not None:
            self.symmetrise.check(family, state.params, problem, data)
        if self.conjugate:
            assert isinstance(family, PerSite)
            z = problem.initial(jax.random.key(0), data)
            check_conjugate(problem, family, family.init(z), self.conjugate, z, data)

    def check_state(self, problem: Problem, state: VariationalState, data: Data) -> None:
        """Refuses first parameters that cannot be symmetrised."""
        if self.symmetrise is not None:
            self.symmetrise.check_values(self.resolved(problem, data), state.params, problem, data)

    def resolved(self, problem: Problem, data: Data) -> Family:
        """The family with what it takes from the model: Gamma distributions of conjugate sites, orbits of soft priors."""
        family = conjugate_family(self.family, self.conjugate)
        members = family.families() if isinstance(family, PerSite) else (family,)
        if not any(isinstance(member, OrbitGaussian) and member.representations is None for member in members):
            return family
        priors: dict[str, Any] = {}

        def look(key: jax.Array) -> jax.Array:
            sites, _ = problem.latent_trace(data, key=key)
            priors.update({name: site["fn"] for name, site in sites.items() if site["type"] == "sample"})
            return jnp.zeros(())

        jax.eval_shape(look, jax.random.key(0))
        return family.resolved(priors)

    def init(self, key: jax.Array, problem: Problem, data: Data) -> VariationalState:
        """q centred at a draw from the prior."""
        params = self.resolved(problem, data).init(problem.initial(key, data, start=self.start))
        return VariationalState(params, self.optimizer.init(params))

    def step(
        self, key: jax.Array, state: VariationalState, problem: Problem, batch: Data, factor: jax.Array
    ) -> tuple[VariationalState, Info]:
        """One optimiser step on -ELBO/N."""
        family = self.resolved(problem, batch)
        key_augment, key_noise = jax.random.split(key)
        total = factor * rows.num_rows(batch)
        seen, weight = batch, factor
        if self.augment is not None:
            seen = self.augment.apply(key_augment, batch, problem)
            weight = factor / self.augment.copies if self.augment_weight == "mean" else factor
        keep = self.symmetrise.hold if self.symmetrise is not None and self._crossed else "none"
        reps = {} if self.symmetrise is None or keep == "none" else self.symmetrise.reps(problem, batch)
        value, gradient = self._gradient(key_noise, state.params, problem, seen, weight, total, family)
        if keep in ("gradient", "tie"):
            gradient = hold(family, gradient, reps)
        if isinstance(self.optimizer, NaturalGradient):
            in_nats = jax.tree.map(lambda leaf: total * leaf, gradient)
            curvature = None
            if self.optimizer.hessian == "exact":
                curvature = self._curvature(key_noise, family, state.params, problem, seen, weight)
            params, optimizer = self.optimizer.update(in_nats, state.optimizer, state.params, curvature)
            if keep == "update":
                params = hold(family, params, reps)
        else:
            updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.params)
            if keep == "update":
                updates = hold(family, updates, reps)
            params = optax.apply_updates(state.params, updates)
        if keep == "tie":
            params = hold(family, params, reps)
        if self.conjugate:
            noise = jax.tree.map(lambda leaf: leaf[0], family.noise(key_augment, params, 1))
            z = family.sample(params, noise)
            params = conjugate_update(problem, family, params, self.conjugate, z, batch)  # type: ignore[arg-type]
        return VariationalState(params, optimizer), Info(value)

    def elbo(
        self,
        key: jax.Array,
        params: Any,
        problem: Problem,
        data: Data,
        factor: Any,
        num_particles: int,
        family: Family | None = None,
    ) -> jax.Array:
        """The evidence lower bound in nats, estimated with `num_particles` draws."""
        family = self.resolved(problem, data) if family is None else family
        draws = self._draws(key, params, family, num_particles)
        one = partial(self._one, params, problem, data, factor, family)
        return jax.vmap(one)(draws).mean() + family.entropy(params)

    def _gradient(
        self, key: jax.Array, params: Any, problem: Problem, data: Data, factor: Any, total: Any, family: Family
    ) -> tuple[jax.Array, Any]:
        """-ELBO/total and its gradient, all at once or over blocks of rows."""
        if self.rows_at_once is None:

            def loss(params: Any) -> jax.Array:
                return -self.elbo(key, params, problem, data, factor, self.num_particles, family=family) / total

            return jax.value_and_grad(loss)(params)
        blocks = RowBlocks(data, self.rows_at_once, problem.row_args)

        def part(params: Any, draw: _Draw, block: Data, i: jax.Array) -> jax.Array:
            own = draw._replace(key=jax.random.fold_in(draw.key, i), key_local=jax.random.fold_in(draw.key_local, i))
            bound = self._one(params, problem, block, factor * blocks.count, family, own)
            return -(bound + family.entropy(params)) / total

        return mean_gradient(part, params, self._draws(key, params, family, self.num_particles), blocks)

    def _draws(self, key: jax.Array, params: Any, family: Family, num_particles: int) -> _Draw:
        # pairs share their key, with opposite signs: noise that is drawn locally is antithetic as the weights' is
        pairs = num_particles if num_particles % 2 else num_particles // 2
        keys_local = jax.random.split(jax.random.fold_in(key, 1), pairs)
        sign = jnp.ones(pairs)
        if num_particles % 2 == 0:
            keys_local, sign = jnp.concatenate([keys_local, keys_local]), jnp.concatenate([sign, -sign])
        keys = jax.random.split(key, num_particles)
        return _Draw(family.noise(key, params, num_particles), keys, keys_local, sign.astype(jnp.result_type(float)))

    def _one(self, params: Any, problem: Problem, data: Data, factor: Any, family: Family, draw: _Draw) -> jax.Array:
        """The bound less the entropy of q at one draw."""
        z = family.sample(params, draw.noise)
        structure = problem.structure(*data)
        local = local_sites(family, structure) if self.noise == "local" else {}
        recorder = None
        if local:
            moments, taps = family.moments(params), structure.taps
            drawn = {site for tap in local for site in (taps[tap].weight, taps[tap].bias) if site is not None}
            z = {name: moments.mean[name] if name in drawn else value for name, value in z.items()}
            scales = {name: jnp.sqrt(moments.variance[name]) for name in drawn}
            recorder = LocalNoise(local, moments.mean, scales, draw.key_local, draw.sign)
        return _bound(family, params, problem, z, data, factor, draw.key, recorder)[0]

    def _curvature(
        self, key: jax.Array, family: Family, params: Any, problem: Problem, data: Data, factor: Any
    ) -> tuple[jax.Array, ...]:
        """-L' E[Hessian of the log joint] L per block of a dense family, by one Hessian per draw."""
        noise = family.noise(key, params, self.num_particles)

        def joint(z: Values) -> jax.Array:
            density = problem.log_density(z, data, factor=factor)
            return density.likelihood + density.prior + density.log_det

        found = []
        for layout, root in zip(params.layouts, params.roots, strict=True):

            def shifted(u: jax.Array, noise: Any, layout: Any = layout, root: jax.Array = root) -> jax.Array:
                z = family.sample(params, noise)
                return -joint({**z, **layout.unflatten(layout.flatten(z) + root @ u)})

            zero = jnp.zeros(layout.size, root.dtype)
            found.append(
                jax.vmap(lambda noise, zero=zero, shifted=shifted: jax.hessian(shifted)(zero, noise))(noise).mean(axis=0)
            )
        return tuple(found)

    def boundaries(self, num_steps: int) -> tuple[int, ...]:
        """The step before which q is symmetrised."""
        return () if self.symmetrise is None else (self.symmetrise.step(num_steps),)

    def due(self, problem: Problem, state: VariationalState, data: Data, step: int, boundaries: tuple[int, ...]) -> bool:
        """Whether the training accuracy that was asked for is reached, once."""
        if self.symmetrise is None or not isinstance(self.symmetrise.at, TrainingAccuracy) or step >= boundaries[0]:
            return False
        return self.symmetrise.due(problem, self.position(state), data)

    def problem_at(self, problem: Problem, data: Data, step: int, boundaries: tuple[int, ...]) -> Problem:
        """The problem on the expanded net from the expansion on."""
        if self.symmetrise is None or step < boundaries[0]:
            return problem
        return self.symmetrise.problem(problem, data)

    def stage(self, step: int, boundaries: tuple[int, ...]) -> Variational:
        """From the symmetrisation on, the variant that holds it."""
        crossed = self.symmetrise is not None and step >= boundaries[0]
        return replace(self, _crossed=True) if crossed else self

    def cross(self, key: jax.Array, state: VariationalState, problem: Problem, data: Data, step: int) -> VariationalState:
        """The symmetrised parameters, with a new optimiser state: an old one would be stale."""
        return _symmetrise(self, problem, state, data)

    def posterior(
        self, key: jax.Array, state: VariationalState, problem: Problem, data: Data, records: Any
    ) -> GaussianPosterior | FamilyPosterior:
        """q, with its ELBO on the data without augmentation as evidence (64 draws), given the sites that are points."""
        value = _final_elbo(self, problem, key, state.params, data)
        family, example = self.resolved(problem, data), problem.take(data, slice(0, 1))
        blocks = family.blocks(state.params)
        if blocks is None:
            return FamilyPosterior(problem, example, family, state.params, value, "elbo")
        return GaussianPosterior(problem, example, blocks, family.points(state.params), value, "elbo")

    def position(self, state: VariationalState) -> Values:
        """The means of the sites on the reals, and the others' in unconstrained coordinates."""
        return conjugate_family(self.family, self.conjugate).center(state.params)


def _bound(
    family: Family,
    params: Any,
    problem: Problem,
    z: Values,
    data: Data,
    factor: Any,
    key: jax.Array | None,
    recorder: Any = None,
    given: Container[str] = (),
) -> tuple[jax.Array, jax.Array]:
    """log p(data | z) + E_q log p, by site at z itself where it has no closed form; and log p(z) - E_q log p, whose mean is zero.

    The priors of the sites in `given` are left out.
    """
    sites, at = problem.trace(data, unconstrained=z, factor=factor, key=key, recorder=recorder)
    bound = surplus = jnp.zeros(())
    for name, site in sites.items():
        if site["type"] != "sample" or name in given:
            continue
        here = _numpyro.log_prob_of(site) + at.log_det.get(name, 0.0)
        expected = None
        if name in z:
            expected = expected_log_prior(family, params, name, site["fn"], site["value"].shape)
        if expected is None:
            bound = bound + here
        else:
            bound, surplus = bound + expected, surplus + here - expected
    return bound, surplus


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _symmetrise(scheme: Variational, problem: Problem, state: VariationalState, data: Data) -> VariationalState:
    assert scheme.symmetrise is not None
    params = scheme.symmetrise.apply(scheme.resolved(problem, data), state.params, problem, data)
    return VariationalState(params, scheme.optimizer.init(params))


@partial(jax.jit, static_argnames=("scheme", "problem"))
def _final_elbo(scheme: Variational, problem: Problem, key: jax.Array, params: Any, data: Data) -> jax.Array:
    """The ELBO from 64 draws, with log p(z) - log q(z) less its expectation as a control variate; given the sites that are points.

    Where q is the posterior, log p(data, z) - log q(z) is the same for every z, and the estimate is exact.
    """
    family = scheme.resolved(problem, data)
    pairs = jax.vmap(lambda key: family.noise(key, params, 2))(jax.random.split(key, _EVIDENCE_DRAWS // 2))
    noise = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), pairs)
    entropy, points = family.entropy(params), tuple(family.points(params))

    def one(draw: tuple[Any, jax.Array]) -> tuple[jax.Array, jax.Array]:
        noise, key = draw
        z = family.sample(params, noise)
        bound, surplus = _bound(family, params, problem, z, data, 1.0, key, given=points)
        return bound + entropy, surplus - family.log_prob(params, z) - entropy

    bound, control = jax.lax.map(one, (noise, jax.random.split(key, _EVIDENCE_DRAWS)))
    spread = ((control - control.mean()) ** 2).sum()
    slope = ((bound - bound.mean()) * (control - control.mean())).sum() / jnp.where(spread > 0, spread, 1)
    return bound.mean() - slope * control.mean()
