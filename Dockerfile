# edge-proxy: one static executable in an otherwise empty image.
#
#   docker build --tag edge-proxy .
#   docker run --rm --publish 8000:8000 --volume ./config.json:/app/config.json:ro \
#     --security-opt seccomp=deploy/seccomp.json edge-proxy
#
# Docker's default seccomp profile denies io_uring: the proxy then uses epoll and logs a warning.
# deploy/seccomp.json allows io_uring, and fewer other system calls than the default profile.
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends musl-tools
# For the architecture of the build machine.
RUN rustup target add $(uname -m)-unknown-linux-musl
WORKDIR /src
COPY . .
# The commit for `--version`: docker build --build-arg EDGE_PROXY_GIT_SHA=$(git rev-parse --short=12 HEAD)
ARG EDGE_PROXY_GIT_SHA
RUN cargo build --release --locked --target $(uname -m)-unknown-linux-musl --bin edge-proxy
# The final image is built from scratch and has no shell to create directories and links. The links are the
# entry points of the Python proxy; the executable selects its subcommand by its name.
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
# The Python proxy's image reads its configuration from here, so existing mounts work.
WORKDIR /app
ENV CACHE_DIR=/cache
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/edge-proxy", "health"]
ENTRYPOINT ["/edge-proxy"]
