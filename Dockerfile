# One image for every process; the command decides which. Without one it is a worker.
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS environment
WORKDIR /app
RUN python3 -m venv --without-pip /venv
COPY requirements.lock ./
RUN python3 -m pip --python /venv/bin/python install --quiet --no-cache-dir --no-deps --require-hashes \
        --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
# What built the editable install is not needed to run it.
RUN python3 -m pip --python /venv/bin/python install --quiet --no-cache-dir --no-deps --no-build-isolation \
        --editable . \
    && python3 -m pip --python /venv/bin/python uninstall --quiet --yes hatchling pathspec pluggy trove-classifiers

FROM ${PYTHON_IMAGE}
# TLS to the providers trusts what the system trusts; the slim images bring the certificates.
RUN test -s /etc/ssl/certs/ca-certificates.crt \
    && useradd --uid 10001 --shell /usr/sbin/nologin --home-dir /var/lib/agent-exec --no-create-home agent-exec \
    && install -d -o 10001 -g 10001 -m 700 /var/lib/agent-exec
COPY --from=environment /venv /venv
WORKDIR /app
COPY . .
RUN /venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /app
# PYTHONPATH puts our `tasks` before any package of that name that a dependency may bring one day.
# The Redis URL is set so that no container ever starts the private server meant for one machine.
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AGENT_EXEC_REDIS_URL=redis://redis:6379/0 \
    AGENT_EXEC_STATE_DIR=/var/lib/agent-exec
USER 10001:10001
CMD ["celery", "-A", "tasks", "worker"]
