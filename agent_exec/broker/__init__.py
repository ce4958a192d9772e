"""The fair queue: what makes Celery on Redis serve every tenant its share, and lose nothing.

`fair_queue` is the queue itself, as calls of its Lua scripts: for anybody who has a connection. `transport` puts it
under kombu and Celery.
"""
