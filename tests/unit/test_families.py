"""The table of families and architectures, their sizes, and the listing that the command `backbones` prints."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from mixer_finetune import UserError, load_backbone
from mixer_finetune.backbones import listing
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import BUNDLED, FAMILIES, VARIANTS, get_family, get_variant, tagged
from mixer_finetune.backbones.geometry import Geometry
from mixer_finetune.backbones.load import ASSETS
from mixer_finetune.backbones.size import model_size
from mixer_finetune.backbones.tokens import TokenLinear, TokenMixing
from mixer_finetune.cli import backbones

ONE_EACH = {"mixer": "mixer_nano_32", "gmixer": "gmixer_12_224", "resmlp": "resmlp_12_224", "gmlp": "gmlp_ti16_224"}
one_each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


# Families


def small(family):
    """A backbone of the family on a grid of 3 x 2 patches."""
    name = ONE_EACH[family.name]
    patch = VARIANTS[name].patch_size
    return load_backbone(name, num_classes=3, image_size=(3 * patch, 2 * patch)).eval()


def test_every_family_describes_itself_under_the_name_of_its_module():
    assert [family.name for family in FAMILIES] == list(ONE_EACH)
    for family in FAMILIES:
        module = sys.modules[f"mixer_finetune.backbones.{family.name}"]
        assert module.FAMILY is family
        assert all(get_family(name) is family for name in family.variants)


@one_each
def test_a_family_names_the_sides_of_all_that_depends_on_the_number_of_tokens(family):
    """Where N tokens differ, and where the hidden width does: by the shapes of two models, and by `sides`."""
    name = ONE_EACH[family.name]
    patch, hidden = VARIANTS[name].patch_size, VARIANTS[name].token_hidden

    def shapes(tokens, width):
        with torch.device("meta"):
            model = Backbone(name, 3, Geometry((patch, tokens * patch), patch, token_hidden=width))
        return {key: value.shape for key, value in model.state_dict().items()}

    few, many, wide = shapes(5, hidden), shapes(7, hidden), shapes(5, hidden and 2 * hidden)
    for key, shape in few.items():
        sides = next((sides for ending, sides in family.sides.items() if key.endswith(ending)), ())
        spatial = tuple(a != b for a, b in zip(shape, many[key], strict=True))
        of_hidden = tuple(a != b for a, b in zip(shape, wide[key], strict=True))
        assert [side == "tokens" for side in sides] == [s for s in spatial][: len(sides)], key
        assert [side in ("hidden", "gated") for side in sides] == [s for s in of_hidden][: len(sides)], key
        assert sides or not any(spatial + of_hidden), key


@one_each
def test_a_family_recognises_its_own_weights_alone(family):
    weights = small(family).state_dict()
    hidden = VARIANTS[ONE_EACH[family.name]].token_hidden
    found = {other.name: other.recognise(weights) for other in FAMILIES}
    assert found.pop(family.name) == (6, hidden) and set(found.values()) == {None}


@one_each
@pytest.mark.slow
def test_what_is_put_in_the_place_of_a_token_linear_is_used(family):
    """As an adapter does: the linear map across tokens, and something of its own beside it."""

    class Adapter(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.down, self.up = base, TokenLinear(base.in_features, 2), TokenLinear(2, base.out_features)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    original = small(family)
    geometry = original.geometry
    enlarged = replace(geometry, image_size=tuple(2 * side for side in geometry.image_size), trained_grid=geometry.grid)
    for model in (original, Backbone(original.architecture, 3, enlarged).eval()):
        for name, parameter in model.named_parameters():
            if ".ls" in name:
                nn.init.ones_(parameter)  # else a ResMLP's branches hardly count
        images = torch.randn(2, 3, *model.image_size)
        before = model.forward_pre_logits(images)
        parents = [(module, name) for module in model.modules() for name, _ in module.named_children()]
        found = [(parent, name) for parent, name in parents if isinstance(getattr(parent, name), TokenLinear)]
        for parent, name in found:
            setattr(parent, name, Adapter(getattr(parent, name)))
        assert len(found) == len(model.blocks) * (2 if "mixer" in family.name else 1)
        assert torch.allclose(model.forward_pre_logits(images), before, atol=1e-6)
        for parent, name in found:
            nn.init.normal_(getattr(parent, name).up.weight)
            changed = model.forward_pre_logits(images)
            assert not torch.allclose(changed, before, atol=1e-5)
            before = changed


@one_each
def test_all_that_mixes_tokens_is_a_token_linear(family):
    """No other parameter has a side for the tokens, and each TokenLinear is inside what can resample around it."""
    model = small(family)
    inside = {id(linear) for part in model.modules() if isinstance(part, TokenMixing) for linear in part.modules()}
    spatial = {key for key, _ in model.named_parameters() if any(key.endswith(end) for end in family.sides)}
    linears = [(key, part) for key, part in model.named_modules() if isinstance(part, TokenLinear)]
    assert spatial == {f"{key}.{leaf}" for key, _ in linears for leaf in ("weight", "bias")}
    assert all(id(part) in inside for _, part in linears)


# The table


def test_an_unknown_architecture_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'mixer_b16_244' \(did you mean mixer_b16_224\?\); known are mixer_nano_32"):
        get_variant("mixer_b16_244")
    with pytest.raises(UserError, match="unknown architecture 'x'; known"):
        get_family("x")


def test_a_tag_is_found_with_and_without_timms_name_before_it():
    variant, weights = tagged("timm/mixer_b16_224.goog_in21k")
    assert variant is VARIANTS["mixer_b16_224"] and weights.num_classes == 21843
    assert tagged("mixer_b16_224.goog_in21k") == (variant, weights)
    assert tagged("mixer_b16_224.none") is None and tagged("someone/else") is None


def test_what_is_bundled_is_there():
    assert BUNDLED == {"mixer_nano": "mixer_nano_32", "mixer_micro": "mixer_micro_64"}
    for name, architecture in BUNDLED.items():
        assert (ASSETS / name / "model.safetensors").is_file()
        assert load_backbone(name).architecture == architecture


# Sizes


@pytest.mark.parametrize(
    # Of timm's result files, which count some element-wise work too.
    ("name", "gmacs"),
    [("mixer_b16_224", 12.62), ("mixer_l16_224", 44.60), ("resmlp_24_224", 5.96), ("gmlp_s16_224", 4.42)],
)
def test_multiply_accumulates_are_the_published_ones(name, gmacs):
    assert model_size(name, num_classes=1000).macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_a_size_is_that_of_the_resolution_and_the_head():
    """By hand, of the Mixer: C = 96, D_S = 48, D_C = 384, 8 blocks, patches of 4 x 4 x 3."""

    def by_hand(tokens, token_hidden, classes):
        token = 2 * tokens * token_hidden + token_hidden + tokens
        channel, norms = 2 * 96 * 384 + 384 + 96, 4 * 96
        parameters = 8 * (token + channel + norms) + 48 * 96 + 96 + 2 * 96 + (96 + 1) * classes
        products = 8 * (2 * tokens * token_hidden * 96 + 2 * 96 * 384 * tokens) + 48 * 96 * tokens + 96 * classes
        return parameters, products

    assert model_size("mixer_nano_32") == by_hand(64, 48, 0)
    assert model_size("mixer_nano_32", Geometry((64, 32), 4), num_classes=10) == by_hand(128, 48, 10)
    assert model_size("mixer_nano_32", Geometry((64, 64), 4, token_hidden=192)) == by_hand(256, 192, 0)
    resampled = model_size("mixer_nano_32", Geometry((64, 64), 4, trained_grid=(8, 8)))
    assert resampled.parameters == by_hand(64, 48, 0)[0] and resampled.macs > by_hand(64, 48, 0)[1]


# The listing


def test_the_listing_in_the_package_is_fresh():
    content = json.loads(listing.LISTING_FILE.read_text())
    assert content["source_hash"] == listing.source_hash(), "run: python -m mixer_finetune.backbones.size"
    from mixer_finetune.backbones.size import listing as counted

    assert content["architectures"] == json.loads(json.dumps(counted()))


def test_the_command_answers_without_torch():
    script = (
        "import sys; from mixer_finetune.cli.backbones import main; main([]); main(['show', 'mixer_b16_224']); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("content", [None, "", "[]", '{"source_hash": "another", "architectures": {"wrong": {}}}'])
@pytest.mark.slow
def test_a_listing_that_is_stale_or_none_is_counted_anew(content, tmp_path):
    path = tmp_path / "backbones.json"
    if content is not None:
        path.write_text(content)
    assert list(backbones._architectures(path)) == list(VARIANTS)


def test_any_change_of_a_source_file_makes_the_listing_stale(tmp_path, monkeypatch):
    for path in listing._FOLDER.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fresh = listing.source_hash()
    monkeypatch.setattr(listing, "_FOLDER", tmp_path)
    assert listing.source_hash() == fresh
    (tmp_path / "mixer.py").write_bytes((tmp_path / "mixer.py").read_bytes().replace(b"\n", b"\r\n"))
    assert listing.source_hash() == fresh  # as git may check it out
    (tmp_path / "mixer.py").write_bytes((tmp_path / "mixer.py").read_bytes().replace(b"768", b"769"))
    changed = listing.source_hash()
    (tmp_path / "fifth.py").write_text("")
    assert len({fresh, changed, listing.source_hash()}) == 3


def test_the_command_lists_all_and_shows_each(capsys):
    assert backbones.main([]) == 0
    table = capsys.readouterr().out
    assert all(f"\n{name} " in table for name in VARIANTS)
    assert "mixer_b16_224          59.11   12.60  224  goog_in21k, goog_in21k_ft_in1k (76.62) (!)" in table
    assert "bundled as mixer_nano" in table and "4 Flax file(s) of Google's" in table
    for name, variant in VARIANTS.items():
        assert backbones.main(["show", name]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"{name} ({get_family(name).name}): ")
        assert all(f"--model.backbone timm/{name}.{weights.tag}\n" in shown for weights in variant.weights)
        assert all(f"--model.backbone gs://mixer_models/{file}\n" in shown for file in variant.google_files)


def test_the_command_shows_pre_processing_and_warnings_and_takes_the_name_of_weights(capsys):
    backbones.main(["show", "timm/mixer_b16_224.miil_in21k"])
    shown = capsys.readouterr().out
    assert "11,221 classes\n    mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0), bilinear, crop 0.875\n" in shown
    assert "warning: the tag says ImageNet-21k" in shown and "ImageNet-1k top-1 76.616%" in shown


def test_words_that_are_not_the_commands_are_refused():
    with pytest.raises(UserError, match="unknown backbone 'mixer_b61'; did you mean mixer_b16_224"):
        backbones.main(["show", "mixer_b61"])
    with pytest.raises(UserError, match=r"expected: backbones \[show NAME\]"):
        backbones.main(["list"])
