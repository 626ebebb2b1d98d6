"""The documents of a corpus, one at a time. Its calibration and evaluation split have none in
common:

- toystories: stories from different seeds, neither of them the training seed of the built-in model;
- wikitext2, c4: the published splits (validation / test, first training shard / validation);
- wikipedia and files: every twelfth document, starting with the first, is for evaluation; a single
  document is cut at a paragraph, and its last 15 % are for evaluation (not if `shared=False`).
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from backend.errors import DatasetError
from backend.models.sources.toy.stories import tell
from backend.text import files
from backend.text.corpora import Role, require_corpus, sources

STORY_SEEDS: dict[Role, int] = {"calibration": 998, "evaluation": 999}  # trained on seed 1
STORIES = 20_000
EVALUATION_INTERVAL = 12  # documents
CALIBRATION_SHARE = 0.85  # of a single document


def _wikitext2(role: Role) -> Iterator[str]:
    """One document; lines are joined as for published perplexities."""
    from datasets import load_dataset

    split = {"calibration": "validation", "evaluation": "test"}[role]
    rows = load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
    yield "\n\n".join(rows["text"])


def _c4(role: Role) -> Iterator[str]:
    from datasets import load_dataset

    shard = {
        "calibration": "en/c4-train.00000-of-01024.json.gz",
        "evaluation": "en/c4-validation.00000-of-00008.json.gz",
    }[role]
    rows = load_dataset("allenai/c4", data_files=shard, split="train", streaming=True)
    return (row["text"] for row in rows)


SPLIT_CORPORA: dict[str, Callable[[Role], Iterator[str]]] = {
    "toystories": lambda role: islice(tell(STORY_SEEDS[role]), STORIES),
    "wikitext2": _wikitext2,
    "c4": _c4,
}


def _cut(document: str, role: Role) -> str:
    """The first 85 % or the rest, cut at the last paragraph (else line, else word) before it."""
    target = int(CALIBRATION_SHARE * len(document))
    cuts = (document.rfind(border, len(document) // 2, target) for border in ("\n\n", "\n", " "))
    at = next((cut for cut in cuts if cut > 0), target)
    return document[:at] if role == "calibration" else document[at:].lstrip()


def part(documents: Iterable[str], role: Role) -> Iterator[str]:
    """The documents of one role: every twelfth for evaluation, the others for calibration."""
    documents = iter(documents)
    first, second = next(documents, ""), next(documents, None)
    if second is None:
        yield _cut(first, role)
        return
    for index, document in enumerate(chain((first, second), documents)):
        if (index % EVALUATION_INTERVAL == 0) == (role == "evaluation"):
            yield document


def documents(name: str, role: Role, shared: bool = True) -> Iterator[str]:
    """The documents of one role of a corpus, in order, read lazily. `shared`: whether the other
    role uses this corpus too, so that it must be split. Raises DatasetError: see `require_corpus`,
    or the corpus cannot be read."""
    field = f"{role}_text"
    corpus = require_corpus(name, field)
    try:
        if name in SPLIT_CORPORA:
            yield from SPLIT_CORPORA[name](role)
        else:
            whole = files.documents(sources(name))
            yield from part(whole, role) if shared else whole
    except (OSError, ValueError) as error:
        what = f"{corpus.title} could not be read."
        do = 'Fix it (UTF-8; .jsonl lines with a field "text"), or choose another text.'
        raise DatasetError(what, str(error)[:300], do, field) from error


def has_splits(name: str) -> bool:
    """Whether a corpus has published splits; the parts of others are ours to choose."""
    return name in SPLIT_CORPORA


def preprocessing(name: str) -> str:
    """Name of the preprocessing of a corpus before it is tokenised; empty: none."""
    return files.preprocessing(sources(name)) if name.startswith(files.PREFIX) else ""
