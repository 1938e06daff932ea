"""Images as people name them: folders, patterns, lists, videos; the same for `extract` and `predict`."""

import av
import numpy as np
import pytest
from PIL import Image

from unsupseg_cli import (
    Context,
    ExtractConfig,
    PredictConfig,
    PseudolabelConfig,
    TrainConfig,
    extract,
    predict,
    pseudolabel,
    train,
)
from unsupseg_cli.artifacts.workspace import Workspace
from unsupseg_cli.contents.images import describe_images, open_paths, reopen
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.data import video
from unsupseg_cli.data.geometry import Geometry
from unsupseg_cli.data.images import image_size, read_image
from unsupseg_cli.data.inputs import expand
from unsupseg_cli.data.loader import load_views
from unsupseg_cli.methods.kmeans.config import TrainOptions

FRAMES, SIZE = 45, (48, 64)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for name in ("one/a.png", "one/b.jpg", "two/deep/c.png", "two/d[1].png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (40, 48, 3), np.uint8)).save(path)
    monkeypatch.chdir(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def film(tmp_path):
    """A video of 45 frames, 15 a second, each of one shade, with a key frame every 20."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=15, options={"g": "20"})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *SIZE, "yuv420p", 10**6
        for number in range(FRAMES):
            shade = np.full((*SIZE, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path


def names(paths, folder):
    return [path.resolve().relative_to(folder).as_posix() for path in paths]


def test_patterns_and_lists_mean_files_and_folders(photos):
    assert names(expand(["one/*"]), photos) == ["one/a.png", "one/b.jpg"]
    assert names(expand(["**/*.png"]), photos) == ["one/a.png", "two/d[1].png", "two/deep/c.png"]
    assert names(expand(["two/d[1].png"]), photos) == ["two/d[1].png"]  # a file that is called so
    (photos / "two" / "list.txt").write_text("# mine\n\ndeep/c.png\n../one/*.jpg\n../one\n", encoding="utf-8")
    assert names(expand(["@two/list.txt"]), photos) == ["two/deep/c.png", "one/b.jpg", "one"]
    assert names(expand(["one/a.png", "one/a.*"]), photos) == ["one/a.png"]
    for wrong, message in [
        ("one/*.gif", "No file matches"),
        ("none.png", "does not exist"),
        ("@none.txt", "cannot be read"),
        ("@one/a.png", "cannot be read"),
    ]:
        with pytest.raises(UsageError, match=message):
            expand([wrong])
    (photos / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UsageError, match="names no images"):
        expand(["@empty.txt"])


def test_named_images_are_found_again_from_anywhere(photos, tmp_path, monkeypatch):
    context = Context(Workspace(tmp_path / "work"))
    (photos / "list.txt").write_text("one\ntwo/deep/*.png\n")
    dataset = open_paths(["@list.txt"], context)
    assert [item.key for item in dataset.items] == ["one/a.png", "one/b.jpg", "c.png"]
    data = describe_images(dataset, context)
    monkeypatch.chdir(tmp_path)
    assert describe_images(reopen(data), context) == data


def test_frames_of_a_video_are_images_in_any_order(film):
    dataset = open_paths([film], step=10)
    assert [item.key for item in dataset.items] == [f"film.mp4/{n:06d}.png" for n in (1, 11, 21, 31, 41)]
    assert [len(open_paths([film], step=step).items) for step in (None, 1)] == [3, FRAMES]
    shades = {1: 0, 11: 50, 21: 100, 31: 150, 41: 200}
    for index in (4, 0, 1, 2, 3, 2, 0):
        item = dataset.items[index]
        assert image_size(item.image, item.reading) == SIZE
        frame = read_image(item.image, item.reading)
        assert frame.shape == (*SIZE, 3)
        assert abs(float(frame.mean()) - shades[item.reading.page]) < 4
    loaded = load_views(dataset.items, Geometry(size=32), 16, workers=2)
    means = [float(one.views[0][1].mean()) for one in loaded]
    assert np.allclose(means, list(shades.values()), atol=5)


def test_what_is_no_video_and_a_missing_extra_are_said(tmp_path, film, monkeypatch):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UsageError, match=r"broken\.mp4' cannot be read"):
        open_paths([tmp_path / "broken.mp4"])
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"unsupseg\[video\]"):
        open_paths([film])


def test_a_video_that_is_cut_off_says_how_many_frames_are_there(tmp_path):
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *SIZE, "yuv420p", 10**7
        for number in range(FRAMES):
            noise = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode())
    assert open_paths([path]).items
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    told = Context()
    told.reporter.warn = (said := []).append
    there = len(video.video_header(path).times)
    open_paths([path], told, step=1)
    assert said == [
        f"'film.avi' is cut off or damaged: {there} of the {FRAMES} frames that it declares are there"
    ]
    with pytest.raises(UnsupsegError, match="--strict"):
        open_paths([path], told, strict=True, step=1)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UsageError, match="it has no pictures, only sound"):
        open_paths([path])


def test_a_video_and_patterns_go_from_extract_to_predict(photos, film, tmp_path, call):
    work = ("--workspace", tmp_path / "work", "--device", "cpu")
    source = (f"{photos}/two/**/*.png", film, "--step", 15)
    call("extract", *source, "--size", 32, "--backbone", "untrained", "--workers", 0, *work)
    context = Context(Workspace(tmp_path / "work"))
    assert context.workspace.current("features").manifest.data.count == 5
    labels = pseudolabel(PseudolabelConfig(classes=2, workers=0), context)  # its sheet reads the images again
    train(TrainConfig(pseudolabels=labels.id, device="cpu"), context, options=TrainOptions(steps=3))
    again = predict(PredictConfig(workers=0, device="cpu"), context)
    assert len(again.manifest.summary["keys"]) == 5
    assert (again.path / "ids" / "film.mp4" / "000016.png.png").exists()
    _, said = call("predict", film, "--workers", 0, "--out", "out", *work)
    assert "'film.mp4': 3 of 45 frames, every 15. (--step)" in said
    assert "has no effect" in call("predict", film, "--dataset", "scenes", *work, code=2)[1]
    assert "has no effect" in call("extract", "--dataset", "scenes", "--step", 3, *work, code=2)[1]


def test_one_call_extracts_named_folders(photos, tmp_path):
    context = Context(Workspace(tmp_path / "work"))
    config = {"size": 32, "backbone": "untrained", "workers": 0, "device": "cpu"}
    features = extract(ExtractConfig(images=["one", "two"], **config), context)
    assert features.manifest.data.count == 4
    assert extract(ExtractConfig(images=["one", "two"], **config), context).id == features.id
