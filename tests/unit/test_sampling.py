import numpy as np
import pytest

from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.data.sampling import EvaluationSampler, GlobalBatchSampler, epoch_order, stratified_split
from mixer_finetune.randomness import random_bits, uniform


def test_micro_batches_of_one_are_possible_where_global_batches_differ_by_one():
    data = ImageDataModule("digits", batch_size=128, micro_batch_size=1, val_fraction=0.0)
    plan = data.train_batches
    assert plan.n % plan.steps and plan.accumulate == plan.n // plan.steps


def test_random_bits_never_change():
    """Runs are replayed years later and elsewhere: these values are part of what a seed means."""
    bits = random_bits(seed=1, stream=2, step=3, index=np.array([0, 7]), draws=2)
    assert bits.tolist() == [
        [5885422379976185205, 456438379399523093],
        [13063132338201880309, 13105758734782383724],
    ]


def test_uniform_values_are_uniform_and_independent():
    u = uniform(0, 1, 0, np.arange(20000), 4)
    assert ((u >= 0) & (u < 1)).all()
    assert np.abs(u.mean(0) - 0.5).max() < 0.01 and np.abs(u.var(0) - 1 / 12).max() < 0.005
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    neighbours = np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]
    assert abs(neighbours) < 0.03


def test_the_value_of_a_sample_does_not_depend_on_its_batch():
    together = uniform(5, 1, 2, np.arange(10), 3)
    assert np.array_equal(together[4:6], uniform(5, 1, 2, np.array([4, 5]), 3))


def test_the_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order(100, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert epoch_order(100, 0, 1).tolist() == orders[1]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (3, 2), (1, 4)])
def test_global_batches_do_not_depend_on_devices_or_accumulation(world, accumulate):
    def global_batches(world, accumulate):
        samplers = [GlobalBatchSampler(101, 32, 7, rank, world, accumulate) for rank in range(world)]
        for sampler in samplers:
            sampler.start_at(3)
        rows = list(zip(*(list(sampler) for sampler in samplers), strict=True))
        batches = []
        for step in range(0, len(rows), accumulate):
            parts = sorted((micro for row in rows[step : step + accumulate] for micro in row), key=lambda m: m.first)
            assert all(p.global_size == sum(len(q.indices) for q in parts) for p in parts)
            assert max(len(p.indices) for p in parts) - min(len(p.indices) for p in parts) <= 1
            batches.append(np.concatenate([p.indices for p in parts]).tolist())
        return batches

    batches = global_batches(world, accumulate)
    assert batches == global_batches(1, 1)
    assert sorted(sum(batches, [])) == list(range(101))
    assert {len(batch) for batch in batches} <= {25, 26}


def test_a_resumed_sampler_goes_on_with_the_very_next_micro_batch():
    whole = GlobalBatchSampler(50, 8, 0, accumulate=2)
    resumed = GlobalBatchSampler(50, 8, 0, accumulate=2)
    resumed.start_at(0, 5)
    assert [m.indices.tolist() for m in resumed] == [m.indices.tolist() for m in whole][5:]
    assert len(resumed) == len(whole)


def test_more_shares_than_samples_is_an_error():
    with pytest.raises(UserError, match="4 samples can't be shared by 8 devices"):
        GlobalBatchSampler(4, 16, 0, world_size=8)


def test_evaluation_sees_each_sample_once_over_all_devices():
    seen = [i for rank in range(3) for micro in EvaluationSampler(10, 2, rank, 3) for i in micro.indices]
    assert sorted(seen) == list(range(10))


def test_the_dev_split_is_stratified_and_a_function_of_the_seed():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    train, dev = stratified_split(labels, 0.1, seed=3)
    assert np.bincount(labels[dev]).tolist() == [5, 3, 2]
    assert sorted([*train, *dev]) == list(range(100))
    assert np.array_equal(dev, stratified_split(labels, 0.1, seed=3)[1])
    assert not np.array_equal(dev, stratified_split(labels, 0.1, seed=4)[1])


def test_a_class_of_one_sample_stays_in_train():
    train, dev = stratified_split(np.array([0, 0, 0, 1]), 0.5, seed=0)
    assert 3 in train and 3 not in dev
