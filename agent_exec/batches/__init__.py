"""Batches: up to 10,000 requests under one id (`batch.py`), turned into executions a few at a time (`feeding.py`)."""
