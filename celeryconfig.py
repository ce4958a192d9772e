"""Celery's names for values that settings hold. Read by the worker and by Flower; never in the wheel.

Why each value is what it is: docs/operations.md, "Celery".
"""

from agent_exec import address, exposure
from agent_exec.broker.transport import register
from agent_exec.embedded import redis_url
from agent_exec.errors import SettingsInvalid
from agent_exec.routing import EXECUTE_TASK, FAMILIES
from agent_exec.settings import read_settings

register()

try:
    _settings = read_settings()
    exposure.check(_settings)
except SettingsInvalid as error:
    raise SystemExit(f"agent-exec: {error}") from None

_broker = address.broker(redis_url(_settings))
broker_url = _broker.broker_url
broker_use_ssl = _broker.use_ssl
broker_transport_options = {
    **_broker.transport_options,
    "priority_steps": list(range(10)),
    "fair_families": FAMILIES,
    "fair_intake_tasks": (EXECUTE_TASK,),
    "fair_lease_s": _settings.lease_s,
    "visibility_timeout": 60,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "max_connections": 64,
    "socket_timeout": 3,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_channel_error_retry = True

imports = ["tasks.steps"]
task_default_queue = FAMILIES[0]
task_queues = {family: {"exchange": family, "routing_key": family} for family in FAMILIES}
task_create_missing_queues = True

accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
event_serializer = "json"

task_acks_late = True
task_reject_on_worker_lost = True
task_ignore_result = True
task_send_sent_event = False
task_store_errors_even_if_ignored = False
worker_prefetch_multiplier = 1
worker_send_task_events = True
worker_hijack_root_logger = False
worker_cancel_long_running_tasks_on_connection_loss = False
worker_enable_remote_control = True

worker_pool = "tasks.pool:TaskPool"
worker_concurrency = _settings.worker_concurrency
worker_lifespan = "tasks.lifespan:lifespan"
# Past the grace every step is handed back; what cannot be, Redis being away, is left to its lease.
worker_warm_shutdown_limit_s = _settings.shutdown_grace_s + 10
worker_loop_hard_limit_s = _settings.loop_hard_limit_s
