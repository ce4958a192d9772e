"""The services that steps call over HTTP: Agent Management, the Tool Registry, the orchestrator's operations."""
