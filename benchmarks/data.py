"""What the data pipeline costs, against bare decoding of the very same windows.

    python benchmarks/data.py --data DATASET                   # minutes; a table
    python benchmarks/data.py --data DATASET --json data.json  # and all numbers

Each contender is a process of its own (or two, which share the windows). They take turns: the whole
pipeline of `train_clips` with a worker first, then everybody else on the windows that it has just
delivered, then it all again. Bare is PyAV: open, seek, decode, crop and scale as the pipeline does,
from files that are in memory already. torchcodec and decord take part where they are installed;
both scale in their own way and may seek to key frames that the data set does not trust. FFmpeg has
one thread everywhere.

A ratio is the median over the rounds of a turn's clips a second over those of the turn it is
compared with; the CPU ratio is that of the CPU time which a clip costs, and the one to look at on a
machine with other work to do.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from decoders import DECODERS

SHOWN = ("clips/s", "of", "ratio", "CPU ms/clip", "CPU ratio", "start s", "MB")
CONTENDERS = {  # name: what runs, with how many workers, as how many processes, compared with what
    "pipeline, 1 worker": ("pipeline", 1, 1, "bare"),
    "bare": ("bare", 0, 1, None),
    "pipeline, in process": ("pipeline", 0, 1, "bare"),
    "pipeline, 2 workers": ("pipeline", 2, 1, "bare x 2"),
    "bare x 2": ("bare", 0, 2, None),
    "torchcodec": ("torchcodec", 0, 1, "bare"),
    "decord": ("decord", 0, 1, "bare"),
}
SETTLE = 0.5  # seconds between two looks whether a contender still works
READ_AHEAD = 10  # batches: more than a pipeline has ready when its turn begins
JUDGED = {"pipeline, 1 worker": 0.9, "pipeline, 2 workers": 0.85}


# ---- a contender's process -------------------------------------------------------------------


def serve(args) -> None:
    """Answers requests, a line of JSON each, until there are no more."""
    from absl import flags

    flags.FLAGS(sys.argv[:1])  # Grain's workers want them parsed
    turn = pipeline_turns(args) if args.serve == "pipeline" else decoder_turns(args)
    for line in sys.stdin:
        answer(turn(json.loads(line)))


def open_clips(args):
    """The training split of the data set."""
    from evatok_jax.data.clips import Clips

    return Clips(args.data, "train", args.frames, args.size, args.size)


def pipeline_turns(args) -> Callable[[dict], dict]:
    """Takes batches of the training stream and says which windows they are."""
    from evatok_jax.data.pipeline import train_clips

    clips = open_clips(args)

    def open_stream(start):
        return train_clips(
            clips,
            batch_size=args.batch,
            seed=0,
            start_index=start,
            threads=1,
            workers=args.workers,
        )

    stream = open_stream(0)
    next(stream)
    answer({})

    def turn(request):
        if "resume" in request:
            began = time.perf_counter()
            next(open_stream(request["resume"] * args.batch))
            return {"seconds": time.perf_counter() - began}
        windows = []
        for batch in islice(stream, request["batches"]):
            windows += np.stack([batch["record"], batch["window"]], axis=1).tolist()
        return {"windows": windows}

    return turn


def decoder_turns(args) -> Callable[[dict], dict]:
    """Decodes the windows that it is told."""
    try:
        decode = DECODERS[args.serve](args)
    except (ImportError, OSError, RuntimeError) as error:  # or a library that it stands on
        reason = str(error).strip().splitlines()[-1]
        answer({"absent": f"not installed ({type(error).__name__}: {reason[:120]})"})
        sys.exit()
    records, rows = open_clips(args).records, {}
    decode(records[0], 0)
    answer({})

    def turn(request):
        for record in request.get("load", ()):
            rows[record] = rows.get(record) or records[record]
        for record, start in request.get("windows", ()):
            decode(rows[record], start)
        return {}

    return turn


def answer(content: dict) -> None:
    print(json.dumps(content), flush=True)


# ---- the referee -----------------------------------------------------------------------------


class Child:
    """One process of a contender."""

    def __init__(self, args, kind: str, workers: int):
        command = [sys.executable, __file__, "--serve", kind, "--workers", str(workers)]
        command += ["--data", args.data, "--batch", str(args.batch)]
        command += ["--frames", str(args.frames), "--size", str(args.size)]
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.absent = self.receive().get("absent")
        self.start = time.perf_counter() - began

    def send(self, request: dict) -> None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"a contender ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, request: dict) -> dict:
        self.send(request)
        return self.receive()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Contender:
    """Processes that share each turn, and what their turns have shown."""

    def __init__(self, args, name: str):
        self.kind, self.workers, processes, self.rival = CONTENDERS[name]
        self.children = [Child(args, self.kind, self.workers) for _ in range(processes)]
        self.absent = self.children[0].absent
        self.rates, self.cpu, self.memory = [], [], 0

    def settle(self) -> None:
        """Waits until its processes are idle."""
        before, now = -1.0, self.processor_seconds()
        while now - before > 0.02:
            time.sleep(SETTLE)
            before, now = now, self.processor_seconds()

    def turn(self, batches: int, windows: list) -> list:
        """One timed turn: these windows, or for a pipeline the next ones; returns which."""
        if self.kind == "pipeline":
            self.children[0].ask({"batches": READ_AHEAD})
            requests = [{"batches": batches}]
        else:
            shares = [windows[i :: len(self.children)] for i in range(len(self.children))]
            requests = [{"windows": share} for share in shares]
            for child, share in zip(self.children, shares, strict=True):
                child.ask({"load": [record for record, _ in share]})
        before, began = self.processor_seconds(), time.perf_counter()
        for child, request in zip(self.children, requests, strict=True):
            child.send(request)
        answers = [child.receive() for child in self.children]
        seconds, windows = time.perf_counter() - began, answers[0].get("windows", windows)
        self.rates.append(len(windows) / seconds)
        self.cpu.append(1e3 * (self.processor_seconds() - before) / len(windows))
        self.memory = max(self.memory, *map(peak_bytes, self.pids()))
        return windows

    def pids(self) -> list[int]:
        return [pid for child in self.children for pid in family(child.process.pid)]

    def processor_seconds(self) -> float:
        """Of all processes of the contender so far."""
        ticks = 0
        for pid in self.pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def row(self, others: dict) -> dict:
        """Its numbers."""
        row = {
            "clips/s": float(np.median(self.rates)),
            "CPU ms/clip": float(np.median(self.cpu)),
            "start s": float(np.median([child.start for child in self.children])),
            "MB": self.memory / 1e6,  # of the largest process
            "rounds": {"clips/s": self.rates, "CPU ms/clip": self.cpu},
        }
        if self.rival:
            rival = others[self.rival]
            ratios = np.array(self.rates) / rival.rates
            spent = np.array(rival.cpu) / self.cpu
            row |= {"of": self.rival, "ratio": float(np.median(ratios))}
            row |= {"CPU ratio": float(np.median(spent))}
        return row


def family(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += family(int(child))
    return found


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had, shared pages included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def play(args) -> dict:
    """All rounds; all numbers."""
    load = os.getloadavg()[0]
    contenders = {name: Contender(args, name) for name in CONTENDERS}
    playing = {name: c for name, c in contenders.items() if not c.absent}
    batches = args.clips // args.batch
    for number in range(args.rounds):
        windows = []
        for contender in playing.values():  # the first says which windows; rivals are neighbours
            windows = contender.turn(batches, windows)
            contender.settle()  # pipelines read ahead, and must not do so in another one's turn
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    first = playing["pipeline, 1 worker"].children[0]
    resume = {step: first.ask({"resume": step})["seconds"] for step in (0, 10_000, 10_000_000)}
    rows = {
        name: {"absent": c.absent} if c.absent else c.row(playing) for name, c in contenders.items()
    }
    for contender in playing.values():
        for child in contender.children:
            child.close()
    return {
        "data": args.data,
        "clip": [args.frames, args.size, args.size],
        "clips a turn": batches * args.batch,
        "cores": os.cpu_count(),
        "load before": load,
        "contenders": rows,
        "seconds to the first batch from step": resume,
        "judged": {
            name: {"ratio": rows[name]["ratio"], "wanted": wanted}
            for name, wanted in JUDGED.items()
        },
    }


def show(found: dict) -> None:
    """The table."""
    print(f"{'':22s}" + "".join(f"{name:>13s}" for name in SHOWN))
    for name, row in found["contenders"].items():
        if "absent" in row:
            print(f"{name:22s}  {row['absent']}")
            continue
        cells = (row.get(key, "") for key in SHOWN)
        cells = (f"{cell:13.2f}" if isinstance(cell, float) else f"{cell:>13s}" for cell in cells)
        print(f"{name:22s}" + "".join(cells))
    for step, seconds in found["seconds to the first batch from step"].items():
        print(f"first batch from step {step:>10,}: {seconds:.2f} s")
    for name, row in found["judged"].items():
        print(f"{name}: {row['ratio']:.3f}, wanted {row['wanted']}")


def main() -> None:
    """Serves as a contender, or lets them all play."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a built data set")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clips", type=int, default=128, help="of a turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="where to write all numbers")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    found = play(args)
    show(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
