"""Conversion of the vocabulary of a tokenizer.json to GGUF. Does not import torch.

- byte-level BPE ("gpt2"): tokens and merges. llama.cpp has built-in rules for splitting text, which
  are selected by name. A tokenizer that splits text in another way is refused.
- BPE with byte fallback ("llama", as in SentencePiece): llama.cpp merges the neighbors whose token
  has the highest score. The score is minus the rank of the token's first merge, so the order of
  merges is the same.
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
# (steps before the byte level, the byte level splits text itself) -> name of llama.cpp's rules
SPLITS = {
    ((), True): "gpt-2",
    (("digits",), True): "smollm",
    ((GPT4.replace("{DIGITS}", "{1,3}"),), False): "llama-bpe",
    ((GPT4.replace("{DIGITS}", ""),), False): "qwen2",
}


@dataclass(frozen=True)
class GGUFVocabulary:
    """Vocabulary of a tokenizer in GGUF.

    Attributes:
        model: "gpt2" or "llama".
        pre: name of llama.cpp's rules for splitting text.
        tokens: tokens in the order of their ids.
        types: gguf.TokenType of each token.
        scores: score of each token; only for "llama".
        space: True if a space is added before a text.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    space: bool = False


def vocabulary_of(folder: Path, size: int) -> GGUFVocabulary:
    """Read the vocabulary of the model in `folder`, which has `size` embeddings.

    Raises:
        ConfigError: llama.cpp would split text into other tokens.
    """
    try:
        tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(f"It has no readable tokenizer.json: {error}.") from error
    bpe = tokenizer["model"]
    if bpe.get("type") != "BPE":
        raise _refused(f"Its type is {bpe.get('type')}, not BPE.")
    tokens, types = _tokens(tokenizer, size)
    if not bpe.get("byte_fallback"):
        return GGUFVocabulary("gpt2", _split_rules(tokenizer), tokens, types)
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(bpe["merges"]):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    lowest_rank = len(ranks)
    scores = [-float(ranks.get(token, lowest_rank)) for token in tokens]
    return GGUFVocabulary("llama", "default", tokens, types, scores, _adds_space(tokenizer))


def _tokens(tokenizer: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    by_id = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer.get("added_tokens") or ()}
    tokens, types = [], []
    for number in range(size):
        added_token = added.get(number)
        text = added_token["content"] if added_token else by_id.get(number)
        tokens.append(f"[PAD{number}]" if text is None else text)
        types.append(_type(text, added_token, tokenizer["model"].get("unk_token")))
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


def _split_rules(tokenizer: Mapping[str, Any]) -> str:
    """Return the name of llama.cpp's rules for splitting text before merging."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    *before, last = steps or [{"type": "none"}]
    names = tuple(map(_step_name, before))
    normalizers = _steps(tokenizer.get("normalizer"))
    plain = last["type"] == "ByteLevel" and not last.get("add_prefix_space")
    rules = SPLITS.get((names, bool(last.get("use_regex", True)))) if plain else None
    if rules is None or any(step["type"] != "NFC" for step in normalizers):
        used = ", ".join(step["type"] for step in (*normalizers, *steps)) or "none"
        raise _refused(f"llama.cpp has no rules for the way it splits text ({used}).")
    return rules


def _step_name(step: Mapping[str, Any]) -> str:
    if step["type"] == "Digits" and step.get("individual_digits"):
        return "digits"
    if step["type"] == "Split" and step.get("behavior") == "Isolated":
        return str(step["pattern"].get("Regex"))
    return "unknown"


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    """Return True if a space is added before the text. Spaces are replaced with the token ▁, so
    a later step that splits at spaces, as in Gemma, has no effect and is ignored."""
    steps = [*_steps(tokenizer.get("normalizer")), *_steps(tokenizer.get("pre_tokenizer"))]
    replaced = any(s["type"] == "Replace" and s["pattern"] == SPACE for s in steps)
    steps = [s for s in steps if not (replaced and s["type"] == "Split" and s["pattern"] == SPACE)]
    unknown = {step["type"] for step in steps} - {"Prepend", "Replace", "Metaspace"}
    if unknown:
        raise _refused(f"llama.cpp has no rules for its {', '.join(sorted(unknown))}.")
    return any(
        step["type"] == "Prepend" or step.get("prepend_scheme", "never") != "never"
        for step in steps
    )


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return a step as a list, or the steps of a sequence."""
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
