"""LoRA and DoRA, against a loop written out in plain PyTorch around timm's Mixer and against peft."""

import json
import shutil

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_methods import assert_same, batches
from test_training_values import Plain, folder, pictures, trained  # noqa: F401
from torch.func import functional_call
from torch.optim.lr_scheduler import CosineAnnealingLR

from mixer_finetune import MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.adapter_folder import save_adapter_folder
from mixer_finetune.backbones.adapters import adapted_layers, is_adapter, merged_state
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.folder import save_model_folder
from mixer_finetune.training.averages import between, share_by_depth

pytestmark = pytest.mark.slow
SEED = 5
FAMILIES = {
    "mixer_nano_32": ({"mlp_tokens.fc1", "mlp_tokens.fc2"}, {"mlp_channels.fc1", "mlp_channels.fc2"}),
    "gmixer_12_224": ({"mlp_tokens.fc1", "mlp_tokens.fc2"}, {"mlp_channels.fc1", "mlp_channels.fc2"}),
    "resmlp_12_224": ({"linear_tokens"}, {"mlp_channels.fc1", "mlp_channels.fc2"}),
    "gmlp_ti16_224": ({"mlp_channels.gate.proj"}, {"mlp_channels.fc1", "mlp_channels.fc2"}),
}


def some_backbone(architecture, size=None):
    """With weights that count as trained, and none that is zero."""
    backbone = load_backbone(architecture, num_classes=3, image_size=size)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    backbone.origin["weights"] = "pretrained"
    return backbone


def shaken(model, by=0.05):
    """The trained parameters, changed."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("architecture", "kind"), [("mixer_nano_32", "lora"), *((architecture, "dora") for architecture in FAMILIES)]
)
def test_an_adapter_starts_from_the_base_and_merges_into_plain_weights_of_timms_names(architecture, kind):
    base = some_backbone(architecture, size=32 if architecture == "mixer_nano_32" else 64)
    expected = {name: value.clone() for name, value in base.state_dict().items()}
    images = torch.randn(2, 3, *base.image_size)
    with torch.no_grad():
        before = base(images)
        model = MixerClassifier(base, num_classes=3, head="keep", adapter=kind, adapter_rank=3)
        assert torch.allclose(model(images), before, atol=1e-5)
        after = shaken(model)(images)
        assert (after - before).abs().max() > 1e-3
        merged = model.assembled()
        assert torch.allclose(merged(images), after, atol=2e-5)
    assert {name: value.shape for name, value in merged.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert not adapted_layers(merged) and adapted_layers(model.backbone)  # a copy was merged
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert all(torch.equal(model.backbone.state_dict()[name], expected[name]) for name in frozen)
    maps = 3 if architecture in ("resmlp_12_224", "gmlp_ti16_224") else 4
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, expected[name])}
    assert len(changed - {"head.weight", "head.bias"}) == maps * len(base.blocks)


@pytest.mark.parametrize("train", ["all", "token-mixing", "channel-mixing", "last-2"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_train_says_which_maps_get_an_adapter_and_nothing_else_is_trained(architecture, train):
    with torch.device("meta"):
        backbone = Backbone(architecture, 3)
    backbone.origin["weights"] = "pretrained"
    model = MixerClassifier(backbone, num_classes=3, adapter="lora", train=train)
    tokens, channels = FAMILIES[architecture]
    parts = {"token-mixing": tokens, "channel-mixing": channels}.get(train, tokens | channels)
    n = len(model.backbone.blocks)
    blocks = range(n - 2, n) if train == "last-2" else range(n)
    assert set(adapted_layers(model.backbone)) == {f"blocks.{i}.{part}" for i in blocks for part in parts}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(is_adapter(name) or name.startswith("head.") for name in trained)
    assert len(trained) == 2 * len(parts) * len(blocks) + 2


def plain_adapter(folder, pictures, kind, rank, alpha, dtype=torch.float32):  # noqa: F811
    """Six steps of timm's Mixer whose weights are made of base and update at each step: losses and merged weights."""
    start = MixerClassifier(folder / "model", adapter=kind, adapter_rank=rank, adapter_alpha=alpha, seed=SEED)
    first = {name.removeprefix("backbone."): value for name, value in start.state_dict().items()}
    model = Plain(folder, dtype)
    base = {name: value.detach().clone() for name, value in model.named_parameters()}
    update, decayed, others = {}, [], list(model.mixer.head.parameters())[1:]
    for name, value in base.items():
        if name.startswith("mixer.blocks.") and value.ndim == 2:
            a = first[name.removeprefix("mixer.").replace("weight", "lora_A.weight")].to(dtype).clone()
            assert a.abs().max() <= value.shape[1] ** -0.5 and a.std() > 0.4 * value.shape[1] ** -0.5
            b, m = torch.zeros(len(value), rank, dtype=dtype), value.norm(dim=1)
            update[name] = [p.requires_grad_() for p in (a, b, m)]
            decayed += [a, b]
            others += [m] if kind == "dora" else []
    decayed.append(model.mixer.head.weight)
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=0.01
    )
    schedule, losses = CosineAnnealingLR(optimizer, 6), []

    def weights():
        made = {name: value for name, value in model.named_parameters() if "head" in name}
        for name, value in base.items():
            made.setdefault(name, value)
            if name in update:
                a, b, m = update[name]
                whole = value + alpha / rank * b @ a
                if kind == "dora":
                    whole = m[:, None] * whole / whole.detach().norm(dim=1, keepdim=True)
                made[name] = whole
        return made

    for x, labels in batches(pictures, dtype):
        loss = F.cross_entropy(functional_call(model, weights(), (x,)), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decayed + others, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, {name.removeprefix("mixer."): value.detach() for name, value in weights().items()}


OPTIONS = (
    "--model.optimizer", "adamw", "--model.lr", "0.01", "--model.weight_decay", "0.1", "--model.adapter_rank", "2",
    "--model.adapter_alpha", "6",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_six_steps_with_an_adapter_are_those_of_a_plain_loop(folder, pictures, kind):  # noqa: F811
    # In float64: AdamW divides tiny gradients, and their last bits, by their own size.
    ours = trained(folder, "--model.adapter", kind, *OPTIONS, "--trainer.precision", "64-true")
    expected = plain_adapter(folder, pictures, kind, 2, 6, torch.float64)
    assert ours[0][-1] < 0.9 * ours[0][0]  # it learns
    assert_same(ours, expected)


# Folders


@pytest.fixture
def adapted(folder, tmp_path):  # noqa: F811
    """A classifier with a changed adapter, and its adapter folder."""

    def make(kind="lora", **options):
        model = MixerClassifier(folder / "model", adapter=kind, adapter_rank=3, **options)
        whole = shaken(model).assembled(merged=False)
        save_adapter_folder(tmp_path / "adapter", whole, list("abc"), lambda name, _: load_backbone(name))
        return model, tmp_path / "adapter"

    return make


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("options", [{}, {"image_size": 48}, {"image_size": 48, "resize": "features", "in_chans": 1}])
def test_an_adapter_folder_loads_onto_its_base(adapted, kind, options):
    model, path = adapted(kind, **options)
    assert sum(file.stat().st_size for file in path.iterdir()) < 400_000
    merged, loaded = model.assembled(), load_backbone(path)
    assert loaded.label_names == list("abc") and loaded.geometry == merged.geometry
    for name, value in merged.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    again = MixerClassifier(path, label_names=list("abc"))
    assert "trained head kept" in again.head_note
    assert load_backbone(path, image_size=64).image_size == (64, 64)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_loads_an_adapter_folder_onto_timms_model(adapted, folder, kind):  # noqa: F811
    peft = pytest.importorskip("peft", reason="peft, of the extra `test`, is not installed")
    model, path = adapted(kind)
    theirs = peft.PeftModel.from_pretrained(Plain(folder).mixer, path).eval()
    assert len([name for name, _ in theirs.named_parameters() if "lora_A" in name]) == 32
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(images), model.eval()(images), atol=1e-5)
    merged = theirs.merge_and_unload().state_dict()
    for name, value in model.assembled().state_dict().items():
        assert torch.allclose(merged[name], value, atol=1e-6), name


def test_a_base_that_is_another_or_gone_is_refused_in_one_line(adapted, folder, tmp_path):  # noqa: F811
    _, path = adapted()
    settings = json.loads((path / "adapter_config.json").read_text())
    other = some_backbone("mixer_nano_32")
    save_model_folder(tmp_path / "other", other, None)

    def refused(**changes):
        (path / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
        with pytest.raises(UserError) as caught:
            load_backbone(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has other weights than those that" in refused(base_model_name_or_path=str(tmp_path / "other"))
    gone = refused(base_model_name_or_path=str(tmp_path / "gone"))
    assert "can't be loaded: no backbone" in gone and "write that to base_model_name_or_path" in gone
    assert "is not one of ours" in refused(peft_type="IA3")
    (path / "adapter_config.json").write_text(json.dumps(settings))
    weights = load_file(path / "adapter_model.safetensors")
    cut = {name: value[:, :-1] if "lora_A" in name else value for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in cut.items()}, path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit its base"):
        load_backbone(path)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="is not a whole adapter folder: it has no adapter_model.safetensors"):
        load_backbone(path)
    moved = shutil.copytree(folder / "model", tmp_path / "moved")
    model = MixerClassifier(moved, adapter="lora")
    with torch.no_grad():
        model.backbone.norm.bias.add_(1)
    with pytest.raises(UserError, match="the frozen weights are not those of .*norm.bias differs"):
        save_adapter_folder(tmp_path / "b", model.assembled(merged=False), None, lambda name, _: load_backbone(name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "ia3"}, "there is no adapter 'ia3'; use adapter none, lora or dora"),
        ({"adapter": "lora", "adapter_rank": 0}, "adapter_rank must be above 0"),
        ({"adapter": "dora", "train": "head"}, "DoRA trains updates of the backbone, and the head alone is to be"),
        ({"adapter": "lora", "freeze_backbone": True}, "leave out adapter, or what freezes the backbone"),
        ({"adapter": "lora", "train": "no-stem"}, "LoRA is for linear maps of the blocks, not for no-stem; use train"),
        ({"adapter": "lora", "backbone": "mixer_nano_32"}, "an adapter is for trained weights"),
    ],
)
def test_what_has_no_sense_with_an_adapter_is_refused_in_one_line(options, message):
    with pytest.raises(UserError) as caught:
        MixerClassifier(**{"backbone": "mixer_nano", "num_classes": 3, **options})
    assert message in str(caught.value) and "\n" not in str(caught.value)
    base = load_backbone("mixer_nano")
    MixerClassifier(base, num_classes=3, adapter="lora")
    with pytest.raises(UserError, match="the backbone has an adapter already"):
        MixerClassifier(base, num_classes=3, adapter="lora")


def test_a_checkpoint_with_another_adapter_is_refused_in_one_line():
    models = {
        "an adapter, and the model has none": {},
        "no adapter": {"adapter": "lora"},
        "another adapter": {"adapter": "lora", "adapter_alpha": 8},
    }
    for found, options in models.items():
        checkpoint = {}
        other = {} if found == "no adapter" else {"adapter": "lora"}
        writer = MixerClassifier("mixer_nano", num_classes=3, **other)
        writer.on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = writer.state_dict()
        with pytest.raises(UserError, match=f"the checkpoint has {found}; give adapter, adapter_rank"):
            MixerClassifier("mixer_nano", num_classes=3, **options).on_load_checkpoint(checkpoint)
        MixerClassifier("mixer_nano", num_classes=3, **other).on_load_checkpoint(checkpoint)


# On the way from the start


def test_lines_keeps_more_of_the_update_the_later_a_layer_comes():
    share = share_by_depth(0.2, 5)
    assert [share(f"backbone.blocks.{i}.mlp_tokens.fc1.weight") for i in range(5)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0]
    )
    assert share("backbone.stem.proj.weight") == 0.2 and share("backbone.norm.bias") == share("head.weight") == 1
    start, end = MixerClassifier("mixer_nano", num_classes=3), MixerClassifier("mixer_nano", num_classes=3)
    first, last = start.state_dict(), shaken(end).state_dict()
    n = len(start.backbone.blocks)
    for name, value in between(first, last, share_by_depth(0.3, n)).items():
        part = name.split(".")
        kept = {"stem": 0.3, "norm": 1.0, "weight": 1.0, "bias": 1.0}.get(part[1])
        kept = 0.3 + 0.7 * int(part[2]) / (n - 1) if kept is None else kept
        assert torch.allclose(value, first[name] + kept * (last[name] - first[name]), atol=1e-6), name


def test_an_adapter_goes_the_way_that_its_merged_weights_go():
    model = MixerClassifier("mixer_nano", num_classes=3, adapter="lora", adapter_alpha=4, adapter_rank=2)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    end = shaken(model).state_dict()
    whole = [merged_state(state, 2.0) for state in (start, end, between(start, end, 0.25))]
    for name, value in whole[2].items():
        expected = torch.lerp(whole[0][name], whole[1][name], 0.25)
        assert torch.allclose(value, expected, atol=1e-6), name
    timms = timm.models.mlp_mixer.MlpMixer(img_size=32, patch_size=4, num_blocks=8, embed_dim=96, num_classes=3)
    assert set(model.assembled().state_dict()) == set(timms.state_dict())
