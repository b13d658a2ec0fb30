# vl3edge on a CPU. From the checkout's root:
#   docker build -f docker/cpu.Dockerfile -t vl3edge:cpu .
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./vl3-2b:/model:ro vl3edge:cpu
FROM python:3.12-slim AS build
ARG EXTRAS=cpu,serve
COPY . /source
RUN sh /source/docker/install.sh python3 /opt/vl3edge /source "$EXTRAS"

FROM python:3.12-slim
COPY --from=build /opt/vl3edge /opt/vl3edge
COPY docker/healthy.py /opt/healthy.py
RUN useradd --system --uid 10001 --create-home vl3edge
USER vl3edge
ENV PATH=/opt/vl3edge/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
VOLUME /tmp
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD ["python3", "/opt/healthy.py"]
ENTRYPOINT ["vl3edge"]
CMD ["serve", "--host", "0.0.0.0", "-m", "/model"]
