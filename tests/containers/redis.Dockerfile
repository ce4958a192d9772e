# Redis as compose.yaml runs it, for tests: append-only, never evicting, its files in a volume.
ARG REDIS_IMAGE=redis:8-alpine
FROM ${REDIS_IMAGE}
VOLUME /data
EXPOSE 6379
CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data", \
     "--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
