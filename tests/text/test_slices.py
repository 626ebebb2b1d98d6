"""Text slices: reproducible, from the right split, and disjoint; windows of documents with a
tokenizer of one token per character."""

from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Bytes
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from backend.errors import DatasetError
from backend.models.sources.toy.stories import stories
from backend.text import slices as slices_module
from backend.text.corpora import documents
from backend.text.slices import (
    PASSAGE_TOKENS,
    TextSlice,
    calibration_slices,
    cut_windows,
    encode_documents,
    evaluation_slice,
    require_disjoint,
    shuffled,
)
from backend.text.training import training_set
from tests.fork_server import elsewhere
from tests.text.conftest import write

MANY = 3000  # characters: about 1000 tokens


def same(a: TextSlice, b: TextSlice) -> bool:
    return a.sha256 == b.sha256 and torch.equal(a.input_ids, b.input_ids)


def test_a_seed_gives_the_same_slice_and_another_seed_another(tokenizer) -> None:
    first, again, other = (
        calibration_slices("toystories", tokenizer, 4, 64, seed)[0] for seed in (0, 0, 1)
    )
    assert same(first, again) and not same(first, other)
    assert first.sha256 != other.sha256
    assert first.input_ids.shape == (4, 64) and first.input_ids.dtype == torch.int64
    assert (first.role, first.seed, first.context, first.tokens) == ("calibration", 0, 64, 256)


def cut_both(tokenizer_folder: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return [
        calibration_slices("toystories", tokenizer, 4, 64, 3)[0].sha256,
        evaluation_slice("toystories", tokenizer, 4, 64).sha256,
    ]


def test_another_process_cuts_the_same_slices(tokenizer) -> None:
    folder = tokenizer.name_or_path
    assert elsewhere(cut_both, folder) == cut_both(folder)


def test_evaluation_is_evenly_spaced(tokenizer, text_dir: Path) -> None:
    text = " ".join(stories(5, 40))
    name = write(text_dir, "a.jsonl", [text, text.upper()])  # the first is the evaluation split
    ids = tokenizer(text).input_ids
    every = len(ids) // 50
    whole = evaluation_slice(name, tokenizer, every, 50).input_ids
    assert whole.flatten().tolist() == ids[: every * 50]
    third = evaluation_slice(name, tokenizer, every // 3, 50).input_ids
    places = [whole.tolist().index(row) for row in third.tolist()]
    assert {b - a for a, b in pairwise(places)} <= {3, 4} and places[0] == 0


@pytest.mark.parametrize("count", [1, 5])
def test_missing_evaluation_windows_come_from_other_documents_and_are_not_calibrated_on(
    tokenizer, text_dir: Path, count: int
) -> None:
    """The windows are the same whatever a run calibrates on; none of them is calibrated on."""
    texts = [" ".join(f"{a}-{number}" for number in range(1500)) for a in range(count)]
    name = write(text_dir, "a.jsonl", texts)
    parts: list[list[list[int]]] = [
        [*cut_windows(documents(name, role), tokenizer, 128, lambda _: 0)]
        for role in ("evaluation", "calibration")
    ]
    evaluation = evaluation_slice(name, tokenizer, len(parts[0]) + 7, 128)
    assert evaluation.input_ids.tolist() == parts[0] + parts[1][:7]
    every = len(parts[1]) - count  # at a random offset, a document may have one less
    with pytest.raises(DatasetError, match="share"):
        require_disjoint(calibration_slices(name, tokenizer, every, 128, 0)[0], evaluation)
    found = calibration_slices(name, tokenizer, every - 17, 128, 0, 9, evaluation)
    assert [len(each.input_ids) for each in found] == [every - 17, 9]
    for one, other in combinations((*found, evaluation), 2):
        require_disjoint(one, other)


@pytest.mark.parametrize("special", [True, False])
def test_spelled_out_special_tokens_are_plain_text(text_dir: Path, special: bool) -> None:
    """WikiText spells out <unk>, which some tokenizers read as their own unknown token."""
    words = Tokenizer(BPE(unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), Bytes()
    trainer = BpeTrainer(
        special_tokens=["<unk>", "</s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    words.train_from_iterator(["a text"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    unknown = tokenizer.unk_token_id
    spelled = "The <unk> of </s> <unk>. " if special else "The words of it. "
    assert (unknown in tokenizer(spelled).input_ids) == special
    name = write(text_dir, "a.jsonl", [spelled * 40])
    found = evaluation_slice(name, tokenizer, 2, 50)
    assert unknown not in found.input_ids
    assert spelled in tokenizer.decode(found.input_ids.flatten())
    assert ("<unk>" in found.literals and "</s>" in found.literals) == special
    rows = training_set(name, tokenizer, 2, 40, 0).text
    assert unknown not in rows.input_ids and bool(rows.literals) == special


def test_calibration_windows_stay_in_a_document(tokenizer, text_dir: Path) -> None:
    texts = [" ".join([word] * MANY) for word in ("red", "blue", "green", "pink", "gray")]
    name = write(text_dir, "a.jsonl", texts)
    found = calibration_slices(name, tokenizer, 30, 40, 0)[0]
    allowed = [set(tokenizer(text).input_ids) for text in texts[1:]]  # the first is for evaluation
    chosen = [[set(row) <= ids for ids in allowed].index(True) for row in found.input_ids.tolist()]
    assert len(set(chosen)) > 1


def test_calibration_windows_never_overlap(tokenizer, text_dir: Path) -> None:
    text = " ".join(str(number) for number in range(4000))
    stream = tokenizer(text).input_ids
    name = write(text_dir, "a.jsonl", [text])
    found = calibration_slices(name, tokenizer, 20, 60, 0, shared=False)[0]
    places = {tuple(stream[i : i + 60]): i for i in range(len(stream))}
    starts = sorted(places[tuple(row)] for row in found.input_ids.tolist())
    assert min(after - before for before, after in pairwise(starts)) >= 60


@pytest.mark.parametrize("role", ["calibration", "evaluation"])
def test_an_error_for_a_short_text_states_its_length(tokenizer, text_dir: Path, role: str) -> None:
    name = write(text_dir, "a.jsonl", ["A story of few words. " * 20])
    there = len(tokenizer("A story of few words. " * 20).input_ids)
    with pytest.raises(DatasetError) as refused:
        if role == "calibration":
            calibration_slices(name, tokenizer, 99, 64, 0, shared=False)[0]
        else:
            evaluation_slice(name, tokenizer, 99, 64)
    error = refused.value
    assert f"{there:,} tokens" in error.why and f"{99 * 64:,} tokens" in error.why
    # each part of the text is cut into whole windows
    assert f"{there // 64 - (role == 'evaluation')} windows" in error.why and "Lower" in error.do
    assert error.field == f"{role}_text"


@pytest.mark.parametrize("sign", ["a", "é", "字", "🙂"])
def test_byte_counts_cover_the_predicted_tokens(tokenizer, text_dir: Path, sign: str) -> None:
    name = write(text_dir, "a.jsonl", [f"{sign} and {sign}{sign}, " * 400])
    found = evaluation_slice(name, tokenizer, 8, 36)
    tokens = tokenizer.convert_ids_to_tokens(found.input_ids[:, 1:].flatten())
    exact = sum(len(token) for token in tokens)  # a byte-level token has a letter for each byte
    cut = 8 * 2 * 6  # at either end of a window a cut sign counts as up to 2 signs of 3 bytes
    assert found.utf8_bytes == exact if sign == "a" else abs(found.utf8_bytes - exact) <= cut


@pytest.fixture
def beginning(tokenizer):
    """The toy's tokenizer, but one that begins every text with token 0, as Gemma's does."""
    changed = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return changed


def test_the_beginning_token_follows_the_tokenizer(tokenizer, beginning, text_dir: Path) -> None:
    text = " ".join(stories(5, 40))
    name = write(text_dir, "a.jsonl", [text, text])  # the first is the evaluation split
    assert not evaluation_slice(name, tokenizer, 2, 32).bos
    ids = tokenizer(text).input_ids
    every = len(ids) // 31
    found = evaluation_slice(name, beginning, every, 32)
    assert found.bos and found.input_ids.shape == (every, 32)
    assert (found.input_ids[:, 0] == 0).all()
    assert found.input_ids[:, 1:].flatten().tolist() == ids[: every * 31]
    assert found.utf8_bytes == len(tokenizer.decode(ids[: every * 31]))
    assert calibration_slices(name, beginning, 4, 32, 0, shared=False)[0].bos


def slice_of(rows: torch.Tensor, corpus: str = "a") -> TextSlice:
    return TextSlice(rows, corpus, "evaluation", 0, rows.shape[1], False, "", rows.numel(), 0)


@given(st.integers(1, 2 * PASSAGE_TOKENS), st.integers(0, 50), st.integers(0, 50))
def test_a_passage_is_found_exactly_from_its_length_on(length: int, a: int, b: int) -> None:
    calibration = torch.arange(600).view(2, 300)
    evaluation = torch.arange(1000, 1600).view(2, 300)
    evaluation[1, a : a + length] = calibration[0, b : b + length]
    if length < PASSAGE_TOKENS:
        require_disjoint(slice_of(calibration), slice_of(evaluation))
    else:
        with pytest.raises(DatasetError, match=f" {length - PASSAGE_TOKENS + 1} passages") as same:
            require_disjoint(slice_of(calibration), slice_of(evaluation))
        assert same.value.field == "evaluation_text"


END, BEGIN = 0, 1


class Letters:
    """One token a character; `begins` and `ends` say which special tokens there are."""

    def __init__(self, begins: bool = False, ends: bool = True) -> None:
        self.bos_token_id = BEGIN if begins else None
        self.eos_token_id = END if ends else None

    def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> SimpleNamespace:
        begin = [BEGIN] if self.bos_token_id and add_special_tokens else []
        return SimpleNamespace(input_ids=begin + [ord(letter) for letter in text])


def cut(texts: list[str], context: int, offset: int = 0, **kind: bool) -> list[list[int]]:
    return list(cut_windows(texts, Letters(**kind), context, lambda slack: min(offset, slack)))


def ids(text: str) -> list[int]:
    return [END if letter == "." else BEGIN if letter == "^" else ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("texts", "context", "windows"),
    [
        (["abcdefgh"], 3, ["abc", "def"]),
        (["ab", "cd", "ef"], 4, ["ab.c"]),
        (["ab", "cdefgh", "ijkl"], 4, ["ab.c", "defg", "ijkl"]),
        (["abc"], 4, []),
        ([], 4, []),
    ],
)
def test_rows_and_windows(texts: list[str], context: int, windows: list[str]) -> None:
    assert cut(texts, context) == [ids(window) for window in windows]


@given(st.lists(st.text("abcdef", max_size=30), max_size=12), st.integers(2, 9), st.integers(0, 9))
def test_windows_are_in_order_and_disjoint(texts: list[str], context: int, offset: int) -> None:
    windows = cut(texts, context, offset)
    stream, position = ids(".".join(texts)), 0
    for window in windows:
        assert len(window) == context
        while stream[position : position + context] != window:
            position += 1
            assert position < len(stream)
        position += context


def test_a_stream_is_shuffled_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices_module, "SHUFFLE_BUFFER", 10)
    endless = iter(shuffled(iter(int, 1), Random(0)))  # zeros without end
    assert [next(endless) for _ in range(25)] == [0] * 25
    order = list(shuffled(range(20), Random(0)))
    assert sorted(order[:10]) == list(range(10)) and order[:10] != list(range(10))


def test_a_very_long_document_is_encoded_completely() -> None:
    text = "a" * 999_990 + "\n\n" + "b" * 1_500_000
    (found,) = encode_documents([text], Letters())
    assert found == ids(text)
