"""The process that pushes every event to the orchestrator, over one WebSocket, and hears what it says: see `notifier.py`."""
