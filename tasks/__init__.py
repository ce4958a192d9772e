"""The worker: Celery's application, its asyncio pool, and the steps of an execution.

`celery -A tasks worker`. One step is one Celery task; `step.py` has the guards round every step, `next_step.py` what
follows, and a module for each kind of step what it does.
"""
