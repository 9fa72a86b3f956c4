from tests.service.llm_fixtures import client, connect, enrich, model  # noqa: F401 - fixtures
