# syntax=docker/dockerfile:1
# edge-proxy: one static executable in an otherwise empty image.
#
#   docker build --tag edge-proxy .
#   docker run --rm --publish 8000:8000 --volume ./config.json:/app/config.json:ro \
#     --security-opt seccomp=deploy/seccomp.json edge-proxy
#
# With a shell and the names of functions in gdb: docker build --target debug --tag edge-proxy:debug .
#
# Docker's default seccomp profile denies io_uring: the proxy then uses epoll and logs a warning.
# deploy/seccomp.json allows io_uring, and fewer other system calls than the default profile.
FROM rust:1.95.0-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends binutils musl-tools \
 && rm -rf /var/lib/apt/lists/*
# For the architecture of the build machine.
RUN rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /src
COPY scripts/dist-tools scripts/
RUN scripts/dist-tools cargo-auditable cargo-about
# The dependencies, in a layer that is built again only when they change: the sources are empty files.
COPY Cargo.toml Cargo.lock build.rs ./
COPY scripts/release-build scripts/toolchain scripts/
RUN mkdir -p src tests/sdk bench \
 && echo 'fn main() {}' | tee src/main.rs tests/main.rs tests/sdk/main.rs tests/allocation.rs tests/tidy.rs bench/counts.rs >/dev/null \
 && touch src/lib.rs \
 && scripts/release-build "$(uname -m)-unknown-linux-musl"
COPY . .
# For `--version` and the labels, and the time of the commit, so that two images of it are equal:
# docker build --build-arg EDGE_PROXY_GIT_SHA="$(git rev-parse --short=12 HEAD)" \
#   --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" .
ARG EDGE_PROXY_GIT_SHA
ARG SOURCE_DATE_EPOCH
# cargo compares times of modification: those of the checkout are older than those of the empty files.
RUN touch src/main.rs src/lib.rs \
 && scripts/release-build "$(uname -m)-unknown-linux-musl"
# The final image is built from scratch and has no shell to create directories and links. The links are the
# entry points of the Python proxy; the executable selects its subcommand by its name. The cache is writable by
# any user, as /tmp is, so that `--user` needs no volume.
RUN mkdir -p /root-of-image/app /root-of-image/cache /root-of-image/usr/local/bin /root-of-image/usr/share/edge-proxy \
 && objcopy --strip-all target/built/edge-proxy /root-of-image/usr/local/bin/edge-proxy \
 && ln -s edge-proxy /root-of-image/usr/local/bin/edge-proxy-serve \
 && ln -s edge-proxy /root-of-image/usr/local/bin/edge-proxy-render-config \
 && ln -s usr/local/bin/edge-proxy /root-of-image/edge-proxy \
 && cp LICENSE /root-of-image/usr/share/edge-proxy/LICENSE \
 && target/tools/bin/cargo-about generate --locked --fail --target "$(uname -m)-unknown-linux-musl" \
      --output-file /root-of-image/usr/share/edge-proxy/THIRD-PARTY-LICENCES deploy/licences.hbs \
 && chown -R 65532:65532 /root-of-image/app /root-of-image/cache \
 && chmod 1777 /root-of-image/cache

# The same image with a shell, and with the executable that has its debug information.
FROM busybox:1.37.0-musl AS debug
COPY --from=build /root-of-image/ /
COPY --from=build /src/target/built/edge-proxy /usr/local/bin/edge-proxy
WORKDIR /app
ENV CACHE_DIR=/cache PATH=/usr/local/bin:/usr/bin:/bin
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["edge-proxy", "health"]
ENTRYPOINT ["edge-proxy"]

# The last stage is what `docker build` makes.
FROM scratch AS release
ARG EDGE_PROXY_VERSION=0.1.0
ARG EDGE_PROXY_GIT_SHA
ARG EDGE_PROXY_CREATED
ARG EDGE_PROXY_SOURCE
LABEL org.opencontainers.image.title="edge-proxy" \
      org.opencontainers.image.description="Thread-per-core, io_uring edge proxy for Flagsmith feature flags" \
      org.opencontainers.image.source="${EDGE_PROXY_SOURCE}" \
      org.opencontainers.image.documentation="${EDGE_PROXY_SOURCE:+${EDGE_PROXY_SOURCE}/tree/v${EDGE_PROXY_VERSION}/docs}" \
      org.opencontainers.image.version="${EDGE_PROXY_VERSION}" \
      org.opencontainers.image.revision="${EDGE_PROXY_GIT_SHA}" \
      org.opencontainers.image.created="${EDGE_PROXY_CREATED}" \
      org.opencontainers.image.licenses="BSD-3-Clause"
COPY --from=build /root-of-image/ /
# The Python proxy's image reads its configuration from here, so existing mounts work.
WORKDIR /app
ENV CACHE_DIR=/cache PATH=/usr/local/bin
USER 65532:65532
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["edge-proxy", "health"]
ENTRYPOINT ["edge-proxy"]
