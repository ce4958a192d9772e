"""The one reader of the environment. Read once a process, frozen, handed down.

Owns names, defaults and bounds; docs/operations.md holds the table made from this class. Does not know who uses which.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_core import from_json
from pydantic_settings import BaseSettings, SettingsConfigDict

from agent_exec.contract.agent import Plan
from agent_exec.contract.model import ID_PATTERN
from agent_exec.errors import SettingsInvalid


def _sdk_name(name: str) -> Any:
    """A name that the provider's SDK fixed, without our prefix."""
    return Field(default=None, validation_alias=AliasChoices(name))


JwtAlgorithm = Literal["RS256", "ES256", "EdDSA", "HS256"]
#: The header that a provider's key stands in; `authorization` has `Bearer` before it.
KeyHeader = Literal["authorization", "api-key"]


class CompatibleProvider(BaseModel):
    """An endpoint that speaks the OpenAI wire: vLLM, Ollama, Azure, llama.cpp."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str
    api_key: SecretStr = SecretStr("none")
    key_header: KeyHeader = "authorization"
    #: Goes with every request, as Azure's `api-version` does.
    query: dict[str, str] = Field(default_factory=dict)
    #: What the endpoint calls the most tokens of an answer. Older servers know the first alone, reasoning models the second.
    output_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"


class McpServer(BaseModel):
    """A server of tools that speaks the Model Context Protocol over streamable HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: Annotated[str, Field(pattern=r"^https?://\S+$")]
    token: SecretStr = SecretStr("")
    #: Who may be offered its tools; none named: everybody.
    tenants: frozenset[str] = frozenset()
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    #: Whether a person has to agree to each call that is no `read`.
    requires_approval: bool = False


class Settings(BaseSettings):
    """Every setting of every process."""

    model_config = SettingsConfigDict(
        env_prefix="AGENT_EXEC_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        populate_by_name=True,
        enable_decoding=False,  # decoded below, so that text which is no JSON is told like any other fault
    )

    environment: Annotated[
        Literal["production", "sandbox"],
        Field(
            description="`sandbox`: a process starts though a setting is insecure, and says so; `production`: it does not "
            "(docs/security.md)"
        ),
    ] = "production"
    redis_url: Annotated[
        str | None,
        Field(
            pattern=r"^((rediss?|unix)://\S+|sentinel://[^\s;]+(;sentinel://[^\s;]+)*)$",
            description="Redis or Valkey; with sentinels `sentinel://:password@host1:26379/0;sentinel://host2:26379`. "
            "Unset: a private server on this machine (extra `embedded`)",
        ),
    ] = None
    redis_sentinel_master: Annotated[
        str, Field(min_length=1, description="the name that the sentinels have for the primary")
    ] = "mymaster"
    redis_sentinel_password: Annotated[
        SecretStr, Field(description="the sentinels' own password, if they have one")
    ] = SecretStr("")
    state_dir: Annotated[
        Path, Field(description="where the embedded server keeps its data, its password and its address")
    ] = Path(".agent-exec")

    orchestrator_ws_url: Annotated[str, Field(description="the WebSocket that the notifier pushes frames to")] = (
        "ws://agent-orchestrator:8000/ws/task_updates"
    )
    orchestrator_url: Annotated[str, Field(description="the orchestrator's HTTP operations: query, embedding")] = (
        "http://agent-orchestrator:8000"
    )
    tool_registry_url: Annotated[str, Field(description="the Tool Registry")] = "http://tool-registry:8000"
    agent_management_url: Annotated[str, Field(description="Agent Management")] = "http://agent-management:8000"
    service_token: Annotated[
        SecretStr, Field(description="bearer token for the three neighbours and the WebSocket")
    ] = SecretStr("")
    service_token_file: Annotated[
        Path | None,
        Field(description="a file that holds this token instead, for one that expires: read again when it changes"),
    ] = None
    neighbour_timeout_s: Annotated[float, Field(gt=0, description="a neighbour's time to answer")] = 10.0
    tool_timeout_s: Annotated[
        float, Field(gt=0, le=600, description="a tool's time to answer, whatever longer one its definition names")
    ] = 600.0
    approval_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="a tool call waits this long for a person's approval, and not beyond its execution's deadline",
        ),
    ] = 3_600.0
    mcp_servers: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,20}$")], McpServer],
        Field(
            description="servers of tools (extra `mcp`), as JSON; an agent names a tool `<server>__<tool>`: "
            '{"files": {"url": "https://…/mcp", "token": "…", "tenants": ["acme"], "timeout_s": 30, '
            '"requires_approval": false}}'
        ),
    ] = Field(default_factory=dict)
    max_parallel_tools: Annotated[
        int,
        Field(ge=1, le=128, description="tool calls of one turn that run at once; the others wait, holding no slot"),
    ] = 10
    max_agent_depth: Annotated[
        int,
        Field(ge=0, le=16, description="agents that ask agents: so many may stand above one that is asked; 0: none is"),
    ] = 3
    max_tool_result_chars: Annotated[
        int, Field(ge=1_000, le=1_000_000, description="a tool's longer result is cut, and says so")
    ] = 100_000
    redact_tool_results: Annotated[
        bool,
        Field(
            description="what looks like a credential in a tool's result is struck out for the model too; it always is in "
            "events, responses and logs"
        ),
    ] = True
    config_ttl_s: Annotated[
        float, Field(ge=0, le=86_400, description="how long an agent's configuration or tool list is used unasked")
    ] = 30.0

    openai_api_key: Annotated[SecretStr | None, Field(description="OpenAI's key")] = _sdk_name("OPENAI_API_KEY")
    openai_base_url: Annotated[str | None, Field(description="OpenAI's address, if another")] = _sdk_name(
        "OPENAI_BASE_URL"
    )
    groq_api_key: Annotated[SecretStr | None, Field(description="Groq's key")] = _sdk_name("GROQ_API_KEY")
    groq_base_url: Annotated[str | None, Field(description="Groq's address, if another")] = _sdk_name("GROQ_BASE_URL")
    providers: Annotated[
        dict[str, CompatibleProvider],
        Field(description='more endpoints of the OpenAI wire, as JSON: {"local": {"base_url": "…", "api_key": "…"}}'),
    ] = Field(default_factory=dict)
    provider_keys_dir: Annotated[
        Path | None,
        Field(
            description="tenants' own provider keys, in files `<tenant>/<provider>`; who has none uses the service's. "
            "A change counts within seconds"
        ),
    ] = None
    provider_connect_timeout_s: Annotated[float, Field(gt=0, description="to connect to a provider")] = 5.0
    provider_first_token_timeout_s: Annotated[float, Field(gt=0, description="to a provider's first token")] = 60.0
    provider_idle_timeout_s: Annotated[
        float, Field(gt=0, description="between two tokens of a stream; comments are none")
    ] = 60.0
    provider_total_timeout_s: Annotated[float, Field(gt=0, description="for one whole provider call")] = 600.0

    worker_concurrency: Annotated[int, Field(ge=1, le=10_000, description="steps at once in a worker process")] = 200
    loop_hard_limit_s: Annotated[
        float,
        Field(
            ge=0,
            description="a worker whose event loop was held for so long by one step exits, to be started anew; 0: never",
        ),
    ] = 20.0
    shutdown_grace_s: Annotated[
        float, Field(ge=0, description="what running steps get to finish after SIGTERM, before they are handed back")
    ] = 30.0
    lease_s: Annotated[float, Field(gt=0, description="how long a step stays its worker's without a heartbeat")] = 10.0
    heartbeat_s: Annotated[float, Field(gt=0, description="how often leases are renewed and cancels are noticed")] = 0.5
    max_attempts: Annotated[int, Field(ge=1, description="claims of a step without a result before it is poisoned")] = 3
    max_retries: Annotated[int, Field(ge=0, description="failed attempts of a step that are tried again")] = 5
    max_repairs: Annotated[
        int,
        Field(
            ge=0, le=10, description="an execution's answers that do not fit `response_format` and go back to the model"
        ),
    ] = 2
    token_flush_ms: Annotated[
        int,
        Field(
            ge=0,
            le=1_000,
            description="tokens of this long travel as one event, one after a pause at once; 0: each by itself",
        ),
    ] = 10
    token_flush_bytes: Annotated[
        int,
        Field(ge=1, le=1_000_000, description="tokens of so many bytes are told at once, however long it took them"),
    ] = 4_096
    max_queued: Annotated[
        int, Field(ge=1, description="a tenant's executions that no worker has begun; more are refused")
    ] = 20_000
    batch_window: Annotated[
        int,
        Field(
            ge=1,
            le=10_000,
            description="executions of a tenant's batches that are open at once, all its batches together; never more than "
            "half of its `max_in_flight`, so that other work of the tenant finds room",
        ),
    ] = 100
    max_open_batches: Annotated[
        int, Field(ge=1, description="a tenant's batches that are not over; more are refused")
    ] = 100
    max_schedules: Annotated[int, Field(ge=0, description="a tenant's schedules; more are refused")] = 100
    retention_s: Annotated[
        int, Field(ge=60, description="how long a finished execution and its events stay readable")
    ] = 86_400
    retention_by_plan_s: Annotated[
        dict[Plan, Annotated[int, Field(ge=60)]],
        Field(
            description='the same for the tenants of a plan, as JSON: {"free": 3600}; who ended before the plan was known, '
            "and a plan that is not named, has the one above"
        ),
    ] = Field(default_factory=dict)
    open_retention_s: Annotated[int, Field(ge=3_600, description="when an execution nobody finishes is forgotten")] = (
        604_800
    )

    api_keys_file: Annotated[Path | None, Field(description="hashes of the API keys; written by `agent-exec keys`")] = (
        None
    )
    api_failed_attempts: Annotated[
        int,
        Field(
            ge=1,
            description="credentials that do not hold, in a minute, from one address or for one key id; more are 429",
        ),
    ] = 100
    jwt_keys_file: Annotated[
        Path | None,
        Field(
            description="what verifies tokens (JWT): a JWK set, a public key in PEM, or the secret of HS256. A change "
            "counts within 5 s. Unset: no token is taken"
        ),
    ] = None
    jwt_algorithm: Annotated[
        JwtAlgorithm, Field(description="the one algorithm of tokens: RS256, ES256, EdDSA or HS256")
    ] = "RS256"
    jwt_issuer: Annotated[str | None, Field(description="`iss` of every token; needed with the keys")] = None
    jwt_audience: Annotated[str | None, Field(description="what `aud` of every token names; needed with the keys")] = (
        None
    )
    jwt_leeway_s: Annotated[float, Field(ge=0, le=60, description="how far clocks may be apart")] = 10.0
    jwt_max_lifetime_s: Annotated[
        float,
        Field(gt=0, description="a token that holds for longer from now on is refused: none can be revoked by itself"),
    ] = 86_400.0
    jwt_tenant_claim: Annotated[str, Field(min_length=1, description="the claim that names the tenant")] = "tenant_id"
    jwt_role_claim: Annotated[
        str, Field(min_length=1, description="the claim that names the role; a token without it has `caller`")
    ] = "role"
    api_service_tenant: Annotated[
        str | None,
        Field(
            pattern=ID_PATTERN,
            description="the tenant whose service keys may ask `/internal/v1` about every tenant; any other service key "
            "asks about its own",
        ),
    ] = None
    api_sse_ping_s: Annotated[float, Field(gt=0, description="a comment on every idle event stream")] = 15.0
    api_max_wait_s: Annotated[float, Field(ge=0, description="the longest `Prefer: wait` that is honoured")] = 60.0
    api_body_timeout_s: Annotated[
        float, Field(gt=0, description="a request's body has to come within this; of a batch's, each megabyte")
    ] = 30.0
    api_max_batch_bytes: Annotated[
        int,
        Field(ge=1_000_000, description="a batch's body; a tenant hands in one at a time to one shim process"),
    ] = 64_000_000
    api_send_timeout_s: Annotated[
        float, Field(gt=0, description="a reader of events that takes nothing for this long is dropped")
    ] = 30.0
    api_max_streams: Annotated[
        int,
        Field(
            ge=1,
            description="event streams, WebSockets and chats that a tenant may have open at once in one shim process; more "
            "are answered 429",
        ),
    ] = 1_000
    api_requests_per_minute: Annotated[
        int,
        Field(
            ge=1,
            description="requests that a tenant may send to one shim process in a minute, in whatever burst; more are "
            "answered 429",
        ),
    ] = 6_000
    api_allowed_origins: Annotated[
        frozenset[Annotated[str, Field(pattern=r"^https?://[^/\s*]+$")]],
        Field(
            description="origins whose pages may use the API, by CORS and by WebSocket, as a JSON list: "
            '["https://console.example"]; none: no page may'
        ),
    ] = frozenset()

    notifier_lease_s: Annotated[
        float, Field(ge=0.5, description="after this long without a sign of the active notifier another takes over")
    ] = 5.0
    notifier_window: Annotated[
        int, Field(ge=1, le=10_000, description="frames on their way whose arrival the orchestrator has not confirmed")
    ] = 256
    notifier_backoff_cap_s: Annotated[
        float, Field(gt=0, description="the longest pause before the notifier connects again")
    ] = 30.0
    notifier_drain_s: Annotated[
        float, Field(ge=0, description="what frames and callbacks on their way get to arrive in, after SIGTERM")
    ] = 3.0

    callback_secret: Annotated[
        SecretStr | None,
        Field(
            description="signs callbacks: `whsec_` and the base64 of 24 to 64 bytes; several, with spaces between, while "
            "receivers go from one to the next: each signs"
        ),
    ] = None
    callback_secrets_dir: Annotated[
        Path | None,
        Field(
            description="tenants' own such secrets, in files `<tenant>`; who has none uses the service's. A change counts "
            "at once"
        ),
    ] = None
    callback_allow_http: Annotated[bool, Field(description="callbacks may go by http, too, and to port 80")] = False
    callback_allowed_networks: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        Field(
            description="callbacks may go there too, to any port, though it is no public address: `10.1.0.0/16,fd00::/8`"
        ),
    ] = ()
    callbacks_at_once: Annotated[
        int, Field(ge=1, le=10_000, description="callbacks on their way from one notifier")
    ] = 128
    callbacks_of_a_tenant: Annotated[
        int,
        Field(ge=1, le=10_000, description="a tenant's callbacks on their way, from all notifiers; the others wait"),
    ] = 32

    log_format: Annotated[
        str, Field(pattern="^(json|console)$", description="one line of JSON a record, or for eyes")
    ] = "json"
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="what is logged")] = "INFO"

    @property
    def longest_retention_s(self) -> int:
        """How long anybody's finished execution stays readable."""
        return max([self.retention_s, *self.retention_by_plan_s.values()])

    def retention_of_s(self, plan: Plan | None) -> int:
        """Return how long an execution of this plan, None where it is not known, stays readable after its end."""
        return self.retention_s if plan is None else self.retention_by_plan_s.get(plan, self.retention_s)

    @field_validator("callback_allowed_networks", mode="before")
    @classmethod
    def _parted(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("providers", "mcp_servers", "api_allowed_origins", "retention_by_plan_s", mode="before")
    @classmethod
    def _decoded(cls, value: Any) -> Any:
        return from_json(value) if isinstance(value, str) else value


def read_settings(**overrides: Any) -> Settings:
    """Read the environment.

    Raises:
        SettingsInvalid: names each variable that is wrong, and how.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        wrong = "; ".join(f"{variable(str(item['loc'][0]))}: {item['msg']}" for item in error.errors())
        raise SettingsInvalid(f"The environment does not do: {wrong}. See docs/operations.md, Settings.") from None


def variable(field: str) -> str:
    """Return the environment variable that holds a field."""
    alias = Settings.model_fields[field].validation_alias if field in Settings.model_fields else None
    if isinstance(alias, AliasChoices):
        return str(alias.choices[0])
    return field if field.isupper() else f"AGENT_EXEC_{field.upper()}"
