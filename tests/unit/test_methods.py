"""Methods of training, against loops written out in plain PyTorch around timm's Mixer."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import FSDPStrategy
from test_training_values import BATCH, CLASSES, IMAGES, SEED, Plain, folder, pictures, trained  # noqa: F401
from timm.loss import BinaryCrossEntropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from mixer_finetune import MixerClassifier, UserError, load_backbone
from mixer_finetune.backbones.preprocessing import Preprocessing, normalize
from mixer_finetune.data.sampling import epoch_order
from mixer_finetune.training.layers import choose_trained, layer_of
from mixer_finetune.training.losses import Loss
from mixer_finetune.training.losses.settings import Settings
from mixer_finetune.training.optimization import build_optimizer
from mixer_finetune.training.sharpness import Sharpness
from mixer_finetune.training.task import SINGLE_LABEL

pytestmark = pytest.mark.slow  # together half of a minute


def batches(pictures, dtype):  # noqa: F811
    for epoch in range(2):
        order = epoch_order(IMAGES, SEED, epoch)
        for i in range(3):
            indices = order[i * BATCH : (i + 1) * BATCH].copy()
            x = normalize(torch.from_numpy(pictures[indices]).permute(0, 3, 1, 2), Preprocessing((32, 32)))
            yield x.to(dtype), torch.from_numpy(indices % CLASSES)


def loop(folder, pictures, optimizers_of, second=None, dtype=torch.float32):  # noqa: F811
    """Six steps: losses and the weights at the end.

    Args:
        second: Called with (model, loss function) when the gradient is there; it may put another in its place.
        dtype: Of model and images.
    """
    model, losses = Plain(folder, dtype), []
    optimizers = optimizers_of(model)
    schedules = [CosineAnnealingLR(optimizer, 6) for optimizer in optimizers]
    for x, labels in batches(pictures, dtype):

        def loss_at(x=x, labels=labels):
            return F.cross_entropy(model(x), labels)

        model.zero_grad()
        loss = loss_at()
        loss.backward()
        if second:
            second(model, loss_at)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
    return losses, model.mixer.state_dict()


def sgd(model):
    return [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)]


def assert_same(ours, theirs):
    losses, weights = ours
    expected, expected_weights = theirs
    assert len(losses) == 6 and losses == pytest.approx(expected, rel=1e-5)
    for key, value in expected_weights.items():
        assert torch.allclose(weights[key], value, rtol=1e-4, atol=1e-5), key


# Rates


def test_layer_decay_is_that_of_a_plain_loop(folder, pictures):  # noqa: F811
    def groups(model):
        found = []
        for name, parameter in model.mixer.named_parameters():
            part = name.split(".")
            depth = {"stem": 0, "norm": 8, "head": 9}.get(part[0])
            depth = int(part[1]) + 1 if depth is None else depth
            rate = 0.05 * 0.6 ** (9 - depth) * (3 if part[0] == "head" else 1)
            found.append({"params": [parameter], "lr": rate, "weight_decay": 0.01 if parameter.ndim > 1 else 0.0})
        return [torch.optim.SGD(found, momentum=0.9)]

    options = ("--model.layer_decay", "0.6", "--model.head_lr_factor", "3", "--model.weight_decay", "0.01")
    assert_same(trained(folder, *options), loop(folder, pictures, groups))


@pytest.mark.parametrize("architecture", ["mixer_nano_32", "gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"])
def test_norms_biases_and_scales_never_decay_and_the_final_norm_goes_with_the_last_block(architecture):
    model = MixerClassifier(architecture, num_classes=3, layer_decay=0.5, weight_decay=0.1)
    blocks = len(model.backbone.blocks)
    optimizer = build_optimizer(model, "sgd", 1.0, 0.9, 0.1, lambda name: 0.5 ** (blocks + 1 - layer_of(name, blocks)))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group, last = groups[id(parameter)], name.split(".")[-1]
        is_matrix = last == "weight" and "norm" not in name
        assert (group["weight_decay"] == 0.1) is is_matrix, name
    last_block = groups[id(model.backbone.blocks[-1].mlp_channels.fc1.weight)]["lr"]
    final = [groups[id(p)]["lr"] for p in model.backbone.norm.parameters()]
    assert set(final) == {last_block} == {0.5}
    assert groups[id(model.head.weight)]["lr"] == 1
    assert groups[id(model.backbone.stem.proj.weight)]["lr"] == 0.5 ** (blocks + 1)


# What is trained


@pytest.mark.parametrize(
    ("architecture", "train", "expected"),
    [
        ("mixer_nano_32", "token-mixing", {"mlp_tokens.fc1", "mlp_tokens.fc2"}),
        ("mixer_nano_32", "channel-mixing", {"mlp_channels.fc1", "mlp_channels.fc2"}),
        ("gmixer_12_224", "token-mixing", {"mlp_tokens.fc1", "mlp_tokens.fc2"}),
        ("resmlp_12_224", "token-mixing", {"linear_tokens"}),
        ("resmlp_12_224", "channel-mixing", {"mlp_channels.fc1", "mlp_channels.fc2"}),
        ("gmlp_ti16_224", "token-mixing", {"mlp_channels.gate.proj"}),
        ("gmlp_ti16_224", "channel-mixing", {"mlp_channels.fc1", "mlp_channels.fc2"}),
    ],
)
def test_token_and_channel_mixing_are_the_linear_maps_of_each_block(architecture, train, expected):
    backbone = load_backbone(architecture, num_classes=0)
    choose_trained(backbone, train)
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    n = len(backbone.blocks)
    assert names == {f"blocks.{i}.{part}.{leaf}" for i in range(n) for part in expected for leaf in ("weight", "bias")}


def test_the_other_choices_train_what_they_say():
    def chosen(train):
        model = MixerClassifier("mixer_nano_32", num_classes=3, train=train)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    everything, head = chosen("all"), chosen("head")
    assert head == {"head.weight", "head.bias"}
    assert everything - chosen("no-stem") == {"backbone.stem.proj.weight", "backbone.stem.proj.bias"}
    last = chosen("last-2")
    assert {name.split(".")[2] for name in last if ".blocks." in name} == {"6", "7"}
    assert {"backbone.norm.weight", "head.weight"} < last
    spared = chosen("norms-biases")
    assert all(name.endswith("bias") or ".norm" in name for name in spared - head)
    assert len(spared - head) == len([n for n in everything - head if n.endswith("bias") or ".norm" in n])
    frozen = MixerClassifier("mixer_nano_32", num_classes=3, freeze_backbone=True)
    assert {name for name, p in frozen.named_parameters() if p.requires_grad} == head


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "last-9"}, "mixer_nano_32 has 8 blocks, so the last 9 can't be trained; use train last-1 to last-8"),
        ({"train": "blocks"}, "there is no choice 'blocks' of what to train; use train all, head"),
        ({"train": "last-1", "freeze_backbone": True}, "a frozen backbone trains the head alone, not last-1"),
        ({"train": "head", "unfreeze_every": 5}, "gradual unfreezing ends with everything trained"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1"),
        ({"sam_adaptive": True}, "ASAM needs the length of its perturbation"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"loss": "logit_adjusted", "class_weights": "balanced"}, "correct the same imbalance twice"),
        ({"lr": "big"}, "expected a learning rate, got 'big'"),
        ({"lr": "auto", "optimizer": torch.optim.Adam}, "has its own rate"),
        ({"lr": "auto", "lr_scheduler": lambda optimizer: None}, "can't take a rate that is found; give lr"),
        ({"lr": "auto", "head": "probe"}, "a range test finds rates for a head that has still to learn"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'; use optimizer sgd, adamw or muon"),
        ({"head": "old"}, "there is no head 'old'"),
        ({"head": "names"}, "the backbone has no trained head; use head new or probe"),
    ],
)
def test_bad_combinations_are_refused_in_one_line(options, message):
    with pytest.raises(UserError) as caught:
        MixerClassifier("mixer_nano_32", num_classes=3, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_gradual_unfreezing_is_that_of_a_plain_loop(folder, pictures):  # noqa: F811
    steps = iter(range(6))

    def freeze(model, _):
        trained_layers = next(steps) // 2
        for name, parameter in model.mixer.named_parameters():
            part = name.split(".")
            turn = {"head": 0, "norm": 1, "stem": 9}.get(part[0], 8 - int(part[1]) if part[0] == "blocks" else 0)
            if turn > trained_layers:
                parameter.grad = None

    ours = trained(folder, "--model.unfreeze_every", "2")
    assert_same(ours, loop(folder, pictures, sgd, second=freeze))


# Optimizers


def test_muon_is_torchs_on_the_matrices_and_adamw_on_the_rest(folder, pictures):  # noqa: F811
    def both(model):
        inner = [(n, p) for n, p in model.mixer.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
        rest = [(n, p) for n, p in model.mixer.named_parameters() if not (n.startswith("blocks.") and p.ndim == 2)]
        muon = torch.optim.Muon(
            [p for _, p in inner], lr=0.003, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        )
        groups = [{"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0} for _, p in rest]
        return [muon, torch.optim.AdamW(groups, lr=0.003)]

    # In float64: Muon rounds gradients to bf16, which makes much of the last bit of a float32.
    options = ("--model.optimizer", "muon", "--model.lr", "0.003", "--model.weight_decay", "0.1")
    ours = trained(folder, *options, "--trainer.precision", "64-true")
    assert_same(ours, loop(folder, pictures, both, dtype=torch.float64))


def test_muons_state_survives_a_checkpoint_and_it_takes_groups():
    model = MixerClassifier("mixer_nano_32", num_classes=3)
    first, second = (build_optimizer(model, "muon", 0.01, 0.9, 0.1) for _ in range(2))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    first.step()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saved = copy.deepcopy(first.state_dict())
    first.step()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(before)
    second.load_state_dict(saved)
    second.step()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    extra = torch.nn.Parameter(torch.ones(2, 2))
    extra.grad = torch.ones(2, 2)
    second.add_param_group({"params": [extra], "lr": 0.5})
    second.step()
    assert (extra < 1).all()


def test_a_torch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match="has no Muon, which came with torch 2.9"):
        build_optimizer(MixerClassifier("mixer_nano_32", num_classes=3), "muon", 0.01, 0.9, 0.1)


@pytest.mark.parametrize(("rho", "adaptive"), [(0.3, False), (2.0, True)])
def test_sam_and_asam_are_those_of_a_plain_loop(folder, pictures, rho, adaptive):  # noqa: F811
    def worst_nearby(model, loss_at):
        parameters = list(model.parameters())
        before = [p.detach().clone() for p in parameters]
        scale = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
        norm = sum((s * p.grad).square().sum() for s, p in zip(scale, parameters, strict=True)).sqrt()
        with torch.no_grad():
            for p, s in zip(parameters, scale, strict=True):
                p += rho * s**2 * p.grad / norm
        model.zero_grad()
        loss_at().backward()
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)

    expected = loop(folder, pictures, sgd, second=worst_nearby)
    assert expected[0] != pytest.approx(loop(folder, pictures, sgd)[0], rel=1e-3)  # it makes a difference
    options = ("--model.sam_rho", str(rho), "--model.sam_adaptive", str(adaptive).lower())
    assert_same(trained(folder, *options), expected)


@pytest.mark.parametrize("method", [("sam_rho", "0.3"), ("optimizer", "muon"), ("unfreeze_every", "2")])
def test_micro_batches_change_no_method(folder, method):  # noqa: F811
    options = (f"--model.{method[0]}", method[1], "--trainer.precision", "64-true", "--model.drop_path", "0.2")
    _, one = trained(folder, *options)
    _, cut = trained(folder, *options, "--data.micro_batch_size", "3")
    # Muon's other parameters are AdamW's, which divides tiny gradients, and their last bits, by their own size.
    limit = 1e-10 if method[1] == "muon" else 1e-12
    for key, value in one.items():
        assert (cut[key] - value).abs().max() < limit, key


def test_sam_is_refused_where_weights_are_split():
    trainer = SimpleNamespace(strategy=object.__new__(FSDPStrategy))
    with pytest.raises(UserError, match="sam_rho needs whole weights on each device, which FSDPStrategy splits"):
        Sharpness(0.05, adaptive=False).check(trainer)


# Losses


def targets_of(kind, labels, classes):
    if kind == "hard":
        return labels
    return 0.7 * F.one_hot(labels, classes).double() + 0.3 * F.one_hot(labels.roll(1), classes)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_those_of_their_papers(kind, smoothing):
    logits, labels = torch.randn(9, 5, dtype=torch.float64), torch.randint(5, (9,))
    targets = targets_of(kind, labels, 5)
    soft = targets if kind == "soft" else F.one_hot(targets, 5).double()
    soft = soft * (1 - smoothing) + smoothing / 5

    def value(name, weights=None, **more):
        return float(Loss(SINGLE_LABEL, name, Settings(smoothing, **more), weights)(logits, targets))

    log_p = logits.log_softmax(-1)
    assert value("cross_entropy") == pytest.approx(float(-(soft * log_p).sum()), rel=1e-12)
    theirs = BinaryCrossEntropy(smoothing=0.0 if kind == "soft" else smoothing, sum_classes=True)
    expected = theirs(logits, soft if kind == "soft" else labels)
    assert value("binary") == pytest.approx(9 * float(expected), rel=1e-6)
    focal = 0.0
    for row, target in zip(logits, soft, strict=True):
        p = row.softmax(0)
        focal += sum(float(-target[c] * (1 - p[c]) ** 1.5 * torch.log(p[c])) for c in range(5))
    assert value("focal", focal_gamma=1.5) == pytest.approx(focal, rel=1e-9)
    assert value("focal", focal_gamma=0.0) == pytest.approx(value("cross_entropy"), rel=1e-9)
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64)
    adjusted = -(soft * (logits + prior.log()).log_softmax(-1)).sum()
    assert value("logit_adjusted", log_prior=prior.log()) == pytest.approx(float(adjusted), rel=1e-12)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    weighted = value("cross_entropy", weights=weights)
    if kind == "hard" and smoothing == 0:
        assert weighted == pytest.approx(float(F.cross_entropy(logits, labels, weights, reduction="sum")), rel=1e-12)
    each = -(soft * log_p).sum(-1)
    of_image = weights[labels] if kind == "hard" else targets @ weights
    assert weighted == pytest.approx(float((of_image * each).sum()), rel=1e-12)


def test_accuracy_of_soft_targets_is_that_of_their_largest_class():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert int(SINGLE_LABEL.right(logits, torch.tensor([[0.6, 0.4], [0.9, 0.1], [1.0, 0.0]]))) == 2
