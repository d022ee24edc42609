# The image: Node 24, the bundled server, its native libraries. Nothing else runs, and not as root.
FROM node:24-slim AS build
# The base image's release decides the compiler's version.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends gcc libc6-dev make \
  && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY package.json package-lock.json .npmrc Makefile ./
RUN make node_modules/.bin/node
COPY tsconfig.json tsconfig.build.json ./
COPY native native
COPY gen gen
COPY src src
COPY tools tools
RUN make build

FROM node:24-slim
RUN mkdir -p /var/lib/persisto/storage && chown -R node:node /var/lib/persisto
COPY --from=build /build/dist /opt/persisto
# Inside a container the port is reached through the container's network only; whoever publishes it decides who may call,
# because callers are not authenticated. compose.yaml publishes it to this machine alone. The drain's delay is for balancers
# to notice.
ENV NODE_ENV=production \
  UV_THREADPOOL_SIZE=16 \
  SERVER_HOST=0.0.0.0 \
  SERVER_PORT=8080 \
  SERVER_ALLOW_UNAUTHENTICATED=true \
  SERVER_DRAIN_DELAY_SECONDS=5 \
  STORAGE_LOCAL_DIRECTORY_PATH=/var/lib/persisto/storage \
  LOGGING_OUTPUT_FILE_PATH=/dev/null
WORKDIR /var/lib/persisto
# node, by number: orchestrators check that it is not root.
USER 1000:1000
VOLUME /var/lib/persisto/storage
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["node", "/opt/persisto/healthcheck.js"]
CMD ["node", "/opt/persisto/main.js"]
