# edge-proxy: one static executable in an otherwise empty image.
#
#   docker build --tag edge-proxy .
#   docker run --rm --publish 8000:8000 --volume ./config.json:/app/config.json:ro \
#     --security-opt seccomp=deploy/seccomp.json edge-proxy
#
# Docker's default seccomp profile refuses io_uring; with it the proxy runs on epoll and says so
# in its log. deploy/seccomp.json allows io_uring and much less of everything else.
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends musl-tools
# On the architecture of the machine that builds.
RUN rustup target add $(uname -m)-unknown-linux-musl
WORKDIR /src
COPY . .
# What `--version` prints: docker build --build-arg EDGE_PROXY_GIT_SHA=$(git rev-parse --short=12 HEAD)
ARG EDGE_PROXY_GIT_SHA
RUN cargo build --release --locked --target $(uname -m)-unknown-linux-musl --bin edge-proxy
# The directories of the final image, since an empty image cannot make any. The names are those of the
# Python proxy's entry points, which the program acts by.
RUN mkdir -p /root-of-image/app /root-of-image/cache /root-of-image/usr/local/bin \
 && ln -s /edge-proxy /root-of-image/usr/local/bin/edge-proxy-serve \
 && ln -s /edge-proxy /root-of-image/usr/local/bin/edge-proxy-render-config \
 && cp target/$(uname -m)-unknown-linux-musl/release/edge-proxy /root-of-image/edge-proxy \
 && chown -R 65532:65532 /root-of-image/app /root-of-image/cache

FROM scratch
LABEL org.opencontainers.image.title="edge-proxy" \
      org.opencontainers.image.description="A thread-per-core, io_uring edge proxy for Flagsmith feature flags" \
      org.opencontainers.image.licenses="BSD-3-Clause"
COPY --from=build /root-of-image/ /
# Where the Python proxy's image looks for its configuration, so that mounts stay as they are.
WORKDIR /app
ENV CACHE_DIR=/cache
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/edge-proxy", "health"]
ENTRYPOINT ["/edge-proxy"]
