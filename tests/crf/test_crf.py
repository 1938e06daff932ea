import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unsupseg_cli.core.errors import UsageError
from unsupseg_cli.crf import CRFConfig, refine_batch, resolve_engine
from unsupseg_cli.crf.lattice import build
from unsupseg_cli.crf.meanfield import refine

EXACT = CRFConfig(engine="exact")


def scene(size=(24, 32), classes=3, seed=0):
    """Vertical stripes of colour with noise, and blurred noisy scores of the stripes at half the size."""
    rng = np.random.default_rng(seed)
    h, w = size
    label = np.minimum(np.arange(w) * classes // w, classes - 1)[None].repeat(h, 0)
    image = label[..., None] * 60 + 40 + rng.normal(0, 3, (h, w, 3))
    logits = 2.0 * (label[None, ::2, ::2] == np.arange(classes)[:, None, None])
    logits = torch.from_numpy(logits + rng.normal(0, 1, logits.shape)).float()
    return torch.log_softmax(logits, 0), image.clip(0, 255).astype(np.uint8), torch.from_numpy(label)


def dense_reference(log_probs, image, config):
    """Mean field written out with full kernel matrices in float64, independent of the package."""
    k, h, w = log_probs.shape
    y, x = np.mgrid[:h, :w]
    xy = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    rgb = image.reshape(-1, 3).astype(float)

    def kernel(f):
        g = np.exp(-0.5 * ((f[:, None] - f[None]) ** 2).sum(-1))
        d = g.sum(1) ** -0.5
        return d[:, None] * g * d

    both = config.pos_w * kernel(xy / config.pos_xy_std) + config.bi_w * kernel(
        np.concatenate([xy / config.bi_xy_std, rgb / config.bi_rgb_std], 1)
    )
    unary = log_probs.numpy().reshape(k, -1).T.astype(float)

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    q = softmax(unary)
    for _ in range(config.iterations):
        q = softmax(unary + both @ q)
    return torch.from_numpy(q.T.reshape(k, h, w))


@pytest.mark.parametrize("reach", [1.0, 3.0])
def test_exact_matches_full_matrices(reach):
    _, image, _ = scene((12, 14))
    scores = torch.log_softmax(torch.randn(3, 12, 14, generator=torch.Generator().manual_seed(1)), 0)
    config = CRFConfig(iterations=5, bi_rgb_std=9, pos_xy_std=reach, engine="exact")
    got = refine(scores, image, config)
    assert torch.allclose(got.double(), dense_reference(scores, image, config), atol=1e-4)


def test_torch_engine_is_close_to_exact_and_mends_the_scores():
    scores, image, label = scene((48, 64))
    exact, ours = refine(scores, image, EXACT), refine(scores, image)
    assert (exact.argmax(0) == ours.argmax(0)).float().mean() > 0.99
    before = refine(scores, image, CRFConfig(iterations=0))
    wrong_before, wrong_after = ((q.argmax(0) != label).float().mean() for q in (before, ours))
    assert wrong_before > 0.03
    assert wrong_after < wrong_before / 4


def test_torch_engine_agrees_with_pydensecrf():
    pytest.importorskip("pydensecrf")
    scores, image, _ = scene((48, 64))
    theirs = refine_batch([scores], [image], CRFConfig(engine="pydensecrf"), workers=1)[0]
    assert (refine(scores, image).argmax(0) == theirs.argmax(0)).float().mean() > 0.98


def camvid():
    root = Path(__file__).parents[2] / ".." / "shared" / "data" / "camvid" / "images"
    found = sorted(root.glob("*/*.jpg"))
    if not found:
        pytest.skip(f"no CamVid frames under {root}")
    return found


def test_real_frame_no_lower_than_pydensecrf_minus_half_a_point():
    pytest.importorskip("pydensecrf")
    from PIL import Image
    from sklearn.cluster import KMeans

    frames = camvid()
    frame = Image.open(frames[len(frames) // 2]).convert("RGB")
    image = np.array(frame.resize((96, 96), Image.Resampling.BILINEAR))
    y, x = np.mgrid[:12, :12] / 12
    cells = np.concatenate([image.reshape(12, 8, 12, 8, 3).mean((1, 3)) / 80, y[..., None], x[..., None]], -1)
    means = KMeans(11, n_init=1, random_state=0).fit(cells.reshape(-1, 5))
    distance = torch.from_numpy(means.transform(cells.reshape(-1, 5))).float()
    scores = torch.log_softmax(-4 * distance.square(), 1).T.reshape(11, 12, 12)
    exact = refine(scores, image, EXACT).argmax(0)
    ours, theirs = (
        refine_batch([scores], [image], CRFConfig(engine=engine), workers=1)[0].argmax(0)
        for engine in ("torch", "pydensecrf")
    )
    assert (ours == exact).float().mean() >= (theirs == exact).float().mean() - 0.005


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 60), st.floats(0.01, 30))
def test_lattice_weights_sum_to_one_and_tables_are_transposed(seed, d, n, spread):
    features = spread * torch.randn(d, n, generator=torch.Generator().manual_seed(seed))
    lattice = build(features)
    assert torch.allclose(lattice.weight.sum(1), torch.ones(n), atol=1e-4)
    assert lattice.weight.min() > -1e-4
    m = len(lattice.start) - 2
    down, up = torch.zeros(n, m + 1), torch.zeros(n, m + 1)
    down.scatter_add_(1, lattice.vertex.long(), lattice.weight)
    of = torch.repeat_interleave(torch.arange(m + 1), lattice.start.diff().long())
    up.index_put_((lattice.pixel.long(), of), lattice.pixel_weight, accumulate=True)
    assert torch.allclose(down[:, :m], up[:, :m])
    assert not up[:, m].any()
    assert (lattice.vertex < m).any(1).all()  # each pixel keeps a vertex


def test_lattice_filter_approximates_the_gaussian():
    features = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(400, 1)
    got = build(features).filter(ones).squeeze()
    exact = torch.exp(-0.5 * torch.cdist(features.T, features.T) ** 2).sum(1)
    assert torch.corrcoef(torch.stack([got, exact]))[0, 1] > 0.99


def test_probabilities_at_the_size_of_the_image():
    scores, image, _ = scene()
    q = refine(scores, image)
    assert q.shape == (3, 24, 32)
    assert q.dtype == torch.float32
    assert torch.allclose(q.sum(0), torch.ones(24, 32), atol=1e-5)
    batch = refine(torch.stack([scores, scores]), np.stack([image, image]))
    assert torch.equal(batch[1], q)


def test_permuting_classes_permutes_the_result():
    scores, image, _ = scene()
    order = [2, 0, 1]
    assert torch.allclose(refine(scores[order], image), refine(scores, image)[order], atol=1e-5)


@pytest.mark.parametrize("engine", ["torch", "exact", "pydensecrf"])
def test_lists_of_different_sizes_and_worker_counts(engine):
    if engine == "pydensecrf":
        pytest.importorskip("pydensecrf")
    pairs = [scene((24, 32))[:2], scene((16, 20), seed=1)[:2], scene((20, 12), seed=2)[:2]]
    scores, images = [p[0] for p in pairs], [p[1] for p in pairs]
    config = CRFConfig(engine=engine, iterations=3)
    threads = torch.get_num_threads()
    one, two = refine_batch(scores, images, config, 1), refine_batch(scores, images, config, 2)
    assert [tuple(q.shape[1:]) for q in two] == [i.shape[:2] for i in images]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("engine", ["torch", "exact", "pydensecrf"])
def test_degenerate_inputs(engine):
    if engine == "pydensecrf":
        pytest.importorskip("pydensecrf")
    scores, image, _ = scene()

    def run(s, i, **changes):
        return refine_batch([s], [i], CRFConfig(engine=engine, **changes), workers=1)[0]

    assert torch.equal(run(torch.zeros(1, 12, 16), image), torch.ones(1, 24, 32))
    plain = torch.nn.functional.interpolate(scores[None], size=(24, 32), mode="bilinear")[0].softmax(0)
    assert torch.allclose(run(scores, image, iterations=0), plain, atol=1e-6)
    assert torch.allclose(run(scores, image, pos_w=0, bi_w=0), plain, atol=1e-5)
    assert torch.isfinite(run(scores, np.full((24, 32, 3), 7, np.uint8))).all()
    assert run(scores, image[..., 0]).shape == (3, 24, 32)
    hard = torch.full((3, 24, 32), -torch.inf)
    hard[1] = 0
    assert (run(hard, image).argmax(0) == 1).all()
    assert run(torch.zeros(2, 1, 1) - np.log(2), image[:1, :1]).shape == (2, 1, 1)


def test_half_precision_scores_are_taken():
    scores, image, _ = scene()
    assert torch.allclose(refine(scores.half(), image), refine(scores, image), atol=0.05)


def test_images_of_a_batch_may_have_their_own_number_of_classes():
    scores, image, _ = scene()
    fewer = scene(classes=2)[0]
    batch = refine_batch([scores, fewer], [image, image])
    assert [len(one) for one in batch] == [len(scores), 2]
    torch.testing.assert_close(batch[1], refine(fewer, image))


def test_bad_inputs_are_named():
    scores, image, _ = scene()
    bad = scores.clone()
    bad[0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        refine(bad, image)
    with pytest.raises(UsageError, match="log_softmax"):
        refine(scores.exp(), image)
    with pytest.raises(UsageError, match="hard labels"):
        refine(torch.zeros(24, 32, dtype=torch.int64), image)
    with pytest.raises(UsageError, match="uint8"):
        refine(scores, image / 255.0)
    with pytest.raises(UsageError, match=r"\(H, W, 3\)"):
        refine(scores, image[..., :2])
    with pytest.raises(UsageError, match="2 score maps came with 1 images"):
        refine_batch([scores, scores], [image])
    with pytest.raises(UsageError, match="bi_rgb_std"):
        refine(scores, image, CRFConfig(bi_rgb_std=1e-4, bi_xy_std=1e-3))
    with pytest.raises(UsageError, match="workers"):
        refine_batch([scores], [image], workers=0)


def test_engine_is_resolved_and_a_missing_library_is_named(monkeypatch):
    assert resolve_engine("auto") == "torch"
    assert CRFConfig().resolved().result()["engine"] == "torch"
    monkeypatch.setattr("unsupseg_cli.crf.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'unsupseg\[crf\]'"):
        resolve_engine("pydensecrf")


def test_config_imports_no_torch():
    code = "import sys, unsupseg_cli.crf.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
