"""What one part of a config of texts says of another: tokenizer, vocabulary, and a student that comes from its teacher. Light."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdrun.config.registry import MODELS, teacher_of
from kdrun.errors import KdrunError
from kdrun.tasks.text import data, pretrained
from kdrun.tasks.text.data import tokenizer
from kdrun.tasks.text.data.tokenizer import TRAINED
from kdrun.tasks.text.models.layers import chosen

HF = "hf_text"
# Keys of a random model; a pretrained one has them in its own config.json.
RANDOM = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "dropout",
)  # fmt: skip
# What a config.json may call the number of its layers.
LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
# Architectures that count positions from behind that of the padding token.
SHIFTED = ("roberta", "xlm-roberta", "camembert")
WHERE = ("name_or_path", "revision", "local_files_only", "trust_remote_code")


def complete(config: Any) -> None:
    """Fill in the tokenizer, the vocabulary of random models, what a student takes over from its teacher, and the labels."""
    config.dataset = copy.copy(config.dataset)
    nodes = {role: node for role in ("teacher", "student") if (node := getattr(config, role)).name == HF}
    if "teacher" in nodes and config.teacher.init_from == "teacher":
        raise KdrunError(
            "teacher.init_from=teacher: a teacher cannot come from itself; say teacher.init_from=pretrained"
        )
    if "student" in nodes and config.student.init_from == "teacher":
        _like_teacher(config)
    _tokenizer(config, nodes)
    for role, node in nodes.items():
        layers = _layers(node, role)
        _without_effect(node, role)
        _vocabulary(config.dataset, node, role)
        _same_tokenizer(config.dataset, node, role)
        node.label = node.label or _label(node, layers)


def _like_teacher(config: Any) -> None:
    """The student gets the teacher's architecture; its layers are chosen among the teacher's."""
    student, teacher = config.student, config.teacher
    wants = {teacher_of(name) for name in config.method}
    if not wants & {"outputs", "gradients"} or teacher.name != HF:
        what = f"teacher={teacher.name}" if teacher.name != HF else f"method={'+'.join(config.method)}"
        raise KdrunError(
            f"student.init_from=teacher needs a trained teacher of teacher={HF}, and this run has {what}; "
            "say student.init_from=pretrained student.name_or_path=FOLDER for the layers of the pretrained model"
        )
    arguments = MODELS.entry(HF).arguments
    for key in (*WHERE, *RANDOM):
        value, theirs = getattr(student, key), getattr(teacher, key)
        if value not in (arguments[key].default, theirs):
            raise KdrunError(
                f"student.{key}={value} has no effect beside student.init_from=teacher, which gives it {theirs}; leave it out"
            )
        setattr(student, key, theirs)
    whole = _layers(teacher, "teacher")
    layers = chosen(student.layers, student.init, whole)
    student.layers = student.layers or (len(layers) if layers is not None else whole)


def _tokenizer(config: Any, nodes: dict[str, Any]) -> None:
    """That of the pretrained model, the teacher's before the student's; where there is none, one that is trained on the texts."""
    cfg = config.dataset
    if cfg.tokenizer is not None:
        return
    named = [node for node in nodes.values() if node.name_or_path]
    cfg.tokenizer = named[0].name_or_path if named else TRAINED
    if named:
        cfg.revision, cfg.local_files_only = named[0].revision, named[0].local_files_only


def _layers(node: Any, role: str) -> int:
    """How many layers a model has; its own settings are checked on the way."""
    own = _config(node) if node.name_or_path else {"num_hidden_layers": node.num_hidden_layers}
    whole = next((int(own[key]) for key in LAYERS if own.get(key)), 0)
    if not whole:
        return 0  # an architecture that calls them otherwise: building it says what is wrong
    kept = chosen(node.layers, node.init, whole, role)
    return node.layers or whole if kept is None else len(kept)


def _vocabulary(cfg: Any, node: Any, role: str) -> None:
    """A random model gets the tokenizer's; a pretrained one must know every token."""
    tokens = data.vocabulary_size(cfg)
    if not node.name_or_path:
        node.vocab_size = node.vocab_size or tokens
        knows, limit = node.vocab_size, node.max_position_embeddings
        shift = 2 if node.model_type in SHIFTED else 0
    else:
        own = _config(node)
        knows, limit = own.get("vocab_size") or tokens, own.get("max_position_embeddings") or cfg.max_length
        pad = own.get("pad_token_id")
        shift = (1 if pad is None else pad) + 1 if own["model_type"] in SHIFTED else 0
    limit -= shift
    if knows < tokens:
        raise KdrunError(
            f"the {role} knows {knows:,} tokens and the tokenizer {cfg.tokenizer} has {tokens:,}: they do not belong together; "
            f"say dataset.tokenizer={node.name_or_path or TRAINED}"
        )
    if limit < cfg.max_length:
        raise KdrunError(
            f"dataset.max_length is {cfg.max_length}; the {role} reads {limit} tokens at most: dataset.max_length={limit}"
        )


def _same_tokenizer(cfg: Any, node: Any, role: str) -> None:
    """A pretrained model was trained on the tokens of its own tokenizer, where its folder has one."""
    if not node.name_or_path:
        return
    own = SimpleNamespace(tokenizer=node.name_or_path, revision=node.revision, local_files_only=node.local_files_only)
    try:
        theirs = tokenizer.tokens_of(own)
    except KdrunError:
        return  # a folder without a tokenizer: dataset.tokenizer names one
    ours = theirs if cfg.tokenizer == node.name_or_path else tokenizer.tokens_of(cfg)
    if theirs is not None and ours != theirs:
        size = f" ({len(ours):,} tokens)" if ours is not None else ""
        raise KdrunError(
            f"the {role} {node.name_or_path} reads the tokens of its own tokenizer ({len(theirs):,} tokens), and dataset.tokenizer="
            f"{cfg.tokenizer}{size} gives others; say dataset.tokenizer={node.name_or_path}; teacher and student must have one tokenizer"
        )


def _without_effect(node: Any, role: str) -> None:
    """KdrunError for a setting of random models beside a pretrained one."""
    if not node.name_or_path:
        return
    arguments = MODELS.entry(HF).arguments
    for key in RANDOM:
        value = getattr(node, key)
        if value != arguments[key].default:
            raise KdrunError(
                f"{role}.{key}={value} has no effect beside {role}.name_or_path={node.name_or_path}, which has its own; leave one out"
            )


def _config(node: Any) -> dict[str, Any]:
    return pretrained.architecture(pretrained.folder_of(node.name_or_path, node.revision, node.local_files_only))


def _label(node: Any, layers: int) -> str:
    """bert-L4-H128 for a random model; the name of a pretrained one, with its layers where it is cut."""
    if not node.name_or_path:
        return f"{node.model_type}-L{layers}-H{node.hidden_size}"
    path = str(node.name_or_path)
    inside = path.removeprefix(pretrained.PACKAGE)
    name = inside.partition("/")[0] if inside != path else Path(path).name or path
    return f"{name}-L{layers}" if node.layers or isinstance(node.init, list) else name


def model_identity(node: dict[str, Any]) -> dict[str, Any]:
    """A pretrained model is the content of its files, not their place; a random one is its settings."""
    if node["name"] != HF:
        return node
    values = {key: value for key, value in node.items() if key not in WHERE and (key != "exits" or value)}
    if not node["name_or_path"]:
        return values
    folder = pretrained.folder_of(node["name_or_path"], node["revision"], node["local_files_only"])
    if node["init"] != "random":
        pretrained.weight_files(folder)
    content = pretrained.sha256(
        folder, "config.json", "model*.safetensors", "*.py" if node["trust_remote_code"] else "config.json"
    )
    return {**{key: value for key, value in values.items() if key not in RANDOM}, "pretrained": content}
