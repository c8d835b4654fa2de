"""What a user of texts can say or hand over wrong, through the real command: one line, and no run is left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from safetensors.torch import save_file
from small_texts import command, texts, train

import kdrun

BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 12,
}  # fmt: skip


def tokenizer(tokens: int) -> str:
    words = {f"w{n}": n for n in range(tokens)}
    return json.dumps({"model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}, "added_tokens": []})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and folders of models that lack something."""
    import torch

    folder = texts(tmp_path_factory.mktemp("bad"))
    for name in ("pickle", "empty", "small", "no_config"):
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_text(tokenizer(150 if name == "small" else 100))
        if name != "no_config":
            (folder / name / "config.json").write_text(json.dumps(BERT))
    (folder / "pickle" / "pytorch_model.bin").write_bytes(b"\x80")
    save_file({"x": torch.zeros(1)}, folder / "small" / "model.safetensors")
    (folder / "hidden").mkdir()
    (folder / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['transformers'] = None\n")
    (folder / "both").mkdir()
    (folder / "both" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['transformers'] = sys.modules['tokenizers'] = None\n"
    )
    return folder


ALONE = ["method=none"]
IMAGES = ["dataset=text_files", "dataset.root=texts"]
OWN = [
    "student.hidden_size=128",
    "student.num_hidden_layers=4",
    "student.num_attention_heads=4",
    "student.intermediate_size=null",
]
BIG = [*OWN, "student.name_or_path=small", "dataset.max_length=8"]
CASES = {
    "a tokenizer of more tokens": ([*ALONE, *BIG], "the student knows 100 tokens and the tokenizer small has 150"),
    "texts above the positions": ([*ALONE, "student.max_position_embeddings=12"], "dataset.max_length is 16; the student reads 12 tokens"),
    "weights in a pickle": ([*ALONE, *BIG, "student.name_or_path=pickle"],
                            "pytorch_model.bin, which can execute code and is never read"),
    "no weights": ([*ALONE, *BIG, "student.name_or_path=empty"],
                   "empty has no weights"),
    "no config.json": ([*ALONE, *BIG, "student.name_or_path=no_config"], "no_config has no config.json"),
    "no such folder": ([*ALONE, "student.name_or_path=./nowhere"], "./nowhere is no folder"),
    "layers above the model's": ([*ALONE, "student.layers=5"], "student.layers is 5"),
    "layers out of range": ([*ALONE, "student.init=[0,7]"], "student.init=[0,7] names layer 7"),
    "a start that is not known": ([*ALONE, "student.init=frist"], "Did you mean first?"),
    "heads": ([*ALONE, "student.hidden_size=15"], "it must be a multiple of num_attention_heads"),
    "from no teacher": (["method=none", "student.init_from=teacher"], "student.init_from=teacher needs a trained teacher"),
    "a model of images": ([*ALONE, "student=resnet20"], "student=resnet20 is a model of the task image"),
    "a method of images": (["method=at"], "BertForSequenceClassification is a transformer and has no feature maps"),
    "crd on tokens": (["method=crd", "method.crd.taps=[layer2]"], "crd compares whole samples"),
    "gradients of words": (["method=sobolev"], "method 'sobolev' needs gradients with respect to the input"),
    "a package that is not installed": ([*ALONE, *BIG, "student.name_or_path=package:not_there/model"], "'not_there' is installed here"),
}  # fmt: skip
QUICK = {
    "a tokenizer of more tokens",
    "weights in a pickle",
    "a model of images",
    "crd on tokens",
}  # others: in test_text_models.py, too


def refused(done: subprocess.CompletedProcess[str], root: Path, words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert not (root / "outputs/runs").exists()


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_one_line_and_no_run(root: Path, case: str) -> None:
    overrides, words = CASES[case]
    done = command(root, *IMAGES, *overrides) if "student=resnet20" in overrides else train(root, *overrides)
    refused(done, root, words)


def test_a_model_of_texts_for_images(root: Path) -> None:
    done = command(root, "dataset=digits", "recipe=quick", "student=hf_text", "method=none", "teacher=none")
    refused(done, root, "student=hf_text is a model of the task text")


def test_no_network(root: Path) -> None:
    done = train(root, *ALONE, "student.name_or_path=nobody/nothing", HF_HUB_OFFLINE="1", HF_HOME=str(root / "hub"))
    refused(done, root, "Without a network, give the folder of a model, with config.json")


def test_no_extra_at_all(root: Path) -> None:
    path = os.pathsep.join([str(root / "both"), str(kdrun.PACKAGE.parent)])
    refused(train(root, *ALONE, PYTHONPATH=path), root, "texts need the tokenizers library: pip install 'kdrun[text]'")


def test_no_transformers(root: Path) -> None:
    path = os.pathsep.join([str(root / "hidden"), str(kdrun.PACKAGE.parent)])
    refused(
        train(root, *ALONE, PYTHONPATH=path),
        root,
        "models of text need the transformers library: pip install 'kdrun[text]'",
    )
