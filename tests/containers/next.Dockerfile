# The release after this one, as far as a worker beside it can tell: the same code, both schema versions one higher.
ARG IMAGE=localhost/agent-exec:test
FROM ${IMAGE}
USER 0
RUN for name in HINT_VERSION SCHEMA_VERSION; do \
        file=$(grep -rlE --include='*.py' "^$name = [0-9]+$" agent_exec) \
        && sed -i "s/^$name = .*$/& + 1/" "$file" \
        || exit 1; \
    done \
    && /venv/bin/python -m compileall -q -f --invalidation-mode unchecked-hash agent_exec
USER 10001:10001
