"""Text classifiers of the transformers library, whole or cut to some of their layers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kdrun.config.registry import MODELS
from kdrun.errors import KdrunError
from kdrun.methods.taps import Derived
from kdrun.tasks.text import pretrained
from kdrun.tasks.text.models.exits import add_exits
from kdrun.tasks.text.models.layers import chosen

# model type -> modules of a layer that give queries, keys and values
PROJECTIONS = {
    "bert": "attention.self.{}", "roberta": "attention.self.{}", "xlm-roberta": "attention.self.{}", "camembert": "attention.self.{}",
    "electra": "attention.self.{}", "distilbert": "attention.{}_lin",
}  # fmt: skip


@MODELS.register
def hf_text(
    classes: int,
    *,
    name_or_path: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
    layers: int | None = None,
    init: Any = "first",
    init_from: Literal["pretrained", "teacher"] = "pretrained",
    model_type: str = "bert",
    hidden_size: int = 128,
    num_hidden_layers: int = 4,
    num_attention_heads: int = 4,
    intermediate_size: int | None = None,
    vocab_size: int | None = None,
    max_position_embeddings: int = 512,
    dropout: float = 0.1,
    exits: bool = False,
) -> nn.Module:
    """A transformers text classifier: pretrained (name_or_path), or random with hidden_size, num_hidden_layers ...

    `layers` and `init` cut a pretrained model to some of its layers. `init_from="teacher"`: the layers come from the trained teacher.
    `exits`: a branch classifier after every layer but the last, for method=early_exit.
    """
    transformers = library()
    if name_or_path is None:
        kept = chosen(layers, init, num_hidden_layers)
        whole = num_hidden_layers if kept is not None else layers or num_hidden_layers  # random: nothing to cut
        heads = {"num_attention_heads": num_attention_heads, "num_hidden_layers": whole}
        config = _random_config(
            transformers,
            model_type,
            vocab_size,
            hidden_size,
            intermediate_size,
            max_position_embeddings,
            dropout,
            heads,
        )
        config.num_labels = classes
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        keep(model, kept)
    else:
        folder = pretrained.folder_of(name_or_path, revision, local_files_only)
        model = _pretrained(transformers, folder, classes, layers, init, trust_remote_code)
    return _finished(model, classes, exits)


def _finished(model: nn.Module, classes: int, exits: bool) -> nn.Module:
    """The model as kdrun runs it."""
    return add_exits(prepared(model), classes) if exits else prepared(model)


def library() -> Any:
    """The transformers library, silent; it takes seconds to import, so only what builds a model does it."""
    try:
        import transformers
    except ImportError as error:
        raise KdrunError(f"models of text need the transformers library: {pretrained.INSTALL}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _random_config(
    transformers: Any,
    model_type: str,
    vocab_size: int | None,
    hidden_size: int,
    intermediate_size: int | None,
    positions: int,
    dropout: float,
    more: Mapping[str, int],
) -> Any:
    heads = more["num_attention_heads"]
    if hidden_size % heads:
        raise KdrunError(
            f"hidden_size is {hidden_size}; it must be a multiple of num_attention_heads, which is {heads}"
        )
    if model_type not in PROJECTIONS:
        raise KdrunError(
            f"model_type is '{model_type}'; random models are {', '.join(PROJECTIONS)} (others: name_or_path)"
        )
    config = transformers.AutoConfig.for_model(model_type)
    values = {
        "vocab_size": vocab_size or config.vocab_size, "hidden_size": hidden_size, **more,
        "intermediate_size": intermediate_size or 4 * hidden_size, "max_position_embeddings": positions,
    }  # fmt: skip
    if model_type == "electra":
        values["embedding_size"] = hidden_size
    if model_type == "distilbert":
        values["hidden_dim"] = values.pop("intermediate_size")
    for key, value in values.items():
        setattr(config, key, value)
    for key in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
    ):
        if hasattr(config, key):
            setattr(config, key, dropout)
    return config


def _pretrained(
    transformers: Any, folder: Path, classes: int, layers: int | None, init: Any, trust_remote_code: bool
) -> nn.Module:
    """The model of a folder with a classifier for `classes`, cut to the chosen layers."""
    pretrained.architecture(folder)  # its errors are plainer
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    auto = transformers.AutoModelForSequenceClassification
    try:
        config = transformers.AutoConfig.from_pretrained(folder, num_labels=classes, **options)
        kept = chosen(layers, init, config.num_hidden_layers)
        if kept is None:  # random weights
            config.num_hidden_layers = layers or config.num_hidden_layers
            return auto.from_config(config, trust_remote_code=trust_remote_code).float()  # type: ignore[no-any-return]
        pretrained.weight_files(folder)
        model, loaded = auto.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True,
            **options,
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise KdrunError(
            f"transformers cannot build the model of {folder}: {' '.join(str(error).split())[:300]}"
        ) from error
    _refuse_gaps(folder, model, loaded)
    keep(model, kept)
    return model  # type: ignore[no-any-return]


def _refuse_gaps(folder: Path, model: nn.Module, loaded: Mapping[str, Any]) -> None:
    """KdrunError where the files lack weights of the encoder, which transformers would fill with random numbers without a word.

    The classifier and the pooler may be missing: a language model has none.
    """
    encoder = f"{model.base_model_prefix}."
    names = [name for name, *_ in loaded["mismatched_keys"]] + sorted(loaded["missing_keys"])
    gaps = [name for name in names if name.startswith(encoder) and ".pooler." not in name]
    if gaps:
        raise KdrunError(
            f"the weights of {folder} do not fit its config.json: {len(gaps)} tensors of the encoder are missing or have another shape, "
            f"such as {gaps[0]}; give the folder of a whole model, or init=random"
        )


def blocks_path(model: nn.Module) -> str:
    """The path of the list of the model's layers: bert.encoder.layer."""
    count = model.config.num_hidden_layers  # type: ignore[union-attr]
    lists = [
        path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise KdrunError(f"{type(model).__name__} has no list of its {count} layers; kdrun cannot choose among them")
    return min(lists, key=lambda path: path.count("."))


def keep(model: nn.Module, layers: list[int] | None) -> None:
    """Leave only these layers (from 0, in this order); None leaves all. A layer that is named twice becomes two."""
    path = blocks_path(model)
    parent, _, name = path.rpartition(".")
    blocks = model.get_submodule(path)
    if layers is None or layers == list(range(len(blocks))):  # type: ignore[arg-type]
        return
    taken = [copy.deepcopy(blocks[layer]) if layer in layers[:n] else blocks[layer] for n, layer in enumerate(layers)]  # type: ignore[index]
    setattr(model.get_submodule(parent), name, nn.ModuleList(taken))
    model.config.num_hidden_layers = len(layers)  # type: ignore[union-attr]


def prepared(model: nn.Module) -> nn.Module:
    """The model as kdrun runs it: a dict of tensors in, logits out, and aliases for its taps. Class and names stay transformers' own."""
    model.blocks = blocks_path(model)  # type: ignore[assignment]
    model.taps = taps(model)  # type: ignore[assignment]
    model.register_forward_pre_hook(_by_name, with_kwargs=True)
    model.register_forward_hook(lambda _, args, output: output if isinstance(output, Tensor) else output.logits)
    return model


def _by_name(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch's input dict as keyword arguments."""
    return ((), {**args[0], **kwargs}) if args and isinstance(args[0], Mapping) else (args, kwargs)


def taps(model: nn.Module) -> dict[str, str | Derived]:
    """Aliases: embeddings, layer1..n, cls1..n, cls, pooled; query, key, value and attention 1..n where the architecture is known."""
    path = str(model.blocks)
    config: Any = model.config
    root = path.partition(".")[0]
    aliases: dict[str, str | Derived] = {"embeddings": f"{root}.embeddings"}
    for number in range(1, config.num_hidden_layers + 1):
        layer = f"{path}.{number - 1}"
        aliases[f"layer{number}"] = layer
        aliases[f"cls{number}"] = Derived((layer,), first_token)
        if config.model_type in PROJECTIONS:
            pattern = f"{layer}.{PROJECTIONS[config.model_type]}"
            short = config.model_type == "distilbert"  # q_lin, k_lin, v_lin
            names = {name: pattern.format(name[0] if short else name) for name in ("query", "key", "value")}
            aliases |= {f"{name}{number}": where for name, where in names.items()}
            scores = _Scores(config.num_attention_heads)
            aliases[f"attention{number}"] = Derived((names["query"], names["key"]), scores)
    aliases["cls"] = aliases[f"cls{config.num_hidden_layers}"]
    modules = dict(model.named_modules())
    pooled = [name for name in (f"{root}.pooler", "pre_classifier", "classifier.dense") if name in modules]
    aliases["pooled"] = pooled[0] if pooled else aliases["cls"]
    return aliases


def first_token(x_BTD: Tensor) -> Tensor:
    """The state of the first token (B, D), which stands for the sentence."""
    return x_BTD[:, 0]


class _Scores:
    """Attention scores (B, H, T, T) = q k^T / sqrt(d) of queries and keys (B, T, H d); before softmax, padding is not masked."""

    def __init__(self, heads: int):
        self.heads = heads

    def __call__(self, query_BTD: Tensor, key_BTD: Tensor) -> Tensor:
        q_BHTd, k_BHTd = (x.unflatten(2, (self.heads, -1)).transpose(1, 2).float() for x in (query_BTD, key_BTD))
        return q_BHTd @ k_BHTd.transpose(2, 3) / q_BHTd.shape[-1] ** 0.5


def from_teacher(student: nn.Module, teacher: nn.Module, layers: int, init: Any) -> None:
    """Give the student the teacher's embeddings and classifier, and the chosen layers. Both have one architecture."""
    weights, path, own = teacher.state_dict(), str(teacher.blocks), student.state_dict()
    count: Any = teacher.config.num_hidden_layers  # type: ignore[union-attr]
    taken = {name: value for name, value in weights.items() if not name.startswith(f"{path}.") and name in own}
    for new, old in enumerate(chosen(layers, init, count) or ()):
        before = f"{path}.{old}."
        block = {name: value for name, value in weights.items() if name.startswith(before)}
        taken |= {f"{student.blocks}.{new}.{name.removeprefix(before)}": value for name, value in block.items()}
    unlike = [name for name, value in taken.items() if name not in own or own[name].shape != value.shape]
    if unlike:
        raise KdrunError(f"student.init_from=teacher: {unlike[0]} of the teacher does not fit into the student")
    student.load_state_dict({**own, **taken})


def rebuilt(file: Path, classes: int, node: Mapping[str, Any]) -> nn.Module:
    """The model of a finished run from its transformers config, with random weights."""
    transformers = library()
    values = json.loads(file.read_text(encoding="utf-8"))
    config = transformers.AutoConfig.for_model(**values)
    config.num_labels = classes
    return _finished(
        transformers.AutoModelForSequenceClassification.from_config(config), classes, bool(node.get("exits"))
    )
