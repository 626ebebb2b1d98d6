"""The vocabulary of a tokenizer.json as GGUF stores it. Does not import torch.

- byte-level BPE ("gpt2"): tokens and merges. llama.cpp splits text by rules of its own, which are
  known by name; a tokenizer that splits in another way is refused.
- BPE with byte fallback ("llama", as of SentencePiece): llama.cpp joins the neighbors whose token
  has the highest score. Here this is minus the rank of its first merge, the same order.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend.errors import ConfigError

SPACE = {"String": " "}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {  # what precedes the byte level, whether that splits by itself -> llama.cpp's name
    ((), True): "gpt-2",
    (("digits",), True): "smollm",
    ((GPT4.replace("{DIGITS}", "{1,3}"),), False): "llama-bpe",
    ((GPT4.replace("{DIGITS}", ""),), False): "qwen2",
}


@dataclass(frozen=True)
class GGUFVocabulary:
    """Tokens in the order of their ids.

    Attributes:
        model: "gpt2" or "llama"; pre: llama.cpp's name of the rules text is split by.
        types: gguf.TokenType of each token.
        scores: of "llama" only; space: a space is put before a text.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    space: bool = False


def vocabulary_of(folder: Path, size: int) -> GGUFVocabulary:
    """The vocabulary of the model in `folder`, which has `size` embeddings; `ConfigError` if
    llama.cpp would split text into other tokens."""
    try:
        stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(f"It has no readable tokenizer.json: {error}.") from error
    bpe = stored["model"]
    if bpe.get("type") != "BPE":
        raise _refused(f"It is of the kind {bpe.get('type')}, not BPE.")
    tokens, types = _tokens(stored, size)
    if not bpe.get("byte_fallback"):
        return GGUFVocabulary("gpt2", _splitting(stored), tokens, types)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(bpe["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    last = len(ranks)
    scores = [-float(ranks.get(token, last)) for token in tokens]
    return GGUFVocabulary("llama", "default", tokens, types, scores, _puts_space(stored))


def _tokens(stored: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in stored["model"]["vocab"].items()}
    added = {token["id"]: token for token in stored.get("added_tokens") or ()}
    tokens, types = [], []
    for number in range(size):
        known = added.get(number)
        text = known["content"] if known else by_id.get(number)
        tokens.append(f"[PAD{number}]" if text is None else text)
        types.append(_type(text, known, stored["model"].get("unk_token")))
    return tokens, types


def _type(text: str | None, added: Mapping[str, Any] | None, unknown: str | None) -> int:
    from gguf import TokenType

    if text is None:
        return TokenType.UNUSED
    if text == unknown:
        return TokenType.UNKNOWN
    if added:
        return TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return TokenType.BYTE if BYTE.fullmatch(text) else TokenType.NORMAL


def _splitting(stored: Mapping[str, Any]) -> str:
    """llama.cpp's name of how text is split before merging."""
    steps = _steps(stored.get("pre_tokenizer"))
    *before, last = steps or [{"type": "none"}]
    kinds = tuple(map(_described, before))
    normal = _steps(stored.get("normalizer"))
    plain = last["type"] == "ByteLevel" and not last.get("add_prefix_space")
    name = SPLITS.get((kinds, bool(last.get("use_regex", True)))) if plain else None
    if name is None or any(step["type"] != "NFC" for step in normal):
        used = ", ".join(step["type"] for step in (*normal, *steps)) or "none"
        raise _refused(f"llama.cpp has no rules for how it splits text ({used}).")
    return name


def _described(step: Mapping[str, Any]) -> str:
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step.get("behavior") == "Isolated":
        return str(step["pattern"].get("Regex"))
    return "unknown"


def _puts_space(stored: Mapping[str, Any]) -> bool:
    """Whether the text gets a space in front; the other steps write spaces as the token ▁, so that
    none is left for Gemma's last step to split at."""
    steps = [*_steps(stored.get("normalizer")), *_steps(stored.get("pre_tokenizer"))]
    written = any(s["type"] == "Replace" and s["pattern"] == SPACE for s in steps)
    steps = [s for s in steps if not (written and s["type"] == "Split" and s["pattern"] == SPACE)]
    unknown = {step["type"] for step in steps} - {"Prepend", "Replace", "Metaspace"}
    if unknown:
        raise _refused(f"llama.cpp has no rules for its {', '.join(sorted(unknown))}.")
    return any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
        for step in steps
    )


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A step, or the steps of a sequence."""
    if step is None:
        return []
    return list(step.get("pretokenizers") or step.get("normalizers") or [step])


def _refused(why: str) -> ConfigError:
    return ConfigError(
        "The tokenizer of this model cannot be written as GGUF.",
        why,
        "Use the saved folder, or convert it with llama.cpp's convert_hf_to_gguf.py.",
        field="model",
    )
