"""What the services beside this one ask of it: what a tenant has spent, and that cached configuration is void.

Owns these operations, and which tenants a service may ask about. Does not know how spending is counted, nor who caches.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from starlette.responses import Response

from agent_exec import configuration
from agent_exec.contract.model import AgentId, ContractModel, TenantId
from agent_exec.errors import Forbidden, InvalidMessage
from agent_exec.spending.usage import usage
from api_shim.operation import Asked, NoParameters, Parameters, json_response

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_TENANT: TypeAdapter[str] = TypeAdapter(TenantId)


def _written_out(value: Any) -> Any:
    """Refuse what pydantic takes for a day beside one: seconds since 1970."""
    if isinstance(value, str) and not _DAY.fullmatch(value):
        raise ValueError("a day is written YYYY-MM-DD")
    return value


Day = Annotated[date, BeforeValidator(_written_out)]


class UsageParameters(Parameters):
    """Which days, both included."""

    first: Annotated[
        Day | None,
        Field(validation_alias="from", description="the first day, UTC; without it, the oldest that is kept"),
    ] = None
    last: Annotated[Day | None, Field(validation_alias="to", description="the last day, UTC; without it, today")] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ValueError("`from` is later than `to`")
        return self


class Invalidation(ContractModel):
    """Whose configuration has changed: an agent's, or without `agent_id` the tenant's and that of all its agents."""

    tenant_id: TenantId
    agent_id: AgentId | None = None


class Invalidated(Invalidation):
    """No execution whose prompt is made from now on uses what was cached before."""

    status: Literal["invalidated"] = "invalidated"


async def tenant_usage(asked: Asked[UsageParameters, None]) -> Response:
    """Tell what a tenant has spent, by day: tokens, money, waste, what is reserved now, and the budget."""
    tenant_id = str(asked.connection.path_params["tenant_id"])
    _may_ask(asked, tenant_id)
    wanted = asked.parameters
    spent = await asked.shim.run(usage(tenant_id, first=wanted.first, last=wanted.last))
    return json_response(spent)


async def invalidate_configuration(asked: Asked[NoParameters, Invalidation]) -> Response:
    """Void what workers have cached of an agent's configuration and tools, or of a whole tenant's."""
    changed = asked.body
    _may_ask(asked, changed.tenant_id)
    await asked.shim.run(configuration.invalidate(changed.tenant_id, changed.agent_id))
    return json_response(Invalidated(tenant_id=changed.tenant_id, agent_id=changed.agent_id))


def _may_ask(asked: Asked[Any, Any], tenant_id: str) -> None:
    """Refuse what concerns another tenant than the key's; one that is not there looks the same.

    Raises:
        Forbidden: it is not the key's to ask about.
        InvalidMessage: no tenant has such an id.
    """
    if asked.tenant_id == asked.shim.settings.api_service_tenant:
        try:
            _TENANT.validate_python(tenant_id)
        except ValidationError:
            raise InvalidMessage("A tenant id is 1–63 characters of a-z, 0-9, '_' and '-'.") from None
    elif tenant_id != asked.tenant_id:
        raise Forbidden(
            "This service key asks about its own tenant alone. Operators: see AGENT_EXEC_API_SERVICE_TENANT for one that "
            "serves all."
        )
