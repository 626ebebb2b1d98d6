import re

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from backend.models.sources.toy.stories import stories
from benchmarks import toy as train


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_a_seed_fixes_the_stories(seed, count):
    written = stories(seed, count)
    assert written == stories(seed, count)
    assert stories(seed, count + 5)[:count] == written


def test_stories_differ_and_seeds_share_none():
    first, second = stories(1, 2000), stories(999, 400)
    assert len(set(first)) == 2000
    assert not set(first) & set(second)


def test_the_script_trains_and_saves_a_folder_transformers_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "STEPS", 12)
    monkeypatch.setattr(train, "STORIES", 300)
    threads = torch.get_num_threads()
    train.main(tmp_path)
    torch.set_num_threads(threads)
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0] - 0.5
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.float16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = 'Zoë said, "Thank you!" 日本'
    assert tokenizer.decode(tokenizer.encode(text)) == text
