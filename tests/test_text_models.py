"""Models of texts: which layers a student begins with, what taps give, what makes another run, and models that cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from kdrun.errors import KdrunError
from kdrun.methods.taps import Tapped
from kdrun.tasks.text import fitting
from kdrun.tasks.text.models.hf import from_teacher, hf_text
from kdrun.tasks.text.models.layers import chosen
from kdrun.tasks.text.settings import Data

CLASSES, WORDS, LAYERS, WIDTH, HEADS = 3, 100, 4, 32, 2
KINDS = ("bert", "roberta", "distilbert", "electra")
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 64, "vocab_size": WORDS,
    "max_position_embeddings": 64,
}  # fmt: skip


def saved(folder: Path, kind: str = "bert", seed: int = 0, classes: int | None = None) -> Path:
    """A pretrained folder as transformers itself writes it; `classes` None: an encoder without a classifier."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = dict(SIZES)
    if kind == "distilbert":
        sizes["hidden_dim"] = sizes.pop("intermediate_size")
        own = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        sizes = {own.get(key, key): value for key, value in sizes.items()}
    if kind == "electra":
        sizes["embedding_size"] = WIDTH
    config = AutoConfig.for_model(kind, initializer_range=0.2, **sizes)
    if classes is None:
        model = AutoModel.from_config(config)
    else:
        config.num_labels = classes
        model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pretrained")
    made = {kind: saved(root / kind, kind, classes=CLASSES) for kind in KINDS}
    return {**made, "encoder": saved(root / "encoder", classes=None)}


def inputs(rows: int = 3, long: int = 9, padding: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows)
    lengths = torch.tensor([long, *torch.randint(3, long, (rows - 1,), generator=draw).tolist()])
    mask = torch.arange(long + padding) < lengths[:, None]
    ids = nn.functional.pad(torch.randint(5, WORDS, (rows, long), generator=draw), (0, padding))
    return {"input_ids": torch.where(mask, ids, 0), "attention_mask": mask.long()}


def layer(model: nn.Module, number: int) -> dict[str, Tensor]:
    return model.get_submodule(f"{model.blocks}.{number}").state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


# Which layers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("layers", "init", "expected"),
    [(2, "first", [0, 1]), (2, "alternate", [0, 2]), (3, "alternate", [0, 1, 2]), (2, "last", [2, 3]), (None, [3, 0, 3], [3, 0, 3]),
     (None, "first", [0, 1, 2, 3])],
)  # fmt: skip
def test_a_pretrained_model_is_cut_to_its_layers_bit_for_bit(folders, kind, layers, init, expected) -> None:
    model = hf_text(CLASSES, name_or_path=str(folders[kind]), layers=layers, init=init)
    whole = AutoModelForSequenceClassification.from_pretrained(folders[kind])
    blocks = whole.get_submodule(model.blocks)
    assert model.config.num_hidden_layers == len(model.get_submodule(model.blocks)) == len(expected)
    for new, old in enumerate(expected):
        assert same(layer(model, new), blocks[old].state_dict())
    others = {name: value for name, value in whole.state_dict().items() if not name.startswith(f"{model.blocks}.")}
    assert same({name: value for name, value in model.state_dict().items() if name in others}, others)
    # A layer that is named twice is two layers: each has weights of its own.
    pointers = [value.data_ptr() for value in model.state_dict().values() if value.is_floating_point()]
    assert len(pointers) == len(set(pointers))


def test_the_layers_of_twelve() -> None:
    """https://github.com/xv44586/Knowledge-Distillation-NLP takes 0, 4, 8 of 12."""
    assert chosen(3, "alternate", 12) == [0, 4, 8]
    assert chosen(6, "alternate", 12) == [0, 2, 4, 6, 8, 10]
    assert chosen(5, "alternate", 12) == [0, 2, 4, 7, 9]
    assert chosen(3, "last", 12) == [9, 10, 11]
    assert chosen(3, "random", 12) is None


def test_random_weights_of_a_pretrained_architecture(folders) -> None:
    torch.manual_seed(1)
    model = hf_text(CLASSES, name_or_path=str(folders["bert"]), layers=2, init="random")
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 2
    whole = load_file(folders["bert"] / "model.safetensors")
    table = "bert.embeddings.word_embeddings.weight"
    assert not model.state_dict()[table].equal(whole[table])
    torch.manual_seed(1)
    assert same(hf_text(CLASSES, name_or_path=str(folders["bert"]), layers=2, init="random").state_dict(), model.state_dict())  # fmt: skip


def test_random_layers_of_a_random_model_are_as_many_as_it_says() -> None:
    """The student of a random teacher with student.init_from=teacher student.layers=2 student.init=random."""
    model = hf_text(CLASSES, **SIZES, layers=2, init="random")
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 2
    assert "layer3" not in model.taps
    assert len(hf_text(CLASSES, **SIZES, layers=2, init="last").bert.encoder.layer) == 2


def test_an_encoder_gets_a_new_classifier(folders) -> None:
    """Its own draw for each seed; the encoder is the same."""
    models = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        models.append(hf_text(7, name_or_path=str(folders["encoder"])).state_dict())
    one, other, again = models
    assert one["classifier.weight"].shape == (7, WIDTH)
    assert not one["classifier.weight"].equal(other["classifier.weight"])
    assert same(one, again)
    whole = load_file(folders["encoder"] / "model.safetensors")
    assert all(
        one[f"bert.{name}"].equal(other[f"bert.{name}"]) and one[f"bert.{name}"].equal(v) for name, v in whole.items()
    )


def test_a_classifier_of_other_classes_is_made_anew(folders) -> None:
    model = hf_text(CLASSES + 2, name_or_path=str(folders["bert"]))
    assert model.classifier.weight.shape == (CLASSES + 2, WIDTH)
    whole = load_file(folders["bert"] / "model.safetensors")
    encoder = {name: value for name, value in model.state_dict().items() if name.startswith("bert.")}
    assert same(encoder, {name: value for name, value in whole.items() if name.startswith("bert.")})


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_takes_over_embeddings_layers_and_classifier_of_its_teacher(kind) -> None:
    torch.manual_seed(0)
    teacher = hf_text(CLASSES, model_type=kind, **SIZES)
    student = hf_text(CLASSES, model_type=kind, **SIZES, layers=2, init="alternate")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    from_teacher(student, teacher, 2, "alternate")
    after = student.state_dict()
    assert same(layer(student, 0), layer(teacher, 0))
    assert same(layer(student, 1), layer(teacher, 2))
    others = [name for name in after if not name.startswith(f"{student.blocks}.")]
    assert any("classifier" in name for name in others)
    assert any("word_embeddings" in name for name in others)
    assert all(after[name].equal(teacher.state_dict()[name]) for name in others)
    assert any(not after[name].equal(before[name]) for name in others)
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}


def test_random_layers_between_the_teacher_s_embeddings_and_classifier() -> None:
    torch.manual_seed(0)
    teacher, student = hf_text(CLASSES, **SIZES), hf_text(CLASSES, **SIZES, layers=2, init="random")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    from_teacher(student, teacher, 2, "random")
    after = student.state_dict()
    assert all(after[name].equal(value) for name, value in before.items() if ".layer." in name)
    assert student.classifier.weight.equal(teacher.classifier.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_weights_are_transformers_own(folders, kind, tmp_path) -> None:
    """Class and state dict too, so that save_pretrained gives a folder that anybody can read."""
    model = hf_text(CLASSES, name_or_path=str(folders[kind]), layers=2).eval()
    assert type(model) is type(AutoModelForSequenceClassification.from_pretrained(folders[kind]))
    model.save_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert same(model.state_dict(), theirs.state_dict())
    x = inputs()
    with torch.no_grad():
        assert torch.equal(model(x), theirs(**x).logits)


# Taps -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_taps_give_what_transformers_gives(folders, kind) -> None:
    model = hf_text(CLASSES, name_or_path=str(folders[kind])).eval()
    eager = AutoModelForSequenceClassification.from_pretrained(folders[kind], attn_implementation="eager").eval()
    numbered = ("layer", "cls", "query", "key", "value", "attention")
    names = ["embeddings", "cls", "pooled", *(f"{name}{i}" for name in numbered for i in range(1, LAYERS + 1))]
    assert {*model.taps} == {*names}
    x = inputs()
    mask_B11T = x["attention_mask"].bool()[:, None, None]
    with torch.no_grad():
        output = Tapped(model, names)(x)
        theirs = eager(**x, output_hidden_states=True, output_attentions=True)
    taps = dict(zip(names, output.taps, strict=True))
    B, T = x["input_ids"].shape
    assert torch.allclose(output.logits, theirs.logits, atol=1e-5)
    real = x["attention_mask"].bool()
    for number, hidden_BTD in enumerate(theirs.hidden_states):
        tap = taps["embeddings" if number == 0 else f"layer{number}"]
        assert tap.shape == (B, T, WIDTH)
        assert torch.allclose(tap[real], hidden_BTD[real], atol=1e-5)
    for number in range(1, LAYERS + 1):
        assert taps[f"attention{number}"].shape == (B, HEADS, T, T)
        weights_BHTT = taps[f"attention{number}"].masked_fill(~mask_B11T, float("-inf")).softmax(-1)
        queries_BHTT = real[:, None, :, None].expand_as(weights_BHTT)
        assert torch.allclose(weights_BHTT[queries_BHTT], theirs.attentions[number - 1][queries_BHTT], atol=1e-5)
        assert taps[f"cls{number}"].equal(taps[f"layer{number}"][:, 0])
        assert all(taps[f"{name}{number}"].shape == (B, T, WIDTH) for name in ("query", "key", "value"))
    assert taps["cls"].equal(taps[f"cls{LAYERS}"])
    assert taps["pooled"].shape == (B, WIDTH)
    if kind == "bert":
        pooled = eager.bert(**x).pooler_output
        assert torch.allclose(taps["pooled"], pooled, atol=1e-5)


def test_value_taps_are_the_values(folders) -> None:
    model = hf_text(CLASSES, name_or_path=str(folders["bert"])).eval()
    with torch.no_grad():
        hidden, value, query, key = Tapped(model, ["layer1", "value2", "query2", "key2"])(inputs()).taps
    own = model.bert.encoder.layer[1].attention.self
    for tap, module in ((value, own.value), (query, own.query), (key, own.key)):
        assert torch.allclose(tap, module(hidden), atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra"])
def test_padding_changes_no_logit(folders, kind) -> None:
    model = hf_text(CLASSES, name_or_path=str(folders[kind])).eval()
    with torch.no_grad():
        assert torch.allclose(model(inputs()), model(inputs(padding=11)), atol=1e-5)


# Identity -------------------------------------------------------------------------------------------------------------------


def node(**changes: Any) -> dict[str, Any]:
    from kdrun.config.nodes import model_node
    from kdrun.config.registry import MODELS

    return dict(vars(model_node(MODELS.entry("hf_text"), "student")(name="hf_text")), **changes)


def test_a_pretrained_model_is_its_content_not_its_place(tmp_path) -> None:
    one = saved(tmp_path / "one", classes=CLASSES)
    shutil.copytree(one, tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("of no matter")
    other = saved(tmp_path / "other", seed=1, classes=CLASSES)
    ids = [fitting.model_identity(node(name_or_path=str(path))) for path in (one, tmp_path / "two", other)]
    assert ids[0] == ids[1] != ids[2]
    assert str(tmp_path) not in json.dumps(ids)
    assert fitting.model_identity(node(name_or_path=str(one), layers=2)) != ids[0]
    assert fitting.model_identity(node(name_or_path=str(one), hidden_size=999)) == ids[0]  # its config.json decides
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert fitting.model_identity(node(name_or_path=str(one))) != ids[0]


def test_a_random_model_is_its_settings() -> None:
    assert fitting.model_identity(node()) != fitting.model_identity(node(hidden_size=64))
    assert fitting.model_identity(node(local_files_only=True)) == fitting.model_identity(node())


# What cannot be read ----------------------------------------------------------------------------------------------------------


def broken(folder: Path, how: str) -> Path:
    """A folder of a BERT with something wrong."""
    saved(folder, classes=CLASSES)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if how == "a layer is missing":
        save_file({k: v for k, v in tensors.items() if ".layer.1." not in k}, weights, {"format": "pt"})
    elif how == "another vocabulary":
        name = "bert.embeddings.word_embeddings.weight"
        save_file({**tensors, name: tensors[name][:50].clone()}, weights, {"format": "pt"})
    elif how == "of another model":
        save_file({f"gpt.{k}": v for k, v in tensors.items()}, weights, {"format": "pt"})
    elif how == "torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif how == "a pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "no weights":
        weights.unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no JSON":
        (folder / "config.json").write_text("{")
    elif how == "no model type":
        (folder / "config.json").write_text("{}")
    elif how == "unknown model type":
        (folder / "config.json").write_text('{"model_type": "bret", "num_hidden_layers": 4}')
    return folder


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (
            "a layer is missing",
            r"do not fit its config.json: 16 tensors of the encoder .* such as bert.encoder.layer.1\.",
        ),
        (
            "another vocabulary",
            r"do not fit its config.json: 1 tensors .* such as bert.embeddings.word_embeddings.weight",
        ),
        ("of another model", r"do not fit its config.json: \d+ tensors of the encoder are missing"),
        ("torn", r"transformers cannot build the model of .*header"),
        ("a pickle", r"pytorch_model.bin, which can execute code and is never read; save them as model.safetensors"),
        ("no weights", r"has no weights \(model.safetensors\)"),
        ("no config", r"has no config.json"),
        ("no JSON", r"config.json is not JSON"),
        ("no model type", r"names no model_type"),
        ("unknown model type", r"transformers cannot build the model of .*bret"),
    ],
)
def test_a_folder_that_is_no_whole_model(tmp_path, how, words) -> None:
    """transformers itself would fill missing weights with random numbers, and read a pickle."""
    with pytest.raises(KdrunError, match=words) as caught:
        hf_text(CLASSES, name_or_path=str(broken(tmp_path / "model", how)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 5}, "student.layers is 5; the model that it is taken from has 4"),
        ({"layers": 0}, "student.layers is 0; .* say 1 to 4"),
        ({"init": "frist"}, "student.init is 'frist'. Did you mean first"),
        ({"init": [0, 4]}, r"student.init=\[0,4\] names layer 4; the model has layers 0 to 3"),
        ({"init": [-1]}, r"names layer -1"),
        ({"init": []}, "names no layer"),
        ({"init": [0, 1], "layers": 3}, "student.layers is 3 and student.init=.* names 2 layers"),
        ({"init": ["a"]}, r"student.init=\[a\] names layer a; give whole numbers from 0"),
        ({"init": [0, 1.5]}, r"names layer 1.5; give whole numbers"),
        ({"init": 3}, "student.init is '3'"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size is 30; it must be a multiple of num_attention_heads"),
        ({"model_type": "brt"}, "model_type is 'brt'"),
        ({"name_or_path": "./nowhere"}, "./nowhere is no folder"),
        ({"name_or_path": "package:not_there/model"}, "no Python package 'not_there' is installed here; package:NAME/FOLDER"),
        ({"name_or_path": "package:not.there/model"}, "no Python package 'not.there' is installed"),
        ({"name_or_path": "package:json/model"}, "the package json has no folder 'model'"),
        ({"name_or_path": "no/such-model", "local_files_only": True}, r"not among the downloaded models .*give a folder with config.json"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work(changes, words) -> None:
    with pytest.raises(KdrunError, match=words) as caught:
        hf_text(CLASSES, **{**SIZES, **changes})
    assert "\n" not in str(caught.value)


def test_no_network(monkeypatch) -> None:
    """The message says which folder to give."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(KdrunError, match=r"Without a network, give the folder of a model, with config.json") as caught:
        hf_text(CLASSES, name_or_path="nobody/nothing")
    assert "\n" not in str(caught.value)


# One part of a config against another -----------------------------------------------------------------------------------------


def completed(student: dict[str, Any], teacher: dict[str, Any] | None = None, method: str = "kd", **data: Any) -> Any:
    from types import SimpleNamespace

    own = {"seed": 0, "weights": "last", "label": None}
    config = SimpleNamespace(
        dataset=Data(name="reviews", **{"tokenizer": "trained", "vocabulary": WORDS, "max_length": 48, **data}),
        student=SimpleNamespace(**node(**student)), method={method: {}},
        teacher=SimpleNamespace(**node(**(teacher or {})), **{k: v for k, v in own.items() if k not in node()}),
    )  # fmt: skip
    fitting.complete(config)
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_is_cut_from_every_architecture(folders, kind) -> None:
    """DistilBERT's config.json calls the number of its layers n_layers."""
    config = completed({"init_from": "teacher", "layers": 2, "init": "last"}, {"name_or_path": str(folders[kind])})
    assert config.student.name_or_path == str(folders[kind])
    assert (config.student.label, config.teacher.label) == (f"{kind}-L2", kind)
    with pytest.raises(KdrunError, match=r"student.layers is 9; the model that it is taken from has 4"):
        completed({"layers": 9, "name_or_path": str(folders[kind])})


@pytest.mark.parametrize(
    ("student", "data", "words"),
    [
        ({"name_or_path": "bert"}, {"vocabulary": 512}, "the student knows 100 tokens and the tokenizer trained has 512: .* dataset"),
        ({"vocab_size": 80}, {}, "the student knows 80 tokens and the tokenizer trained has 100"),
        ({"name_or_path": "bert"}, {"max_length": 65}, "dataset.max_length is 65; the student reads 64 tokens at most"),
        ({"name_or_path": "roberta"}, {"max_length": 64}, "the student reads 62 tokens at most"),
        ({"model_type": "roberta", "max_position_embeddings": 40}, {}, "the student reads 38 tokens at most"),
    ],
)  # fmt: skip
def test_a_tokenizer_or_a_length_that_does_not_suit_the_model(folders, student, data, words) -> None:
    if "name_or_path" in student:
        student = {**student, "name_or_path": str(folders[student["name_or_path"]])}
    with pytest.raises(KdrunError, match=words):
        completed(student, **data)


def test_the_longest_texts_that_a_roberta_reads(folders) -> None:
    """It counts positions from behind its padding token's."""
    model = hf_text(CLASSES, name_or_path=str(folders["roberta"])).eval()
    x = {"input_ids": torch.full((1, 62), 7), "attention_mask": torch.ones(1, 62, dtype=torch.int64)}
    assert model(x).shape == (1, CLASSES)
    completed({"name_or_path": str(folders["roberta"])}, {"name_or_path": str(folders["roberta"])}, max_length=62)


@pytest.mark.parametrize("method", ["none", "dml", "label_smoothing"])
def test_a_student_from_a_teacher_that_is_not_trained(method) -> None:
    with pytest.raises(KdrunError, match=f"student.init_from=teacher needs a trained teacher .* method={method}"):
        completed({"init_from": "teacher"}, method=method)


def test_a_teacher_from_itself() -> None:
    with pytest.raises(KdrunError, match="a teacher cannot come from itself"):
        completed({}, {"init_from": "teacher"})
