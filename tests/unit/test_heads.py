"""Heads that start from rows by name, or from a probe; averages of weights; balanced sampling."""

import numpy as np
import pytest
import torch
from test_training_values import folder, pictures, trained  # noqa: F401

from mixer_finetune import ImageDataModule, MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.data.sampling import GlobalBatchSampler, balanced_order
from mixer_finetune.training.averages import WeightEma, between, mean_of
from mixer_finetune.training.class_rows import ClassRows
from mixer_finetune.training.head import choose_head
from mixer_finetune.training.probe import fit_probe, pre_logits, start_from_probe

KNOWN = ["tench, Tinca tinca", "Tabby_cat", "crane", "crane", "dog, cur", "mutt, cur"]


@pytest.fixture
def backbone(tmp_path):
    """Trained for some classes."""
    model = MixerClassifier("mixer_nano_32", label_names=KNOWN)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    save_model_folder(tmp_path / "model", model.assembled(), KNOWN)
    return load_backbone(tmp_path / "model")


def test_rows_are_found_by_name_case_and_underscores_aside_and_ambiguous_ones_are_not():
    names = ["tabby-CAT", "tinca tinca", "crane", "cur", "dog", "mutt, cur", "whale"]
    rows = ClassRows(KNOWN)
    assert [rows.find(name) for name in names] == [[1], [0], [2, 3], [4, 5], [4], [5], []]


def test_rows_are_found_as_imagenet_and_wordnet_write_them():
    known = ["n01440764 tench, Tinca_tinca", "n02124075", "n04037443 racer, race car", "rose.n.01", "leaf.n.01"]
    known += ["wine glass", "sunglasses, dark glasses, shades", "fireman, firefighter", "box.n.01", "box.n.02", "buses"]
    rows = ClassRows(known)
    expected = {
        "tench": [0], "N01440764": [0], "n01440764-Tench": [0], "n01440764_whatever": [0], "carp, tinca tinca": [0],
        "n02124075 Egyptian cat": [1], "race cars": [2], "Roses": [3], "leaves": [4], "wine glasses": [5],
        "wine_glass": [5], "sunglass": [6], "shade": [6], "firemen": [7], "boxes": [8, 9], "bus": [10], "glass": [],
        "n0144": [], "car": [], "ss": [], "s": [], "": [],
    }  # fmt: skip
    assert {name: rows.find(name) for name in expected} == expected


def test_a_head_by_names_starts_from_the_trained_rows_and_says_which(backbone):
    head = choose_head(backbone, None, ["whale", "tabby cat", "Dog"], "names")
    assert torch.equal(head.module.weight[1:], backbone.head.weight[[1, 4]])
    assert torch.equal(head.module.bias[1:], backbone.head.bias[[1, 4]])
    assert not head.module.weight[0].any() and head.label_names == ["whale", "tabby cat", "Dog"]
    assert head.note == (
        "head of 3 classes, 2 of them from the trained head's rows by name "
        '(tabby cat, Dog = "dog, cur"), 1 new (whale)'
    )
    note = choose_head(backbone, None, ["crane", "tabby cats"], "names").note
    assert '1 of them from the trained head\'s rows by name (tabby cats = "Tabby_cat"), 1 new (crane: 2 rows)' in note


def test_a_head_that_is_kept_may_have_its_classes_in_another_order(backbone):
    head = choose_head(backbone, None, ["dog", "tench"], "keep")
    assert torch.equal(head.module.weight, backbone.head.weight[[4, 0]])
    assert choose_head(backbone, None, KNOWN, "keep").module is backbone.head
    with pytest.raises(UserError, match="does not know whale; use head names, new or probe"):
        choose_head(backbone, None, ["dog", "whale"], "keep")
    with pytest.raises(UserError, match="does not know whale, gnat; use head new or probe"):
        choose_head(backbone, None, ["gnat", "whale"][::-1], "names")
    with pytest.raises(UserError, match="the classes of the data have no names to go by"):
        choose_head(backbone, 3, None, "names")


def test_a_new_head_is_zero_also_where_the_trained_one_would_fit(backbone):
    assert not choose_head(backbone, None, KNOWN, "new").module.weight.any()
    assert choose_head(backbone, None, KNOWN, "auto").module is backbone.head


def test_a_probe_is_the_ridge_regression_of_an_independent_solver():
    n, channels, classes, penalty = 40, 12, 3, 2.5
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(n, channels)) + 5, rng.integers(0, classes, n)
    y = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
    # Augmented least squares: one row a channel for the penalty, and a column of ones, not penalised, for the bias.
    rows = np.vstack(
        [np.hstack([x, np.ones((n, 1))]), np.hstack([np.sqrt(penalty) * np.eye(channels), np.zeros((12, 1))])]
    )
    solution = np.linalg.lstsq(rows, np.vstack([y, np.zeros((channels, classes))]), rcond=None)[0]
    probe = fit_probe(torch.from_numpy(x), torch.from_numpy(labels), classes, penalty)
    assert np.abs(probe.weight.numpy() - solution[:-1].T).max() < 1e-6
    assert np.abs(probe.bias.numpy() - solution[-1]).max() < 1e-6


def test_a_probes_penalty_and_scale_are_best_for_images_left_out():
    rng = np.random.default_rng(1)
    n, classes = 30, 3
    labels = torch.from_numpy(rng.integers(0, classes, n))
    x = torch.from_numpy(rng.normal(size=(n, 8))) + 2 * torch.nn.functional.one_hot(labels, 8)

    def left_out(penalty):
        answers = []
        for i in range(n):
            others = torch.arange(n) != i
            fitted = fit_probe(x[others], labels[others], classes, penalty)
            answers.append(fitted.weight @ x[i] + fitted.bias)
        return torch.stack(answers)

    found = fit_probe(x, labels, classes)
    y = 2.0 * torch.nn.functional.one_hot(labels, classes).double() - 1

    def error(penalty):
        return float((left_out(penalty) - y).square().sum())

    assert error(found.penalty) <= min(error(found.penalty * factor) for factor in (0.1, 10)) * (1 + 1e-9)
    answers = left_out(found.penalty)
    assert found.accuracy == pytest.approx(float((answers.argmax(-1) == labels).double().mean()), abs=1e-12)

    def loss(scale):
        return float(torch.nn.functional.cross_entropy(scale * answers, labels))

    assert loss(found.scale) <= min(loss(found.scale * factor) for factor in (0.98, 1.02))


def test_a_probe_is_of_evaluated_training_images_in_their_order(photos):
    data = ImageDataModule(photos, batch_size=8, eval_batch_size=7, num_workers=0)
    model = MixerClassifier("mixer_nano", label_names=data.label_names, head="probe")
    data.preprocessing = model.preprocessing
    features, labels = pre_logits(model, data)
    assert labels.tolist() == data.splits["train"].labels.tolist()
    with torch.no_grad():
        batch = next(iter(data.eval_dataloader("train")))
        expected = model.eval().backbone(data.prepare(batch, training=False).images)
    assert torch.allclose(features[: len(expected)], expected, atol=1e-5)
    note = start_from_probe(model, data)
    fitted = fit_probe(features, labels, 3)
    assert torch.allclose(model.head.weight, (fitted.scale * fitted.weight).float())
    assert note.startswith(f"head of 3 classes from a probe on {len(labels)} training images (")
    with pytest.raises(UserError, match="a probe needs the images of an ImageDataModule"):
        start_from_probe(model, None)


def test_an_average_follows_its_decay_and_warms_up():
    module = torch.nn.Linear(2, 1)
    average = WeightEma(module, decay=0.3)
    expected = module.weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            module.weight += 1
        average.update(module)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    assert torch.allclose(average.weights["weight"], expected)
    other = WeightEma(module, decay=0.3)
    other.load_state_dict(average.state_dict())
    assert other.steps == 7 and torch.equal(other.weights["weight"], average.weights["weight"])


def test_the_average_of_a_run_is_that_of_its_weights(folder, photos):  # noqa: F811
    import lightning.pytorch as pl

    seen = []

    class Weights(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen.append({name: p.detach().clone() for name, p in module.named_parameters()})

    data = ImageDataModule(photos, batch_size=8, val_fraction=0.25, num_workers=0)
    model = MixerClassifier("mixer_nano_32", lr=0.1, ema_decay=0.5)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_epochs=2, callbacks=[Weights()],
    )  # fmt: skip
    start = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("head")}
    trainer.fit(model, data)
    expected = start
    for step, weights in enumerate(seen, start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
    for name, value in expected.items():
        assert torch.allclose(model.ema.weights[name], value, atol=1e-6), name
    # And it is measured: its dev loss is that of a model with those weights.
    measured = float(trainer.callback_metrics["val/ema_loss"])
    raw = float(trainer.callback_metrics["val/loss"])
    assert measured != raw
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(model.ema.weights[name])
    model.ema = None
    assert trainer.validate(model, data, verbose=False)[0]["val/loss"] == pytest.approx(measured, rel=1e-5)


def test_means_of_weights():
    a, b = {"w": torch.tensor([0.0, 1.0]), "n": torch.tensor(3)}, {"w": torch.tensor([1.0, 3.0]), "n": torch.tensor(4)}
    assert between(a, b, 0.25)["w"].tolist() == [0.25, 1.5] and between(a, b, 0.25)["n"] == 4
    assert mean_of([{"w": a["w"]}, {"w": b["w"]}])["w"].tolist() == [0.5, 2.0]


def test_balanced_sampling_sees_every_image_and_all_classes_equally_often():
    labels = np.repeat([0, 1, 2], [13, 5, 2])
    orders = [balanced_order(labels, 3, epoch) for epoch in range(6)]
    for order in orders:
        assert np.bincount(labels[order]).tolist() == [13, 13, 13]
        assert set(order) == set(range(20))
        counts = np.bincount(order)
        for label in range(3):  # nobody twice more than another of its class
            assert np.ptp(counts[labels == label]) <= 1
    assert len({tuple(order) for order in orders}) == 6
    assert len({tuple(np.bincount(order)) for order in orders}) > 1  # others are repeated in other epochs
    assert np.array_equal(orders[1], balanced_order(labels, 3, 1))


def test_balanced_batches_do_not_depend_on_devices(photos):
    labels = np.repeat([0, 1], [30, 7])

    def batches(world, accumulate):
        samplers = [GlobalBatchSampler(60, 16, 7, rank, world, accumulate, labels) for rank in range(world)]
        rows = [sorted(m.indices.tolist()) for sampler in samplers for m in sampler]
        return sorted(i for row in rows for i in row)

    assert batches(1, 1) == batches(2, 1) == batches(3, 2)
    data = ImageDataModule(photos, batch_size=8, sampling="balanced", val_fraction=0.0)
    assert data.train_batches.n == 48
    with pytest.raises(UserError, match="unknown sampling 'even'; use sampling shuffled or balanced"):
        ImageDataModule(photos, sampling="even")


@pytest.mark.parametrize("options", [{"class_weights": "balanced"}, {"loss": "logit_adjusted"}])
def test_an_imbalance_is_not_corrected_twice(folder, options):  # noqa: F811
    ((name, value),) = options.items()
    with pytest.raises(UserError, match="correct the same imbalance twice"):
        trained(folder, "--data.sampling", "balanced", f"--model.{name}", value)
