"""Features of a frozen backbone: computed once, in order, by any number of processes, whatever is killed."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
import making_features
from conftest import make_photos
from mixer_finetune import ImageDataModule, MixerClassifier, load_backbone
from mixer_finetune.data.fingerprint import images_hash
from mixer_finetune.errors import UserError
from mixer_finetune.training import features as module
from mixer_finetune.training.feature_file import FeatureFile
from mixer_finetune.training.features import Extractor, Features, split_features, weights_hash


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(module, "_folder", lambda: folder)
    return folder


def data_of(source, **options):
    data = ImageDataModule(source, **{"eval_batch_size": 5, "num_workers": 0, **options})
    data.preprocessing = load_backbone("mixer_nano").preprocessing
    return data


def extractor(backbone=None):
    return Extractor((backbone or load_backbone("mixer_nano")).eval(), torch.device("cpu"))


def test_features_are_those_of_a_plain_loop_in_the_splits_order(photos, cache):
    data, backbone = data_of(photos), load_backbone("mixer_nano").eval()
    found = split_features(extractor(), data, "train", all_blocks=True)
    images = torch.stack([backbone.preprocessing(r["path"]) for r in data.splits["train"].image_records(np.arange(42))])
    with torch.no_grad():
        x, expected = backbone.stem(images), []
        for block in backbone.blocks:
            x = block(x)
            expected.append(x.mean(0))
        expected.append(backbone.norm(x).mean(0))
    assert found.values.shape == (42, 9, 96) and found.computed == 42 and not found.bad
    assert torch.allclose(found.values, torch.stack(expected, 1), atol=1e-5)
    assert torch.allclose(found.layer(), backbone.forward_pre_logits(images), atol=1e-5)


def test_they_are_computed_once_and_the_pre_logits_are_taken_from_all_blocks(photos, cache):
    data = data_of(photos)
    first = split_features(extractor(), data, "train", all_blocks=True)
    again = split_features(extractor(), data_of(photos), "train", all_blocks=True)
    alone = split_features(extractor(), data, "train")
    assert (first.computed, again.computed, alone.computed) == (42, 0, 0)
    assert torch.equal(first.values, again.values) and torch.equal(alone.layer(), first.layer())
    (file,) = cache.iterdir()
    assert str(file) in Path("/proc/self/maps").read_text()


def test_whatever_they_depend_on_has_another_file(photos, cache, tmp_path):
    backbone = load_backbone("mixer_nano")
    split_features(extractor(), data_of(photos), "train")
    with torch.no_grad():
        backbone.blocks[3].norm1.bias[0] += 1e-3
    others = [
        (extractor(backbone), data_of(photos), "train", "evaluation"),
        (extractor(), data_of(photos, crop_pct=1.0), "train", "evaluation"),
        (extractor(), data_of(photos, crop_area=(1, 1), flip=False), "train", "training"),
        (extractor(), data_of(photos), "val", "evaluation"),
        (Extractor(load_backbone("mixer_nano"), torch.device("cpu"), "bf16-mixed"), data_of(photos), "train",
         "evaluation"),
        (Extractor(load_backbone("mixer_nano").double(), torch.device("cpu")), data_of(photos), "train", "evaluation"),
        (extractor(), data_of(photos, seed=1), "train", "evaluation"),  # another dev split is held out
    ]  # fmt: skip
    for count, (one, data, role, view) in enumerate(others, 2):
        assert split_features(one, data, role, view=view).computed
        assert len(list(cache.iterdir())) == count


def test_a_changed_file_counts_as_another_image_and_another_label_does_not(tmp_path):
    data = data_of(make_photos(tmp_path / "photos", {"a": 3, "b": 3}), val_fraction=0)
    split = data.splits["train"]
    before = images_hash(split)
    assert images_hash(split.renumbered(np.array([1, 0]), 2)) == before
    assert images_hash(split.take(np.array([1, 0, 2, 3, 4, 5]), "reordered")) != before
    path = tmp_path / "photos" / "a" / "000.png"
    os.utime(path, ns=(1, 1))
    assert images_hash(split) != before


def test_the_head_does_not_count():
    backbone = load_backbone("mixer_nano")
    before = weights_hash(backbone)
    backbone.replace_head(3)
    assert weights_hash(backbone) == before


def run(environment, folder, source, kill_after=None, slowly=0.0):
    return forked.start(making_features.computed, (str(source), kill_after, slowly), environment, folder)


@pytest.fixture
def home(environment, tmp_path):
    return {**environment, "HF_HOME": str(tmp_path / "home")}


def test_a_process_that_is_killed_loses_no_more_than_the_chunk_it_was_at(photos, home, tmp_path):
    killed = run(home, tmp_path, photos, kill_after=5).finished(60)
    assert killed.returncode == -signal.SIGKILL
    count, total = run(home, tmp_path, photos).finished(60).stdout.split()
    assert int(count) == 48 - 5 * 4
    other = {**home, "HF_HOME": str(tmp_path / "other")}
    assert run(other, tmp_path, photos).finished(60).stdout.split() == ["48", total]


def test_two_processes_share_the_work_and_one_takes_over_what_a_dead_one_leaves(photos, home, tmp_path):
    both = [run(home, tmp_path, photos, slowly=0.3) for _ in range(2)]
    printed = [each.finished(60).stdout.split() for each in both]
    counts = [int(count) for count, _ in printed]
    assert sum(counts) == 48 and printed[0][1] == printed[1][1]
    assert min(counts) >= 12  # 24 each, but for the time that one starts later

    other = {**home, "HF_HOME": str(tmp_path / "other")}
    dying, living = run(other, tmp_path, photos, kill_after=2, slowly=0.3), run(other, tmp_path, photos, slowly=0.3)
    assert dying.finished(60).returncode == -signal.SIGKILL
    assert living.finished(60).stdout.split() == [str(48 - 2 * 4), printed[0][1]]


def test_a_file_that_was_cut_short_is_filled_anew(photos, cache):
    whole = split_features(extractor(), data_of(photos), "train").values.clone()
    (file,) = cache.iterdir()
    os.truncate(file, 100)
    again = split_features(extractor(), data_of(photos), "train")
    assert again.computed == 42 and torch.equal(again.values, whole)


def test_a_chunk_counts_only_once_its_values_are_written(tmp_path):
    file = FeatureFile(tmp_path / "f", (5, 1, 2), np.float32, 2)
    assert file.missing() == [0, 1, 2] and file.claim(2) and file.claim(0)
    file.write(2, np.ones((1, 1, 2)))
    assert file.missing() == [0, 1, 2] and not file.claim(2)
    file.commit()
    assert file.missing() == [0, 1] and not file.claim(2)
    file.close()
    assert FeatureFile(tmp_path / "f", (5, 1, 2), np.float32, 2).values()[4].tolist() == [[1.0, 1.0]]


def test_an_image_that_cannot_be_decoded_is_named_or_left_out(tmp_path, cache):
    folder = make_photos(tmp_path / "photos", {"a": 6, "b": 6})
    (folder / "a" / "003.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"003\.png"):
        split_features(extractor(), data_of(folder, val_fraction=0), "train")
    for computed in (12, 0):  # now, and from the file
        data = data_of(folder, val_fraction=0, on_bad_image="skip")
        found = split_features(extractor(), data, "train")
        assert list(found.bad) == [3] and found.computed == computed and 3 not in found.good
        assert len(data.bad_images) == 1 and torch.isnan(found.layer()[3]).all()
    with pytest.raises(UserError, match=r"003\.png"):  # the file is there, and the image is still bad
        split_features(extractor(), data_of(folder, val_fraction=0), "train")


def test_features_that_are_no_numbers_are_refused(photos, cache):
    backbone = load_backbone("mixer_nano")
    with torch.no_grad():
        backbone.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="43 images have features that are no finite numbers|5 images have"):
        split_features(extractor(backbone), data_of(photos), "train")


def test_without_room_they_stay_in_memory_or_are_refused(photos, cache, monkeypatch):
    whole = split_features(extractor(), data_of(photos), "train").values
    monkeypatch.setattr(module, "_folder", lambda: Path("/proc/nowhere"))
    found = split_features(extractor(), data_of(photos), "train")
    assert found.computed == 42 and torch.equal(found.values, whole)
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 100)
    with pytest.raises(UserError, match="0 MB of features can't be kept in /proc/nowhere"):
        split_features(extractor(), data_of(photos), "train")


def fit(trainer_options, cached, monkeypatch, source, callbacks=(), **options):
    import lightning.pytorch as pl

    if not cached:
        monkeypatch.setattr("mixer_finetune.training.classifier.frozen_features", lambda *_: {})
    pl.seed_everything(0, verbose=False)
    data = ImageDataModule(source, batch_size=8, num_workers=0, crop_area=(1, 1), **{"flip": False, **options})
    model = MixerClassifier("mixer_nano", freeze_backbone=True, lr=0.1)
    trainer = pl.Trainer(
        max_epochs=3, logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu",
        use_distributed_sampler=False, callbacks=list(callbacks), enable_model_summary=False, deterministic=True,
        num_sanity_val_steps=0,
        **trainer_options,
    )  # fmt: skip
    trainer.fit(model, data)
    monkeypatch.undo()
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    return model, metrics


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("64-true", 1e-12)])
def test_a_frozen_backbone_computes_each_image_once_and_the_head_is_the_same(
    photos, tmp_path, monkeypatch, precision, tolerance
):
    calls = 0
    forward = module.Backbone.forward_pre_logits

    def counted(self, images, *args, **kwargs):
        nonlocal calls
        calls += len(images)
        return forward(self, images, *args, **kwargs)

    results = []
    for cached in (True, False):
        monkeypatch.setattr(module, "_folder", lambda: tmp_path / "features")
        monkeypatch.setattr(module.Backbone, "forward_pre_logits", counted)
        calls = 0
        model, metrics = fit({"precision": precision}, cached, monkeypatch, photos)
        assert calls == (48 if cached else 3 * 48) and bool(model.features) is cached
        results.append((model.head.weight.detach(), metrics))
    (head, metrics), (plain_head, plain_metrics) = results
    assert head.abs().max() > 0.01 and (head - plain_head).abs().max() < tolerance * plain_head.abs().max()
    assert metrics == pytest.approx(plain_metrics, rel=100 * tolerance)


@pytest.mark.parametrize("options", [{"flip": True}, {"rotation": 5}, {"mixup": 0.2}, {"color_jitter": 0.1}])
def test_augmented_images_are_computed_in_each_epoch(photos, cache, monkeypatch, options):
    assert not fit({}, True, monkeypatch, photos, **options)[0].features


def test_what_thaws_the_backbone_or_trains_less_than_an_epoch_goes_without(photos, cache, monkeypatch):
    from lightning.pytorch.callbacks import BackboneFinetuning, LambdaCallback

    assert not fit({}, True, monkeypatch, photos, [BackboneFinetuning(1, verbose=False)])[0].features
    assert not fit({"max_steps": 2}, True, monkeypatch, photos)[0].features

    def thaw(_, model):
        model.backbone.requires_grad_(True)

    monkeypatch.setattr(module, "_folder", lambda: cache)
    with pytest.raises(UserError, match="the backbone was thawed while its features were cached"):
        fit({}, True, monkeypatch, photos, [LambdaCallback(on_train_epoch_start=thaw)])


def test_a_skipped_image_is_left_out_of_cached_batches_as_of_others(tmp_path, monkeypatch):
    folder = make_photos(tmp_path / "photos", {"a": 12, "b": 12})
    (folder / "a" / "003.png").write_bytes(b"no image")
    heads = []
    for cached in (True, False):
        monkeypatch.setattr(module, "_folder", lambda: tmp_path / "features")
        model, _ = fit({}, cached, monkeypatch, folder, on_bad_image="skip")
        assert bool(model.features) is cached
        heads.append(model.head.weight.detach())
    assert (heads[0] - heads[1]).abs().max() < 1e-5 * heads[1].abs().max()


def test_good_positions_are_those_without_a_reason():
    assert Features(torch.zeros(4, 1, 2), {1: "bad"}, 4).good.tolist() == [0, 2, 3]
