"""The HTTP shim: executions over HTTP, server-sent events and WebSocket. Run it: uvicorn api_shim.app:app.

Owns the translation between HTTP and the ledger. Does not know Celery, workers or providers: it stores, hints and reads.
"""
