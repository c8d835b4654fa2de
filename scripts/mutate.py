#!/usr/bin/env python3
"""Break lines of kdrun on purpose, one at a time, and see which test notices.

    python scripts/mutate.py              all of them, in about a quarter of an hour
    python scripts/mutate.py best order   a few
    python scripts/mutate.py --list       their names

Each line is broken in a copy of this checkout, never in the checkout itself; then the tests that should know run there. Run the
whole suite before: a test that fails anyway notices everything. Exit status 1 where a broken line went unnoticed, or
could not be tried.
"""
# ruff: noqa: E501 (an entry is a line)

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import hydra  # noqa: F401 (so that no fork has to)
import pytest
import sklearn.datasets  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
import torchvision  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "outputs", "results", "multirun", "dist", "build")


class Mutation(NamedTuple):
    """`old` stands exactly once in `file`; `tests` are pytest's arguments."""

    file: str
    old: str
    new: str
    tests: str


NOTICED = "tests/test_noticed.py -k"
LOSSES = "tests/test_losses.py tests/test_reference.py -k"
TEXT = "tests/test_text_losses.py tests/test_text_methods.py -k"
DETECTION = "tests/test_detection_losses.py tests/test_detection_methods.py -k"
MUTATIONS = {
    # the training loop and what it writes
    "best": Mutation("tasks/metric.py", "value > other if", "value >= other if", f"{NOTICED} earliest"),
    "agreement": Mutation("engine/journal.py", "self.task.agreement(evaluation, teacher)", "evaluation.score", f"{NOTICED} agreement"),
    "holdout": Mutation("engine/journal.py", 'self.metric.is_better(held["score"], chosen', 'self.metric.is_better(test["score"], chosen', f"{NOTICED} earliest"),
    "order": Mutation("tasks/image/data/loader.py", '"order", epoch)', '"order", 0)', f"{NOTICED} order"),
    "search": Mutation("sweep/job.py", "if searching else", "if not searching else", f"{NOTICED} search"),
    "sweeper": Mutation("sweep/job.py", '.endswith(".SearchSweeper")', '.endswith(".Sweeper")', "tests/test_search.py -m slow -k study_goes"),
    "zero-weight": Mutation("engine/loop.py", "if weights[name] != 0]", "]", "tests/test_methods.py -k weight_zero"),
    "thaw": Mutation("engine/loop.py", "    distillation.keep_frozen()", "    pass", "tests/test_rehearsal.py -k frozen"),
    "meter": Mutation("engine/meter.py", "values * size", "values", "tests/test_schedule.py -k meter"),
    "stage-epochs": Mutation("engine/loop.py", "max(1, round(share * recipe.epochs))", "round(share * recipe.epochs)", "tests/test_schedule.py -k stage"),
    "diverged": Mutation("engine/meter.py", 'name != "task"), "task")', 'name == "task"), "task")', "tests/test_rehearsal.py -k nan_names"),
    "non-finite": Mutation("runs/record.py", "_finite(record), indent", "record, indent", "tests/test_records.py"),
    "schema": Mutation("runs/record.py", 'record["schema"] not in (1, SCHEMA)', 'record["schema"] > SCHEMA', f"{NOTICED} another_schema"),
    "temporary": Mutation("runs/record.py", "temporary.unlink(missing_ok=True)", "pass", f"{NOTICED} half_way"),
    "warm-up": Mutation("engine/schedule.py", "(progress - recipe.warmup) / (1 - recipe.warmup)", "progress", "tests/test_schedule.py -k cosine"),
    "milestone": Mutation("engine/schedule.py", "epoch >= round(", "epoch > round(", "tests/test_schedule.py -k milestones"),
    "off": Mutation("engine/schedule.py", 'progress >= schedule["after"]', 'progress > schedule["after"]', "tests/test_schedule.py -k factors"),
    "weights-hash": Mutation("runs/checkpoint.py", " {tuple(tensor.shape)}", "", f"{NOTICED} weights_hash"),
    "transposed": Mutation("runs/checkpoint.py", "fitting.misfit(weights, wanted) or fitting.unsound(weights, wanted)", "fitting.misfit(weights, wanted)", "tests/test_checkpoints.py"),
    "stream": Mutation("seeds.py", "(seed, *name)", "name", "tests/test_data.py -k 'seed_and_epoch'"),
    # what makes a run
    "label": Mutation("runs/identity.py", '"recipe", "checkpoint", "label"', '"recipe", "checkpoint"', "tests/test_identity.py -k no_part"),
    "neutral": Mutation("runs/identity.py", '"method.kd.standardize": False,', "", "tests/test_identity.py -k ordinary"),
    "group": Mutation("runs/identity.py", 'if key != "seed"}', "}", "tests/test_contract.py -k seed_is_in"),
    "none": Mutation("config/checks.py", "len(methods) > 1:", "len(methods) > 2:", f"{NOTICED} combines"),
    "negative-weight": Mutation("config/checks.py", "and weight >= 0)", ")", "tests/test_bad_input.py -k weight-negative"),
    "choices": Mutation("errors.py", "other.lower(): other", "other: other", f"{NOTICED} choices"),
    # data
    "flip": Mutation("tasks/image/data/augment.py", "width - 1 - columns_BW", "width - columns_BW - 2", "tests/test_data.py -k augment_equals"),
    "offset": Mutation("tasks/image/data/augment.py", "(word_B1 & 0xFFFFFF) % (2 * padding + 1)", "(word_B1 & 0xFFFFFF) % (2 * padding)", "tests/test_data.py -k augment"),
    "flip-never": Mutation("tasks/image/data/loader.py", "augment.flip and dataset.flip", "augment.flip", "tests/test_data.py -k must_not_be_flipped"),
    "last-of-one": Mutation("tasks/image/data/loader.py", "whole and rest == 1", "whole and rest == 2", "tests/test_rehearsal.py -k last_batch_of_one"),
    "stratified": Mutation("tasks/draws.py", "descending=True, stable", "stable", "tests/test_data.py -k stratified"),
    "deviation": Mutation("tasks/image/data/base.py", "mean_3.square()", "mean_3", "tests/test_data.py -k mean_and_std"),
    "sixteen-bits": Mutation("tasks/image/data/pixels.py", "else 65535", "else 32767", "tests/test_images.py -k 16"),
    # models and methods
    "until": Mutation("methods/taps.py", 'if module is target and side == "in":', "if module is target:", "tests/test_taps.py -k until"),
    "cloned": Mutation("methods/taps.py", "tensor._version != version", "False", "tests/test_taps.py -k in_place"),
    "mean": Mutation("methods/base.py", "losses[0]) / len(losses)", "losses[0])", "tests/test_losses.py -k 'mean or layers'"),
    "view": Mutation("methods/distillation.py", "        starts = ends", "        pass", "tests/test_methods.py -k methods_combine"),
    "crd-momentum": Mutation("methods/crd.py", "* momentum + embedding_BD * (1 - momentum)", "* (1 - momentum) + embedding_BD * momentum", f"{NOTICED} crd"),
    "faded": Mutation("methods/bounded.py", "clamp(max=1).square()", "clamp(max=1)", f"{NOTICED} 'fades or bounded'"),
    "divergence": Mutation("methods/bounded.py", "x - x.detach().clamp(max=0)", "x", f"{NOTICED} negative"),
    "kd": Mutation("methods/bounded.py", "temperature**2 * divergence", "temperature * divergence", f"{LOSSES} kd"),
    "dkd": Mutation("methods/dkd.py", "others >= label_B", "others > label_B", f"{LOSSES} dkd"),
    "dist": Mutation("methods/dist.py", "over_images.T, t_BK.T", "over_images, t_BK", f"{LOSSES} dist"),
    "at": Mutation("methods/at.py", ".pow(power).sum(1)", ".sum(1)", f"{LOSSES} at"),
    "rkd": Mutation("methods/rkd.py", "/ off_diagonal_BB.sum().clamp(min=1)", "/ off_diagonal_BB.numel()", f"{LOSSES} rkd"),
    "nst": Mutation("methods/nst.py", "- 2 * kernel", "- kernel", f"{LOSSES} nst"),
    "vid": Mutation("methods/vid.py", "/ variance_C11).mean()", ").mean()", f"{LOSSES} vid"),
    "ofd": Mutation("methods/ofd.py", "(s_BCHW > t_BCHW) |", "(s_BCHW < t_BCHW) |", f"{LOSSES} ofd"),
    "mgd": Mutation("methods/mgd.py", ">= share)", "< share)", "tests/test_losses.py tests/test_methods.py -k mgd"),
    "gate": Mutation("methods/boxes.py", "confidence_BA * (confidence_BA > gate)", "confidence_BA", f"{DETECTION} gate"),
    "ciou": Mutation("methods/boxes.py", "(1 - iou_BA + v_BA + EPSILON)).detach()", "(1 - iou_BA + v_BA + EPSILON))", f"{DETECTION} ciou"),
    "bernoulli": Mutation("methods/yolo_logits.py", "return (temperature**2 * never_negative(yes + no))", "return (temperature**2 * never_negative(yes))", f"{DETECTION} binary_divergence"),
    "pearson": Mutation("methods/pkd.py", "x_CN = x_CN - x_CN.mean(1, keepdim=True)", "x_CN = x_CN - x_CN.mean()", "tests/test_reference.py tests/test_detection_losses.py -k 'PKD or correlation'"),
    "smaller-box": Mutation("methods/fgd.py", 'share_NP, "amax")', 'share_NP, "amin")', f"{DETECTION} masks"),
    "task-default": Mutation("config/defaults.py", "elif own.get(key) == shipped.get(key):", "else:", "tests/test_defaults.py -k wins"),
    "smoothing": Mutation("methods/label_smoothing.py", "log_p_BK.mean(1)", "log_p_BK.sum(1)", "tests/test_losses.py -k smooth"),
    "patience": Mutation("methods/pkd_bert.py", "unit(s_BD) - unit(t_BD)", "s_BD - t_BD", f"{TEXT} patience"),
    "layer-map": Mutation("methods/layers.py", "count = student - but_last", "count = student", f"{TEXT} maps"),
    "relations": Mutation("methods/tokens.py", "x.masked_fill(padded_B11T, least).log_softmax(-1)", "x.log_softmax(-1)", f"{TEXT} relations"),
    "attention": Mutation("methods/tinybert.py", "mask_BT[:, :, None] & mask_BT", "mask_BT[:, :, None] | mask_BT", f"{TEXT} attention_distance"),
    "tinybert-map": Mutation("methods/tinybert.py", "self.fit(s), t, mask_BT) for s, t in pairs[: count + 1]", "self.fit(s), t, mask_BT) for s, t in pairs[:count]", f"{TEXT} adds_its_layers"),
    "hidden-words": Mutation("methods/distilbert.py", "MASKED, RANDOM = 0.8, 0.1", "MASKED, RANDOM = 0.9, 0.1", f"{TEXT} hidden_as_in_bert"),
    "noise": Mutation("methods/noise_labels.py", 'batch["index"], batch["label"]', 'batch["label"], batch["label"]', f"{TEXT} noise_labels_belong"),
    "tokens": Mutation("methods/distillation.py", "tap[mask_BT] if tap.ndim == 3", "tap.flatten(0, 1) if tap.ndim == 3", f"{TEXT} padding"),
    # reports, sweeps and the screen
    "margin": Mutation("report/against.py", "0.975)) * sd / math.sqrt(n)", "0.975)) * sd", f"{NOTICED} margin"),
    "holm": Mutation("report/stats.py", "(len(ps) - rank)", "len(ps)", "tests/test_report_command.py -k holm"),
    "paired": Mutation("report/stats.py", "(1 + level) / 2)) * sd / math.sqrt(len(a))", "level)) * sd / math.sqrt(len(a))", "tests/test_report.py -k paired"),
    "mcnemar": Mutation("report/stats.py", "min(only_a, only_b), only_a", "max(only_a, only_b), only_a", f"{NOTICED} mcnemar"),
    "devices": Mutation("report/cells.py", '["device"] for run in runs}) == 1', '["device"] for run in runs}) >= 1', f"{NOTICED} devices"),
    "teachers": Mutation("report/pivot.py", 'or models.key(record, "student") in taught', "", f"{NOTICED} baseline"),
    "other-hash": Mutation("sweep/folder.py", 'and record["id"] == line["id"]', "", f"{NOTICED} another_run"),
    "clock": Mutation("screen.py", "int(seconds + 0.5), 60", "int(seconds + 0.5), 100", f"{NOTICED} clock"),
    "again": Mutation("screen.py", 'if key.strip() == "rerun" and', 'if key.strip() == "rerun" or', f"{NOTICED} again"),
}  # fmt: skip


def broken(name: str, text: str) -> str:
    """The text of the entry's file with the line broken; ValueError where the old one does not stand there exactly once."""
    mutation = MUTATIONS[name]
    count = text.count(mutation.old)
    if count != 1:
        raise ValueError(f"{name}: {mutation.old!r} stands {count} times in kdrun/{mutation.file}, not once")
    return text.replace(mutation.old, mutation.new)


def noticed(name: str, copy: Path) -> str | None:
    """The first test that fails with the line broken; None where all pass. ValueError where no test ran."""
    path, log = copy / "kdrun" / MUTATIONS[name].file, copy.parent / "log.txt"
    whole = path.read_text(encoding="utf-8")
    path.write_text(broken(name, whole), encoding="utf-8")
    try:
        status = run_tests(shlex.split(MUTATIONS[name].tests), copy, log)
    finally:
        path.write_text(whole, encoding="utf-8")
    text = log.read_text(encoding="utf-8")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    if status not in (0, 1) or (status == 1 and not failed):
        raise ValueError(f"{name}: pytest {MUTATIONS[name].tests} ended with {status}:\n{text[-2000:]}")
    return failed[1] if status and failed else None


def run_tests(arguments: list[str], copy: Path, log: Path) -> int:
    """pytest's exit status, in a fork of this process, which has imported what is slow to import, and nothing of kdrun."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.chdir(copy)
        sys.path[0], sys.dont_write_bytecode = str(copy), True  # a compiled file could outlive its source
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)  # what tests print is not for the screen
        os.dup2(output, 2)
        status = int(pytest.main(["-n", "0", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", *arguments]))
        sys.stdout.flush()
        os._exit(status)
    finally:
        os._exit(70)


def main(names: list[str]) -> int:
    unseen = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder, "kdrun"), ignore=LEFT_OUT))
        for name in names:
            began = time.perf_counter()
            try:
                test = noticed(name, copy)
                words = test or "NOBODY noticed"
            except ValueError as error:
                test, words = None, f"NOT TRIED {error}"
            unseen += [] if test else [name]
            print(f"{name:<16} {words}   {time.perf_counter() - began:.0f} s", flush=True)
    print(f"{len(names) - len(unseen)} of {len(names)} noticed")
    return 1 if unseen else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to run; all without any")
    parser.add_argument("--list", action="store_true", help="name the entries and run nothing")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in MUTATIONS]
    if unknown:
        parser.error(f"no entry {unknown[0]}; --list names them")
    if given.list:
        print("\n".join(f"{name:<16} kdrun/{mutation.file}: {mutation.old}" for name, mutation in MUTATIONS.items()))
        sys.exit(0)
    sys.exit(main(given.names or [*MUTATIONS]))
