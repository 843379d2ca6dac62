# weakseg in a container, with the versions of constraints.txt; docs/export.md shows how it is used.
# CPU: docker build -t weakseg .    CUDA: docker build -t weakseg-cuda --build-arg DEVICE=cuda .
FROM python:3.11-slim
ARG DEVICE=cpu
ENV UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
WORKDIR /opt/weakseg
COPY constraints.txt pyproject.toml ./
RUN pip install --no-cache-dir --constraint constraints.txt uv
# torch for Linux has CUDA in it unless one asks for the smaller one. Dependencies first: they are kept when the code changes.
RUN if [ "$DEVICE" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi; \
    uv pip install --constraint constraints.txt --requirements pyproject.toml --extra images
COPY README.md LICENSE weakseg.py ./
COPY common common
COPY datamodules datamodules
COPY methods methods
COPY experiments experiments
RUN uv pip install --no-deps .
# Any user may run it (docker run --user): the caches are in the folder that is mounted.
ENV HOME=/work
WORKDIR /work
ENTRYPOINT ["weakseg"]
CMD ["--help"]
