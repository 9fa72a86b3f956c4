"""The OpenAPI page. FastAPI's own page loads scripts from another site."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from enrich_service.web.page import PAGE_HEADERS, render

router = APIRouter()

# Icons of the viewer are data URLs in its style sheet.
_HEADERS = PAGE_HEADERS | {
    "Content-Security-Policy": PAGE_HEADERS["Content-Security-Policy"].replace(
        "img-src 'self'", "img-src 'self' data:"
    )
}


@router.get("/docs", response_class=HTMLResponse)
def show_docs(request: Request) -> HTMLResponse:
    """All routes with examples."""
    return HTMLResponse(render(request, "docs.html"), headers=_HEADERS)
