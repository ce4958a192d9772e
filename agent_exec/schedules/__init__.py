"""Schedules: requests that become executions at the times of a cron line (`schedule.py`, `cron.py`)."""
