"""What a user can type or hand over wrong: one line that says what and how to mend it, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from last_wins import last_wins
from PIL import Image

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
TINY = "dataset=digits recipe=quick recipe.epochs=1 teacher=resnet8 student=resnet8"
ALONE = f"{TINY} method=none"
FOLDER = "dataset=image_folder recipe=quick recipe.batch_size=4 student=resnet8 method=none"


def kdrun(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "kdrun", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


ODD = """
from kdrun.methods import Method, register


@register
class Odd(Method):
    def loss(self, student, teacher, batch):
        return {"a": batch["labels"].float().mean()}
"""


class Bomb:
    """A pickle that leaves a file where it is executed."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def images(root: Path, classes=("cat", "dog")) -> Path:
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (60 * i, 40, 90)).save(root / part / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """Broken checkpoints and folders, and one checkpoint of a resnet8 for digits."""
    import torch

    from kdrun.config.registry import MODELS
    from kdrun.runs.checkpoint import save_tensors

    root = tmp_path_factory.mktemp("files")
    save_tensors(root / "digits.safetensors", MODELS.get("resnet8")(10).state_dict())
    save_tensors(root / "hundred.safetensors", MODELS.get("resnet8")(100).state_dict())
    whole = (root / "digits.safetensors").read_bytes()
    (root / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": MODELS.get("resnet8")(10).state_dict()}, root / "digits.pt")
    whole = (root / "digits.pt").read_bytes()
    (root / "half.pt").write_bytes(whole[: len(whole) // 2])
    (root / "empty.pt").write_bytes(b"")
    (root / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"state_dict": Bomb()}, root / "bomb-torch.pt")
    torch.save([1, 2], root / "list.pt")

    (images(root / "corrupt") / "train" / "dog" / "2.png").write_bytes(b"\x89PNG and no more")
    (images(root / "void") / "train" / "dog2").mkdir()
    images(root / "extra")
    images(root / "extra2", ("cow",)).joinpath("test").rename(root / "extra" / "val")
    (root / "extra" / "test").rename(root / "extra" / "gone")
    (root / "bare").mkdir()
    (root / "conf" / "method").mkdir(parents=True)
    (root / "conf" / "method" / "kd.yaml").write_text("kd: {temperature: 2.0}\n")
    (root / "mine" / "method").mkdir(parents=True)
    (root / "mine" / "method" / "mine.yaml").write_text("mine: {}\n")
    (root / "nets.py").write_text("def wrong(classes):\n    return 3\n")
    (root / "mine" / "method" / "odd.yaml").write_text("odd: {weights: {a: 1.0}}\n")
    (root / "odd.py").write_text(ODD)
    (root / "boxes" / "method").mkdir(parents=True)
    (root / "boxes" / "method" / "boxes.yaml").write_text("boxes:\n  weights: {soft: 1.0}\n")
    (root / "needy.py").write_text(
        "from kdrun.methods import Method, register\n@register\nclass Boxes(Method):\n    needs = ('label', 'boxes')\n"
    )
    return root


# (id, arguments, words that stand in the line, exit code). {files}: the folder above. Spaces part arguments; | does too
# where an argument has spaces of its own.
CONFIG = [
    ("method", "method=rdk", "no method 'rdk'|Did you mean rkd?|Choices: |kdrun methods", 1),
    ("method-case", "method=KD", "'KD'|Did you mean kd?", 1),
    ("method-plus", "method=kd+at", "'kd+at'|method=[kd,at]", 1),
    ("method-null", "method=null", "method=null|method=none", 1),
    ("method-empty-list", "method=[]", "method has no value|method=NAME|Choices: ", 1),
    ("method-taken", "~method", "method has no value|method=NAME", 1),
    ("method-several", "method=kd,at", "method=kd,at|-m|[kd,at]", 1),
    ("method-bracket", "method=[kd", "method=[kd|key=value|quote", 1),
    ("methods", "methods=kd", "'methods'|Did you mean method?", 1),
    ("method-not-in-run", "method.at.power=3", "method.at|method=kd|method=at", 1),
    ("teacher", "teacher=resnet111", "no teacher 'resnet111'|Did you mean resnet110?|kdrun models", 1),
    ("teacher-null", "teacher=null", "teacher=null|teacher=none", 1),
    ("teacher-none", "teacher=none", "method 'kd'|teacher=none|teacher=MODEL|method=none", 1),
    ("student", "student=resnet", "no student 'resnet'|Choices: ", 1),
    ("student-option", "student.width=4", "no key 'width' in student|Choices: checkpoint", 1),
    (
        "student-path-missing",
        f"{ALONE.replace('student=resnet8', 'student=import')}",
        "student.path has no value|student.path=VALUE",
        1,
    ),
    ("device", "engine.device=gpu", "engine.device is 'gpu'|Did you mean cuda?", 1),
    ("weight-negative", "method.kd.weights.soft=-1", "method.kd.weights.soft is -1.0|0 or more", 1),
    ("task-negative", "loss.task=-0.5", "loss.task is -0.5|0 or more", 1),
    ("weight-of-labels", "method.kd.weights={soft:1,hard:1}", "no key 'hard' in method.kd.weights|is called task", 1),
    ("checkpoint-empty", "teacher.checkpoint=", "teacher.checkpoint has no value|teacher.checkpoint=FILE", 1),
    ("twice", "seed=1 seed=2", "seed stands twice: seed=1 and seed=2", 2),
    ("twice-group", "student=resnet8 method=kd +student=resnet20", "student stands twice", 2),
    ("dataset-other", "dataset=svhn", "no dataset 'svhn'|dataset=image_folder dataset.root=FOLDER", 1),
    ("mean-number", "dataset.mean=0.305", "dataset.mean must be three numbers", 1),
    ("root-unused", "dataset=digits dataset.root=here", "digits|dataset=image_folder", 1),
    ("dataset", "dataset=cifar", "no dataset 'cifar'|Did you mean cifar10?", 1),
    ("dataset-taken", "~dataset", "dataset has no value|dataset=NAME|digits", 1),
    ("recipe", "recipe=kdzo", "no recipe 'kdzo'|Did you mean kdzoo?", 1),
    ("recipe-taken", "~recipe", "~recipe|recipe=NAME|kdzoo", 1),
    ("recipe-null", "recipe=null", "recipe=null|kdzoo", 1),
    ("experiment", "experiment=quikstart", "no experiment 'quikstart'", 1),
    ("experiment-plus", "+experiment=foo", "no experiment 'foo'", 1),
    ("launcher", "hydra/launcher=slurmm", "'slurmm'|Choices: |basic|pip install", 1),
    ("key", "recipe.epoch=3", "no key 'epoch' in recipe|Did you mean epochs?", 1),
    ("key-without-path", "lr=0.1", "no key 'lr'|recipe.lr", 1),
    ("key-of-method", "temperature=2", "no key 'temperature'|method.kd.temperature", 1),
    ("key-added", "+foo=1", "no key 'foo' in the config|Choices: ", 1),
    ("group", "recipee.epochs=3", "no key 'recipee'|Did you mean recipe?", 1),
    ("stage", "method=fitnet method.fitnet.stages.hint.epochs=1", "no key 'hint'|Did you mean hints?", 1),
    ("stage-key", "method=fitnet method.fitnet.stages.hints.lr=1", "'lr'|+method.fitnet.stages.hints.lr=VALUE", 1),
    ("type-int", "recipe.epochs=ten", "recipe.epochs|'ten'|a whole number", 1),
    ("type-int-fraction", "seed=1.5", "seed|'1.5'|a whole number", 1),
    ("type-float", "recipe.lr=1e", "recipe.lr|'1e'|a number", 1),
    ("type-bool", "rerun=maybe", "rerun|'maybe'|true or false", 1),
    ("type-list", "recipe.milestones=0.5", "recipe.milestones|must be a list", 1),
    ("type-mapping", "method.kd.weights=1", "method.kd.weights|NAME=VALUE", 1),
    ("type-added", "~seed +seed=abc", "seed|'abc'|a whole number", 1),
    ("missing-value", "recipe.epochs=", "recipe.epochs has no value|a whole number", 1),
    ("null-value", "seed=null", "seed is null|seed=VALUE", 1),
    ("sweep-without-m", "seed=0,1", "seed=0,1|-m", 1),
    ("interpolation", "recipe.lr=${foo}", "recipe.lr|'foo' not found", 1),
    ("no-equals", "recipe=quick epochs", "cannot read 'epochs'|key=value", 1),
    ("epochs-zero", "recipe.epochs=0", "recipe.epochs is 0|1 or more", 1),
    ("teacher-epochs-zero", "teacher.recipe.epochs=0", "teacher.recipe.epochs is 0|1 or more", 1),
    ("batch-zero", "recipe.batch_size=0", "recipe.batch_size is 0|1 or more", 1),
    ("seed-negative", "seed=-1", "seed is -1|0 or more", 1),
    ("holdout-negative", "dataset.holdout=-5", "dataset.holdout is -5|0 or more", 1),
    ("lr-nan", "recipe.lr=nan", "recipe.lr is nan|above 0", 1),
    ("gamma-negative", "recipe.gamma=-1", "recipe.gamma is -1|0 or more", 1),
    ("weight-nan", "method.kd.weights.soft=nan", "method.kd.weights.soft is nan|a number of 0 or more", 1),
    ("milestones-in-epochs", "recipe.milestones=[100]", "recipe.milestones has 100|shares|of 200 is 0.5", 1),
    ("optimizer", "recipe.optimizer=adam", "recipe.optimizer is 'adam'|Did you mean adamw?|sgd", 1),
    ("device", "engine.device=gpu", "engine.device is 'gpu'|cuda", 1),
    ("protocol", "protocol=lastt", "protocol is 'lastt'|Did you mean last?|holdout", 1),
    ("protocol-without-holdout", "protocol=holdout", "protocol=holdout|dataset.holdout=", 1),
    ("outputs-empty", "outputs=", "outputs has no value|outputs=FOLDER", 1),
    ("outputs-below-file", f"{ALONE} outputs=/dev/null/x", "outputs=/dev/null/x|/dev/null is a file|outputs=FOLDER", 1),
    ("config-dir-missing", "--config-dir /nope", "/nope|method/NAME.yaml", 1),
    ("config-dir-built-in", "--config-dir {files}/conf", "conf/method/kd.yaml|built-in method=kd|rename", 1),
    ("config-dir-no-class", f"--config-dir {{files}}/mine {TINY} method=mine", "no method 'mine'|plugins=[MODULE]", 1),
    ("plugin-missing", "plugins=[nomod]", "nomod|plugins=[nomod]|current folder", 1),
    ("checkpoint-missing", "teacher.checkpoint=nope.pt", "teacher.checkpoint=nope.pt does not exist|current folder", 1),
    ("checkpoint-equals", "teacher.checkpoint=a=b.pt", "a=b.pt|quote", 1),
    ("folder-not-set", FOLDER, "dataset.root=FOLDER|train/<class>", 1),
    ("folder-missing", f"{FOLDER} dataset.root=/nope", "/nope is not a folder|train/<class>", 1),
    ("folder-bare", f"{FOLDER} dataset.root={{files}}/bare", "bare has no test or val folder|train/<class>", 1),
    ("folder-class-empty", f"{FOLDER} dataset.root={{files}}/void", "void/train/dog2 is empty|remove it", 1),
    ("folder-class-unknown", f"{FOLDER} dataset.root={{files}}/extra", "class cow|Choices: cat, dog", 1),
    ("table", "-m table=kdzoo", "no table 'kdzoo'|Did you mean kdzoo_cifar10?|crd_cifar100", 1),
    ("table-alone", "table=kdzoo_cifar10", "table=NAME stands for many runs|add -m", 1),
    ("table-pair", "-m table=kdzoo_cifar10 pair=a-b", "has no pair 'a-b'|resnet110-resnet20", 1),
    ("on-error", "sweep.on_error=halt", "sweep.on_error is 'halt'|continue|stop", 1),
    ("verb", "train method=kd", "no verb 'train'|Choices: |key=value", 2),
    ("spaces", "method = kd", "'method = kd'|without spaces|method=kd", 2),
    ("flag", "--method=kd", "--method=kd|key=value", 2),
    ("flag-value", "--cfg jobb", "'jobb'|--cfg job", 2),
    ("flag-without-value", "-cd", "--config-dir|expected one argument", 2),
    ("sweep-choice", f"-m {TINY} method=none,kdd", "no method 'kdd'|Did you mean kd?", 1),
]
# These import torch: 2 to 8 s each on a busy pair of cores.
BUILD = [
    ("batch-above-dataset", f"{ALONE} recipe.batch_size=5000", "5000|1,200|recipe.batch_size=1200", 1),
    ("holdout-too-large", f"{ALONE} dataset.holdout=100000", "dataset.holdout=100000|1,199", 1),
    ("size-fixed", f"{ALONE} dataset.size=32", "dataset.size=32|8 px|image_folder", 1),
    ("path-no-function", f"{ALONE} student=import student.path=foo", "path=foo|module:function", 1),
    ("path-no-module", f"{ALONE} student=import student.path=nomod:f", "nomod|path=nomod:f|current folder", 1),
    ("path-no-model", f"{ALONE} student=import student.path=nets:wrong", "nets:wrong|int|nn.Module", 1),
    ("dataset-name", f"{ALONE} dataset.name=digit", "dataset.name=digit is unknown|Did you mean digits?", 1),
    ("memory", f"{ALONE} dataset.memory=sometimes", "dataset.memory is 'sometimes'|always, auto, never", 1),
    ("crop", f"{ALONE} recipe.crop=middle", "recipe.crop is 'middle'|none, reflect, zero", 1),
    ("padding", f"{ALONE} recipe.padding=-1", "recipe.padding is -1|0 or more", 1),
    ("dataset-key", f"{ALONE} dataset.holdot=3", "no key 'holdot' in dataset|Did you mean holdout?", 1),
    ("recipe-key", f"{ALONE} recipe.epoch=3", "no key 'epoch' in recipe|Did you mean epochs?", 1),
    ("teacher-recipe-key", f"{TINY} teacher.recipe.epoch=3", "no key 'epoch' in teacher.recipe|Did you mean epochs?", 1),
    ("optimizer-key", f"{TINY} +method.kd.optimizer.rate=1", "no key 'rate' in method.kd.optimizer|lr, weight_decay", 1),
    ("optimizer-lr", f"{TINY} +method.kd.optimizer.lr=0", "method.kd.optimizer.lr is 0.0|above 0", 1),
    ("tap", f"{TINY} method=at method.at.taps=[stage9]", "no tap 'stage9'|Did you mean stage3?|Choices: ", 1),
    ("variant", f"{TINY} method=at method.at.variant=foo", "'foo'|code|paper", 1),
    ("temperature", f"{TINY} method.kd.temperature=-1", "method.kd.temperature|-1|above 0", 1),
    ("temperature-infinite", f"{TINY} method.kd.temperature=inf", "method.kd.temperature is inf|finite", 1),
    ("temperature-huge", f"{TINY} method.kd.temperature=1e9", "method.kd.temperature is 1e+09|1e+06|method=logits", 1),
    ("networks", f"{TINY} method=dml method.dml.networks=1", "method.dml.networks is 1|at least 2", 1),
    ("stages-together", f"{TINY} method=[fitnet,kd]", "fitnet|cannot be combined|method=fitnet", 1),
    ("needs", f"--config-dir {{files}}/boxes plugins=[needy] {TINY} method=boxes", "'boxes'|digits does not give|index, input, label", 1),
    ("weights-zero", f"{TINY} method.kd.weights.soft=0 loss.task=0", "every term has weight 0|kd.soft", 1),
    ("term", f"{TINY} +method.kd.weights.foo=1", "'foo'|Choices: |soft", 1),
    ("schedule-term", f"{TINY} +method.kd.schedules.sotf={{kind:constant}}", "schedules has 'sotf'|Did you mean soft?", 1),
    ("banks", f"{TINY} method=crd method.crd.dim=100000000000", "memory banks|GiB of cpu|method.crd.dim", 1),
    ("taps-unequal", f"{TINY} method=at method.at.taps=[[stage1],[stage1,stage2]]", "1 for the student, 2 for the teacher", 1),
    ("channels", f"{TINY} teacher=resnet8x4 method=fsp", "fsp needs the same channels|[16, 16, 32, 64]|another method", 1),
    ("share", f"{TINY} method=mgd method.mgd.share=2", "method.mgd.share is 2|above 0 and below 1", 1),
    ("smoothing", f"{TINY} method=label_smoothing method.label_smoothing.smoothing=1", "smoothing is 1|above 0 and below 1", 1),
    ("taps-flat", f"{TINY} student=mlp method=at", "no tap 'stage1' in MLP|hidden1, hidden2", 1),
    ("own-error", f"--config-dir {{files}}/mine plugins=[odd] {TINY} method=odd", "KeyError at odd.py:8|'labels'", 1),
    ("stage-added", f"{TINY} method=fitnet +method.fitnet.stages.hint.epochs=1", "no stage 'hint'|Did you mean hints?", 1),
    ("outputs-refused", f"{ALONE} outputs=/proc/nowhere", "outputs=/proc/nowhere|cannot be written|outputs=FOLDER", 1),
    ("offline", "dataset=cifar10 method=none", "CIFAR-10|outputs/data/cifar10|cifar-10-python.tar.gz|experiment=quickstart", 1),
    ("image-corrupt", f"{FOLDER} dataset.root={{files}}/corrupt", "train/dog/2.png|repair or remove", 1),
    ("architecture", f"{TINY} teacher=resnet14 teacher.checkpoint={{files}}/digits.safetensors", "does not fit resnet14|tensors", 1),
    ("classes", f"{TINY} teacher.checkpoint={{files}}/hundred.safetensors", "(100,)|(10,)|number of classes", 1),
    ("shortcut", f"{TINY} teacher=resnet8x4 teacher.checkpoint={{files}}/digits.pt", "does not fit resnet8x4|in the file", 1),
    ("truncated-safetensors", f"{TINY} teacher.checkpoint={{files}}/half.safetensors", "half.safetensors|truncated", 1),
    ("truncated-pt", f"{TINY} teacher.checkpoint={{files}}/half.pt", "half.pt|truncated", 1),
    ("empty-pt", f"{TINY} teacher.checkpoint={{files}}/empty.pt", "empty.pt|0 bytes|truncated", 1),
    ("pickle", f"{TINY} teacher.checkpoint={{files}}/bomb.pt", "bomb.pt is refused|executes no code|state dict", 1),
    ("pickle-torch", f"{TINY} teacher.checkpoint={{files}}/bomb-torch.pt", "bomb-torch.pt is refused|executes no code", 1),
    ("not-tensors", f"{TINY} teacher.checkpoint={{files}}/list.pt", "list.pt|no state dict", 1),
]  # fmt: skip
QUICK = {"tap", "classes", "image-corrupt", "pickle", "truncated-pt"}  # of BUILD; the others are marked slow


def cases():
    for case in CONFIG:
        yield pytest.param(*case[1:], id=case[0])
    for name, arguments, *expected in BUILD:
        case = name, " ".join(last_wins(arguments.split())), *expected
        yield pytest.param(*case[1:], id=case[0], marks=[] if case[0] in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("arguments", "words", "status"), [*cases()])
def test_one_line(arguments, words, status, files, tmp_path):
    for name in [name for name in ("nets.py", "needy.py", "odd.py") if name.removesuffix(".py") in arguments]:
        (tmp_path / name).symlink_to(files / name)
    before = set(tmp_path.rglob("*"))
    done = kdrun(arguments.format(files=files).split() if "{files}" in arguments else arguments.split(), tmp_path)
    lines = done.stderr.splitlines()
    assert done.returncode == status, done.stderr + done.stdout
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("kdrun: ")
    assert "Traceback" not in done.stderr
    assert not [word for word in words.split("|") if word not in lines[0]], lines[0]
    # A sweep says first how many runs it was asked for; a run says its plan before models are built.
    assert not done.stdout or "-m" in arguments.split() or done.stdout.startswith("plan ")
    left = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} - before
    cache = tmp_path / "outputs" / "cache"  # checksums and decoded images of a folder are worth keeping
    left = {
        path
        for path in left
        if path not in (cache.parent, cache) and (cache not in path.parents or ".tmp" in path.name)
    }
    assert not left


@pytest.mark.slow
def test_the_only_term_may_begin_at_weight_0(tmp_path):
    """A warm-up of the only weighted term is 0 at the first step: the rehearsal looks at weights, not at schedules."""
    schedule = "+method.kd.schedules.soft={kind: warmup, until: 0.5}"
    done = kdrun([*TINY.split(), "loss.task=0", schedule], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_that_does_not_fit_names_what_lacks_and_what_is_besides():
    from torch import nn

    from kdrun.errors import KdrunError
    from kdrun.runs.checkpoint import load_into

    weights = {f"other.{i}": nn.Linear(2, 2).weight for i in range(4)} | {"weight": nn.Linear(2, 2).weight}
    with pytest.raises(KdrunError) as caught:
        load_into(nn.Linear(2, 2), weights, "a.pt", "linear")  # type: ignore[arg-type]
    assert "it lacks bias; it also has other.0, other.1, other.2 and 1 more." in str(caught.value)


def test_debug_shows_the_traceback(tmp_path):
    done = kdrun(["method=rdk", "engine.debug=true"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "kdrun: no method 'rdk'" in done.stderr.splitlines()[-1]
