"""How long `kdrun report` takes over many records, and the memory it needs: made-up records, real files, the real command.

    python benchmarks/report.py [--records 20000]

The records are those of 22 methods x 3 pairs x settings x 5 seeds on made-up scores, each a file of its own as a run leaves it.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kdrun.config.registry import METHODS
from kdrun.runs.record import NAME

SEEDS, PAIRS = 5, [("resnet20", "resnet8"), ("resnet56", "resnet20"), ("resnet110", "resnet20")]


def example() -> dict:
    """The record that docs/records.md shows."""
    text = (Path(__file__).parents[1] / "docs/records.md").read_text(encoding="utf-8")
    return json.loads(text.partition("## An example")[2].partition("```json")[2].partition("```")[0])


def write(folder: Path, count: int) -> None:
    template, draw = example(), random.Random(0)
    methods = ["none", *(name for name in sorted(METHODS.entries()) if name != "none")][:22]
    for number in range(count):
        group, seed = divmod(number, SEEDS)
        setting, cell = divmod(group, len(methods) * len(PAIRS))
        (teacher, student), method = PAIRS[cell % len(PAIRS)], methods[cell // len(PAIRS)]
        record, score = copy.deepcopy(template), 0.9 + 0.01 * draw.random()
        record |= {"id": f"{number:016x}", "group": f"{group:016x}", "seed": seed, "method": [method], "score": score}
        record["identity"] |= {
            "seed": seed, "student": {"name": student}, "method": {method: {"weight": 1.0}}, "recipe": {"lr": 0.1 / (1 + setting)},
            "teacher": None if method == "none" else {"name": teacher},
        }  # fmt: skip
        record["student"] |= {"name": student, "init_sha256": f"{seed:064x}", "sha256": f"{number:064x}"}
        record["teacher"] = None if method == "none" else {**template["teacher"], "name": teacher}
        record["last"] |= {"score": score}
        record["best"] |= {"score": score + 0.001}
        place = folder / method / f"{group}" / f"seed{seed}"
        place.mkdir(parents=True)
        (place / NAME).write_text(json.dumps(record, indent=2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), count)
        for form in ("csv", "terminal", "json"):
            began = time.perf_counter()
            command = [sys.executable, "-m", "kdrun", "report", place, "--format", form, "--output", f"{place}/table"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            taken = time.perf_counter() - began
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
            print(f"{count:,} records, --format {form:<9} {taken:5.1f} s, at most {peak:,.0f} MiB so far")


if __name__ == "__main__":
    main()
