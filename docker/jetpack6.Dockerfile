# vl3edge on a Jetson Orin with JetPack 6 (CUDA 12.6, TensorRT 10.3, Python 3.10). On the device, from the checkout's root:
#   docker build -f docker/jetpack6.Dockerfile -t vl3edge:jetpack6 .
#   docker run --rm --runtime nvidia -v ./vl3-2b:/model vl3edge:jetpack6 build /model --target jetson
#   docker run --rm --runtime nvidia -p 127.0.0.1:8000:8000 -v ./vl3-2b:/model:ro vl3edge:jetpack6
# The first run compiles plans into the bundle: that folder must belong to user 10001 (chown 10001 vl3-2b) while it does.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
ARG EXTRAS=jetson,serve
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-libnvinfer \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN sh /source/docker/install.sh python3 /opt/vl3edge /source "$EXTRAS" --system-site-packages \
    && cp /source/docker/healthy.py /opt/healthy.py && rm -rf /source \
    && useradd --system --uid 10001 --create-home --groups video vl3edge
USER vl3edge
ENV PATH=/opt/vl3edge/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
VOLUME /tmp
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s CMD ["python3", "/opt/healthy.py"]
ENTRYPOINT ["vl3edge"]
CMD ["serve", "--host", "0.0.0.0", "-m", "/model", "--backend", "jetson"]
