"""Files that others publish: each layout is written here from a backbone of ours, and must load as that backbone."""

import re

import numpy as np
import pytest
import torch

from mixer_finetune import UserError, load_backbone


def random_backbone(name, image_size=None):
    model = load_backbone(name, num_classes=3, image_size=image_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def flax_arrays(model, old_layout=False):
    """The arrays of Google's files: kernels input first, and in the older layout other names and extra axes."""
    arrays = {}
    for key, value in model.state_dict().items():
        module, leaf = key.rsplit(".", 1)
        array = value.numpy()
        if leaf == "weight":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        leaf = {"weight": "scale" if "norm" in module else "kernel", "bias": "bias"}[leaf]
        module = module.replace("stem.proj", "stem")
        module = re.sub(r"^norm$", "pre_head_layer_norm", module)
        block = re.match(r"blocks\.(\d+)\.(.*)", module)
        if block:
            inner = block[2].replace("norm1", "LayerNorm_0").replace("norm2", "LayerNorm_1")
            inner = re.sub(r"mlp_(token|channel)s\.fc(\d)", lambda m: f"{m[1]}_mixing/Dense_{int(m[2]) - 1}", inner)
            module = f"MixerBlock_{block[1]}/{inner}"
        name = f"{module}/{leaf}"
        if old_layout:
            name = name.replace("stem/", "embedding/").replace("pre_head_layer_norm", "Mixer/encoder_norm")
            name = re.sub(r"^MixerBlock_", "Mixer/encoderblock_", name)
            dense = re.search(r"(token|channel)_mixing/Dense_(\d)/(kernel|bias)", name)
            if dense:
                name = name.replace(dense[0], f"{dense[1]}_mixing_phase_0/{dense[3]}{int(dense[2]) + 1}")
                array = array[None]
        arrays[name] = array
    return arrays


def reference_mixer(arrays, images, patch):
    """The Mixer in NumPy, from the paper's equations 1 and as the Flax code has it: tanh GELU, epsilon 1e-6, NHWC."""

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]

    def mlp(x, name):
        hidden = gelu(x @ arrays[f"{name}/Dense_0/kernel"] + arrays[f"{name}/Dense_0/bias"])
        return hidden @ arrays[f"{name}/Dense_1/kernel"] + arrays[f"{name}/Dense_1/bias"]

    arrays = {key: value.astype(np.float64) for key, value in arrays.items()}
    batch, height, width, _ = images.shape
    patches = images.reshape(batch, height // patch, patch, width // patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    kernel = arrays["stem/kernel"]
    x = patches.reshape(batch, -1, patch * patch * 3) @ kernel.reshape(-1, kernel.shape[-1]) + arrays["stem/bias"]
    for i in range(sum(name.endswith("LayerNorm_0/scale") for name in arrays)):
        block = f"MixerBlock_{i}"
        x = x + mlp(norm(x, f"{block}/LayerNorm_0").swapaxes(1, 2), f"{block}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, f"{block}/LayerNorm_1"), f"{block}/channel_mixing")
    return norm(x, "pre_head_layer_norm").mean(1) @ arrays["head/kernel"] + arrays["head/bias"]


@pytest.mark.parametrize("old_layout", [False, True])
@pytest.mark.slow
def test_a_flax_file_gives_flaxs_outputs(old_layout, tmp_path):
    model = random_backbone("mixer_s32_224", 64)
    np.savez(tmp_path / "Mixer.npz", **flax_arrays(model, old_layout))
    loaded = load_backbone(tmp_path / "Mixer.npz").eval()
    assert (loaded.architecture, loaded.image_size, loaded.activation) == ("mixer_s32_224", (64, 64), "gelu_tanh")
    images = torch.randn(2, 3, 64, 64)
    expected = reference_mixer(flax_arrays(model), images.permute(0, 2, 3, 1).double().numpy(), 32)
    error, error_of_exact_gelu = (
        np.abs(outputs(images).detach().numpy() - expected).max() / np.abs(expected).max()
        for outputs in (loaded, model)
    )
    assert error < 1e-5
    assert error_of_exact_gelu > 5 * error and error_of_exact_gelu > 2e-5  # the form matters


def facebook_state(model):
    names = {"stem.": "patch_embed.", "linear_tokens": "attn", "mlp_channels": "mlp", ".ls": ".gamma_"}
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[key] = value.flatten() if key.endswith(("alpha", "beta")) else value
    return state


def openmmlab_state(model):
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("stem.proj", "backbone.patch_embed.projection").replace("head.", "head.fc.")
        key = re.sub(r"^norm\.", "backbone.ln1.", key)
        key = re.sub(r"blocks\.(\d+)\.norm", r"backbone.layers.\1.ln", key)
        key = re.sub(r"blocks\.(\d+)\.mlp_(token|channel)s\.fc1", r"backbone.layers.\1.\2_mix.layers.0.0", key)
        key = re.sub(r"blocks\.(\d+)\.mlp_(token|channel)s\.fc2", r"backbone.layers.\1.\2_mix.layers.1", key)
        state[key] = value
    return {"state_dict": state, "meta": {"epoch": 1}}


@pytest.mark.parametrize(
    ("name", "size", "layout"),
    [
        ("resmlp_12_224", 64, facebook_state),
        ("resmlp_12_224", 64, lambda model: {"model": facebook_state(model)}),
        ("mixer_s16_224", 64, openmmlab_state),
        ("gmixer_12_224", 48, lambda model: model.state_dict()),
        ("gmlp_ti16_224", 48, lambda model: {"state_dict": model.state_dict()}),
    ],
)
def test_a_pth_file_of_each_layout_loads_with_equal_outputs(name, size, layout, tmp_path):
    model = random_backbone(name, size)
    torch.save(layout(model), tmp_path / "weights.pth")
    loaded = load_backbone(tmp_path / "weights.pth").eval()
    assert loaded.architecture == name and loaded.preprocessing == model.preprocessing
    images = torch.randn(2, 3, size, size)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.slow
def test_a_missing_and_an_unknown_key_are_named(tmp_path):
    arrays = flax_arrays(random_backbone("mixer_s32_224", 64))
    del arrays["MixerBlock_3/token_mixing/Dense_1/bias"]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"missing blocks\.3\.mlp_tokens\.fc2\.bias"):
        load_backbone(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **arrays, **{"Transformer/posembed": np.zeros(3)})
    with pytest.raises(UserError, match="holds 'Transformer/posembed', which is in no Flax file of a mixer"):
        load_backbone(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("cut.npz", b"PK\x03\x04 cut off", "can't be read"),
        ("object.npz", None, "refused: it holds pickled objects"),
        ("text.pth", b"no weights", "refused: it holds pickled code or objects"),
        ("empty.safetensors", b"", "can't be read"),
    ],
)
def test_a_file_that_is_none_is_one_line(file, content, message, tmp_path):
    if content is None:
        np.savez(tmp_path / file, a=np.array([{"code": 1}], dtype=object))
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_backbone(tmp_path / file)


def test_weights_of_another_family_or_size_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="no weights of a known family .*: it begins with conv1.weight"):
        load_backbone(tmp_path / "resnet.pth")
    state = {
        key: value for key, value in random_backbone("mixer_s32_224", 64).state_dict().items() if "blocks.7" not in key
    }
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(UserError, match="a mixer of 7 blocks, 512 channels and 4 tokens, which is no architecture"):
        load_backbone(tmp_path / "short.pth")
