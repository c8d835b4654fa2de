"""kdrun status, plan, verify and diff: on made-up records, and after a real sweep."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from last_wins import last_wins
from test_report import make

from kdrun.cli import run
from kdrun.report import diff
from kdrun.runs import record as records
from kdrun.runs.identity import digest, group
from kdrun.sweep import status

TINY = [
    "dataset=digits", "recipe=quick", "recipe.epochs=2", "teacher=resnet14", "teacher.recipe.epochs=1", "student=resnet8",
    "engine.threads=1",
]  # fmt: skip


def kdrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def line(stage: str, epoch: int, epochs: int | None = None) -> str:
    return json.dumps({"stage": stage, "epoch": epoch, "epochs": epochs, "seconds": 10.0, "test": {"score": 0.5}})


def folder_of(root: Path, name: str, record: dict, *lines: str, pid: int | None = None) -> Path:
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    records.write(folder, record)
    if lines:
        (folder / "curves.jsonl").write_text("\n".join(lines) + "\n")
    if pid is not None:
        holder = {"pid": pid, "host": socket.gethostname(), "since": "now"}
        (folder / ".holder.json").write_text(json.dumps(holder))
    return folder


def job_of(folder: Path | None, *overrides: str, error: str | None = None) -> dict:
    return {
        "overrides": list(overrides), "folder": folder and str(folder.resolve()), "id": None, "protocol": "last",
        "error": error, "changed": [],
    }  # fmt: skip


def sweep_of(root: Path, *runs: dict) -> Path:
    folder = root / "sweeps" / "now"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"runs": runs}))
    return folder


# Status ------------------------------------------------------------------------------------------------------------------


def test_status_tells_what_lives_from_what_died(tmp_path, capsys):
    """Running with progress and eta, interrupted where the process is gone, the error of a failed run, not started, counts."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    folder_of(
        tmp_path, "b", make("at", 0, 0.0, status="running"), line("distil", 10), line("distil", 12), pid=os.getpid()
    )
    folder_of(tmp_path, "c", make("sp", 0, 0.0, status="running"), line("distil", 3), pid=gone.pid)
    folder_of(tmp_path, "d", make("rkd", 0, 0.0, status="nan", error="loss became NaN at step 7"))
    folder_of(tmp_path, "e", make("crd", 0, 0.0, status="running"), pid=os.getpid())
    sweep_of(tmp_path, job_of(tmp_path / "runs/a", "method=kd"), job_of(tmp_path / "runs/z", "method=cc", "seed=1"))
    assert run(["status", str(tmp_path)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "running     at resnet8 seed 0   epoch 12/30  eta 3:00",
        "interrupted sp resnet8 seed 0   epoch 3/30  eta 4:30",
        "nan         rkd resnet8 seed 0  loss became NaN at step 7",
        "running     crd resnet8 seed 0  before its first epoch",
        "6 runs   2 running   1 done   1 interrupted   1 nan   1 not started   running runs end in 3:00",
    ]


def test_status_of_a_torn_manifest_is_one_line(tmp_path, capsys):
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    (tmp_path / "sweeps" / "now").mkdir(parents=True)
    (tmp_path / "sweeps" / "now" / "manifest.json").write_text('{"runs": [')
    assert run(["status", str(tmp_path)]) == 1
    (output,) = capsys.readouterr().err.splitlines()
    assert "has no readable manifest.json" in output


def test_status_before_the_first_record(tmp_path, capsys):
    """A sweep that just began has a manifest and nothing else."""
    sweep_of(tmp_path, job_of(tmp_path / "runs/a", "seed=0"), job_of(tmp_path / "runs/b", "seed=1"))
    assert run(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2 runs   2 not started\n"


def test_status_has_jobs_that_failed_without_a_record(tmp_path, capsys):
    """One that could not be planned (no folder), one that says so in its job's state, one skipped; each once."""
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    jobs = [job_of(None, "recipe.lr=x", error="recipe.lr is 'x'; it must be a number")]
    jobs += [
        job_of(tmp_path / "runs" / place, f"seed={seed}") for place, seed in (("b", 1), ("b", 1), ("c", 2), ("d", 3))
    ]
    sweep = sweep_of(tmp_path, *jobs)
    for number, state in enumerate(
        (("seed=1", "failed", "no space left"), ("seed=2", "skipped", "a job before it failed"))
    ):
        (sweep / "jobs").mkdir(exist_ok=True)
        state_now = dict(zip(("overrides", "status", "error"), ([state[0]], *state[1:]), strict=True))
        (sweep / "jobs" / f"{number}.json").write_text(json.dumps(state_now))
    assert run(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "failed      recipe.lr=x  recipe.lr is 'x'; it must be a number",
        "failed      seed=1       no space left",
        "skipped     seed=2       a job before it failed",
        "5 runs   2 failed   1 done   1 skipped   1 not started",
    ]


@pytest.mark.parametrize("alone", [True, False])
def test_status_says_what_it_skipped(alone, tmp_path, capsys):
    for name in ("x", "y"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "record.json").write_text('{"schema": 1, "id"')
    sweep_of(tmp_path, job_of(tmp_path / "runs/z", "seed=1"))
    if not alone:
        folder_of(tmp_path, "a", make("kd", 0, 0.9))
    assert run(["status", str(tmp_path)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("skipped     ")
    assert "runs/x/record.json is truncated" in first
    assert ("2 records, first: " in first) or alone
    assert last == ("1 run   1 not started" if alone else "2 runs   1 done   1 not started")


def test_status_estimates_the_whole_by_runs_alike(tmp_path, capsys):
    """Two run side by side (60 s and 200 s to go), one waits and takes the median of the others; a run of another kind is named."""
    place = "digits/kd/resnet14-resnet8/0a/seed{}"
    done = make("kd", 0, 0.9)
    done["time"]["train_s"] = 100.0
    folder_of(tmp_path, place.format(0), done)
    for seed, epoch in ((1, 24), (2, 10)):  # 10 s an epoch, 30 epochs
        folder_of(
            tmp_path,
            place.format(seed),
            make("kd", seed, 0.0, status="running"),
            line("distil", epoch),
            pid=os.getpid(),
        )
    places = [tmp_path / "runs" / place.format(seed) for seed in range(4)]
    sweep_of(tmp_path, *(job_of(folder, f"seed={seed}") for seed, folder in enumerate(places)))
    assert run(["status", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("1 not started   running runs end in 3:20   all runs end in 5:00")
    other = job_of(tmp_path / "runs/digits/kd/resnet14-resnet20/0b/seed0", "student=resnet20")
    sweep_of(tmp_path, *(job_of(folder, f"seed={seed}") for seed, folder in enumerate(places)), other)
    assert run(["status", str(tmp_path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("all runs end in 5:00 (not counted: 1 run without a similar run to estimate from)")
    sweep_of(tmp_path, other)
    assert run(["status", str(tmp_path)]) == 0
    assert "all runs end" not in capsys.readouterr().out


def test_watch_looks_again(tmp_path, monkeypatch, capsys):
    folder_of(tmp_path, "a", make("kd", 0, 0.9))
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", nap)
    assert run(["status", str(tmp_path), "--watch", "2"]) == 130
    assert naps == [2.0, 2.0]
    assert capsys.readouterr().out.count("1 run   1 done") == 2


# Plan, verify, diff: after a real sweep ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("swept")
    done = kdrun(root, "-m", *TINY, "method=none,kd", "seed=0")
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.slow
def test_plan_says_what_is_missing_and_trains_nothing(swept):
    before = sorted(swept.rglob("*"))
    done = kdrun(swept, "plan", *last_wins([*TINY, "method=none,kd,sp", "seed=0,1", "teacher=resnet14,resnet20"]))
    assert done.returncode == 0, done.stderr
    output = done.stdout.splitlines()
    assert output[0] == "12 runs asked for: 3 method x 2 seed x 2 teacher; 3 done, 9 to do, 1 teacher to train first"
    assert sum("already done" in text for text in output) == 3
    assert any(text.startswith("  teacher   resnet20") for text in output)
    assert any(text.startswith("  student   kd resnet8 seed 1") and "runs like it)" in text for text in output)
    assert any(
        text.startswith("  student   sp resnet8 seed 0") and "other methods of this student)" in text for text in output
    )
    assert any(text.startswith("  teacher   resnet20") and "(rough: 16 images timed)" in text for text in output)
    assert re.match(r"left     about [\d:]+ in one process; about \d+ MiB of disk", output[-1])
    assert sorted(swept.rglob("*")) == before
    single = kdrun(swept, "plan", *TINY, "method=kd", "seed=0")
    assert single.stdout.splitlines()[0] == "1 run asked for; 1 done, 0 to do"
    wrong = kdrun(swept, "plan", *TINY, "method=kdd")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("kdrun: no method 'kdd'. Did you mean kd?")


@pytest.mark.slow
def test_verify_finds_what_was_changed(swept, tmp_path, capsys):
    """Weights, curve and identity of another run are noticed; an untouched run passes."""
    import shutil

    (source,) = swept.glob("outputs/runs/digits/kd/*/*/seed0")
    assert run(["verify", str(source)]) == 0
    assert capsys.readouterr().out.count("\n  ok ") == 8
    copy = tmp_path / "copy"
    for name, tamper, wrong in (
        ("student.safetensors", "student-best.safetensors", None),
        ("curves.jsonl", "cut", "curves.jsonl has the scores of the record"),
        ("record.json", "seed", "id and group are the hashes of the identity"),
        ("student.safetensors", "other", "student.safetensors has the hash of the record"),
        ("config.yaml", "temperature", "config.yaml has the settings of the identity: method.kd.temperature is 5, and"),
    ):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        if tamper == "cut":
            (copy / name).write_text((copy / name).read_text().splitlines()[0] + "\n")
        elif tamper == "temperature":
            text = (copy / name).read_text()
            (copy / name).write_text(text.replace("temperature: 4.0", "temperature: 5.0"))
        elif tamper == "seed":
            record = json.loads((copy / name).read_text())
            record["identity"]["seed"] = 7
            (copy / name).write_text(json.dumps(record))
        elif tamper == "other":
            (other,) = swept.glob("outputs/runs/digits/none/none-resnet8/*/seed0/student.safetensors")
            shutil.copy(other, copy / name)
        if wrong is not None:
            assert run(["verify", str(copy)]) == 1
            assert f"  WRONG  {wrong}" in capsys.readouterr().out


@pytest.mark.slow
def test_diff_says_what_differs(swept):
    (kd,) = swept.glob("outputs/runs/digits/kd/*/*/seed0")
    (none,) = swept.glob("outputs/runs/digits/none/none-resnet8/*/seed0")
    both = [records.read(path) for path in (kd, none)]
    apart = diff.differences(*both, kd, none)
    assert any(text.startswith("configuration  method.kd.temperature: 4 | -") for text in apart)
    assert any(text.startswith("curve          first difference at epoch") for text in apart)
    assert not any("initial student" in text for text in apart)  # one seed is one start
    assert diff.differences(both[0], both[0], kd, kd) == [
        "no difference in configuration, environment, results or curve"
    ]


def finished(root: Path, seed: int = 0, *, weights: bool = True) -> Path:
    """A finished run whose files agree: its record, its curve and (unless portable) its weights and logits."""
    import torch

    from kdrun.runs.checkpoint import save_tensors, weights_sha256

    record = make("none", seed, 0.75)
    record |= {"id": digest(record["identity"]), "group": group(record["identity"]), "recipe": {"epochs": 2}}
    record["last"] = record["best"] = {"epoch": 2, "score": 0.75, "loss": 0.3, "metrics": {"accuracy": 0.75}}
    student = {"a.weight": torch.full((2, 3), float(seed))}
    record["student"]["sha256"] = weights_sha256(student)
    folder = folder_of(root, f"digits/none/none-resnet8/0a/seed{seed}", record, line("distil", 1), line("distil", 2))
    (folder / "curves.jsonl").write_text(f"{line('distil', 1)}\n{line('distil', 2).replace('0.5', '0.75')}\n")
    if weights:
        save_tensors(folder / "student.safetensors", student)
        save_tensors(folder / "student-best.safetensors", student)
        labels = torch.tensor([0, 1, 0, 1])
        logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 0])).float()
        save_tensors(folder / "test_logits.safetensors", {"logits": logits, "labels": labels})
    return folder


def test_verify_of_portable_records_is_ok_and_says_what_is_absent(tmp_path, capsys):
    folder = finished(tmp_path, weights=False)
    assert run(["verify", str(folder)]) == 0
    output = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in output if text.startswith("  absent")] == [
        "config.yaml", "student.safetensors", "student-best.safetensors", "test_logits.safetensors",
    ]  # fmt: skip
    assert not [text for text in output if "WRONG" in text]


def test_verify_of_a_folder_is_a_line_per_run(tmp_path, capsys):
    """Details of what is wrong alone; a record that cannot be read is wrong, too; the counts last."""
    finished(tmp_path, 0)
    wrong = finished(tmp_path, 1)
    curve = wrong / "curves.jsonl"
    curve.write_text(curve.read_text()[:-9])
    broken = finished(tmp_path, 2)
    (broken / "record.json").write_text("{")
    assert run(["verify", str(tmp_path)]) == 1
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith(f"ok     {tmp_path}")
    assert output[1].startswith(f"WRONG  {wrong}")
    assert output[2].startswith(f"         curves.jsonl has the scores of the record: {curve} is broken in line 2")
    assert output[3] == f"WRONG  {broken}"
    assert output[4].startswith(f"         record.json: {broken / 'record.json'} is truncated")
    assert output[5:] == ["3 runs   1 ok   2 WRONG   2 with files absent"]
    assert run(["verify", str(tmp_path / "runs/digits/none/none-resnet8/0a/seed0"), str(wrong)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs   1 ok   1 WRONG   2 with files absent"


def test_verify_compares_whole_hashes_and_tensors(tmp_path, capsys):
    """The last digit of a hash counts; weights of an earlier epoch have the tensors of the last; logits without labels are named."""
    import torch

    from kdrun.runs.checkpoint import save_tensors

    folder = finished(tmp_path)
    right = json.loads((folder / "record.json").read_text())
    digits = right["student"]["sha256"]
    right["student"]["sha256"] = digits[:-1] + ("0" if digits[-1] != "0" else "1")
    records.write(folder, right)
    assert run(["verify", str(folder)]) == 1
    assert "  WRONG  student.safetensors has the hash of the record: " in capsys.readouterr().out
    right["student"]["sha256"] = digits
    right["best"] = {"epoch": 1, "score": 0.8, "loss": 0.3, "metrics": {"accuracy": 0.8}}
    records.write(folder, right)
    (folder / "curves.jsonl").write_text((folder / "curves.jsonl").read_text().replace("0.5", "0.8"))
    save_tensors(folder / "student-best.safetensors", {"a.weight": torch.zeros(2, 4)})
    save_tensors(folder / "test_logits.safetensors", {"logits": torch.zeros(2, 4)})
    assert run(["verify", str(folder)]) == 1
    output = capsys.readouterr().out
    assert (
        "  WRONG  student-best.safetensors has the tensors of student.safetensors: a.weight is (2, 4), there (2, 3)"
        in output
    )
    assert "test_logits.safetensors has no 'labels'" in output
    assert output.count("WRONG") == 2


def test_verify_holds_the_teacher_against_its_run(tmp_path, capsys):
    from kdrun.runs.identity import file_sha256

    teacher = finished(tmp_path)
    folder = tmp_path / "runs/digits/kd/resnet14-resnet8/0b/seed0"
    folder.parent.mkdir(parents=True)
    finished(tmp_path / "other", weights=False).rename(folder)
    record = json.loads((folder / "record.json").read_text())
    its = {"name": "resnet8", "run_id": record["id"], "params": 6, "score": 0.75}
    for sha256, status_code in ((file_sha256(teacher / "student.safetensors"), 0), ("0" * 64, 1)):
        record["teacher"] = {**its, "sha256": sha256}
        records.write(folder, record)
        assert run(["verify", str(folder)]) == status_code
        state = "ok   " if status_code == 0 else "WRONG"
        assert f"  {state}  the teacher's weights have the hash of the record" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["verify", "diff"])
def test_a_record_that_lacks_a_key_is_named(verb, tmp_path, capsys):
    whole, lacking = finished(tmp_path, 0, weights=False), finished(tmp_path, 1, weights=False)
    record = json.loads((lacking / "record.json").read_text())
    del record["versions"]
    records.write(lacking, record)
    assert run([verb, str(whole), str(lacking)]) == 1
    printed = capsys.readouterr()
    (output,) = [text for text in (printed.out + printed.err).splitlines() if "versions" in text]
    assert f"{lacking / 'record.json'} is not a record of a kdrun run (no key 'versions')" in output
    assert printed.err.count("\n") == (verb == "diff")


def test_diff_of_broken_and_missing_curves(tmp_path, capsys):
    first, second = finished(tmp_path, 0, weights=False), finished(tmp_path, 1, weights=False)
    (second / "curves.jsonl").unlink()
    assert run(["diff", str(first), str(second)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "curve          2 epochs | -"
    (second / "curves.jsonl").write_text('{"stage": "distil"}\n')
    assert run(["diff", str(first), str(second)]) == 1
    assert f"{second / 'curves.jsonl'} is broken in line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message", "status_code"),
    [
        (["verify", "nowhere"], "nowhere has no record.json; give a run's folder", 1),
        (["diff", "a"], "the following arguments are required: B", 2),
        (["status", "nowhere"], "nowhere is not a folder", 1),
        (["statsu"], "no verb 'statsu'. Did you mean status?", 2),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, status_code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == status_code
    (output,) = capsys.readouterr().err.splitlines()
    assert output.startswith("kdrun: ")
    assert message in output
