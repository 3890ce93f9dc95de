"""Representations: every kind against its dense matrices, the exact actions against numpy, and the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_sym import groups, representations
from bayes_sym.errors import GroupActionError, ShapeError


C2, C3, C4, C5, D4, S3 = (*map(groups.cyclic, (2, 3, 4, 5)), groups.dihedral(4), groups.symmetric(3))


def rotation(n):
    """The generator of C_n as a turn of the plane."""
    angle = 2 * np.pi / n
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


QUARTER = representations.permutation(C4, [[[1, 0], [-1, 1]]])  # the turn by 90 degrees, as a signed permutation
TURN3 = representations.matrix(C3, [rotation(3)])
SWAPS = representations.permutation(S3, [[1, 0, 2], [2, 0, 1]])  # the action on three points
REPS = {
    "trivial": representations.trivial(C4, 3),
    "regular-C5": representations.regular(C5),
    "regular-S3": representations.regular(S3),
    "regular-product": representations.regular(groups.product(C2, S3)),
    "quotient-D4": representations.quotient(D4, [4]),
    "permutation-S3": SWAPS,
    "signed-C4": QUARTER,
    "signed-part-of-orbits": representations.permutation(C2, [[[1, 0, 2, 3], [-1, -1, -1, 1]]]),
    "matrix-C3": TURN3,
    "image-C4": representations.image(C4, (3, 3)),
    "image-D4": representations.image(D4, (4, 4)),
    "image-C2": representations.image(C2, (2, 3)),
    "sequence-C5": representations.sequence(C5, 10),
    "sequence-D4": representations.sequence(D4, 8),
    "sum-permutations": representations.regular(C4) + representations.trivial(C4, 2),
    "sum-signed": QUARTER + representations.regular(C4),
    "sum-matrix": TURN3 + representations.regular(C3),
    "tensor-image": representations.image(C4, (2, 2)) * representations.regular(C4),
    "tensor-signed": QUARTER * QUARTER,
    "tensor-mixed": representations.regular(C4) * QUARTER,
    "tensor-matrix": representations.regular(C3) * TURN3,
    "restrict": representations.regular(D4).restrict(D4.subgroup([2, 4])),
}
every_rep = pytest.mark.parametrize("rep", REPS.values(), ids=REPS.keys())


@every_rep
def test_matrices_multiply_as_the_group(rep):
    dense = rep.matrices()
    products = np.einsum("gij,hjk->ghik", dense, dense)
    assert np.abs(products - dense[rep.group.table]).max() < 1e-12
    assert np.abs(dense[0] - np.eye(rep.dim)).max() == 0


@every_rep
def test_matrices_are_orthogonal(rep):
    dense = rep.matrices()
    assert rep.is_orthogonal
    assert np.abs(dense @ dense.swapaxes(1, 2) - np.eye(rep.dim)).max() < 1e-12


@pytest.mark.parametrize("rep", [r for r in REPS.values() if r.is_monomial], ids=[k for k, r in REPS.items() if r.is_monomial])
def test_gathers_compose_exactly(rep):
    source, table = rep.source, rep.group.table
    for g in range(rep.group.order):
        for h in range(rep.group.order):
            assert (source[table[g, h]] == source[h][source[g]]).all()


@every_rep
def test_projector_rank_character_orbits_and_null_space_agree(rep):
    dense, projector = rep.matrices(), rep.projector
    assert np.abs(projector @ projector - projector).max() < 1e-12
    assert np.abs(projector - projector.T).max() < 1e-12
    assert np.abs(rep.projector_diagonal - np.diagonal(projector)).max() < 1e-12
    assert np.abs(rep.character() - np.trace(dense, axis1=1, axis2=2)).max() < 1e-12
    constraints = np.concatenate([dense[g] - np.eye(rep.dim) for g in range(rep.group.order)])
    null_space = rep.dim - int((np.linalg.svd(constraints, compute_uv=False) > 1e-8).sum())
    assert rep.rank == null_space
    assert np.trace(projector) == pytest.approx(null_space)
    if rep.is_permutation:
        assert rep.rank == len({frozenset(rep.source[:, i].tolist()) for i in range(rep.dim)})


@every_rep
def test_act_and_project_along_one_axis_match_the_matrices(rep, x64):
    x = np.random.default_rng(0).standard_normal((3, rep.dim, 2))
    orbit, projected = jax.jit(lambda x: (rep.orbit(x, 1), rep.project(x, 1)))(x)
    assert np.abs(orbit - np.einsum("gij,ajb->gaib", rep.matrices(), x)).max() < 1e-12
    assert np.abs(projected - np.einsum("ij,ajb->aib", rep.projector, x)).max() < 1e-12


@pytest.mark.parametrize("name", ["tensor-image", "tensor-signed", "tensor-matrix"])
def test_act_and_project_along_several_axes_take_them_in_order(name, x64):
    rep = REPS[name]
    x = np.random.default_rng(0).standard_normal((*rep.shape, 2))
    flat = x.reshape(rep.dim, 2)
    axes = tuple(range(len(rep.shape)))
    for g in range(1, 3):
        assert np.abs(rep.act(g, x, axes) - (rep.matrices()[g] @ flat).reshape(x.shape)).max() < 1e-12
    assert np.abs(rep.project(x, axes) - (rep.projector @ flat).reshape(x.shape)).max() < 1e-12
    # the same entries with the axes the other way round, named in the order of the representation
    turned = x.transpose(*reversed(axes), len(axes))
    back = rep.act(1, turned, tuple(reversed(axes))).transpose(*reversed(axes), len(axes))
    assert np.abs(back - (rep.matrices()[1] @ flat).reshape(x.shape)).max() < 1e-12


@pytest.mark.parametrize("rep", [REPS["regular-S3"], QUARTER, TURN3], ids=["permutation", "signed", "matrix"])
def test_act_takes_traced_elements_and_static_representations(rep):
    x = np.arange(float(rep.dim), dtype=np.float32)
    acted = jax.jit(lambda rep, g, x: rep.act(g, x), static_argnums=0)
    for g in range(rep.group.order):
        assert np.allclose(acted(rep, g, x), rep.matrices()[g] @ x, atol=1e-5)


def test_values_are_equal_and_hash_alike():
    again = representations.permutation(C4, [[[1, 0], [-1, 1]]])
    assert again == QUARTER and hash(again) == hash(QUARTER)
    assert representations.regular(C4) != representations.sequence(C4, 8)
    assert representations.regular(C4) != representations.regular(C4).reshape(2, 2)


def test_sum_and_tensor_are_block_diagonal_and_kronecker():
    for a, b in ((representations.regular(C3), TURN3), (representations.regular(C4), QUARTER)):
        for g in range(a.group.order):
            left, right = a.matrices()[g], b.matrices()[g]
            block = np.block([[left, np.zeros((a.dim, b.dim))], [np.zeros((b.dim, a.dim)), right]])
            assert np.abs((a + b).matrices()[g] - block).max() < 1e-12
            assert np.abs((a * b).matrices()[g] - np.kron(left, right)).max() < 1e-12


def test_restrict_keeps_the_chosen_elements():
    subgroup = D4.subgroup([2, 4])
    rep = representations.image(D4, (3, 3))
    assert (rep.restrict(subgroup).matrices() == rep.matrices()[list(subgroup.elements)]).all()


def test_quotients_by_everything_and_by_nothing():
    assert representations.quotient(S3, S3.generators).dim == 1
    assert (representations.quotient(S3, []).character() == representations.regular(S3).character()).all()
    # the character counts the cosets that an element fixes
    half = D4.subgroup([4])
    fixed = [sum({int(D4.table[g, h]) for h in coset} == set(coset) for coset in half.cosets) for g in range(8)]
    assert representations.quotient(D4, half).character().tolist() == fixed


def test_image_of_a_square_is_numpy_rotation_after_a_mirror():
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    for group in (C4, D4):
        rep = representations.image(group, (4, 4))
        for g in range(group.order):
            mirrored = x[:, :, ::-1] if g >= 4 else x
            assert (rep.transform(g, x) == np.rot90(mirrored, g % 4, axes=(1, 2))).all()


def test_image_of_a_rectangle_turns_by_half_and_mirrors():
    x = np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    assert (representations.image(C2, (2, 3)).transform(1, x) == x[:, ::-1, ::-1]).all()
    assert (representations.image(groups.dihedral(1), (2, 3)).transform(1, x) == x[:, :, ::-1]).all()
    d2 = representations.image(groups.dihedral(2), (2, 3))
    assert (d2.transform(2, x) == x[:, :, ::-1]).all() and (d2.transform(3, x) == x[:, ::-1]).all()
    assert (representations.image(groups.trivial(), (2, 3)).transform(0, x) == x).all()


def test_sequence_shifts_and_reverses():
    x = np.random.default_rng(0).standard_normal((2, 8, 3)).astype(np.float32)
    for group in (C4, D4):
        rep = representations.sequence(group, 8)
        for g in range(group.order):
            turned = x[:, ::-1] if g >= 4 else x
            assert (rep.transform(g, x) == np.roll(turned, 2 * (g % 4), axis=1)).all()


def test_images_may_be_given_for_generators_or_elements():
    gathers = representations.regular(S3).source
    by_generator = representations.permutation(S3, {g: gathers[g] for g in S3.generators})
    by_order = representations.permutation(S3, [gathers[g] for g in S3.generators])
    by_element = representations.permutation(S3, list(gathers))
    assert by_generator == by_order == by_element == representations.regular(S3)
    assert np.allclose(representations.matrix(C3, list(TURN3.matrices())).matrices(), TURN3.matrices())


def test_a_shear_of_order_two_is_not_orthogonal():
    assert not representations.matrix(C2, [[[1, 1], [0, -1]]]).is_orthogonal


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: representations.image(C4, (3, 4)), GroupActionError, "must be square, got height 3 and width 4"),
        (lambda: representations.image(D4, (8, 6)), GroupActionError, r"use cyclic\(2\) or dihedral\(2\)"),
        (lambda: representations.image(C5, (5, 5)), GroupActionError, "C5 has no exact action on a pixel grid"),
        (lambda: representations.image(S3, (3, 3)), GroupActionError, "S3 has no exact action on a pixel grid"),
        (lambda: representations.sequence(C4, 10), GroupActionError, "4 must divide the length, got 10"),
        (lambda: representations.sequence(S3, 6), GroupActionError, "S3 has no standard action on sequences"),
        (lambda: representations.permutation(C4, [[0, 0, 1]]), GroupActionError, "not a .signed. permutation"),
        (lambda: representations.permutation(C4, [[1, 2, 0]]), GroupActionError, "do not represent C4"),
        (lambda: representations.permutation(S3, [[1, 0, 2]]), GroupActionError, "one image per generator"),
        (lambda: representations.permutation(D4, {1: [1, 0]}), GroupActionError, "needs the images of its generators"),
        (lambda: representations.permutation(S3, [[1, 0], [1, 2, 0]]), GroupActionError, "differ in length"),
        (lambda: representations.matrix(C3, [rotation(4)]), GroupActionError, "do not represent C3"),
        (lambda: representations.matrix(C3, [np.ones((2, 3))]), GroupActionError, "must all be"),
        (lambda: representations.regular(C4) + representations.regular(C5), GroupActionError, "got C4 and C5"),
        (lambda: representations.regular(C4) * representations.regular(C5), GroupActionError, r"\* needs two representations"),
        (lambda: representations.regular(C4).restrict(D4.subgroup([1])), GroupActionError, "needs a subgroup of C4"),
        (lambda: representations.quotient(C4, D4.subgroup([1])), GroupActionError, "needs a subgroup of C4, got one of D4"),
        (lambda: TURN3.orbits, GroupActionError, "has no orbits"),
        (lambda: representations.trivial(C4, 30_000).matrices(), GroupActionError, "would take"),
        (lambda: representations.regular(C4).act(1, jnp.ones(5)), ShapeError, r"acts on 4 entries.*shape \(5,\), which hold 5"),
        (lambda: representations.regular(C4).reshape(3), ShapeError, "dimension 4 cannot act on arrays of shape"),
        (
            lambda: representations.image(C4, (3, 3)).transform(1, jnp.ones((2, 4, 4))),
            ShapeError,
            r"\(batch, 3, 3, ...\), got \(2, 4, 4\)",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()
