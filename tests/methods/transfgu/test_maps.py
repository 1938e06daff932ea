"""Maps as they are stored: put together again they are those that were made, and no patch changes its concept."""

import pytest
import torch

from unsupseg_cli.methods.transfgu.maps import pack_maps, unpack_maps


def maps_of(seed, concepts=27, height=9, width=12):
    draw = torch.Generator().manual_seed(seed)
    attention = torch.rand(height, width, generator=draw)
    evidence = torch.rand(concepts, height, width, generator=draw).pow(4) * 10 ** (-3 * (seed % 3))
    open_to = torch.rand(concepts, height, width, generator=draw) < 0.6
    evidence = torch.where(open_to & (torch.rand(evidence.shape, generator=draw) < 0.4), evidence, 0)
    return attention / attention.max(), open_to, evidence


def together(attention, open_to, evidence):
    return torch.where(open_to, attention + evidence, 0)


@pytest.mark.parametrize("concepts", [3, 27, 171])
@pytest.mark.parametrize("seed", range(6))
def test_the_highest_concept_of_each_patch_is_that_of_the_maps_themselves(seed, concepts):
    given = maps_of(seed, concepts)
    stored = unpack_maps(pack_maps(*given, top=8), concepts)
    assert torch.equal(stored.argmax(0), together(*given).argmax(0))


def test_all_values_come_back_where_every_concept_is_kept():
    attention, open_to, evidence = maps_of(1, 6)
    stored = unpack_maps(pack_maps(attention, open_to, evidence, top=6), 6)
    direct = together(attention, open_to, evidence)
    assert torch.equal(stored == 0, direct == 0)
    torch.testing.assert_close(stored, direct, rtol=0, atol=1e-3 * float(evidence.max()))


def test_beside_the_highest_few_a_concept_has_the_attention_alone():
    attention, open_to, evidence = maps_of(2)
    stored = unpack_maps(pack_maps(attention, open_to, evidence, top=2), 27)
    rank = together(attention, open_to, evidence).argsort(dim=0, descending=True, stable=True).argsort(dim=0)
    assert torch.equal(stored[open_to & (rank >= 2)], attention.expand_as(rank)[open_to & (rank >= 2)])


def test_evidence_that_hardly_differs_keeps_its_order():
    attention, open_to = torch.full((1, 1), 0.5), torch.ones(4, 1, 1, dtype=torch.bool)
    evidence = torch.tensor([0.30001, 0.30003, 0.3, 0.30002]).view(4, 1, 1)
    stored = unpack_maps(pack_maps(attention, open_to, evidence, top=4), 4).flatten()
    assert stored.argsort(descending=True).tolist() == [1, 3, 0, 2]


def test_concepts_without_evidence_stay_equal():
    attention, open_to = torch.full((1, 2), 0.5), torch.ones(3, 1, 2, dtype=torch.bool)
    open_to[0, 0, 0] = False
    stored = unpack_maps(pack_maps(attention, open_to, torch.zeros(3, 1, 2), top=2), 3)
    assert torch.equal(stored, together(attention, open_to, torch.zeros(3, 1, 2)))


def test_the_maps_of_171_concepts_take_a_small_part_of_their_values():
    arrays = pack_maps(*maps_of(0, 171, 40, 40), top=8)
    assert sum(array.nbytes for array in arrays.values()) < 0.1 * 171 * 40 * 40 * 4
