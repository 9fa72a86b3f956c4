from tests.service.enrichment.conftest import client, connect, enrich, model  # noqa: F401
