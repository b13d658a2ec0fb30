"""A ROS 2 node: watches an image topic, answers a question every few seconds, and publishes the answers as messages.

    python3 examples/ros2_node.py --ros-args -p bundle:=/srv/vl3-2b -p image:=/camera/image_raw \
        -p question:="What is happening?" -p every_s:=10.0

Subscribes to `image` (sensor_msgs/Image: rgb8, bgr8 or mono8) and to `~/ask` (std_msgs/String), for questions at any
time; publishes `~/answer` (std_msgs/String, JSON with time_s, question, answer, and boxes in pixels of the frame).
Frames are taken once in `frame_s` seconds; what comes while the model is at work is dropped. It needs rclpy, which
comes with ROS 2, and an environment that sees it: python3 -m venv --system-site-packages.
"""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import asdict
from queue import Empty, Queue
from typing import Any

import numpy as np

from vl3edge.runtime import GenerationConfig, VideoLlama3

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}


def pixels_of(message: Any) -> np.ndarray:
    """The frame of a sensor_msgs/Image, uint8 [H, W, 3] RGB. Raises ValueError for other encodings."""
    if message.encoding not in CHANNELS:
        raise ValueError(f"the encoding {message.encoding} is none of {', '.join(CHANNELS)}")
    channels = CHANNELS[message.encoding]
    rows = np.frombuffer(bytes(message.data), np.uint8).reshape(message.height, message.step)
    frame = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
    if message.encoding == "bgr8":
        frame = frame[..., ::-1]
    return np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))


class Watcher:
    """A session that is shown frames and asked questions in a thread of its own; `say` is told the answers."""

    def __init__(self, model: VideoLlama3, question: str, every_s: float, say: Any, max_new_tokens: int = 128) -> None:
        self._session = model.open_session()
        self._question, self._every_s = question, every_s
        self._config = GenerationConfig(max_new_tokens=max_new_tokens)
        self._say = say
        self._frames: Queue[tuple[np.ndarray, float]] = Queue(1)
        self._questions: Queue[str] = Queue()
        self._due_s: float | None = None

    def see(self, frame: np.ndarray, time_s: float) -> None:
        """Shows the newest frame; it takes the place of one that still waits."""
        with contextlib.suppress(Empty):
            self._frames.get_nowait()
        self._frames.put((frame, time_s))

    def ask(self, question: str) -> None:
        """Asks with the next frame."""
        self._questions.put(question)

    def work(self, timeout_s: float = 0.2) -> None:
        """Takes one frame, if one comes in time, and answers what is due."""
        try:
            frame, time_s = self._frames.get(timeout=timeout_s)
        except Empty:
            return
        self._session.push(frame, time_s)
        if self._due_s is None or time_s >= self._due_s:
            self._due_s = time_s + self._every_s
            self.ask(self._question)
        while not self._questions.empty():
            question = self._questions.get()
            answer = self._session.answer(question, self._config, keep=False)
            boxes = [asdict(box) for box in answer.boxes]
            said = {"time_s": round(time_s, 3), "question": question, "answer": answer.text, "boxes": boxes}
            self._say(json.dumps(said))


def main() -> None:
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import String

    rclpy.init()
    node = Node("vl3edge")
    defaults = {
        "bundle": "",
        "backend": "auto",
        "image": "image_raw",
        "question": "What is happening?",
        "every_s": 10.0,
        "frame_s": 1.0,
    }
    options = {name: node.declare_parameter(name, value).value for name, value in defaults.items()}
    model = VideoLlama3.load(options["bundle"] or None, options["backend"])
    answers = node.create_publisher(String, "~/answer", 10)
    watcher = Watcher(model, options["question"], options["every_s"], lambda text: answers.publish(String(data=text)))
    seen_s = -1e9

    def see(message: Any) -> None:
        nonlocal seen_s
        time_s = message.header.stamp.sec + message.header.stamp.nanosec * 1e-9
        if time_s - seen_s < options["frame_s"] and time_s >= seen_s:
            return
        seen_s = time_s
        try:
            watcher.see(pixels_of(message), time_s)
        except ValueError as e:
            node.get_logger().error(str(e), throttle_duration_sec=10.0)

    node.create_subscription(Image, options["image"], see, qos_profile_sensor_data)
    node.create_subscription(String, "~/ask", lambda message: watcher.ask(message.data), 10)
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            watcher.work()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            rclpy.spin(node)
    finally:
        ended.set()
        worker.join()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
