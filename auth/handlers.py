"""The authentication and authorization that langgraph.json names.

Everything is denied unless `auth.policy` says otherwise: on this platform a missing handler, or one that
returns None or True, is an open door. Each rule decides by the registry in Postgres and also returns a
filter, so that the platform's own query enforces the same thing again.
"""

from typing import Any

from langgraph_sdk import Auth

from auth import rules
from auth.credentials import authenticate_headers
from auth.errors import InvalidTokenError
from auth.policy import POLICY, Rule

Context = Auth.types.AuthContext
HTTPException = Auth.exceptions.HTTPException

auth = Auth()


@auth.authenticate
async def authenticate(headers: dict[bytes, bytes]) -> Auth.types.MinimalUserDict:
    # What is returned is stored with every run: a name, and nothing secret.
    try:
        username = await authenticate_headers(headers)
    except InvalidTokenError as error:
        raise HTTPException(status_code=401, detail=str(error)) from None
    return {"identity": username, "display_name": username, "is_authenticated": True}


@auth.on
async def judge(ctx: Context, value: Any) -> Any:
    """Apply the policy's rule for this event; what the policy does not know is denied."""
    rule = POLICY.get((ctx.resource, ctx.action), Rule.DENY)
    return await rules.apply(rule, ctx.action, ctx.user.identity, value)
