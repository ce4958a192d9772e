"""What crosses our borders, as strict pydantic models: one noun a module.

Owns shapes, bounds and their JSON Schema. Does not know Redis, Celery, HTTP or any provider.
"""
