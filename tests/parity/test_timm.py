"""timm is the oracle: same names, same parameters, same outputs and gradients."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from mixer_finetune import load_backbone
from mixer_finetune.backbones import Preprocessing
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS, preprocessing_of, tagged
from mixer_finetune.backbones.folder import beyond_timm, save_model_folder
from mixer_finetune.backbones.load import ASSETS

timm = pytest.importorskip("timm")


# Every family at a size that CI can afford, and the real B/16 once.
SMALL = {
    "mixer_s32_224": (96, 64),
    "mixer_b16_224": 224,
    "mixer_micro_64": 64,
    "gmixer_12_224": (64, 96),
    "resmlp_12_224": 64,
    "gmlp_ti16_224": (48, 64),
}


def pair(name, num_classes=5):
    """Our backbone and timm's with the same random weights, none of them zero."""
    size = SMALL[name]
    ours = load_backbone(name, num_classes=num_classes, image_size=size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in ours.named_parameters():
            if key.endswith(("alpha", "norm.weight", "norm1.weight", "norm2.weight", "gate.proj.bias")):
                parameter.normal_(1, 0.1, generator=generator)
            elif parameter.abs().max() < 0.01:
                parameter.normal_(0.3 if "ls" in key else 0, 0.05, generator=generator)
    variant = VARIANTS[name]
    ratio = {"mlp_ratio": variant.mlp_ratio} if variant.timm_name else {}
    theirs = timm.create_model(variant.timm_name or name, num_classes=num_classes, img_size=size, **ratio)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_gradients_equal_timms(name):
    ours, theirs = pair(name)
    images = torch.randn(2, 3, *ours.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = ours(images).double(), theirs(images).double()
    ours, theirs, images = ours.double(), theirs.double(), images.double()
    exact, truth = ours(images), theirs(images)
    assert (exact - truth).norm() < 1e-12 * truth.norm()
    # In float32 both are wrong by rounding: ours by no more than timm's, or the 1e-6 of a different order of sums.
    assert (logits - truth).norm() < 1.5 * (expected - truth).norm() + 1e-6 * truth.norm()
    exact.square().sum().backward()
    truth.square().sum().backward()
    gradients = dict(theirs.named_parameters())
    whole = torch.cat([p.grad.flatten() for p in gradients.values()]).norm()
    for key, parameter in ours.named_parameters():
        assert (parameter.grad - gradients[key].grad).norm() < 1e-12 * whole, key


@pytest.mark.parametrize("name", [name for name in VARIANTS if timm.is_model(name)])
def test_every_variant_has_timms_parameters_and_preprocessing(name):
    with torch.device("meta"):
        ours, theirs = Backbone(name), timm.create_model(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    config = timm.data.resolve_data_config(model=theirs)
    assert ours.preprocessing == Preprocessing(
        config["input_size"][1:], config["mean"], config["std"], config["interpolation"]
    )


def test_every_architecture_and_every_tag_of_timm_is_in_the_table():
    names = set(timm.list_models(module="mlp_mixer"))
    assert names == {name for name in VARIANTS if timm.is_model(name)}
    tags = {f"{name}.{weights.tag}" for name, variant in VARIANTS.items() for weights in variant.weights}
    assert tags == {name for name in timm.list_pretrained() if name.partition(".")[0] in names}
    for name in tags:
        variant, weights = tagged(f"timm/{name}")
        config = timm.get_pretrained_cfg(name)
        stated = preprocessing_of(variant, weights)
        assert weights.num_classes == config.num_classes and stated.interpolation == config.interpolation
        assert (stated.mean, stated.std, stated.crop_pct) == (config.mean, config.std, config.crop_pct), name


@pytest.mark.parametrize("name", SMALL)
def test_drop_path_scales_what_timms_blocks_add(name):
    """With every branch kept and scaled by one, and with every branch dropped, where timm's is the stem alone."""
    ours, theirs = (model.double() for model in pair(name))
    images = torch.randn(2, 3, *ours.image_size, dtype=torch.float64)
    keep = torch.ones(len(ours.blocks), 2, 2, dtype=torch.float64)
    expected = theirs(images)
    assert (ours(images, keep) - expected).norm() < 1e-12 * expected.norm()
    stem = theirs.forward_head(theirs.norm(theirs.stem(images)))
    assert (ours(images, 0 * keep) - stem).norm() < 1e-12 * stem.norm()


@pytest.mark.parametrize("name", [name for name in SMALL if name != "mixer_b16_224"])
@pytest.mark.parametrize("method", ["none", "block_diagonal", "interpolate"])
def test_what_is_saved_loads_in_timm_with_equal_outputs_at_any_resolution(name, method, tmp_path):
    ours, _ = pair(name)
    ours.label_names = list("abcde")
    save_model_folder(tmp_path / "first", ours, ours.label_names)
    if method != "none":
        size = tuple(2 * side for side in ours.image_size)
        ours = load_backbone(tmp_path / "first", image_size=size, resize=method)
        assert ours.image_size == size
    ours.eval()
    save_model_folder(tmp_path / "second", ours, ours.label_names)
    if name.startswith("gmixer") and method == "block_diagonal":
        assert "hidden width" in beyond_timm(ours)[0]
        with pytest.raises(RuntimeError):
            timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True)
        again = load_backbone(tmp_path / "second").eval()
        images = torch.randn(2, 3, *ours.image_size)
        assert torch.equal(again(images), ours(images))
        return
    assert beyond_timm(ours) == []
    theirs = timm.create_model(f"local-dir:{tmp_path / 'second'}", pretrained=True).eval()
    images = torch.randn(2, 3, *ours.image_size)
    expected = theirs.double()(images.double())
    assert (ours.double()(images.double()) - expected).norm() < 1e-12 * expected.norm()
    config = timm.data.resolve_data_config(model=theirs)
    stated = Preprocessing(
        config["input_size"][1:], tuple(config["mean"]), tuple(config["std"]), config["interpolation"]
    )
    assert stated == ours.preprocessing


def test_the_architectures_that_timm_lacks_are_known():
    lacking = {name for name, variant in VARIANTS.items() if not variant.in_timm}
    assert lacking == {"mixer_nano_32", "mixer_s8_224", "mixer_h14_224"}
    by_other_names = {name for name, variant in VARIANTS.items() if variant.timm_name}
    assert by_other_names == {"mixer_micro_64"} and lacking | by_other_names == set(VARIANTS) - set(timm.list_models())


def test_timm_loads_the_bundled_mixer_micro():
    ours = load_backbone("mixer_micro").eval()
    theirs = timm.create_model(f"local-dir:{ASSETS / 'mixer_micro'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(images), theirs(images), atol=1e-5) and theirs.num_classes == 200


PIPELINE = """
import json, sys
from transformers import pipeline
classify = pipeline("image-classification", sys.argv[1], device="cpu", top_k=5)
print(json.dumps({answer["label"]: answer["score"] for answer in classify(sys.argv[2])}))
"""


def test_transformers_and_timm_give_the_sigmoids_of_a_model_of_several_labels(tmp_path):
    pytest.importorskip("transformers")
    ours = load_backbone("gmlp_ti16_224", num_classes=5)
    torch.nn.init.normal_(ours.head.weight, std=0.5)
    ours.label_names, ours.task = list("abcde"), "multi_label"
    save_model_folder(tmp_path / "model", ours, ours.label_names)
    picture = tmp_path / "noise.png"
    Image.effect_noise((256, 256), 90).convert("RGB").resize((224, 224)).save(picture)
    expected = ours.eval().predict(picture)
    assert max(expected.values()) > 0.5 and abs(sum(expected.values()) - 1) > 0.05
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    with torch.inference_mode():
        by_timm = theirs(ours.preprocessing(Image.open(picture))[None]).sigmoid()[0]
    assert dict(zip("abcde", by_timm.tolist(), strict=True)) == pytest.approx(expected, abs=1e-5)
    done = subprocess.run(
        [sys.executable, "-c", PIPELINE, str(tmp_path / "model"), str(picture)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-3)
