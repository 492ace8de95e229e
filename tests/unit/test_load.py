import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixer_finetune import MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.folder import save_model_folder


@pytest.fixture
def folder(tmp_path):
    """A model folder with a head of three named classes."""
    model = load_backbone("mixer_nano_32", num_classes=3)
    torch.nn.init.normal_(model.head.weight)
    save_model_folder(tmp_path / "model", model, ["cat", "dog", "cow"])
    return tmp_path / "model"


def test_a_saved_folder_loads_with_equal_outputs_labels_and_preprocessing(folder):
    first, second = load_backbone(folder), load_backbone(folder.parent)  # a run folder keeps its model folder inside
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(images), second(images)) and first.label_names == ["cat", "dog", "cow"]
    assert first.preprocessing == load_backbone("mixer_nano_32").preprocessing
    assert all(p.requires_grad and not p.is_meta for p in first.parameters())


@pytest.mark.parametrize(("classes", "kept"), [(None, True), (3, True), (5, False)])
def test_the_trained_head_is_kept_if_the_number_of_classes_agrees(folder, classes, kept):
    model = load_backbone(folder, num_classes=classes)
    assert bool(model.head.weight.any()) is kept and (model.label_names is not None) is kept
    assert load_backbone(folder, num_classes=0).head(torch.ones(1, 96)).shape == (1, 96)


@pytest.mark.parametrize(("names", "kept"), [(["cat", "dog", "cow"], True), (["cat", "dog", "pig"], False)])
def test_fine_tuning_keeps_the_trained_head_only_for_the_same_label_names(folder, names, kept):
    model = MixerClassifier(str(folder), num_classes=3, label_names=names)
    assert bool(model.backbone.head.weight.any()) is kept
    assert ("kept" in model.head_note) is kept and ("new zero-initialised head" in model.head_note) is not kept


def test_weights_of_another_architecture_are_named_key_by_key(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["norm.bias"]
    save_file({**weights, "cls_token": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="missing norm.bias; unexpected cls_token"):
        load_backbone(folder)
    save_file({**weights, "norm.bias": torch.zeros(7)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"norm.bias is \(7,\), expected \(96,\)"):
        load_backbone(folder)


def test_a_truncated_file_an_unknown_architecture_and_no_json_are_one_line_each(folder):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architecture": "resnet50"}))
    with pytest.raises(UserError, match="'resnet50', which is not supported"):
        load_backbone(folder)
    config.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load_backbone(folder)
    config.write_text(json.dumps({"architecture": "mixer_nano_32"}))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged or cut off"):
        load_backbone(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="no backbone|not a model folder"):
        load_backbone(folder)


class _Code:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize("suffix", [".ckpt", ".pt"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path, suffix, capsys):
    path = tmp_path / f"evil{suffix}"
    torch.save({"state_dict": {}, "extra": _Code()}, path)
    with pytest.raises(UserError, match="refused: it holds pickled code"):
        load_backbone(path)
    path.write_bytes(pickle.dumps(_Code()))
    with pytest.raises(UserError):
        load_backbone(path)
    assert "code ran" not in capsys.readouterr().out


def test_a_config_that_asks_for_what_is_not_known_is_one_line(folder):
    config = folder / "config.json"
    good = json.loads(config.read_text())
    for change, says in (
        ({"mixer_finetune": {"activation": "relu"}}, "activation 'relu'; known are gelu"),
        ({"pretrained_cfg": {**good["pretrained_cfg"], "crop_pct": 0}}, "crop_pct in 0..1"),
        ({"pretrained_cfg": {**good["pretrained_cfg"], "crop_mode": "border"}}, "crop_mode center or squash"),
        ({"model_args": [1]}, "can't be understood"),
    ):
        config.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=says):
            load_backbone(folder)
    config.write_text(json.dumps({**good, "model_args": None, "mixer_finetune": None}))
    assert load_backbone(folder).image_size == (32, 32)


def test_label_names_give_the_number_of_classes():
    assert MixerClassifier("mixer_nano_32", label_names=["a", "b", "c"]).backbone.num_classes == 3
    with pytest.raises(UserError, match="num_classes is 2, but label_names names 3"):
        MixerClassifier("mixer_nano_32", num_classes=2, label_names=["a", "b", "c"])


def test_another_resolution_and_a_misspelt_name_say_what_to_change(folder):
    with pytest.raises(UserError, match="33 is not a multiple of .* use --model.image_size 32 or 36"):
        load_backbone(folder, image_size=33)
    with pytest.raises(UserError, match="did you mean mixer_b16_224"):
        load_backbone("mixer_b16_244")


def test_only_weight_matrices_decay():
    from mixer_finetune.training.optimization import parameter_groups

    model = load_backbone("mixer_nano_32", num_classes=3)
    model.affine = torch.nn.Parameter(torch.ones(1, 1, 96))  # as ResMLP's, which a rule by dimensions would decay
    decayed, spared = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    assert "affine" in {names[id(p)] for p in spared["params"]} and "norm.weight" in {names[id(p)] for p in spared["params"]}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    from mixer_finetune.training.optimization import warmup_cosine

    factors = [warmup_cosine(step, 10, 100) for step in range(101)]
    assert factors[:10] == sorted(factors[:10]) and 0 < factors[0] < factors[9] < 1
    assert factors[10] == 1.0 and factors[100] == pytest.approx(0) and factors[10:] == sorted(factors[10:], reverse=True)
