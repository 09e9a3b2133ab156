# syntax=docker/dockerfile:1
# TORCH_INDEX is the package index from which torch is taken: PyTorch names one for CPU builds and one for each version
# of CUDA. Without it, it is the default index, whose builds for Linux are for CUDA.
FROM python:3.12-slim
ARG TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /opt/backdrift
COPY constraints.txt ./
RUN pip install -c constraints.txt torch ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install -c constraints.txt . && backdrift doctor
RUN useradd --no-create-home --uid 10001 scanner
USER scanner
WORKDIR /work
ENTRYPOINT ["backdrift"]
CMD ["--help"]
