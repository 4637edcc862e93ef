"""The custom app that langgraph.json names: Warren's routes, its guard, and what runs beside the platform."""

import logging

import psycopg
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from server import __version__, accounts, audit, chat, keys, sessions
from server.bodies import FOR_STRANGERS
from server.guard import DATABASE_AWAY, Guard
from server.lifespan import lifespan
from storage.errors import DatabaseUnreachableError, EmbeddedPostgresError, StoreTooSlowError

logger = logging.getLogger(__name__)

app = FastAPI(
    title="Warren",
    version=__version__,
    description="Your own AI coding agents, each thread in a sandbox of its own.",
    lifespan=lifespan,
    # The platform serves the document of both, at /docs and /openapi.json.
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
)
app.add_middleware(Guard)
app.include_router(accounts.router)
app.include_router(keys.router)
app.include_router(sessions.router)
app.include_router(chat.router)
app.include_router(audit.router)


@app.exception_handler(StoreTooSlowError)
async def too_slow(_: Request, error: StoreTooSlowError) -> JSONResponse:
    """Answer for the platform's own routes of the store as well."""
    return JSONResponse({"detail": str(error)}, status_code=503)


@app.exception_handler(psycopg.OperationalError)
@app.exception_handler(DatabaseUnreachableError)
@app.exception_handler(EmbeddedPostgresError)
async def database_away(_: Request, error: Exception) -> JSONResponse:
    """Answer for the platform's own routes as well: who owns what is asked there, too."""
    logger.warning("The database cannot be reached: %s", error)
    return JSONResponse({"detail": DATABASE_AWAY}, status_code=503)


@app.get("/", tags=["meta"], openapi_extra=FOR_STRANGERS)
async def root() -> dict[str, object]:
    """Say what this is."""
    return {
        "name": "Warren",
        "version": __version__,
        "what": "A self-hosted server that gives every user their own AI coding agents.",
        "endpoints": {
            "register": "POST /api/auth/register",
            "login": "POST /api/auth/login",
            "me": "GET /api/auth/me",
            "password": "POST /api/auth/password",
            "logout everywhere": "POST /api/auth/logout-everywhere",
            "keys": "GET, POST /api/auth/keys; DELETE /api/auth/keys/{id}",
            "audit": "GET /api/audit",
            "sessions": "GET, POST /api/sessions; GET, DELETE /api/sessions/{id}",
            "cancel": "POST /api/sessions/{id}/cancel",
            "chat": "POST /api/chat/{id}",
            "resume": "POST /api/resume/{id}",
            "platform": "/assistants, /threads and /threads/{id}/runs, for langgraph-sdk",
            "documentation": "GET /docs",
            "health": "GET /ok",
        },
    }
