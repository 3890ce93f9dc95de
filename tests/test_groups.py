"""Groups: the axioms by brute force for every constructor, subgroups and cosets, and the errors."""

import itertools

import numpy as np
import pytest

from bayes_sym import groups
from bayes_sym.errors import BayesSymError, GroupActionError


GROUPS = [
    groups.trivial(),
    groups.cyclic(1),
    groups.cyclic(4),
    groups.cyclic(5),
    groups.dihedral(1),
    groups.dihedral(4),
    groups.symmetric(2),
    groups.symmetric(3),
    groups.symmetric(4),
    groups.product(groups.cyclic(2), groups.cyclic(3)),
    groups.product(groups.symmetric(3), groups.cyclic(2)),
]
every_group = pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)


@every_group
def test_the_table_is_a_group(group):
    table, elements = group.table, np.arange(group.order)
    for a, b, c in itertools.product(elements, repeat=3):
        assert table[table[a, b], c] == table[a, table[b, c]]
    assert (table[0] == elements).all() and (table[:, 0] == elements).all()
    assert (table[elements, group.inverse] == 0).all() and (table[group.inverse, elements] == 0).all()


@every_group
def test_words_spell_their_elements(group):
    assert len(group.words) == group.order
    for element, word in enumerate(group.words):
        product = 0
        for position in word:
            product = group.table[product, group.generators[position]]
        assert product == element


@every_group
def test_cosets_partition_the_group(group):
    for generator in (*group.generators, 0):
        subgroup = group.subgroup([generator])
        assert subgroup.cosets[0] == subgroup.elements
        assert sorted(itertools.chain(*subgroup.cosets)) == list(range(group.order))
        assert {len(coset) for coset in subgroup.cosets} == {subgroup.group.order}
        for coset in subgroup.cosets:
            assert {int(group.table[coset[0], h]) for h in subgroup.elements} == set(coset)


@every_group
def test_a_subgroup_multiplies_as_its_parent(group):
    subgroup = group.subgroup(group.generators[:1])
    inside = np.array(subgroup.elements)
    assert (inside[subgroup.group.table] == group.table[np.ix_(inside, inside)]).all()


@pytest.mark.parametrize(
    ("group", "order", "commutes"),
    [
        (groups.cyclic(5), 5, True),
        (groups.dihedral(2), 4, True),
        (groups.dihedral(4), 8, False),
        (groups.symmetric(3), 6, False),
        (groups.product(groups.cyclic(2), groups.dihedral(3)), 12, False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_order_and_commutativity(group, order, commutes):
    assert group.order == order
    assert bool((group.table == group.table.T).all()) is commutes


def test_dihedral_relation():
    for n in (2, 3, 4, 5):
        group, r, s = groups.dihedral(n), 1, n
        assert group.table[group.table[s, r], s] == group.inverse[r]
        assert group.table[r, s] == 1 + n


def test_symmetric_composes_permutations():
    elements = list(itertools.permutations(range(3)))
    table = groups.symmetric(3).table
    for (i, p), (j, q) in itertools.product(enumerate(elements), repeat=2):
        assert elements[table[i, j]] == tuple(p[q[k]] for k in range(3))


def test_product_multiplies_pairs():
    a, b = groups.symmetric(3), groups.cyclic(4)
    both = groups.product(a, b)
    assert both.factors == (a, b)
    for g, h, g2, h2 in itertools.product(range(6), range(4), range(6), range(4)):
        assert both.table[g * 4 + h, g2 * 4 + h2] == a.table[g, g2] * 4 + b.table[h, h2]


def test_closure_of_a_reflection_and_of_a_rotation():
    d4 = groups.dihedral(4)
    assert d4.closure([4]) == (0, 4)
    assert d4.closure([2]) == (0, 2)
    assert d4.closure([2, 4]) == (0, 2, 4, 6)
    assert d4.closure([]) == (0,)


def test_groups_are_values():
    assert groups.cyclic(4) == groups.FiniteGroup("C4", groups.cyclic(4).table.copy(), (1,))
    assert hash(groups.cyclic(4)) == hash(groups.FiniteGroup("C4", groups.cyclic(4).table.copy(), (1,)))
    assert groups.cyclic(4) != groups.product(groups.cyclic(2), groups.cyclic(2))
    with pytest.raises(ValueError, match="read-only"):
        groups.cyclic(4).table[0, 0] = 1


LOOP = [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: groups.cyclic(0), r"cyclic\(n\) needs a whole number n >= 1, got 0"),
        (lambda: groups.dihedral(2.5), r"dihedral\(n\) needs a whole number n >= 1, got 2.5"),
        (lambda: groups.cyclic(True), "needs a whole number"),
        (lambda: groups.symmetric(7), "tables are kept up to n = 6"),
        (lambda: groups.FiniteGroup("no", np.array([[0, 1], [1, 1]]), (1,)), "not a group with identity 0"),
        (lambda: groups.FiniteGroup("no", np.array([[1, 0], [0, 1]]), (1,)), "row 0 and column 0"),
        (lambda: groups.FiniteGroup("loop", np.array(LOOP), (1, 2)), "not associative"),
        (lambda: groups.FiniteGroup("C4", groups.cyclic(4).table, (2,)), r"generators \(2,\) do not generate all of 'C4'"),
        (lambda: groups.cyclic(4).subgroup([4]), r"elements \(4,\) are not all in C4, whose elements are 0..3"),
    ],
)
def test_errors(build, message):
    with pytest.raises(GroupActionError, match=message) as caught:
        build()
    assert isinstance(caught.value, BayesSymError)
