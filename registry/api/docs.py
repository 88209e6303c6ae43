"""GET /openapi.json and /docs: Swagger UI from this machine, which loads nothing from elsewhere."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Request, Response
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse

from registry.api.access import public

router = APIRouter(include_in_schema=False)

PACKAGE = "fastapi_offline"
START = "start.js"
ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon.png": "image/png",
    START: "text/javascript",
}
PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Voice registry</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/{START}"></script>
</body>
</html>
"""
SCRIPT = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null,
});
"""
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@router.get("/openapi.json")
@public
def openapi(request: Request) -> JSONResponse:
    return JSONResponse(request.app.openapi())


@router.get("/")
@public
def to_the_docs() -> RedirectResponse:
    return RedirectResponse("docs")


@router.get("/docs")
@public
def docs() -> HTMLResponse:
    return HTMLResponse(PAGE, headers=HEADERS)


@router.get("/docs/{name}")
@public
def asset(name: str) -> Response:
    if name not in ASSETS:
        raise HTTPException(404)
    content = SCRIPT.encode() if name == START else _packaged(name)
    return Response(content, media_type=ASSETS[name], headers=HEADERS)


@cache
def _packaged(name: str) -> bytes:
    """Read a file of the package, once for all who ask for it."""
    return files(PACKAGE).joinpath("static", name).read_bytes()
