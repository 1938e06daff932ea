import argparse
import json

import pytest
import timm
import torch
import torch.nn.functional as F

from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.models.backbone import (
    Backbone,
    interpolate_positions,
    load_backbone,
    resolve_precision,
    save_backbone,
)
from unsupseg_cli.models.backbones import ALIASES
from unsupseg_cli.models.memory import fitting_batch, with_backoff
from unsupseg_cli.models.vit import build_vit
from unsupseg_cli.models.weights import digest_tensors, read_weights

CPU = torch.device("cpu")
ARCH = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 8}


def small(**fields) -> Backbone:
    model = build_vit(ARCH, 32)
    return Backbone(model, "small", 8, digest_tensors(model.state_dict()), **fields)


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))


def test_tokens_have_the_grid_of_the_image(images):
    out = small()(images, keep=("patch", "cls", "pooled", "attention", "query", "key"))
    shapes = {name: tuple(value.shape) for name, value in out.items()}
    assert shapes == {
        "patch": (2, 5, 3, 48),
        "cls": (2, 48),
        "pooled": (2, 48),
        "attention": (2, 3, 5, 3),
        "query": (2, 5, 3, 48),
        "key": (2, 5, 3, 48),
    }
    torch.testing.assert_close(out["pooled"], F.normalize(out["patch"].mean((1, 2)), dim=-1))


def test_tokens_are_those_of_timm(images):
    backbone = small()
    expected = backbone.model.forward_features(images)
    out = backbone(images)
    torch.testing.assert_close(out["cls"], expected[:, 0])
    torch.testing.assert_close(out["patch"].flatten(1, 2), expected[:, 1:])


@pytest.mark.parametrize("norm", [True, False])
def test_tokens_of_several_layers_stand_side_by_side_at_one_length(images, norm):
    both = small(layer=(-1, -3), norm=norm)
    last, third = small(norm=norm), small(layer=-3, norm=norm)
    arrays = ("patch", "cls", "pooled", "key", "attention")
    out, of_last = both(images, keep=arrays), last(images, keep=arrays)
    assert both.dim == out["patch"].shape[-1] == out["pooled"].shape[-1] == 2 * 48
    first, second = out["patch"].split(48, -1)
    torch.testing.assert_close(first, of_last["patch"])
    torch.testing.assert_close(first.norm(dim=-1), second.norm(dim=-1))
    torch.testing.assert_close(F.normalize(second, dim=-1), F.normalize(third(images)["patch"], dim=-1))
    for name in ("cls", "key", "attention"):  # are the deepest one's
        torch.testing.assert_close(out[name], of_last[name])
    with pytest.raises(UsageError, match="--layer -4 is outside -3 to -1"):
        small(layer=(-1, -4))


def test_an_earlier_layer_is_what_an_earlier_block_gives(images):
    backbone = small(layer=-2, norm=False)
    expected = backbone.model.get_intermediate_layers(images, n=[1], norm=False)[0]
    torch.testing.assert_close(backbone(images)["patch"].flatten(1, 2), expected)
    with pytest.raises(UsageError, match="-3 to -1"):
        small(layer=-4)


def test_recomputed_attention_is_that_of_the_last_block(images):
    backbone = small()
    block = backbone.model.blocks[-1]
    block.attn.fused_attn = False
    caught = {}
    block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: caught.update(a=output))
    out = backbone(images, keep=("attention", "query", "key"))
    torch.testing.assert_close(out["attention"].flatten(2), caught["a"][:, :, 0, 1:])
    assert (out["attention"].sum((-1, -2)) < 1).all()
    q = out["query"].view(2, 15, 3, 16).movedim(2, 1)
    k = out["key"].view(2, 15, 3, 16).movedim(2, 1)
    logits = q @ k.mT * block.attn.scale
    ratio = caught["a"][:, :, 1:, 1:] / logits.softmax(-1)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))  # equal but for the CLS column


def test_a_batch_does_not_change_its_images(images):
    backbone = small()
    torch.testing.assert_close(
        backbone(images)["patch"][:1], backbone(images[:1])["patch"], atol=1e-5, rtol=1e-4
    )


def test_normalising_gives_zero_for_the_mean_colour():
    backbone = small()
    mean = (backbone.mean.view(3)).round().to(torch.uint8)
    assert backbone.normalise(mean.view(1, 1, 1, 3)).abs().max() < 0.02


def test_bf16_stays_close_to_fp32(images):
    exact = small()(images)["patch"]
    rough = small().prepare("bf16", CPU)(images)["patch"]
    assert F.cosine_similarity(exact, rough, dim=-1).min() > 0.999


def dino_like_checkpoint():
    """A ViT-S/16 in DINO's original names, as the full training checkpoint holds it."""
    model = timm.create_model("vit_small_patch16_224", num_classes=0)
    state = {f"module.backbone.{name}": value for name, value in model.state_dict().items()}
    state["module.head.mlp.0.weight"] = torch.zeros(3, 3)
    return model, {"student": {}, "teacher": state, "args": argparse.Namespace(arch="vit_small"), "epoch": 3}


def test_a_full_dino_checkpoint_gives_the_teacher(tmp_path, images):
    model, checkpoint = dino_like_checkpoint()
    torch.save(checkpoint, tmp_path / "dino.pth")
    loaded = load_backbone("dino_vits16", tmp_path / "dino.pth", pos_embed="timm")
    big = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(loaded(big)["patch"].flatten(1, 2), model.eval().forward_features(big)[:, 1:])


@pytest.mark.parametrize("order", [("teacher", "student"), ("student", "teacher")])
@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_a_flat_checkpoint_of_both_networks_gives_the_teacher(tmp_path, order, wrapper):
    state = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    both = {
        f"{wrapper}{network}.backbone.{name}": value + (network == "student")
        for network in order
        for name, value in state.items()
    }
    torch.save({"model": both}, tmp_path / "both.pth")
    tensors = read_weights(tmp_path / "both.pth")
    assert set(tensors) == set(state)
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_a_dinov2_file_with_registers_folds_the_position_of_cls(tmp_path):
    """The original keeps 1 + 37 x 37 positions, the first for CLS; timm's model adds none to CLS."""
    model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0)
    state = model.state_dict()
    names = {"reg_token": "register_tokens"}
    original = {names.get(name, name).replace("blocks.", "blocks.0."): value for name, value in state.items()}
    position = torch.randn(1, 1, 384)
    original["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    original["mask_token"] = torch.zeros(1, 384)
    torch.save(original, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    tensors = read_weights(tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    assert {name: value.shape for name, value in tensors.items()} == {n: v.shape for n, v in state.items()}
    torch.testing.assert_close(tensors["cls_token"], state["cls_token"] + position)
    loaded = load_backbone("dinov2_vits14_reg", tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    assert loaded.prefix_tokens == 5
    model.cls_token.data += position
    image = torch.randn(1, 3, 518, 518)
    expected = model.eval().forward_features(image)
    out = loaded(image)
    torch.testing.assert_close(out["patch"].flatten(1, 2), expected[:, 5:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(out["cls"], expected[:, 0], atol=1e-4, rtol=1e-3)


def test_dinov3_names_are_translated(tmp_path):
    model = timm.create_model("vit_small_patch16_dinov3", num_classes=0, dynamic_img_size=True).eval()
    original = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for name, value in model.state_dict().items():
        name = name.replace("reg_token", "storage_tokens")
        original[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = value
    for block in range(12):
        bias = torch.zeros(3 * 384)
        bias[384:768] = float("nan")  # the keys' part, masked out
        original[f"blocks.{block}.attn.qkv.bias"] = bias
        original[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(3 * 384)
    torch.save(original, tmp_path / "v3.pth")
    loaded = load_backbone("dinov3_vits16", tmp_path / "v3.pth")
    image = torch.randn(1, 3, 64, 96)
    expected = model.forward_features(image)[:, 5:]
    torch.testing.assert_close(loaded(image)["patch"].flatten(1, 2), expected)
    with pytest.raises(UsageError, match="keep patch"):
        loaded(image, keep=("attention",))
    original["blocks.3.attn.qkv.bias"] = torch.ones(3 * 384)  # biases that the model has no place for
    torch.save(original, tmp_path / "v3.pth")
    with pytest.raises(UnsupsegError, match=r"unknown: blocks\.3\.attn\.qkv\.bias"):
        load_backbone("dinov3_vits16", tmp_path / "v3.pth")


@pytest.mark.parametrize("name", ["tiny", "untrained"])
def test_a_weights_file_is_never_ignored(tmp_path, name):
    with pytest.raises(UsageError, match=r"takes no --weights.*other\.pth"):
        load_backbone(name, tmp_path / "other.pth")


def test_images_are_normalised_as_the_weights_expect(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    loaded = load_backbone("timm:vit_tiny_patch16_224.augreg_in21k", tmp_path / "w.pth")
    assert (loaded.mean / 255).flatten().tolist() == pytest.approx([0.5, 0.5, 0.5])
    for alias in ("dino_vits16", "dino_vits8_300ep", "dinov2_vits14"):
        row = ALIASES[alias]
        config = timm.get_pretrained_cfg(f"{row.timm}.{row.tag}" if row.tag else row.timm)
        assert config.mean == pytest.approx((0.485, 0.456, 0.406))
        assert config.std == pytest.approx((0.229, 0.224, 0.225))


def test_a_vit_without_cls_gives_patches_but_no_cls(tmp_path):
    name = "vit_base_patch16_siglip_224"
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "w.pth")
    loaded = load_backbone(f"timm:{name}", tmp_path / "w.pth")
    assert loaded(torch.randn(1, 3, 32, 48), keep=("patch",))["patch"].shape == (1, 2, 3, 768)
    with pytest.raises(UsageError, match="no CLS token: --keep patch,pooled, or take a ViT of DINO"):
        loaded(torch.randn(1, 3, 32, 48))


def test_the_checkpoints_own_grid_of_positions_is_kept(tmp_path):
    big = build_vit({"embed_dim": 384, "depth": 12, "num_heads": 6, "patch_size": 8}, 64)
    torch.save(big.state_dict(), tmp_path / "w.pth")  # a grid of 8x8 instead of 28x28
    loaded = load_backbone("dino_vits8", tmp_path / "w.pth", pos_embed="timm")
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        loaded(image)["patch"].flatten(1, 2), big.eval().forward_features(image)[:, 1:]
    )


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UnsupsegError, match="safetensors"):
        read_weights(tmp_path / "evil.pth")
    assert "code ran" not in capsys.readouterr().out


def test_weights_of_another_architecture_are_named(tmp_path):
    _, checkpoint = dino_like_checkpoint()
    torch.save(checkpoint, tmp_path / "s16.pth")
    with pytest.raises(UnsupsegError, match=r"not those of 'dino_vitb16'.*another shape.*dino_vits16"):
        load_backbone("dino_vitb16", tmp_path / "s16.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(UnsupsegError, match=r"missing: cls_token.*unknown: conv1.weight"):
        load_backbone("dino_vits16", tmp_path / "resnet.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UnsupsegError, match=r"text\.pth"):
        load_backbone("dino_vits16", tmp_path / "text.pth")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'dinov2_vitb14'"):
        load_backbone("dinov2_vitb15")
    with pytest.raises(UsageError, match="no ViT"):
        load_backbone("timm:resnet50")
    with pytest.raises(UsageError, match="one size only"):
        load_backbone("timm:vit_relpos_small_patch16_224")


def test_without_network_and_file_both_ways_are_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnsupsegError, match=r"--weights FILE .*dino_deitsmall16_pretrain.pth.*network"):
        load_backbone("dino_vits16")
    with pytest.raises(UnsupsegError, match="on no hub"):
        load_backbone("dino_vits8_300ep")


def test_the_untrained_backbone_is_the_same_every_time():
    assert load_backbone("untrained").weights_digest == load_backbone("untrained").weights_digest


@pytest.mark.parametrize(
    ("grid", "side", "offset"), [((40, 40), 28, 0.1), ((23, 23), 37, 0.1), ((40, 60), 28, 0.1)]
)
def test_positions_follow_the_formula_of_the_original(grid, side, offset):
    """Bicubic convolution (a = -0.75) written out, with the scale (size + 0.1) / s of the published code."""
    positions = torch.randn(1, side * side, 2, generator=torch.Generator().manual_seed(1))
    got = interpolate_positions(positions, *grid, offset, antialias=False)
    field = positions.view(side, side, 2)

    def weights(target, count):
        scale = side / (count + offset) if offset else side / count
        matrix = torch.zeros(count, side)
        centre = (target + 0.5) * scale - 0.5
        for row, x in enumerate(centre.tolist()):
            low = int(torch.floor(torch.tensor(x)))
            for tap in range(low - 1, low + 3):
                d, a = abs(x - tap), -0.75
                if d <= 1:
                    w = (a + 2) * d**3 - (a + 3) * d**2 + 1
                else:
                    w = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
                matrix[row, min(max(tap, 0), side - 1)] += w
        return matrix

    rows, columns = weights(torch.arange(grid[0]), grid[0]), weights(torch.arange(grid[1]), grid[1])
    expected = torch.einsum("rs,stc,qt->rqc", rows, field, columns).reshape(1, -1, 2)
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-3)


def test_the_trained_grid_is_not_interpolated():
    positions = torch.randn(1, 16, 3)
    assert interpolate_positions(positions, 4, 4, 0.1, antialias=False) is positions


@pytest.mark.parametrize("stem", [None, {"channels": [8, 16, 48], "stride": [2, 2, 2]}])
def test_a_pretrained_backbone_is_saved_and_loaded_and_guarded(tmp_path, images, stem):
    arch = ARCH | ({"stem": stem} if stem else {})
    try:
        model = build_vit(arch, 32)
    except (TypeError, ValueError):
        pytest.skip("this version of timm takes one stride for the stem")
    save_backbone(tmp_path, model, {"arch": arch, "size": 32, "patch_size": 8})
    loaded = load_backbone("mine", tmp_path)
    expected = model.eval().forward_features(images)[:, 1:]
    torch.testing.assert_close(loaded(images)["patch"].flatten(1, 2), expected, atol=2e-2, rtol=2e-2)
    meta = json.loads((tmp_path / "backbone.json").read_text())
    (tmp_path / "backbone.json").write_text(json.dumps(meta | {"digest": "0" * 64}))
    with pytest.raises(UnsupsegError, match="altered"):
        load_backbone("mine", tmp_path)
    del meta["digest"]
    (tmp_path / "backbone.json").write_text(json.dumps(meta))
    with pytest.raises(UnsupsegError, match="lacks digest"):
        load_backbone("mine", tmp_path)


def test_precision_is_resolved():
    assert resolve_precision("fp16", CPU) == "fp16"
    assert resolve_precision("auto", CPU) in {"fp32", "bf16"}


def test_a_batch_is_sized_to_the_free_memory(monkeypatch):
    class Memory:
        available = 4 * 16 * 4 * 100 * 48 * 5  # a quarter of it holds five images of 100 tokens

    monkeypatch.setattr("psutil.virtual_memory", Memory)
    assert fitting_batch(100, 48, CPU, most=16) == 5
    assert fitting_batch(100, 48, CPU, most=2) == 2
    assert fitting_batch(100_000, 48, CPU, most=16) == 1


def test_batches_are_halved_until_they_fit():
    sizes = []

    def run(part):
        if len(part) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        sizes.append(len(part))
        return [value * 2 for value in part]

    assert list(with_backoff(run, list(range(10)), 8)) == [value * 2 for value in range(10)]
    assert max(sizes) <= 3

    def broken(part):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(with_backoff(broken, [1, 2], 2))
