import json
import pickle
import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixer_finetune import UserError, load_backbone
from mixer_finetune.backbones.folder import model_config, save_model_folder


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


@pytest.mark.parametrize(
    ("card", "named"),
    [
        ("---\ndatasets: [a/b, c]\n---\n# X", ["a/b", "c"]),
        ("---\ndatasets: a/b\n---\n", ["a/b"]),
        ("---\ndatasets: {a: b}\n---\n", None),
        ("---\ndatasets: [1]\n---\n", None),
        ("---\n[1]\n---\n", None),
        ("# no card", None),
    ],
)
def test_what_a_backbone_was_trained_on_is_what_its_card_says(folder, card, named):
    (folder / "README.md").write_text(card)
    assert load_backbone(folder).origin.get("trained_on") == named


@pytest.mark.parametrize(("classes", "kept"), [(None, True), (3, True), (5, False)])
def test_the_trained_head_is_kept_if_the_number_of_classes_agrees(folder, classes, kept):
    model = load_backbone(folder, num_classes=classes)
    assert bool(model.head.weight.any()) is kept and (model.label_names is not None) is kept
    assert load_backbone(folder, num_classes=0).head(torch.ones(1, 96)).shape == (1, 96)


@pytest.mark.parametrize(("names", "kept"), [(["cat", "dog", "cow"], True), (["cat", "dog", "pig"], False)])
def test_fine_tuning_keeps_the_trained_head_only_for_the_same_label_names(folder, names, kept):
    from mixer_finetune import MixerClassifier

    model = MixerClassifier(str(folder), num_classes=3, label_names=names)
    assert bool(model.head.weight.any()) is kept
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


def changed(folder, *place, value):
    """The model folder, with another value at a place of its config.json."""
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


CFG, OWN = "pretrained_cfg", "mixer_finetune"
STRANGE = [
    (("label_names",), [1, 2, 3], "each of label_names must be text, got 1"),
    (("label_names",), {"0": "cat", "1": "dog", "2": "cow"}, "label_names must be a list of names, got {'0': 'cat'"),
    (("label_names",), ["cat", "dog"], "it has 2 label_names for 3 classes"),
    (("num_classes",), -1, "num_classes must be a whole number from 0 to 8388608, got -1"),
    (("num_classes",), [3], r"num_classes must be a whole number .*, got \[3\]"),
    (("num_classes",), 10**30, "num_classes must be a whole number"),
    (("num_classes",), 3.5, "num_classes must be a whole number"),
    (("architecture",), ["mixer_nano_32"], "architecture must be text"),
    (("model_args",), [1], r"model_args must be an object, got \[1\]"),
    (("model_args", "img_size"), [32], "img_size must be a list of 2 numbers"),
    (("model_args", "img_size"), [[32], 32], r"img_size must be a whole number from 1 to 16384, got \[32\]"),
    (("model_args", "img_size"), 33, "image size 33 is not a multiple of mixer_nano_32's patch size 4"),
    (("model_args", "img_size"), 10**9, "img_size must be a whole number"),
    (("model_args", "in_chans"), 2, r"the input has 1 \(grey\), 3 \(RGB\) or 4 \(RGBA\) channels, got 2"),
    (("model_args", "mlp_ratio"), ["a", 4], "mlp_ratio must hold two numbers above 0, got 'a'"),
    (("model_args", "mlp_ratio"), [0.5, 2], "channel MLPs are 2 times as wide as C, those of mixer_nano_32 4"),
    ((OWN, "architecture"), "mixer_micro_64", "its architecture is mixer_nano_32 and 'mixer_micro_64', which differ"),
    ((OWN, "architecture"), [1], "architecture must be text"),
    ((CFG,), "timm", "pretrained_cfg must be an object, got 'timm'"),
    ((CFG, "input_size"), 32, "input_size must be a list of 3 numbers, got 32"),
    ((CFG, "crop_pct"), 1e-9, "crop_pct must be from 0.05 to 1, got 1e-09"),
    ((CFG, "crop_pct"), float("nan"), "crop_pct must be a number, got nan"),
    ((CFG, "crop_pct"), [0.9], r"crop_pct must be a number, got \[0.9\]"),
    ((CFG, "crop_mode"), "stretch", "crop_mode must be center or squash or border, got 'stretch'"),
    ((CFG, "interpolation"), ["bicubic"], "interpolation must be bicubic or bilinear or nearest"),
    ((CFG, "std"), [0, 0, 0], "mean must be finite and std above 0"),
    ((CFG, "std"), 0, "std must be a list of numbers, got 0"),
    ((CFG, "mean"), [0.5, 0.5], "mean and std must have a value for each .* got 2 and 3 values"),
    ((CFG, "mean"), [0.5, "0.5", 0.5], "mean must be a list of numbers"),
    ((CFG, "mean"), [float("inf")] * 3, "mean must be a list of numbers"),
    ((CFG, "license"), ["mit"], "license must be text"),
    ((OWN,), 3, "mixer_finetune must be an object, got 3"),
    ((OWN, "activation"), "relu", "activation 'relu'; known are gelu"),
    ((OWN, "patch_size"), 0, "patch_size must be a whole number from 1"),
    ((OWN, "token_hidden"), [48], "the hidden width of the token MLP must be a whole number"),
    ((OWN, "trained_grid"), [8], "trained_grid must be a list of 2 numbers"),
]


@pytest.mark.parametrize(("place", "value", "says"), STRANGE)
def test_a_strange_value_in_a_config_is_one_line(folder, place, value, says):
    with pytest.raises(UserError, match=rf"config\.json can't be used: .*{says}") as refused:
        load_backbone(changed(folder, *place, value=value))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("weird", [None, True, [], {}, "", -1, 1e-9, 1e308, [[[]]], {"a": 1}, "3", 10**12])
def test_no_value_anywhere_in_a_config_is_a_traceback(folder, weird):
    def places(value, at=()):
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield (*at, key)
            yield from places(value[key], (*at, key))

    text = (folder / "config.json").read_text()
    for place in places(json.loads(text)):
        with suppress(UserError):
            load_backbone(changed(folder, *place, value=weird))
        (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "is not valid JSON"),
        ('{"architecture":' * 100_000, "is not valid JSON"),
        ("[1]", r"it must be an object, got \[1\]"),
        ("{}", "names no 'architecture'"),
        ('{"architecture": "mixer_nano_32", "num_classes": ' + "9" * 5000 + "}", "is not valid JSON"),
    ],
)
def test_a_config_that_is_no_object_is_one_line(folder, text, says):
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=says) as refused:
        load_backbone(folder)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_config_without_model_args_or_our_own_part_is_read(folder):
    load_backbone(changed(changed(folder, "model_args", value=None), OWN, value=None))
    config = json.loads((folder / "config.json").read_text())
    old = {"architecture": config["architecture"], "num_classes": 3, **config["pretrained_cfg"]}  # without nesting
    (folder / "config.json").write_text(json.dumps(old))
    assert load_backbone(folder).image_size == (32, 32)


# Checkpoints of training


@pytest.mark.parametrize("layout", ["backbone and head apart", "the head in the backbone"])
def test_a_checkpoint_of_either_layout_loads_as_the_model_that_it_holds(folder, layout, tmp_path):
    model = load_backbone(folder).eval()
    state = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    if layout == "backbone and head apart":
        state = {key.replace("backbone.head.", "head."): value for key, value in state.items()}
    state["val_metrics.accuracy.tp"] = torch.zeros(1)  # of the LightningModule alone
    checkpoint = {"state_dict": state, "model_config": model_config(model, model.label_names)}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    again = load_backbone(tmp_path / "last.ckpt").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images)) and again.label_names == ["cat", "dog", "cow"]


def test_a_checkpoint_that_lacks_its_weights_or_whose_config_is_strange_is_one_line(folder, tmp_path):
    config = model_config(load_backbone(folder), None)
    for content, says in (
        ({"model_config": config}, "has no state_dict"),
        ({"model_config": config, "state_dict": {"head.weight": torch.zeros(3, 96)}}, "missing blocks"),
        (
            {"model_config": {**config, "num_classes": -1}, "state_dict": {}},
            "model_config of .* can't be used: num_cla",
        ),
    ):
        torch.save(content, tmp_path / "bad.ckpt")
        with pytest.raises(UserError, match=says):
            load_backbone(tmp_path / "bad.ckpt")


def test_label_names_give_the_number_of_classes():
    from mixer_finetune import MixerClassifier

    assert MixerClassifier("mixer_nano_32", label_names=["a", "b", "c"]).head.out_features == 3
    with pytest.raises(UserError, match="num_classes is 2, but label_names names 3"):
        MixerClassifier("mixer_nano_32", num_classes=2, label_names=["a", "b", "c"])


def test_another_resolution_and_a_misspelt_name_say_what_to_change(folder):
    with pytest.raises(UserError, match="33 is not a multiple of .*; use image_size 32 or 36"):
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
    assert "affine" in {names[id(p)] for p in spared["params"]} and "norm.weight" in {
        names[id(p)] for p in spared["params"]
    }
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    from mixer_finetune.training.schedule import warmup_cosine

    factors = [warmup_cosine(step, 10, 100) for step in range(101)]
    assert factors[:10] == sorted(factors[:10]) and 0 < factors[0] < factors[9] < 1
    assert (
        factors[10] == 1.0 and factors[100] == pytest.approx(0) and factors[10:] == sorted(factors[10:], reverse=True)
    )
