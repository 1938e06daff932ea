"""A stand-in for SLURM's `sbatch` that runs each job when it is submitted, in order, on this machine.

It knows what samples/slurm asks for, and does as SLURM does: the script is copied before it runs, an array is a task
per number, a job whose dependency failed never runs, and the call succeeds whatever becomes of the job.
The folder $STAND_IN_SLURM holds a file for each job: its name and what became of it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN_SLURM"])


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--parsable", action="store_true", required=True)
    parser.add_argument("--kill-on-invalid-dep", choices=["yes"], required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--array", default="")
    parser.add_argument("--dependency", default="")
    parser.add_argument("script", type=Path)
    call = parser.parse_args()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", call.script.read_text(), re.MULTILINE))
    assert asked.keys() == {"job-name", "gpus", "cpus-per-task", "mem", "time"}, asked
    number = 1 + len(list(FOLDER.glob("*.job")))
    script = shutil.copy(call.script, FOLDER / f"{number}.sh")
    needed = [name for name in call.dependency.removeprefix("afterok:").split(":") if name]
    if all(state(name) == "COMPLETED" for name in needed):
        codes = [run(script, number, task, asked, call.output) for task in tasks(call.array)]
        ended = "FAILED" if any(codes) else "COMPLETED"
    else:
        ended = "CANCELLED"
    (FOLDER / f"{number}.job").write_text(f"{asked['job-name']} {ended}")
    print(number)


def state(number):
    return (FOLDER / f"{number}.job").read_text().split()[1]


def tasks(array):
    if not array:
        return [None]
    first, last = map(int, array.split("-"))
    return range(first, last + 1)


def run(script, number, task, asked, output):
    environment = {**os.environ, "SLURM_JOB_ID": f"{number}", "SLURM_CPUS_PER_TASK": asked["cpus-per-task"]}
    if task is not None:
        environment |= {"SLURM_ARRAY_JOB_ID": f"{number}", "SLURM_ARRAY_TASK_ID": f"{task}"}
    log = output.replace("%x", asked["job-name"]).replace("%j", f"{number}{f'{task:03d}' if task else ''}")
    with Path(log).open("a") as file:
        return subprocess.run(
            ["bash", script], env=environment, stdout=file, stderr=file, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
