"""Tokenizers: of a model's folder, or trained on the training texts. What plans need of them (identity, size) is read as JSON."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdrun.errors import KdrunError
from kdrun.tasks import cache
from kdrun.tasks.text.pretrained import INSTALL, folder_of

TRAINED = "trained"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PADS, MASKS = ("[PAD]", "<pad>"), ("[MASK]", "<mask>")
# What a tokenizer is read from where there is no tokenizer.json.
SLOW_FILES = (
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
    "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


@dataclass
class Loaded:
    """A tokenizer that is ready to use."""

    tokenizer: Any  # tokenizers.Tokenizer, without padding and truncation
    sha256: str
    vocabulary: int  # highest id and 1; of a trained one dataset.vocabulary
    pad_id: int
    mask_id: int | None
    special_ids: list[int]


def identity(cfg: Any) -> dict[str, Any]:
    """What of the tokenizer makes another run: {"trained": tokens at most}, or {"sha256": that of its content}. Light."""
    if cfg.tokenizer == TRAINED:
        return {"trained": cfg.vocabulary}
    return {"sha256": _sha256(_folder(cfg))}


def vocabulary_size(cfg: Any) -> int:
    """Rows that the embeddings of a model need: the highest id and 1, or dataset.vocabulary of a trained tokenizer. Light."""
    if cfg.tokenizer == TRAINED:
        return int(cfg.vocabulary)
    folder = _folder(cfg)
    words = _words(folder)
    if words is None:
        return _highest(_slow(folder)) + 1
    if (folder / "tokenizer.json").is_file():
        if not words:
            raise KdrunError(f"{folder / 'tokenizer.json'} has no vocabulary; save the tokenizer again")
        added = [token["id"] for token in _json(folder / "tokenizer.json").get("added_tokens") or []]
    else:
        file = folder / "added_tokens.json"
        added = list(_json(file).values()) if file.is_file() else []
    return 1 + max([*words.values(), *added])


def tokens_of(cfg: Any) -> dict[str, int] | None:
    """The number of each token; None for a tokenizer that is trained, or is not kept as JSON or as a list of words. Light."""
    return None if cfg.tokenizer == TRAINED else _words(_folder(cfg))


def _words(folder: Path) -> dict[str, int] | None:
    """The number of each token that is not added, from tokenizer.json or vocab.txt; None where there is neither."""
    if (folder / "tokenizer.json").is_file():
        vocab = _json(folder / "tokenizer.json").get("model", {}).get("vocab") or {}
        return vocab if isinstance(vocab, dict) else {str(token[0]): place for place, token in enumerate(vocab)}
    if (folder / "vocab.txt").is_file():
        words = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
        return {word: place for place, word in enumerate(words)}
    return None


def library() -> Any:
    """The tokenizers library."""
    try:
        import tokenizers
    except ImportError as error:
        raise KdrunError(f"texts need the tokenizers library: {INSTALL}") from error
    return tokenizers


def load(cfg: Any, outputs: str, checksum: str, texts: Iterable[str]) -> Loaded:
    """The tokenizer of `cfg`. `texts`: what a trained one learns from; `checksum`: of them, under which it is kept."""
    Tokenizer = library().Tokenizer
    folder = None if cfg.tokenizer == TRAINED else _folder(cfg)
    if folder is None:
        tokenizer = _trained(cfg.vocabulary, outputs, checksum, texts)
        sha256 = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    else:
        sha256, file = _sha256(folder), folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else _slow(folder)
        except Exception as error:  # the tokenizers library raises Exception itself
            raise KdrunError(f"{file} is no tokenizer that the tokenizers library reads ({error})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pad, mask = _role(folder, tokenizer, "pad_token", PADS), _role(folder, tokenizer, "mask_token", MASKS)
    if pad is None:
        raise KdrunError(
            f"dataset.tokenizer={cfg.tokenizer} has no padding token ({', '.join(PADS)}), which batches need"
        )
    special = sorted(place for place, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    size = cfg.vocabulary if folder is None else _highest(tokenizer) + 1
    return Loaded(tokenizer, sha256, size, pad, mask, special)


def _folder(cfg: Any) -> Path:
    """The folder of a tokenizer that is not trained: dataset.tokenizer itself, or the snapshot of a hub id."""
    if cfg.tokenizer is None:
        raise KdrunError(
            "dataset.tokenizer is null, and no pretrained model gives one: dataset.tokenizer=FOLDER of a model, or trained"
        )
    folder = folder_of(cfg.tokenizer, cfg.revision, cfg.local_files_only)
    if not any((folder / name).is_file() for name in ("tokenizer.json", *VOCABULARIES)):
        raise KdrunError(f"dataset.tokenizer={cfg.tokenizer}: {folder} has no tokenizer.json and no vocab.txt")
    return folder


def _sha256(folder: Path) -> str:
    """Of tokenizer.json without its padding and truncation, which are not used; else of the files that it is made from."""
    if (folder / "tokenizer.json").is_file():
        content = _json(folder / "tokenizer.json")
        content = {key: value for key, value in content.items() if key not in ("padding", "truncation")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    for file in (folder / name for name in SLOW_FILES):
        if file.is_file():
            data = file.read_bytes()
            digest.update(f"{file.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _json(path: Path) -> Any:
    """The object in a JSON file. It is parsed once in a process, because each job of a sweep wants it; nobody changes it."""
    try:
        status = path.stat()
    except OSError as error:
        raise KdrunError(f"{path} cannot be read as JSON ({error})") from error
    return _parsed(path, status.st_size, status.st_mtime_ns)


@lru_cache
def _parsed(path: Path, size: int, time: int) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KdrunError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise KdrunError(f"{path} is no JSON object; save the tokenizer again")
    return content


def _slow(folder: Path) -> Any:
    """The tokenizer of a folder without tokenizer.json, as transformers builds it."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise KdrunError(f"dataset.tokenizer needs the extra text: {INSTALL}") from error
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, use_fast=True).backend_tokenizer
    except Exception as error:  # whatever the tokenizer's class raises
        reason = " ".join(str(error).split())[:160]
        raise KdrunError(
            f"transformers makes no tokenizer of {folder} ({reason}): save it with tokenizer.json"
        ) from error


def _highest(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab(with_added_tokens=True).values())


def _role(folder: Path | None, tokenizer: Any, role: str, usual: tuple[str, ...]) -> int | None:
    """The id of the padding or mask token: the one that the folder's settings name, else a usual one; None if there is none."""
    names: list[Any] = []
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if folder is not None and (folder / file).is_file():
            names.append(_json(folder / file).get(role))
    names = [name.get("content") if isinstance(name, dict) else name for name in names]
    places = (tokenizer.token_to_id(name) for name in (*names, *usual) if isinstance(name, str))
    return next((place for place in places if place is not None), None)


def _trained(size: int, outputs: str, checksum: str, texts: Iterable[str]) -> Any:
    """A WordPiece tokenizer of at most `size` tokens, kept in a file under the checksum of its texts."""
    Tokenizer = library().Tokenizer
    path = Path(outputs, "cache", "text", f"tokenizer-{checksum[:32]}-{size}.json")
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # no file yet, or a broken one
        tokenizer = train(texts, size)
        cache.write(path, tokenizer.to_str().encode())
        return tokenizer


def train(texts: Iterable[str], size: int) -> Any:
    """A WordPiece tokenizer of at most `size` tokens, learned on `texts`, with BERT's normaliser and template.

    The same texts give the same tokenizer in every process. The library alone would not: it gives the tokens of signs within a word
    ("##a") numbers in the order of a hash table with a random key, and its ties follow these numbers. So they are given in order here.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    texts = list(texts)
    normalizer = normalizers.BertNormalizer()
    signs = Counter(sign for text in texts for sign in normalizer.normalize_str(text) if not sign.isspace())
    # Each sign takes two tokens. A rare one beyond half of the vocabulary becomes [UNK].
    alphabet = sorted(sorted(signs, key=lambda sign: (-signs[sign], sign))[: size // 4])
    pieces = [f"##{sign}" for sign in alphabet]

    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *pieces], initial_alphabet=alphabet, limit_alphabet=len(alphabet),
        show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(texts, trainer)

    tokenizer = Tokenizer(models.WordPiece(raw.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer
