# Two targets, cpu and cuda; docs/install.md says how they are built and run.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS base
RUN useradd --uid 10001 --create-home voices \
    && install --directory --owner voices --group voices --mode 0700 /data /models \
    && python -m venv /opt/voices
ENV PATH=/opt/voices/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    VOICES_HOME=/data \
    HF_HOME=/models
COPY constraints.txt /opt/voices/constraints.txt
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=8)"]
ENTRYPOINT ["voices"]
# Nobody is asked for a key, so publish the port on loopback alone, as compose.yaml does.
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--insecure-no-auth"]

FROM base AS cpu
# The index of CPU builds, as PyTorch's installation page names it; without one CUDA comes along.
ARG TORCH_INDEX=
RUN pip install --no-cache-dir --constraint /opt/voices/constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /opt/voices/constraints.txt \
    "$(echo /wheels/voice_registry-*.whl)[inference]"
ENV VOICES_DEVICE=cpu
USER 10001

FROM base AS cuda
RUN pip install --no-cache-dir --constraint /opt/voices/constraints.txt torch \
    && python -c 'import torch; assert torch.version.cuda, "this torch was built without CUDA"'
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /opt/voices/constraints.txt \
    "$(echo /wheels/voice_registry-*.whl)[inference]"
ENV VOICES_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
