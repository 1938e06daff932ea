"""The page of a report: a file of its own, whatever the texts in it are."""

import re

import numpy as np
import pytest

from unsupseg_cli.contents.report_pictures import Album
from unsupseg_cli.report.page import Confusion, Page, Picture, Slides, Step, Table, curves, render

EVIL = '<script>alert("1")</script>&\x1b[31m'
ESCAPED = "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;\\x1b[31m"


def dot():
    picture = Album().add(np.zeros((4, 6, 3), np.uint8), EVIL)
    assert picture is not None
    return picture


def full_page():
    """A page with the same markup in every text."""
    step = Step(EVIL, EVIL, EVIL, facts=[(EVIL, EVIL)], inputs=[(EVIL, EVIL)], changed=[(EVIL, EVIL, EVIL)])
    course = curves([{EVIL: 1.0}, {EVIL: 2.0}], {EVIL: EVIL})
    return Page(
        title=EVIL,
        about=EVIL,
        used_labels=[EVIL],
        notes=[EVIL],
        scores=[Table(EVIL, (EVIL, EVIL), [(EVIL, EVIL)], EVIL, [(1, 2, 3)])],
        confusions=[Confusion(EVIL, [EVIL, "b"], [EVIL, "b"], [[0.25, 0.75], None], EVIL)],
        slides=[(EVIL, EVIL, [Slides(EVIL, [(EVIL, dot())])])],
        legends=[(EVIL, [(EVIL, (255, 0, 128))])],
        classes=[dot()],
        steps=[
            step,
            Step(EVIL, EVIL, gone=EVIL),
            Step(EVIL, EVIL, others=[(EVIL, EVIL)], summary=[(EVIL, EVIL)], warnings=[EVIL], curves=course),
        ],
        resources=Table(EVIL, (EVIL,), [(EVIL,)]),
    )


def test_no_text_becomes_markup_or_a_control_character():
    html = render(full_page())
    assert "<script" not in html
    assert "\x1b" not in html
    assert html.count(ESCAPED) > 40


def test_the_page_asks_for_nothing_outside_itself():
    html = render(full_page())
    assert "default-src 'none'" in html
    targets = re.findall(r"""(?:src|href|action)=["']?([^"'\s>]*)|url\(([^)]*)\)|@import""", html)
    assert targets
    assert all(target.startswith(("data:", "#")) for target, _ in targets)


def test_a_confusion_shows_shares_with_their_shade_and_absent_classes():
    html = render(full_page())
    assert '<td class="s2">25</td><td class="s8">75</td>' in html
    assert ">absent</td>" in html


def test_an_empty_page_says_nothing_it_does_not_have():
    html = render(Page("title", "about"))
    for part in ("scores", "images", "classes", "resources", "notes"):
        assert f'id="{part}"' not in html


def test_curves_are_thinned_explained_and_keep_their_ends():
    records = [{"step": 10 * i, "loss": 5.0 - i / 1000, "odd": None} for i in range(2000)]
    (curve,) = curves(records, {"loss": "good if it falls"})
    points = [tuple(map(float, point.split(","))) for point in curve.line.split()]
    assert len(points) <= 242
    assert (points[0][0], points[-1][0]) == (6.0, 294.0)
    assert points[0][1] < points[-1][1]  # downwards on the screen: the loss falls
    assert (curve.first, curve.last, curve.explained) == ("5", "3.001", "good if it falls")
    assert "not explained" in curves([{"new": 1}, {"new": 2}], {})[0].explained


def test_an_album_keeps_flat_colours_and_says_what_it_leaves_out(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (300, 900, 3)).astype(np.uint8)
    flat = np.zeros((300, 900, 3), np.uint8)
    album = Album(most=5000)
    small = album.add(flat, "flat", side=90)
    assert isinstance(small, Picture)
    assert small.source.startswith("data:image/png")
    assert (small.width, small.height) == (90, 30)
    assert album.add(noise, "noise") is None
    assert album.add(tmp_path / "gone.png", "gone") is None
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert album.add(tmp_path / "bad.png", "bad") is None
    assert [text.split(":")[0] for text in album.left_out] == ["noise", "gone", "bad"]
    assert Album().add(noise, "noise").source.startswith("data:image/jpeg")


@pytest.mark.parametrize("count", [0, 1])
def test_a_figure_without_two_values_has_no_curve(count):
    assert curves([{"loss": 1.0}] * count, {}) == []
