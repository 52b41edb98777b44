# penstock serve on CPUs:
#
#     docker build -t penstock .
#     docker run --rm -p 127.0.0.1:8321:8321 -v penstock:/state penstock
#
# The page is then at http://127.0.0.1:8321/.  Whoever reaches the port can use the server: publish it on the loopback
# only, as above, or mount a file of tokens:  -v ./tokens:/tokens:ro penstock serve --host 0.0.0.0 --state /state
# --tokens-file /tokens
FROM python:3.12-slim AS build
# Where to take torch from: an index of builds without CUDA makes the image a tenth of the size.
#     docker build --build-arg TORCH_FROM="--index-url ADDRESS" -t penstock .
ARG TORCH_FROM=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/penstock
ENV PATH=/opt/penstock/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN pip install -c constraints.txt $TORCH_FROM torch
COPY pyproject.toml setup.py README.md LICENSE ./
COPY penstock ./penstock
RUN pip install -c constraints.txt ".[serve]"

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --create-home penstock && install -d -o penstock -g penstock -m 700 /state
COPY --from=build /opt/penstock /opt/penstock
# Models from the hub are kept beside the sessions.
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/state/models
USER 10001:10001
WORKDIR /home/penstock
VOLUME /state
EXPOSE 8321
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8321/health', timeout=4)"]
ENTRYPOINT ["penstock"]
CMD ["serve", "--host", "0.0.0.0", "--state", "/state"]
