"""Steps of a small training beside busy neighbours: one thread, all cores with threads that spin, and that sleep.

    python benchmarks/threads.py [--neighbours 0,2] [--seconds 5] [--rounds 3]

The steps are those of a head on the tokens of 12 views (4,096 x 384): products, an activation and a mean. Neighbours
are processes that multiply matrices with one thread each. Every way has a process of its own, and rounds alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from unsupseg_cli.core.threads import usable_cores

STEPS = """
import sys, time, torch
tokens, weight = torch.randn(4096, 384), torch.randn(384, 384)
def step():
    codes = tokens
    for _ in range(8):
        codes = torch.relu(codes @ weight) * 0.01
        codes = codes - codes.mean(0)
    return float(codes.sum())
step()
steps, start = 0, time.perf_counter()
while time.perf_counter() - start < float(sys.argv[1]):
    step()
    steps += 1
print(steps / (time.perf_counter() - start))
"""
BUSY = "import torch\nx = torch.randn(800, 800)\nwhile True: x @ x"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neighbours", default="0,2")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = str(usable_cores())
    ways = {
        "one thread": {"OMP_NUM_THREADS": "1"},
        f"{cores} threads that spin": {"OMP_NUM_THREADS": cores},
        f"{cores} threads that sleep": {"OMP_NUM_THREADS": cores, "OMP_WAIT_POLICY": "PASSIVE"},
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    print(f"| neighbours | {' | '.join(ways)} |\n|---{'|---' * len(ways)}|")
    for neighbours in map(int, options.neighbours.split(",")):
        busy = [
            subprocess.Popen([sys.executable, "-c", BUSY], env={**plain, "OMP_NUM_THREADS": "1"})
            for _ in range(neighbours)
        ]
        try:
            rates: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, environment in ways.items():
                    call = [sys.executable, "-c", STEPS, str(options.seconds)]
                    done = subprocess.run(
                        call, env={**plain, **environment}, capture_output=True, text=True, check=True
                    )
                    rates[way].append(float(done.stdout))
        finally:
            for process in busy:
                process.kill()
        medians = [statistics.median(found) for found in rates.values()]
        print(f"| {neighbours} | {' | '.join(f'{rate:.1f} ({rate / medians[0]:.2f})' for rate in medians)} |")


if __name__ == "__main__":
    main()
