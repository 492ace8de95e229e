import numpy as np
import pytest
import torch
from PIL import Image

from mixer_finetune import UserError, load_backbone
from mixer_finetune.backbones.backbone import Backbone
from mixer_finetune.backbones.families import VARIANTS

# arXiv 2105.01601, Table 1: millions of parameters without the head.
PAPER = {
    "mixer_s32_224": 19, "mixer_s16_224": 18, "mixer_b32_224": 60, "mixer_b16_224": 59,
    "mixer_l32_224": 206, "mixer_l16_224": 207, "mixer_h14_224": 431,
}  # fmt: skip


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_are_the_papers(name):
    with torch.device("meta"):
        model = Backbone(name, num_classes=0)
    # The paper rounds; S/32 is 18.59 M and L/16 207.2 M.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PAPER[name], abs=0.7)


def test_a_new_head_gives_zero_logits_and_pre_logits_are_one_call_away():
    model = load_backbone("mixer_nano_32", num_classes=7)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), torch.zeros(2, 7))
    assert model.forward_pre_logits(images).shape == (2, VARIANTS["mixer_nano_32"].embed_dim)
    assert torch.equal(load_backbone("mixer_nano_32", num_classes=0)(images), model.forward_pre_logits(images))


def test_fresh_weights_are_a_function_of_the_seed():
    first, again, other = (load_backbone("mixer_nano_32", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["stem.proj.weight"], other["stem.proj.weight"])


def test_drop_path_of_keep_zero_leaves_the_image_out_of_a_branch():
    model = load_backbone("mixer_nano_32", num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    keep = torch.ones(8, 2, 2)
    assert torch.allclose(model(images, keep), model(images), atol=1e-6)
    keep[:, :, 1] = 0
    only_stem = model.norm(model.stem(images)).mean(0)
    assert torch.allclose(model(images, keep)[1], only_stem[1], atol=1e-6)
    assert not torch.allclose(model(images, keep)[0], only_stem[0], atol=1e-2)


def test_an_image_size_that_is_no_multiple_of_the_patch_names_the_nearest_ones():
    with pytest.raises(UserError, match="224 or 240"):
        load_backbone("mixer_b16_224", image_size=230)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match=r"= \(3, 32, 32\), got \(3, 64, 64\)"):
        load_backbone("mixer_nano_32")(torch.zeros(1, 3, 64, 64))


def test_checkpointed_activations_give_the_same_gradients():
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for checkpointed in (False, True):
        model = load_backbone("mixer_nano")
        model.checkpoint_activations = checkpointed
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


@pytest.mark.slow
def test_compiling_keeps_the_parameters_names():
    plain, compiled = load_backbone("mixer_nano_32"), load_backbone("mixer_nano_32")
    compiled.compile_blocks()
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert all(block._compiled_call_impl is not None for block in compiled.blocks)


def test_without_a_compiler_compiling_is_refused(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler.*leave out compile$"):
        load_backbone("mixer_nano_32").compile_blocks()


# Under another head


@pytest.fixture
def nano():
    return load_backbone("mixer_nano")


def test_another_head_shares_the_body_and_leaves_the_original_as_it_was(nano):
    names, before = nano.label_names, list(nano.state_dict())
    other = nano.with_head(torch.nn.Linear(96, 3))
    assert (other.num_classes, other.label_names) == (3, None)
    other.label_names = ["a", "b", "c"]
    assert (nano.num_classes, nano.label_names, list(nano.state_dict())) == (10, names, before)
    assert all(mine is theirs for mine, theirs in zip(nano.blocks.parameters(), other.blocks.parameters(), strict=True))
    with torch.no_grad():
        nano.stem.proj.weight.zero_()
    assert not other.stem.proj.weight.any()
    other.register_forward_hook(lambda *given: torch.zeros(()))
    assert nano(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_a_head_keeps_its_names_and_answers_away_from_its_backbone_and_back(nano):
    images = torch.randn(2, 3, 32, 32)
    body, head = nano.with_head(torch.nn.Identity()), nano.head
    assert (body.num_classes, body.label_names, body.origin) == (0, None, nano.origin)
    assert torch.equal(body(images), nano.forward_pre_logits(images))
    assert not [key for key in body.state_dict() if key.startswith("head")]
    again = body.with_head(head)
    assert torch.equal(again(images), nano(images)) and list(again.state_dict()) == list(nano.state_dict())
    assert again.label_names == nano.label_names and len(again.label_names) == 10
    again.replace_head(10)
    assert again.label_names is None and nano.label_names is not None


def test_compiled_blocks_and_what_is_changed_later_stay_with_both(nano):
    nano.compile_blocks()
    other = nano.with_head(torch.nn.Identity())
    assert all(block._compiled_call_impl is not None for block in other.blocks)
    other.origin["source"] = other.checkpoint_activations = "changed"
    assert nano.origin["source"] == "mixer_nano" and nano.checkpoint_activations is False


def test_a_head_that_does_not_fit_is_refused(nano):
    with pytest.raises(UserError, match="needs a linear layer.*; ReLU has none"):
        nano.with_head(torch.nn.ReLU())
    with pytest.raises(UserError, match="has 10 classes, but there are 2 label names"):
        nano.label_names = ["a", "b"]
    deep = torch.nn.Sequential(torch.nn.Linear(96, 7), torch.nn.ReLU(), torch.nn.Linear(7, 4))
    assert nano.with_head(deep).num_classes == 4


# Answers for images


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(path)
    return path


def test_an_image_is_answered_by_label_names_the_most_probable_first(nano, photo):
    found = nano.predict(photo, top_k=3)
    expected = nano.eval()(nano.preprocessing(photo)[None]).softmax(-1)[0]
    top = expected.topk(3)
    assert list(found) == [nano.label_names[i] for i in top.indices]
    assert list(found.values()) == pytest.approx(top.values.tolist())
    assert nano.predict(Image.open(photo), top_k=3) == found
    assert sum(nano.predict(str(photo), top_k=99).values()) == pytest.approx(1)


def test_several_images_are_answered_in_their_order_more_than_one_batch_of_them(nano, photo):
    images = [Image.new("RGB", (40, 40), (i * 5, 100, 255 - i * 5)) for i in range(40)]
    found = nano.predict([*images, photo])
    assert len(found) == 41 and nano.predict([]) == []
    for image, answer in zip([*images, photo], found, strict=True):
        assert nano.predict(image) == pytest.approx(answer, abs=1e-6)


def test_answers_leave_the_mode_of_every_module_as_it_was(nano, photo):
    nano.train()
    nano.blocks[2].eval()
    before = [module.training for module in nano.modules()]
    seen = []
    nano.blocks[0].register_forward_hook(
        lambda module, *given: seen.append((module.training, torch.is_inference_mode_enabled()))
    )
    nano.predict(photo)
    assert seen == [(False, True)] and [module.training for module in nano.modules()] == before


def test_classes_without_names_are_answered_by_number_and_a_shared_name_keeps_both(nano, photo):
    expected = nano.predict(photo, top_k=10)
    names = nano.label_names
    nano.label_names = None
    assert nano.predict(photo, top_k=10) == {str(names.index(name)): value for name, value in expected.items()}
    nano.label_names = ["same"] * 10
    assert list(nano.predict(photo, top_k=10).values()) == list(expected.values())


def test_what_can_not_be_answered_is_one_line(nano, photo, tmp_path):
    with pytest.raises(UserError, match="has no head, so it can't classify"):
        nano.with_head(torch.nn.Identity()).predict(photo)
    with pytest.raises(UserError, match="at least one label, got 0; use top_k 1 or more"):
        nano.predict(photo, top_k=0)
    with pytest.raises(UserError, match=r"nothing\.png can't be decoded \(.*No such file"):
        nano.predict(tmp_path / "nothing.png")
    assert nano.training
