"""The CLS row of a block: its token is the one that `extract` keeps, its gradient that of the whole attention."""

import pytest
import torch
import torch.nn.functional as F

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.models.backbone import Backbone
from unsupseg_cli.models.class_row import class_row
from unsupseg_cli.models.vit import build_vit

ARCH = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8}
KINDS = {
    "plain": {},
    "layer scale": {"init_values": 0.3},
    "registers": {"reg_tokens": 4, "init_values": 0.5, "no_embed_class": True},
    "norms of queries": {"qk_norm": True},
}


def backbone(layer=-1, **fields):
    model = build_vit({**ARCH, **fields}, 32, seed=1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return Backbone(model, "made up", 8, "", layer=layer)


def images(count=3):
    return torch.randn(count, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def by_autograd(network, shown, concepts):
    """The gradients by autograd through the block, with the attention written out as a tensor of its own."""
    block, attention = network.vit.blocks[network.layer], network.vit.blocks[network.layer].attn
    tokens = network.tokens_before(shown).detach()
    batch, count, channels = tokens.shape
    shape = (batch, count, 3, 3, channels // 3)
    query, key, value = attention.qkv(block.norm1(tokens)).view(shape).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    full = (query @ key.mT * attention.scale).softmax(-1).requires_grad_()
    out = block.ls1(attention.proj((full @ value).transpose(1, 2).flatten(2)))
    after = tokens + out
    after = network.vit.norm(after + block.ls2(block.mlp(block.norm2(after))))
    rows = []
    for concept in concepts:
        loss = (1 - F.cosine_similarity(after[:, 0], concept[None])).sum()
        (gradient,) = torch.autograd.grad(loss, full, retain_graph=True)
        rows.append(gradient[:, :, 0, network.prefix_tokens :].mean(1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd_on_the_whole_attention(kind, layer):
    network = backbone(layer, **KINDS[kind])
    concepts = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    row = class_row(network, images())
    expected = by_autograd(network, images(), concepts)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(row.gradients(concepts), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_token_and_attention_are_those_that_extract_keeps(kind, layer):
    network = backbone(layer, **KINDS[kind])
    row = class_row(network, images())
    kept = network(images(), keep=("cls", "attention"))
    torch.testing.assert_close(row.class_token(row.mixed()), kept["cls"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(row.attention, kept["attention"].flatten(2))


@pytest.mark.parametrize("kind", KINDS)
def test_under_the_whole_image_the_token_is_that_of_the_image_and_under_a_part_that_of_a_masked_softmax(kind):
    network = backbone(**KINDS[kind])
    row = class_row(network, images())
    shares = torch.ones(3, 2, 24)
    shares[:, 1] = (torch.arange(24) % 3 == 0).float()
    tokens = row.class_token(row.under(shares))
    torch.testing.assert_close(tokens[:, 0], network(images(), keep=("cls",))["cls"], rtol=1e-4, atol=1e-5)
    block, attention = network.vit.blocks[-1], network.vit.blocks[-1].attn
    before = network.tokens_before(images())
    query, key, value = attention.qkv(block.norm1(before)).view(3, -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(query), attention.k_norm(key)
    logits = query @ key.mT * attention.scale
    logits[..., network.prefix_tokens :].masked_fill_(shares[0, 1] == 0, -torch.inf)
    after = before + block.ls1(attention.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2)))
    after = network.vit.norm(after + block.ls2(block.mlp(block.norm2(after))))
    torch.testing.assert_close(tokens[:, 1], after[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["gated attention", "parallel blocks"])
def test_blocks_of_another_kind_are_refused(change):
    network = backbone()
    block = network.vit.blocks[-1]
    if change == "gated attention":
        block.attn.gate = torch.nn.Linear(24, 24)
    else:
        del block.ls2
    with pytest.raises(UsageError, match="of another kind than a plain ViT's"):
        class_row(network, images())


def test_a_backbone_without_a_class_token_is_refused():
    network = backbone(class_token=False, global_pool="avg")
    with pytest.raises(UsageError, match="has no CLS token"):
        class_row(network, images())
