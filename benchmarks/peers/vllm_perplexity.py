"""The perplexity vLLM gives a saved model, run by a Python that has vLLM and nothing of ours.

    python vllm_perplexity.py MODEL_FOLDER WINDOWS.json RESULT.json

The windows are lists of token ids of one length; the result is a perplexity and a greedy answer.
"""

import json
import math
import sys
from pathlib import Path

PROMPT, ANSWER = "The capital of France is", 12


def main(folder: str, windows: str, result: str) -> None:
    from vllm import LLM, SamplingParams

    rows = json.loads(Path(windows).read_text())
    llm = LLM(model=folder, max_model_len=len(rows[0]) + 1, enforce_eager=True, seed=0)
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    found = llm.generate([{"prompt_token_ids": ids} for ids in rows], asked)
    losses = [
        -chances[token].logprob
        for ids, output in zip(rows, found, strict=True)
        for token, chances in zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    answered = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=ANSWER))
    answer = {
        "perplexity": math.exp(sum(losses) / len(losses)),
        "answer": answered[0].outputs[0].text,
    }
    Path(result).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
