from tests.service.llm_fixtures import client, connect, model  # noqa: F401 - fixtures
