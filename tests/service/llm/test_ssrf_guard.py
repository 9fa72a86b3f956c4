import asyncio
import socket

import pytest

from enrich_service.core.errors import InvalidInput, LanguageModelError
from enrich_service.core.settings import Settings
from enrich_service.llm.chat_model import ChatModel
from enrich_service.llm.open_model import open_model
from enrich_service.llm.ssrf_guard import check_address
from tests.llm_server import LlmServer
from tests.service.llm.test_chat_model import ask, chat_request

METADATA_SPELLINGS = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "0xa9.0xfe.169.254",
    "169.254.43518",
    "169.16689662",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[::169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::1]",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "100.100.100.200",
]


@pytest.mark.parametrize("host", METADATA_SPELLINGS)
def test_metadata_addresses_are_refused_in_every_spelling(host):
    with pytest.raises(LanguageModelError, match="metadata address"):
        open_model(Settings(llm_url=f"http://{host}/v1"))
    with pytest.raises((LanguageModelError, InvalidInput), match="OPENAI_BASE_URL"):
        ask(f"http://{host}/v1", timeout=1)


def test_a_name_that_leads_to_the_metadata_service_is_refused(monkeypatch):
    asked = []

    def resolve(host, port, *_, **__):  # the name server of an attacker
        asked.append(host)
        where = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))]

    with LlmServer() as server:
        url = server.url.replace("127.0.0.1", "llm.example")

        async def main():
            model = ChatModel(url, None, 5.0)
            monkeypatch.setattr(socket, "getaddrinfo", resolve)
            await model.send(chat_request("first"))  # the name is good, for now
            await model.aclose()
            model = ChatModel(url, None, 5.0)
            with pytest.raises(LanguageModelError, match=r"llm\.example is 169\.254"):
                await model.send(chat_request("second"))
            await model.aclose()

        asyncio.run(main())
        assert list(server.calls) == ["first"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.5", "2606:4700::1"])
def test_own_machines_and_private_networks_may_be_asked(address):
    check_address("llm", address)


def test_only_hosts_that_the_operator_named_are_asked():
    allowed = frozenset({"api.openai.com"})
    with pytest.raises(InvalidInput, match="ENRICH_LLM_HOSTS"):
        open_model(Settings(llm_url="http://127.0.0.1:1/v1", llm_hosts=allowed))
    open_model(Settings(llm_url="https://api.openai.com/v1", llm_api_key="k", llm_hosts=allowed))


def test_a_password_in_the_address_is_not_repeated():
    with pytest.raises(LanguageModelError) as error:
        ask("http://u:planted@127.0.0.1:9/v1", timeout=2, tries=1)
    assert "planted" not in str(error.value) and "127.0.0.1:9" in str(error.value)
    with pytest.raises(InvalidInput) as malformed:
        ChatModel("ftp://u:planted@h/v1", None)
    assert "planted" not in str(malformed.value)
