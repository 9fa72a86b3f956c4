"""The REST interface as a page. FastAPI's own would load its scripts from another site."""

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
    """Every route, with examples, to be read and tried."""
    return HTMLResponse(render(request, "docs.html"), headers=_HEADERS)
