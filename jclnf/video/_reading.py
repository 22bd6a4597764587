"""One pass through a video file: its packets and its decoded frames, by PyAV."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jclnf.errors import VideoError
from jclnf.runtime import own_threads

_ONE_PACKET_A_FRAME = frozenset(
    ("av1", "dvvideo", "ffv1", "h264", "hevc", "mjpeg", "mpeg2video", "mpeg4", "prores", "vp9")
) | frozenset(("msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1"))
"""Codecs each of whose packets is a frame, so that frames can be counted without decoding them."""
_DECLARED = frozenset(("asf", "avi", "flv", "matroska", "mov", "mxf"))
"""Formats that say how long they are; FFmpeg estimates it from what there is of the others."""
_KEPT_BYTES = 2**28
"""Of packets before the first frame that is wanted, at most."""
_LEAD = 3
"""Frames that are decoded before the first one that is wanted, at least: deinterlacing looks at
the one before."""

REMEDY = "copy it again, or export it as MP4"
"""What to do about a video that cannot be read."""

Decoded = tuple[int | None, Any]
"""The time stamp of a frame and the frame; None in place of one that could not be decoded whole."""


class Reading:
    """One pass through a file."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises VideoError."""
        import av

        self._av = av
        try:
            # With the protocol before it a name may hold colons; and a file that is a list of
            # other files must not lead anywhere else.
            self.container = av.open(
                f"file:{path}",
                container_options={"protocol_whitelist": "file"},
                metadata_errors="replace",
            )
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(
                f"{path}: cannot be decoded: it is no video, or was cut off ({reason}): {REMEDY}"
            ) from None
        streams = self.container.streams
        cover = av.stream.Disposition.attached_pic
        videos = [s for s in streams.video if not s.disposition & cover]
        best = streams.best("video")
        if not videos or best is None:
            self.close()
            raise VideoError(f"{path}: holds sound only, or was cut off: {REMEDY}")
        self.stream: Any = best if best in videos else videos[0]
        if self.stream.codec_context is None:
            self.close()
            raise VideoError(f"{path}: this FFmpeg cannot decode its codec: export it as MP4")
        self.stream.thread_type = "AUTO"
        self.stream.codec_context.thread_count = own_threads()
        # AVI knows no other order than that of decoding.
        self._decoding_order = self.container.format.name == "avi"
        self.interlaced = False
        self._packets = self._demuxed()
        self._rest = self._deinterlaced(self._decoded(self._packets))
        self._failed = ""
        self._ends = (math.inf, -math.inf)
        self._last: int | None = None
        self._size = 0
        self._longest = 0.0

    def close(self) -> None:
        """Close the file."""
        # These generators hold the reading, and it the decoder, whose frames are large: what is a
        # circle stays until Python looks for such, which may be long after.
        self._packets = self._rest = iter(())
        self.container.close()

    def frames(self) -> Iterator[Decoded]:
        """The frames that are left, in the order in which they are shown."""
        return self._rest

    def _demuxed(self) -> Iterator[Any]:
        """The packets of the video; those of all streams are looked at to see where they end."""
        seconds = [float(stream.time_base or 0) for stream in self.container.streams]
        try:
            for packet in self.container.demux():
                base = seconds[packet.stream_index]
                if packet.pts is not None:
                    begin = packet.pts * base
                    end = begin + (packet.duration or 0) * base
                    self._ends = min(self._ends[0], begin), max(self._ends[1], end)
                if packet.stream_index != self.stream.index:
                    continue
                if packet.dts is not None:
                    if self._last is not None:
                        self._longest = max(self._longest, (packet.dts - self._last) * base)
                    self._last = packet.dts
                self._size = max(self._size, packet.size)
                yield packet
        except self._av.FFmpegError as error:
            self._failed = error.strerror or "it is damaged"
            yield self._av.Packet()  # as at the end of a file, so that no frame is left behind

    def cut_off(self) -> str:
        """What shows that a file should be longer than what was read; empty if nothing does."""
        if self._failed:
            return self._failed
        index = self.stream.index_entries
        if self._last is not None and len(index) and index[len(index) - 1].timestamp > self._last:
            return "its index names more"
        declared = self.stream.frames  # an AVI file that ends with its index is whole
        if self._decoding_order and len(index) < declared and (self._last or 0) + 1 < declared:
            return f"it declares {declared}"
        kinds = set(self.container.format.name.split(","))
        if kinds & _DECLARED and self.container.duration and math.isfinite(self._ends[1]):
            seconds = self.container.duration / 1e6
            found = self._ends[1] - min(self._ends[0], 0.0)
            if seconds - found > 0.1 + 2 * self._longest:
                return f"{found:.2f} s are there of the {seconds:.2f} s that it declares"
        units = {"mpegts": (188, 192, 204), "dv": (self._size or 1,)}.get(min(kinds), (1,))
        if all(self.container.size % unit for unit in units):
            return "its last packet is not whole"
        return ""

    def _stamp(self, one: Any) -> int | None:
        """The time stamp of a packet or frame."""
        stamp: int | None = one.dts if one.pts is None or self._decoding_order else one.pts
        return stamp

    def _decoded(self, packets: Iterable[Any]) -> Iterator[Decoded]:
        """The frames of packets."""
        sent: list[int] = []  # time stamps of packets whose frames have not come yet
        torn: set[int] = set()
        errors = 0
        for packet in packets:
            stamp = self._stamp(packet)
            if packet.size and stamp is not None and not packet.is_discard:
                heapq.heappush(sent, stamp)
                # Those of a transport stream only do not follow on: the decoder knows better.
                if packet.is_corrupt and self.container.format.name != "mpegts":
                    torn.add(stamp)
            try:
                frames = self.stream.codec_context.decode(packet if packet.size else None)
            except EOFError:
                frames = []
            except self._av.FFmpegError:
                frames, errors = [], errors + 1
            for frame in frames:
                stamp = self._stamp(frame)
                while sent and stamp is not None and sent[0] <= stamp:
                    lost = heapq.heappop(sent)
                    if errors and lost < stamp:
                        errors -= 1
                        yield lost, None
                whole = not frame.is_corrupt and stamp not in torn
                yield stamp, frame if whole else None
        for lost in sorted(sent)[:errors]:
            yield lost, None

    def _deinterlaced(self, decoded: Iterable[Decoded]) -> Iterator[Decoded]:
        """The same frames without interlacing. The first that is interlaced brings in a filter,
        which passes on others as they are, each as soon as the next has come."""
        graph: Any = None
        kind: Any = None
        waiting: deque[Decoded] = deque()

        def pulled(last: bool = False) -> Iterator[Decoded]:
            if last and graph is not None:
                graph.vpush(None)
            while waiting:
                stamp, frame = waiting[0]
                if frame is not None and graph is not None:
                    try:
                        frame = graph.vpull()
                    except (self._av.error.BlockingIOError, self._av.error.EOFError):
                        return
                waiting.popleft()
                yield stamp, frame

        for stamp, frame in decoded:
            if frame is not None:
                found = frame.width, frame.height, frame.format.name
                if graph is not None and found != kind:
                    yield from pulled(last=True)
                    graph = None
                if graph is None and frame.interlaced_frame:
                    graph, kind, self.interlaced = self._filter(frame), found, True
                if graph is not None:
                    graph.vpush(frame)
            waiting.append((stamp, frame))
            yield from pulled()
        yield from pulled(last=True)

    def _filter(self, frame: Any) -> Any:
        graph = self._av.filter.Graph()
        nodes = (
            graph.add_buffer(
                width=frame.width,
                height=frame.height,
                format=frame.format,
                time_base=self.stream.time_base,
            ),
            graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
            graph.add("buffersink"),
        )
        graph.link_nodes(*nodes).configure()
        return graph

    def sound(self, zero: float, begin: float) -> Iterator[tuple[float, Any]]:
        """See `VideoFile.sound`; `zero` is the time of the first image."""
        stream: Any = self.container.streams.best("audio")
        if stream is None or stream.codec_context is None:
            return
        if begin > 1:
            with suppress(self._av.FFmpegError):
                self.container.seek(round((zero + begin - 1) * 1e6))
        with suppress(self._av.FFmpegError):
            for packet in self.container.demux(stream):
                try:
                    frames = packet.decode()
                except self._av.FFmpegError:
                    continue
                for frame in frames:
                    if frame.pts is not None:
                        yield float(frame.pts * frame.time_base) - zero, frame

    def skip(self, first: int, begin: float, rate: float) -> tuple[int, float] | None:
        """Pass over what is shown before a time, from its last key frame on.

        Args:
            first: the time stamp of the first frame.
            begin: seconds after that.
            rate: frames per second, nominally.

        Returns:
            How many frames `frames` leaves out now, and when the last of them is shown, in seconds
            from the first. None if that would be a guess: this pass is of no use then.
        """
        base = float(self.stream.time_base)
        wanted = first + begin / base - 1
        margin = _LEAD / rate / base
        codec = self.stream.codec_context.name
        if codec not in _ONE_PACKET_A_FRAME or self._decoding_order:
            return None
        stamps: list[int] = []
        kept: list[Any] = []
        anchor = size = None
        last = -math.inf
        for packet in self._packets:
            if not packet.size:
                kept.append(packet)
                break
            if packet.pts is None or packet.dts is None or not last < packet.dts:
                return None
            if abs(packet.pts - packet.dts) * base > 5:
                return None
            last = packet.dts
            if not packet.is_discard:
                stamps.append(packet.pts)
            if packet.is_keyframe and packet.pts <= wanted - margin:
                kept, size, anchor = [], 0, packet.pts
            kept.append(packet)
            size = (size or 0) + packet.size
            if size > _KEPT_BYTES:
                return None
            if packet.dts > wanted:
                break
        if anchor is None or min(stamps) != first or len(set(stamps)) < len(stamps):
            return None
        passed: list[int] = []

        def followed() -> Iterator[Any]:
            yield from kept
            if kept[-1].size:
                for packet in self._packets:
                    if packet.pts is not None and not passed:
                        stamps.append(packet.pts)
                    yield packet

        frames = self._deinterlaced(self._decoded(followed()))
        lead: list[int] = []
        ready: list[Decoded] = []
        until = math.inf
        for stamp, frame in frames:
            if stamp is None or (lead and stamp <= lead[-1]):
                return None
            if stamp >= wanted:
                ready, until = [(stamp, frame)], stamp
                break
            if stamp >= anchor:
                lead.append(stamp)
        if lead != sorted(p for p in stamps if anchor <= p < until) or len(lead) < _LEAD - 1:
            return None
        passed.append(1)
        self._rest = itertools.chain(ready, frames)
        return sum(p < until for p in stamps), (lead[-1] - first) * base
