import random

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from csrtrain import draws

# Known answers of Random123 (kat_vectors, philox4x32 10): counter, key, result.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_philox_known_answers(counter, key, expected):
    assert draws.philox(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_a_draw_does_not_depend_on_its_batch():
    positions = np.arange(100)
    whole = draws.uniform(7, 3, positions, 1, 9)
    shuffled = np.random.default_rng(0).permutation(100)[:13]
    assert np.array_equal(draws.uniform(7, 3, shuffled, 1, 9), whole[shuffled])
    assert np.array_equal(draws.uniform(7, 3, positions, 1, 4), whole[:, :4])


@pytest.mark.parametrize("change", [{"seed": 8}, {"seed": 7 + 2**32}, {"epoch": 4}, {"stream": 0}])
def test_every_part_of_the_key_matters(change):
    key = {"seed": 7, "epoch": 3, "stream": 1}
    a = draws.uniform(**key, positions=np.arange(50), n=4)
    b = draws.uniform(**{**key, **change}, positions=np.arange(50), n=4)
    assert np.abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.25 and not np.any(a == b)


def test_uniform():
    values = draws.uniform(0, 0, np.arange(20_000), 0, 5)
    assert values.min() >= 0 and values.max() < 1
    for column in values.T:
        assert kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(values.T) - np.eye(5)).max() < 0.03


def test_sample_seeds_differ_and_are_no_part_of_the_parameters():
    seeds = draws.sample_seeds(1, 2, np.arange(10_000), 0)
    assert len(np.unique(seeds)) == 10_000 and seeds.min() >= 0
    assert np.array_equal(seeds[[5, 2]], draws.sample_seeds(1, 2, np.array([5, 2]), 0))


def test_epoch_order_is_a_permutation_of_seed_and_epoch():
    order = draws.epoch_order(3, 0, 1000)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, draws.epoch_order(3, 0, 1000))
    assert not np.array_equal(order, draws.epoch_order(3, 1, 1000))
    assert not np.array_equal(order, draws.epoch_order(4, 0, 1000))


def test_repeats_are_whole_permutations():
    order = draws.epoch_order(3, 0, 50, repeats=4).reshape(4, 50)
    assert all(np.array_equal(np.sort(part), np.arange(50)) for part in order)
    assert np.array_equal(order[0], draws.epoch_order(3, 0, 50)) and not np.array_equal(order[0], order[1])


def test_reseed_sets_all_three_generators_by_step_and_rank():
    def sample(*key):
        draws.reseed(*key)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    first = sample(0, 1, 2, 0)
    assert sample(0, 1, 2, 0) == first
    for other in [(1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1)]:
        assert all(a != b for a, b in zip(sample(*other), first, strict=True))
