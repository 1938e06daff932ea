"""Training in several processes: a rank that is killed or hangs, torchrun, and what the processes tell each other."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import nn

from unsupseg_cli import Context, ExtractConfig, Workspace, extract
from unsupseg_cli.core.errors import UnsupsegError, UsageError
from unsupseg_cli.training.batch import Batch
from unsupseg_cli.training.launch import alone, launch, others_answer
from unsupseg_cli.training.loop import Schedule, Task, fit

IMPATIENT = (
    "import os, signal, time, datetime, unsupseg_cli.training.launch as launch; "
    "launch.PATIENCE = datetime.timedelta(seconds=8); "
    'launch.launch.__kwdefaults__["patience"] = launch.PATIENCE'
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
STEPS = 500


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A workspace with features of six pictures."""
    root = tmp_path_factory.mktemp("together")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (2, 3, 3)).repeat(16, 0).repeat(16, 1)
        (root / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "pictures" / f"{number}.png")
    config = ExtractConfig(
        dataset=f"{root / 'pictures'}/", size=32, backbone="untrained", workers=0, device="cpu"
    )
    extract(config, Context(Workspace(root / "space")))
    return root / "space"


def command(space, *options, steps=STEPS):
    values = ("--method", "kmeans", "--classes", "3", "--device", "cpu", "--workers", "0")
    sets = ("--set", f"steps={steps}", "--set", "restarts=1", "--set", "batch=3")
    return ["train", "-w", str(space), *values, *sets, *options]


def start(arguments, before="pass"):
    program = [sys.executable, "-c", f"{before}; from unsupseg_cli.cli.main import main; main()"]
    return subprocess.Popen(
        [*program, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_torchrun(space, *options, call=None, other=None, before="pass"):
    """Start two processes as torchrun does.

    They train k-means, or make another ``call``; the second one in another workspace, if one is given. ``before`` is a
    line of Python that both run first.
    """
    patience = "import unsupseg_cli.pipeline.together as together; together._DISK_SECONDS = 2.0"
    program = f"{sys.executable} -c '{patience}; {before}; from unsupseg_cli.cli.main import main; main()'"
    arguments = " ".join(call or command("$w", *options))
    script = f'w={space}; [ "$RANK" = 1 ] && w={other or space}; exec {program} {arguments}'
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*launcher, "--no-python", "sh", "-c", script], env=ENVIRONMENT, **pipes)


def torchrun(space, *options, **given):
    """Run them to the end; return the exit status and what was said."""
    run = start_torchrun(space, *options, **given)
    stdout, stderr = run.communicate(timeout=120)
    return SimpleNamespace(returncode=run.returncode, stdout=stdout, stderr=stderr)


def wait_for_checkpoint(space, call):
    while not list(space.glob("model/.partial-*/checkpoint/state.pt")):
        assert call.poll() is None, call.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_first_process_ends_the_others_and_one_process_goes_on(space, number):
    """What several processes began one goes on with, to the weights that it finds alone."""
    seed = ("--seed", str(10 + number))
    call = start(command(space, *seed, "--devices", "2"), IMPATIENT)
    wait_for_checkpoint(space, call)
    server = next(one for one in psutil.Process(call.pid).children() if one.children())
    ranks = server.children()
    first = min(ranks, key=lambda rank: (rank.create_time(), rank.pid))
    os.kill(first.pid, number)
    _, said = call.communicate(timeout=100)
    assert call.returncode == 1, said
    assert "The same call goes on where it was" in said
    assert "Traceback" not in said
    assert not any(one.is_running() for one in ranks)
    again = start(command(space, *seed))
    path, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "going on after step" in said
    found = weights(space, Path(path.strip()).name)
    alone = start(command(space, *seed, "--force"))
    assert alone.communicate(timeout=120)[0] == path
    for name, value in weights(space, Path(path.strip()).name).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_same_call_ends_as_an_undisturbed_one(space):
    call = start(command(space, "--devices", "2"))
    wait_for_checkpoint(space, call)
    ranks = [rank for server in psutil.Process(call.pid).children() for rank in server.children()]
    assert len(ranks) == 2
    clock = time.monotonic()
    os.kill(ranks[1].pid, signal.SIGKILL)
    _, said = call.communicate(timeout=60)
    assert time.monotonic() - clock < 20
    assert call.returncode == 1, said
    assert "The same call goes on where it was" in said
    assert "Traceback" not in said
    assert not any(one.is_running() for one in ranks)
    again = start(command(space, "--devices", "2"))
    path, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "going on after step" in said
    assert "Warning" not in said
    workspace, name = Workspace(space), Path(path.strip()).name
    digest = workspace.get(name).manifest.digest
    undisturbed = torchrun(space, "--force")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert undisturbed.stdout == path  # one line, of the first process
    assert workspace.get(name).manifest.digest == digest


@pytest.mark.slow
def test_a_killed_process_of_torchrun_ends_the_others_and_the_same_call_goes_on(space):
    call = start_torchrun(space, "--seed", "2")
    wait_for_checkpoint(space, call)
    ranks = psutil.Process(call.pid).children()
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)
    call.communicate(timeout=60)
    assert call.returncode == 1
    assert not any(one.is_running() for one in ranks)
    again = torchrun(space, "--seed", "2")
    assert again.returncode == 0, again.stderr
    assert "going on after step" in again.stderr
    digest = Workspace(space).get(Path(again.stdout.strip()).name).manifest.digest
    undisturbed = start(command(space, "--seed", "2", "--devices", "2", "--force"))
    path, said = undisturbed.communicate(timeout=120)
    assert path == again.stdout, said
    assert Workspace(space).get(Path(path.strip()).name).manifest.digest == digest


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_torchrun_that_is_stopped_before_training_is_given_up(space, rank):
    hang = f'os.environ["RANK"] == "{rank}" and os.kill(os.getpid(), signal.SIGSTOP)'
    inside = "together._Group.begin" if rank == 0 else "together._Group.follow"
    run = torchrun(space, "--seed", "3", before=f"{IMPATIENT}; {inside} = lambda *_: {hang}")
    assert run.returncode == 1
    assert "did not answer" in run.stderr
    assert not list(space.glob("model/*-seed3-*"))


@pytest.mark.slow
def test_a_first_process_whose_work_hangs_before_training_is_given_up(space):
    """As on a file system that does not answer: the process lives, and its main thread does nothing."""
    hang = "together._Group.begin = lambda *_: time.sleep(1000)"
    run = torchrun(space, "--seed", "6", before=f"{IMPATIENT}; {hang}")
    assert run.returncode == 1
    assert "did not answer" in run.stderr
    assert not list(space.glob("model/*-seed6-*"))


@pytest.mark.slow
def test_the_others_end_when_the_first_process_fails_before_training(space):
    """It lives on, as a notebook that caught the error."""
    fail = (
        "from unsupseg_cli.core.errors import UnsupsegError; import unsupseg_cli.pipeline.stage as stages; "
        'stages.produce = lambda *_: (_ for _ in ()).throw(UnsupsegError("no such light")); '
        'os.environ["RANK"] == "0" and __import__("atexit").register(time.sleep, 20)'
    )
    run = torchrun(space, "--seed", "5", before=f"{IMPATIENT}; {fail}")
    assert run.returncode == 1
    assert "no such light" in run.stderr
    assert "The first of the processes that train together failed" in run.stderr
    assert "not foreseen" not in run.stderr


@pytest.mark.slow
def test_the_others_wait_for_the_first_process_as_long_as_it_lives(space):
    slow = (
        "begin = together._Group.begin; "
        "together._Group.begin = lambda *group: ([time.sleep(0.1) for _ in range(180)], begin(*group))[1]"
    )
    run = torchrun(space, "--seed", "4", before=f"{IMPATIENT}; {slow}")
    assert run.returncode == 0, run.stderr
    assert len(list(space.glob("model/*-seed4-*"))) == 1


def weights(space, name):
    return load_file(Workspace(space).get(name).path / "model.safetensors")


@pytest.mark.slow
def test_two_nodes_give_the_weights_of_one_process(space):
    """Two launchers, as on two machines that share a disk, meet at one address."""
    alone = start(command(space, steps=40))
    path, said = alone.communicate(timeout=120)
    assert alone.returncode == 0, said
    expected = weights(space, Path(path.strip()).name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from unsupseg_cli.cli.main import main; main()"]
    meeting = (
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(port),
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", *meeting, "--no-python"]
    call = [*program, *command(space, "--force", steps=40)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    nodes = [
        subprocess.Popen([*launcher, "--node-rank", str(rank), *call], env=ENVIRONMENT, **pipes)
        for rank in range(2)
    ]
    said = [node.communicate(timeout=180) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [out for out, _ in said] == [path, ""]  # the first process of the first node tells
    found = weights(space, Path(path.strip()).name)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_pretraining_under_torchrun_gives_the_backbone_of_one_process(space):
    sizes = ("--objective", "dino", "--size", "32", "--final-size", "32", "--points", "4")
    short = ("--steps", "2", "--batch", "3", "--head-hidden", "16", "--precision", "fp32", "--device", "cpu")
    call = ["pretrain", str(space.parent / "pictures"), "-w", str(space), *sizes, *short]
    alone = start(call)
    path, said = alone.communicate(timeout=120)
    assert alone.returncode == 0, said
    file = Path(path.strip()) / "backbone.safetensors"
    expected = load_file(file)
    together = torchrun(space, call=[*call, "--force"])
    assert together.returncode == 0, together.stderr
    assert together.stdout == path
    for name, value in load_file(file).items():
        # Weights are stored in half precision: to a rounding of it.
        torch.testing.assert_close(value.float(), expected[name].float(), rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_processes_without_a_common_disk_are_refused(space, tmp_path):
    shutil.copytree(space, tmp_path / "copy")
    run = torchrun(space, "--seed", "1", other=tmp_path / "copy")
    assert run.returncode == 1
    assert "on a disk that the machines share" in run.stderr
    assert "not foreseen" not in run.stderr
    assert not list(space.glob("model/*-seed1-*"))


class Wide(Task):
    """One weight for each of seven views, of which each process trains its own."""

    def __init__(self, unused_parameters=False):
        self.module = nn.ModuleDict({"used": nn.Embedding(7, 1), "unused": nn.Linear(1, 1)})
        self.module["unused"].requires_grad_(unused_parameters)
        nn.init.zeros_(self.module["used"].weight)

    def optimizer(self):
        return torch.optim.SGD(self.module.parameters(), lr=1.0)

    def losses(self, batch, read):
        return {"loss": self.module["used"](torch.tensor(batch.views)).mean()}


def talk(fabric):
    """What a process hears of the other one."""
    rank = fabric.global_rank
    batch = Batch(0, [5, 3, 4], range(rank, 3, 2), share=(2 / 3, 1 / 3)[rank], process=rank, processes=2)
    assert batch.views == ([5, 4], [3])[rank]
    torch.testing.assert_close(batch.average(torch.tensor([3.0, 0.0]) * (1 - rank)), torch.tensor([2.0, 0.0]))
    grids = [(1, 2), (2, 2), (1, 1)]
    maps = [torch.full((*grids[place], 3), float(place), requires_grad=True) for place in batch.places]
    together = batch.gather(maps, grids)
    assert [tuple(one.shape) for one in together] == [(1, 2, 3), (2, 2, 3), (1, 1, 3)]
    assert [float(one.mean()) for one in together] == [0.0, 1.0, 2.0]
    # Each process's loss reaches the maps of the other one.
    ((1 + rank) * torch.stack([one.sum() for one in together]).sum()).backward()
    assert all(bool((one.grad == 3).all()) for one in maps)

    schedule = Schedule(steps=1, batch=7, views=7, seed=0)
    task = Wide()
    records = []
    fit(task, schedule, fabric, log=records.append)
    assert len(records) == 1 - rank
    torch.testing.assert_close(task.module["used"].weight.detach(), torch.full((7, 1), -1 / 7))
    with pytest.raises(UsageError, match="2 processes cannot share a batch of 1"):
        fit(Wide(), Schedule(steps=1, batch=1, views=7, seed=0), fabric)
    with pytest.raises(UnsupsegError, match="unused_parameters = True"), others_answer():
        fit(Wide(unused_parameters=True), Schedule(steps=2, batch=7, views=7, seed=0), fabric)


class Normed(Task):
    """A network with batch norms, one of them as timm has it, on images of its own; the rate falls with the hours."""

    def __init__(self):
        torch.manual_seed(0)
        self.images = torch.randn(7, 3, 4, 5)
        self.module = nn.Sequential(
            nn.Conv2d(3, 6, 1), BatchNormAct2d(6), nn.Conv2d(6, 2, 1), nn.BatchNorm2d(2, momentum=None)
        )

    def optimizer(self):
        return torch.optim.SGD(self.module.parameters(), lr=0.1)

    def rate(self, progress):
        return 1 - progress

    def losses(self, batch, read):
        images = self.images[batch.views]
        return {"loss": (self.module(images).tanh() * images[:, :2]).mean()}


def trained_weights(fabric, **schedule):
    task = Normed()
    fit(task, Schedule(batch=3, views=7, seed=0, **schedule), fabric)
    return task.module.state_dict()


def share(fabric, alone):
    """Find what one process finds; and one thing in both where they train for a time."""
    together = trained_weights(fabric, steps=4)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)
    if fabric.global_rank:
        time.sleep(0.3)
    timed = torch.cat(
        [value.flatten() for value in trained_weights(fabric, steps=1, hours=1 / 3600).values()]
    )
    everywhere = [torch.empty_like(timed) for _ in range(2)]
    dist.all_gather(everywhere, timed)
    torch.testing.assert_close(everywhere[0], everywhere[1], rtol=1e-6, atol=1e-7)


def stall(fabric):
    """Hang in the second process, while the first one waits for it."""
    if fabric.global_rank == 1:
        time.sleep(60)
    dist.all_reduce(torch.ones(1))


def test_processes_tell_each_other_their_shares():
    launch(talk, accelerator="cpu", devices=2)


def test_batch_norms_and_hours_are_those_of_all_processes():
    launch(share, trained_weights(alone(torch.device("cpu")), steps=4), accelerator="cpu", devices=2)


def test_a_process_that_hangs_is_given_up():
    clock = time.monotonic()
    with pytest.raises(UnsupsegError, match=r"did not answer for 2 seconds. The same call goes on"):
        launch(stall, accelerator="cpu", devices=2, patience=timedelta(seconds=2))
    assert time.monotonic() - clock < 45
