"""Programs that others wrote, on the OpenAI API of a dashboard: openai, litellm and lm-eval.

    pip install openai litellm 'lm-eval[api]'
    make bench-peers.clients
    make bench-peers.clients ARGS="--model toy --questions 40"

Each asks for the same greedy answer, whole and as a stream. lm-evaluation-harness answers multiple
choice (four endings of passages of the evaluation text) twice: through `local-completions`, by the
log-probabilities that the API echoes, and in this process with PyTorch. What is not installed is
left out, and said.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from backend.evaluation.endings import questions
from backend.evaluation.tasks import PASSAGE
from backend.models.loading import LoadedModel, load
from backend.models.sources.catalogue import materialise
from backend.queue.actor import Actor
from backend.text.slices import evaluation_slice
from benchmarks.screen.server import dashboard, reads
from jobs.serving.keys import create_key

QUESTION = "Why is the sky blue?"
NEW = 24
HOST = Actor("clients", "host")
CONTEXT, WINDOWS = 512, 32
TASK: dict[str, Any] = {
    "task": "endings",
    "dataset_path": "json",
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "{{passage}}",
    "doc_to_choice": "endings",
    "doc_to_target": "{{own}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def openai_answers(url: str, key: str, model: str) -> dict[str, str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key=key)
    said: Any = {
        "model": model,
        "max_tokens": NEW,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    whole = client.chat.completions.create(**said).choices[0].message.content
    chunks = client.chat.completions.create(**said, stream=True)
    parts = (chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert model in {each.id for each in client.models.list()}
    return {"openai": whole or "", "openai, stream": "".join(parts)}


def litellm_answers(url: str, key: str, model: str) -> dict[str, str]:
    import litellm

    said: Any = {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": key,
        "max_tokens": NEW,
        "temperature": 0,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    whole = litellm.completion(**said).choices[0].message.content
    chunks = litellm.completion(**said, stream=True)
    parts = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return {"litellm": whole, "litellm, stream": parts}


def rows(loaded: LoadedModel, limit: int) -> Iterator[dict[str, Any]]:
    """Questions as texts; the own ending is the first."""
    text = evaluation_slice(loaded.facts.default_text, loaded.tokenizer, WINDOWS, CONTEXT)
    decode: Callable[..., str] = loaded.tokenizer.decode
    for question in questions(text, limit)[:, :, int(text.bos) :]:
        endings = [decode(each[PASSAGE:]) for each in question]
        yield {"passage": decode(question[0, :PASSAGE]), "endings": endings, "own": 0}


def harness_scores(
    url: str, key: str, loaded: LoadedModel, chosen: argparse.Namespace
) -> dict[str, float]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    with TemporaryDirectory() as folder:
        data = Path(folder, "endings.jsonl")
        lines = [json.dumps(row) for row in rows(loaded, chosen.questions)]
        data.write_text("\n".join(lines))
        files = {"data_files": {"validation": str(data)}}
        Path(folder, "endings.yaml").write_text(yaml.safe_dump(TASK | {"dataset_kwargs": files}))
        tasks = TaskManager(include_path=folder, include_defaults=False)
        served = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model=chosen.model,
            auth_token=key,
            tokenizer=str(materialise(chosen.model)),
            num_concurrent=4,
            batch_size=8,
            max_length=CONTEXT,
        )
        here = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=8)
        found = {}
        for name, model in (("lm-eval, local-completions", served), ("lm-eval, PyTorch", here)):
            scored = simple_evaluate(model, tasks=["endings"], task_manager=tasks)
            found[name] = scored["results"]["endings"]["acc,none"]
            samples = scored["samples"]["endings"]
            found[f"{name}, log-probabilities"] = [
                value[0] for each in samples for value in each["filtered_resps"]
            ]
    return found


def main() -> None:
    chosen = arguments()
    torch.set_num_threads(chosen.threads)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder, dashboard(Path(folder)) as shown:
        with reads(Path(folder)):
            key = create_key("clients", HOST)
        for name, ask in (("openai", openai_answers), ("litellm", litellm_answers)):
            if find_spec(name):
                found |= ask(shown.url, key, chosen.model)
            else:
                print(f"{name} is not installed.")
        answers = set(found.values())
        print("Answers are the same." if len(answers) == 1 else f"Answers differ: {found}")
        if find_spec("lm_eval"):
            loaded = load(chosen.model, dtype=torch.float32)
            scores = harness_scores(shown.url, key, loaded, chosen)
            ours, theirs = (scores.pop(f"{name}, log-probabilities") for name in [*scores][::2])
            apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
            found |= scores | {"largest difference": max(apart), "mean": sum(apart) / len(apart)}
        else:
            print("lm-eval is not installed.")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
