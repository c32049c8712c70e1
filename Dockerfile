# syntax=docker/dockerfile:1
# One file, two images: docker build --target ipvsproxy . / docker build --target dnsserver .
# For both architectures: docker buildx build --platform linux/amd64,linux/arm64 --target … --sbom=true --provenance=true .
# Every step is a script in image/, which a test also runs without Docker.
ARG DEBIAN=debian:12.12-slim

FROM ${DEBIAN} AS build
COPY requirements.lock /src/
COPY image/build.sh /src/image/
RUN /src/image/build.sh /src/requirements.lock

FROM build AS build-ipvsproxy
COPY image/app.sh /src/image/
COPY kubecore /src/kubecore
COPY ipvsproxy /src/ipvsproxy
RUN /src/image/app.sh ipvsproxy /src

FROM build AS build-dnsserver
COPY image/app.sh /src/image/
COPY kubecore /src/kubecore
COPY dnsserver /src/dnsserver
RUN /src/image/app.sh dnsserver /src

FROM ${DEBIAN} AS ipvsproxy
RUN --mount=type=bind,source=image/system.sh,target=/tmp/system.sh /tmp/system.sh ipvsproxy
COPY --from=build-ipvsproxy /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="ipvsproxy" \
      org.opencontainers.image.description="A Kubernetes service proxy on IPVS" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# User 0, for capabilities are lost by any other; the chart drops all of them but NET_ADMIN.
USER 0:0
ENTRYPOINT ["ipvsproxy"]
CMD ["run"]

FROM ${DEBIAN} AS dnsserver
RUN --mount=type=bind,source=image/system.sh,target=/tmp/system.sh /tmp/system.sh dnsserver
COPY --from=build-dnsserver /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="dnsserver" \
      org.opencontainers.image.description="A cluster DNS server for Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 65532:65532
EXPOSE 53/udp 53/tcp 8080/tcp 8181/tcp 9153/tcp
ENTRYPOINT ["dnsserver"]
CMD ["run"]
