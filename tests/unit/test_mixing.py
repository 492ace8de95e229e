"""Mixup, CutMix and repeated augmentation: shares, boxes, partners and copies."""

import numpy as np
import pytest
import torch

from mixer_finetune import ImageDataModule, UserError
from mixer_finetune.augment import Augmentation
from mixer_finetune.augment.mix import mix_batch, symmetric_beta
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.data.sampling import GlobalBatchSampler
from mixer_finetune.randomness import MIX, uniform
from mixer_finetune.training.losses import Loss
from mixer_finetune.training.task import SINGLE_LABEL


def draws(n, seed=0):
    return torch.from_numpy(uniform(seed, MIX, 0, np.arange(n), 6)).float()


CDF = {
    0.5: lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)),  # the arcsine law
    1.0: lambda x: x,
    2.0: lambda x: x**2 * (3 - 2 * x),
    3.0: lambda x: x**3 * (10 - 15 * x + 6 * x**2),
}


@pytest.mark.parametrize("concentration", CDF)
def test_shares_are_drawn_from_beta(concentration):
    n = 20_000
    shares = np.sort(symmetric_beta(concentration, draws(n)[:, 2:4]).numpy())
    distance = np.abs(CDF[concentration](shares) - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.36 / n**0.5  # Kolmogorov and Smirnov's test at 5%


@pytest.mark.parametrize("concentration", [0.1, 0.8, 20.0])
def test_shares_have_the_moments_of_beta(concentration):
    centred = symmetric_beta(concentration, draws(50_000)[:, 2:4]).double() - 0.5
    variance = 1 / (4 * (2 * concentration + 1))
    kurtosis = 3 * (2 * concentration + 1) / (2 * concentration + 3)
    assert abs(centred.mean()) < 4 * (variance / 50_000) ** 0.5
    assert float(centred.var()) == pytest.approx(variance, rel=0.03)
    assert float((centred**4).mean() / variance**2) == pytest.approx(kurtosis, rel=0.05)


def test_the_smallest_and_largest_numbers_give_shares_too():
    edges = torch.tensor([[0.0, 0.0], [1 - 2**-24, 0.0], [1 - 2**-24, 0.5], [0.5, 0.25]])
    for concentration in (1e-3, 0.2, 1.0, 100.0):
        shares = symmetric_beta(concentration, edges)
        assert ((shares >= 0) & (shares <= 1)).all()


def test_mixup_is_the_weighted_mean_of_an_image_and_the_one_before_it_and_of_their_labels():
    images, labels, u = torch.rand(9, 3, 6, 4), torch.arange(9) % 4, draws(8)
    mixed, targets = mix_batch(images, labels, u, Augmentation(mixup=0.7, mix_probability=0.6), 4)
    assert 2 <= int((u[:, 0] < 0.6).sum()) <= 6
    for i in range(8):
        share = float(symmetric_beta(0.7, u[i : i + 1, 2:4])) if u[i, 0] < 0.6 else 1.0
        assert torch.allclose(mixed[i], share * images[i + 1] + (1 - share) * images[i], atol=1e-6)
        expected = torch.zeros(4)
        expected[labels[i + 1]] += share
        expected[labels[i]] += 1 - share
        assert torch.allclose(targets[i], expected, atol=1e-6)


def test_cutmix_puts_a_box_of_the_image_before_in_and_weighs_labels_by_its_area():
    images, labels, u = torch.rand(65, 3, 20, 30), torch.arange(65) % 5, draws(64)
    mixed, targets = mix_batch(images, labels, u, Augmentation(cutmix=1.0), 5)
    areas = []
    for i in range(64):
        height = int((1 - float(symmetric_beta(1.0, u[i : i + 1, 2:4]))) ** 0.5 * 20)
        width = int((1 - float(symmetric_beta(1.0, u[i : i + 1, 2:4]))) ** 0.5 * 30)
        top, left = int(u[i, 4] * 20) - height // 2, int(u[i, 5] * 30) - width // 2
        expected = images[i + 1].clone()
        rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
        expected[:, rows, columns] = images[i][:, rows, columns]
        assert torch.equal(mixed[i], expected)
        areas.append((expected != images[i + 1]).all(0).float().mean())
        wanted = torch.zeros(5)
        wanted[labels[i + 1]] += 1 - areas[-1]
        wanted[labels[i]] += areas[-1]
        assert torch.allclose(targets[i], wanted, atol=1e-6)
    assert 0.2 < np.mean(areas) < 0.5 and max(areas) > 0.6


def test_with_both_half_of_the_images_are_cut_and_half_are_blended():
    images = torch.cat([torch.zeros(1000, 1, 8, 8), torch.ones(1001, 1, 8, 8)])[torch.randperm(2001)]
    mixed, _ = mix_batch(
        images, torch.zeros(2001, dtype=torch.long), draws(2000), Augmentation(mixup=1.0, cutmix=1.0), 2
    )
    differ = (images[1:] != images[:-1]).flatten(1).any(1)
    blended = ((mixed > 0) & (mixed < 1)).flatten(1).any(1)[differ]
    assert 0.45 < blended.float().mean() < 0.55


def test_soft_targets_count_in_every_loss():
    logits, targets = torch.randn(6, 4), torch.rand(6, 4).softmax(-1)
    log_p = logits.log_softmax(-1)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    assert torch.allclose(Loss(SINGLE_LABEL)(logits, targets), -(targets * log_p).sum())
    focal = -(targets * (1 - log_p.exp()) ** 2 * log_p).sum()
    assert torch.allclose(Loss(SINGLE_LABEL, "focal")(logits, targets), focal)
    weighted = -((targets * log_p).sum(-1) * (targets @ weights)).sum()
    assert torch.allclose(Loss(SINGLE_LABEL, weights=weights)(logits, targets), weighted)


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (3, 2), (1, 4)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_partners_and_copies_do_not_depend_on_devices_or_accumulation(world, accumulate, repeats):
    def global_batches(world, accumulate, partners):
        samplers = [
            GlobalBatchSampler(101, 32, 7, rank, world, accumulate, repeats=repeats, partners=partners)
            for rank in range(world)
        ]
        micros = [micro for row in zip(*(list(sampler) for sampler in samplers), strict=True) for micro in row]
        assert max(len(micro.keys) for micro in micros) == samplers[0].largest
        shares = world * accumulate
        return [sorted(micros[i : i + shares], key=lambda m: m.first) for i in range(0, len(micros), shares)]

    for whole, parts in zip(global_batches(1, 1, False), global_batches(world, accumulate, True), strict=True):
        keys = whole[0].keys.tolist()
        assert [key for part in parts for key in part.keys[1:]] == keys
        for part in parts:
            assert part.keys[0] == keys[part.first - 1] and part.partner
            assert (part.keys % 2**40 == part.indices).all()
        assert len(set(keys)) == len(keys)
        assert len(set(whole[0].indices.tolist())) == -(-len(keys) // repeats)


def test_balanced_sampling_augments_each_copy_of_an_image_otherwise():
    labels = np.array([0] * 9 + [1] * 2)
    (micro,) = GlobalBatchSampler(18, 32, 3, labels=labels)
    assert len(set(micro.keys.tolist())) == 18 and len(set(micro.indices.tolist())) == 11


def test_repeats_of_the_sampler_begin_in_the_middle_where_a_run_was_interrupted():
    sampler = GlobalBatchSampler(101, 16, 7, accumulate=2, repeats=3, partners=True)
    whole = [micro.keys.tolist() for micro in sampler]
    sampler.start_at(0, 5)
    assert [micro.keys.tolist() for micro in sampler] == whole[5:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixup": -0.1}, "mixup must be from 0 to 100"),
        ({"cutmix": float("nan")}, "cutmix must be from 0"),
        ({"mix_probability": 1.5}, "mix_probability must be from 0 to 1"),
        ({"rand_augment": 31}, "rand_augment must be from 0 to 30"),
        ({"rand_augment": 9, "rand_augment_ops": 0}, "rand_augment_ops must be from 1 to 8"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio must be"),
        ({"repeats": 0}, "repeats must be"),
        ({"repeats": 3, "sampling": "balanced"}, "repeats images already"),
    ],
)
def test_what_can_not_be_drawn_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        ImageDataModule("digits", **options)


def test_an_image_beside_one_that_can_not_be_decoded_is_mixed_with_nothing(photos, tmp_path):
    files = [sorted((photos / name).iterdir()) for name in ("blue", "red")]
    paths, labels = [*map(str, files[0][:8]), *map(str, files[1][:8])], ["blue"] * 8 + ["red"] * 8
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    options = {"batch_size": 8, "val_fraction": 0.0, "num_workers": 0, "on_bad_image": "skip"}
    preprocessing = Preprocessing(image_size=(32, 32))

    def prepared(paths):
        source, mixing = {"train": (paths, labels)}, {"mixup": 1.0, "cutmix": 1.0}
        data = ImageDataModule(source, preprocessing=preprocessing, **options, **mixing)
        batch = next(iter(data.train_dataloader()))
        data.on_before_batch_transfer(batch, 0)
        return data.prepare(batch, training=True)

    whole = prepared(paths)
    assert len(whole.images) == 8 and whole.labels.shape == (8, 2) and not whole.partner
    for place in (0, 3, 7):  # the first, one in the middle, and the last, which is the first one's partner
        with_bad = paths.copy()
        with_bad[whole.indices[place]] = str(tmp_path / "bad.jpg")
        batch = prepared(with_bad)
        assert batch.indices.tolist() == np.delete(whole.indices, place).tolist()
        after = whole.indices[(place + 1) % 8]
        for i, index in enumerate(batch.indices):
            same = torch.equal(batch.images[i], whole.images[whole.indices.tolist().index(index)])
            if index == after:
                assert batch.labels[i].max() == 1
            else:
                assert same


def test_no_two_augmentations_share_a_number():
    everything = Augmentation(
        rotation=1.0, color_jitter=0.1, random_erasing=0.1, trivial_augment=True, rand_augment=9, rand_augment_ops=8,
        three_augment=True,
    )  # fmt: skip
    taken = [n for step in everything.steps(Preprocessing()) for n in range(step.first, step.first + step.draws)]
    assert len(taken) == len(set(taken)) == 1 + 1 + 3 + 5 + 3 + 16 + 2
