"""Weights files of every kind: read where they can be, else named as what they are."""

import http.server
import json
import threading
import time
import zipfile

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, resnet50

from unsupseg_cli.core.errors import UnsupsegError
from unsupseg_cli.models.backbone import load_backbone
from unsupseg_cli.models.deeplab import load_resnet
from unsupseg_cli.models.weights import read_weights

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


@pytest.fixture(scope="module")
def state():
    """The tensors of a small ViT by timm's names."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **VIT).state_dict()


def same(tensors, state):
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert all(torch.equal(tensors[name], value) for name, value in state.items())


# Wrappers and containers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module._orig_mod.",
        "_fsdp_wrapped_module.",
        "model.net.vit.",
        "student.backbone.",
        "network.",
    ],
)
@pytest.mark.parametrize("container", ["", "state_dict", "model", "ema"])
def test_wrappers_and_containers_are_stripped(tmp_path, state, prefix, container):
    named = {f"{prefix}{name}": value for name, value in state.items()}
    named[f"{prefix}head.weight"] = torch.zeros(2, 24)
    optimizer = {"state": {0: torch.zeros(3)}}
    torch.save({container: named, "optimizer": optimizer} if container else named, tmp_path / "w.ckpt")
    same(read_weights(tmp_path / "w.ckpt"), state)


def test_wrapped_blocks_inside_are_unwrapped(tmp_path, state):
    named = {
        name.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): value for name, value in state.items()
    }
    torch.save(named, tmp_path / "w.pt")
    same(read_weights(tmp_path / "w.pt"), state)


def test_two_networks_without_a_teacher_are_refused(tmp_path, state):
    torch.save({"a": state, "b": state}, tmp_path / "w.pt")
    with pytest.raises(UnsupsegError, match=r"hold 2 networks \('a', 'b'\), none of them the one teacher"):
        read_weights(tmp_path / "w.pt")


# Hugging Face --------------------------------------------------------------------------------------------


def hugging_face_vit(state, prefix):
    """Return the tensors by the names of ViTModel."""
    out = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
        "pooler.dense.weight": torch.zeros(24, 24),
    }
    names = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    return {f"{prefix}{name}": value for name, value in (out | blocks(state, names, split_vit)).items()}


def split_vit(part):
    return f"attention.attention.{ {'q': 'query', 'k': 'key', 'v': 'value'}[part] }"


def blocks(state, names, split, layer="encoder.layer"):
    out = {}
    for name, value in state.items():
        if not name.startswith("blocks."):
            continue
        _, number, rest = name.split(".", 2)
        inner, kind = rest.rsplit(".", 1)
        if inner == "attn.qkv":
            out |= {
                f"{layer}.{number}.{split(part)}.{kind}": third.clone()
                for part, third in zip("qkv", value.chunk(3), strict=True)
            }
        else:
            out[f"{layer}.{number}.{names.get(inner, inner)}.{kind}"] = value
    return out


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_hugging_face_vit(tmp_path, state, prefix):
    file = tmp_path / "pytorch_model.bin"
    save_file(hugging_face_vit(state, prefix), file)
    same(read_weights(file), state)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_hugging_face_dinov2(tmp_path, registers, prefix):
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    state = timm.create_model(name, **VIT).state_dict()
    out = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 24),
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if registers:
        out["embeddings.register_tokens"] = state["reg_token"]
        out["embeddings.position_embeddings"] = torch.cat([torch.zeros(1, 1, 24), state["pos_embed"]], 1)
    found = blocks(state, {"attn.proj": "attention.output.dense"}, split_vit)
    out |= {key.replace("ls1.gamma", "layer_scale1.lambda1").replace("ls2.gamma", "layer_scale2.lambda1"): value
            for key, value in found.items()}  # fmt: skip
    save_file(
        {f"{prefix}{key}": value.contiguous() for key, value in out.items()}, tmp_path / "m.safetensors"
    )
    same(read_weights(tmp_path / "m.safetensors"), state)


def test_hugging_face_dinov3(tmp_path):
    state = timm.create_model("vit_small_patch16_dinov3", num_classes=0).state_dict()
    out = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 1, 384),
        "embeddings.register_tokens": state["reg_token"],
        "embeddings.patch_embeddings.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.bias": state["patch_embed.proj.bias"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    plain = {name.replace("gamma_1", "layer_scale1.lambda1").replace("gamma_2", "layer_scale2.lambda1"): value
             for name, value in state.items()}  # fmt: skip
    names = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    out |= blocks(plain, names, lambda part: f"attention.{part}_proj", "layer")
    for block in range(12):  # of keys there is none; timm's model has none at all, so they must be zero
        out |= {f"layer.{block}.attention.{part}_proj.bias": torch.zeros(384) for part in "qv"}
    save_file({name: value.contiguous() for name, value in out.items()}, tmp_path / "m.safetensors")
    same(read_weights(tmp_path / "m.safetensors"), state)
    loaded = load_backbone("dinov3_vits16", tmp_path / "m.safetensors")
    assert loaded(torch.randn(1, 3, 32, 48))["patch"].shape == (1, 2, 3, 384)


# Types ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_used_in_float32(tmp_path, dtype):
    model = timm.create_model("vit_small_patch16_224", num_classes=0, img_size=64)  # a grid of its own
    save_file(
        {name: value.to(dtype) for name, value in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    loaded = load_backbone("dino_vits16", tmp_path / "w.safetensors")
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}
    assert loaded(torch.randn(1, 3, 32, 48))["patch"].isfinite().all()


def test_quantised_weights_are_refused(tmp_path, state):
    whole = {name: value.to(torch.int8) for name, value in state.items()}
    save_file(whole, tmp_path / "w.safetensors")
    with pytest.raises(UnsupsegError, match=r"whole numbers .*int8"):
        read_weights(tmp_path / "w.safetensors")


# Files of other kinds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors", "ckpt", ""])
@pytest.mark.parametrize("form", ["safetensors", "torch", "legacy"])
def test_the_content_counts_not_the_name(tmp_path, state, suffix, form):
    file = tmp_path / f"w.{suffix}"
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=form == "torch")
    same(read_weights(file), state)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 345\n"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (LFS.encode(), "pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html><head>", "web page"),
        (b"\n  <html>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "web page"),
        (b'{"error": "Repository not found"}', "JSON text"),
        (b"Entry not found", "is text, which begins 'Entry not found'"),
        (b"\x1f\x8b\x08\x00abc", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (bytes(range(200, 256)), "no known format"),
        (b"\x80\x02cut", "damaged"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, suffix, content, said):
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    refused(file, said)


def refused(file, said):
    with pytest.raises(UnsupsegError, match=said) as error:
        read_weights(file)
    message = str(error.value)
    assert str(file) in message
    assert "weights_only" not in message
    assert "torch.load" not in message


@pytest.mark.parametrize("form", ["safetensors", "torch"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_cut_file_is_named(tmp_path, state, form, keep):
    file = tmp_path / "w.pth"
    save_file(state, file) if form == "safetensors" else torch.save(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    refused(file, "cut short")


def test_programs_archives_and_folders_are_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    refused(tmp_path / "program.pt", "TorchScript")
    with zipfile.ZipFile(tmp_path / "jax.npz", "w") as archive:
        archive.writestr("params.npy", b"x")
    refused(tmp_path / "jax.npz", "NumPy archive")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("model/w.pth", b"x")
    refused(tmp_path / "all.zip", "zip archive of other files")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    refused(tmp_path / "whole.pth", r"objects other than tensors \(torch\.nn\.modules\.linear\.Linear")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(json.dumps({}))
    refused(tmp_path / "folder", "are a folder.*it holds none")
    (tmp_path / "folder" / "model.safetensors").write_text("")
    refused(tmp_path / "folder", r"such as '.*model\.safetensors'")


# The hub -------------------------------------------------------------------------------------------------


class _Slow(http.server.BaseHTTPRequestHandler):
    """Answers at once at the root and never elsewhere."""

    def do_HEAD(self):
        if self.path != "/":
            self.server.stop.wait(20)
        self.send_response(200)
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815 - the names that http.server calls

    def log_message(self, *_):
        pass


@pytest.fixture
def slow_host():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    server.stop, server.daemon_threads = threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()
    server.shutdown()


def test_a_host_that_answers_but_gives_no_file_is_a_silent_hub(monkeypatch, tmp_path, slow_host):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", slow_host)
    monkeypatch.setattr("unsupseg_cli.models.hub._SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(UnsupsegError, match=r"127.0.0.1:\d+\) does not answer.*--weights FILE .*or run once"):
        load_backbone("dino_vits16")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V1.value, "url", f"{slow_host}/resnet50-0676ba61.pth")
    with pytest.raises(
        UnsupsegError, match=r"ResNet-50 .*does not answer, tried 2 times.*give --set resnet=FILE"
    ):
        load_resnet(resnet50(), "hub")
    assert time.monotonic() - began < 9


def test_a_hub_that_does_not_answer_is_told_in_seconds_with_both_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://192.0.2.1")  # of documentation: nobody
    monkeypatch.setattr("unsupseg_cli.models.hub._SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(UnsupsegError, match=r"does not answer, tried 2 times.*--weights FILE .*or run once"):
        load_backbone("dino_vits16")
    assert time.monotonic() - began < 9


class _Stalls(http.server.BaseHTTPRequestHandler):
    """Promises a file, sends some of it, and then nothing."""

    def do_HEAD(self):
        self.send_response(200)
        for name, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", "1000000")):
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.server.asked += 1
        self.do_HEAD()
        self.wfile.write(bytes(self.server.sent))
        self.server.stop.wait(20)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("sent", [0, 10, 100_000])
def test_a_download_that_stands_still_is_told_in_seconds_with_both_ways_out(
    monkeypatch, tmp_path, capfd, sent
):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stalls)
    server.stop, server.daemon_threads, server.sent, server.asked = threading.Event(), True, sent, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", host)
    template = f"{host}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("unsupseg_cli.models.hub._STALLED", 0.5)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V1.value, "url", f"{host}/resnet50-0676ba61.pth")
    try:
        began = time.monotonic()
        said = (
            r"download from the hub \(http://127.0.0.1:\d+\) stands still, tried 2 times: give .*or run once"
        )
        with pytest.raises(UnsupsegError, match=said):
            load_backbone("dino_vits16")
        assert server.asked <= 3  # a busy machine may give up before the server has counted
        assert time.monotonic() - began < 9
        with pytest.raises(
            UnsupsegError, match=r"ResNet-50 .*stands still, tried 2 times.*give --set resnet=FILE"
        ):
            load_resnet(resnet50(), "hub")
        assert time.monotonic() - began < 18
        assert "Trying to resume" not in capfd.readouterr().err
    finally:
        server.stop.set()
        server.shutdown()


def test_a_download_that_ends_is_taken_from_the_cache_afterwards(monkeypatch, tmp_path):
    """The hub is asked for the file once; a client that loads it finds it, and the settings are what they were."""
    from huggingface_hub import constants

    from unsupseg_cli.models.hub import hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("unsupseg_cli.models.hub._answers", lambda url: True)
    before = (constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.DOWNLOAD_CHUNK_SIZE)
    with hub("a/file", lambda: (tmp_path / "file").write_text("x"), tmp_path):
        assert (tmp_path / "file").read_text() == "x"
        assert not constants.HF_HUB_OFFLINE
    assert before == (constants.HF_HUB_DOWNLOAD_TIMEOUT, constants.DOWNLOAD_CHUNK_SIZE)

    def refuse():
        raise ValueError("no such repository")

    with pytest.raises(ValueError, match="no such repository"), hub("a/file", refuse, tmp_path):
        raise OSError("not in the cache")
