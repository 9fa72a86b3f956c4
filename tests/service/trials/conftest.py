from tests.service.enrichment.conftest import client, connect, model  # noqa: F401 - fixtures
