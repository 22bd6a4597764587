"""The videos, each with the arguments by which FFmpeg makes it."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

SECONDS = 2
RATE = 25
X264 = "-c:v libx264 -preset veryfast -pix_fmt yuv420p"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none -pix_fmt yuv420p"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -pix_fmt yuv420p"
MPEG2 = "-c:v mpeg2video -q:v 2 -bf 2"
PAL = "scale=720:576"
TOP, BOTTOM = "setfield=tff", "setfield=bff"
WOVEN = "-flags +ilme+ildct"
DROPPED = r"select=not(eq(mod(n\\,5)\\,3))"
"""Every fifth frame is left out, and the others keep their times."""


@dataclass(frozen=True)
class Case:
    """A video."""

    kind: str
    name: str
    arguments: str
    """Of FFmpeg between the input and the output."""
    rate: Fraction = Fraction(RATE)
    size: str = "320x240"
    times: Callable[[int], float] | None = None
    """The time of the frame of an index from 0; those of the rate unless given."""
    after: str = ""
    """Arguments of a second run, from the output of the first (`{}`) to the file."""
    sound: bool = False
    known: bool = True
    """Whether `times` are known at all; FFmpeg's word is asked in any case."""
    stamped: bool = True
    """Whether the file has time stamps."""
    sideways: bool = False
    """Whether it is turned by a quarter after its pixels were made square."""
    faulty: bool = False
    """Whether a line about a problem is due."""
    edit: Callable[[bytes], bytes] | None = None
    """What is done to the file's bytes in the end."""


def _containers() -> list[Case]:
    kinds = {
        "mp4": (X264, X265, VP9, "-c:v mpeg4 -bf 2", MPEG2, "-c:v mjpeg -pix_fmt yuvj420p"),
        "mov": (X264, X265, "-c:v prores_ks", "-c:v mjpeg -pix_fmt yuvj420p"),
        "avi": (X264, "-c:v mpeg4 -bf 2 -vtag XVID", "-c:v mpeg4", "-c:v msmpeg4",
                "-c:v mjpeg -pix_fmt yuvj420p", "-c:v ffv1", "-c:v rawvideo -pix_fmt bgr24"),
        "mkv": (X264, X265, VP9, MPEG2, "-c:v ffv1", "-c:v prores_ks", "-c:v mjpeg"),
        "webm": (VP9, "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -b:v 200k",
                 "-c:v libsvtav1 -preset 12 -pix_fmt yuv420p"),
        "ts": (X264, X265, MPEG2),
        "m2ts": (X264,),
        "wmv": ("-c:v wmv2 -b:v 2M", "-c:v wmv1 -b:v 2M"),
        "mpg": ("-c:v mpeg1video -q:v 2 -bf 2", MPEG2),
        "vob": (MPEG2,),
        "flv": (X264,),
        "3gp": ("-c:v mpeg4",),
        "mxf": ("-c:v mpeg2video -q:v 2",),
        "nut": ("-c:v ffv1",),
    }  # fmt: skip
    return [
        Case("containers", f"{name}, {codec.split()[1]}{' B' * ('-bf' in codec)}.{name}", codec)
        for name, codecs in kinds.items()
        for codec in codecs
    ]


def _dropped(index: int) -> float:
    return (index + (index + 1) // 4) / RATE


def _variable() -> list[Case]:
    codecs = {
        "mp4": X264, "mov": X264, "mkv": X264, "webm": VP9, "ts": X264, "wmv": "-c:v wmv2 -b:v 2M",
        "flv": X264,
    }  # fmt: skip
    cases = [
        Case("variable rate", f"dropped.{name}", f"-vf {DROPPED} -fps_mode vfr {codec}",
             times=_dropped)
        for name, codec in codecs.items()
    ]  # fmt: skip
    swing = "setpts=(N/25+0.012*sin(N))/TB"
    cases += [
        Case("variable rate", f"swinging.{name}", f"-vf settb=1/1000,{swing} -fps_mode vfr {X264}",
             known=False)
        for name in ("mp4", "mkv")
    ]  # fmt: skip
    live = f"-vf {DROPPED} -fps_mode vfr {VP9} -f webm -live 1"
    cases.append(Case("variable rate", "live.webm", live, times=_dropped))
    return cases


def _times() -> list[Case]:
    cases = []
    rates = (("120", "mp4"), ("240", "mp4"), ("240", "mkv"), ("1000", "mp4"), ("1000", "mkv"),
             ("1000", "avi"), ("2000", "mp4"), ("24000/1001", "mp4"), ("30000/1001", "mkv"),
             ("60000/1001", "ts"), ("12.5", "avi"), ("7", "mp4"), ("1", "mp4"))  # fmt: skip
    for rate, name in rates:
        label = rate.replace("/", "÷")
        codec = "-c:v mjpeg -pix_fmt yuvj420p" if name == "avi" else X264
        cases.append(Case("rates", f"{label} a second.{name}", codec, rate=Fraction(rate)))
    cases += [
        Case("starts", "trimmed.mp4", f"{X264} -g 15", known=False,
             after="-ss 0.7 -i {} -t 1 -c copy"),
        Case("starts", "trimmed with sound.mov", f"{X264} -g 15", known=False, sound=True,
             after="-ss 0.7 -i {} -t 1 -c copy"),
        Case("starts", "trimmed.mkv", f"{X264} -g 15", known=False,
             after="-ss 0.7 -i {} -t 1 -c copy"),
        Case("starts", "trimmed.ts", f"{X264} -g 15", known=False,
             after="-ss 0.7 -i {} -t 1 -c copy"),
        Case("starts", "at five seconds.mkv", f"{X264} -output_ts_offset 5"),
        Case("starts", "at five seconds.mp4", f"{X264} -output_ts_offset 5"),
        Case("starts", "fragmented.mp4", f"{X264} -g 10 -movflags frag_keyframe+empty_moov"),
    ]  # fmt: skip
    late = "-itsoffset 0.7 -i {0} -i {0} -map 0:v -map 1:a -c copy"
    cases += [
        Case("starts", f"sound first.{name}", X264, sound=True, after=late)
        for name in ("mp4", "mov", "mkv", "ts")
    ]
    cases.append(Case("starts", "no time stamps.h264", f"{X264} -bf 0", stamped=False))
    return cases


def _images() -> list[Case]:
    cases = [
        Case("turned", f"{degrees}.{name}", X264,
             after=f"-display_rotation {degrees} -i {{}} -c copy")
        for degrees in (90, 180, 270)
        for name in ("mp4", "mov", "mkv")
    ]  # fmt: skip
    cases += [
        Case("turned", f"mirrored, {degrees}.mp4", X264,
             after=f"-display_rotation {degrees} -display_hflip -i {{}} -c copy")
        for degrees in (0, 90)
    ]  # fmt: skip
    woven = "tinterlace=mode=interleave_top"
    moving = {"rate": Fraction(2 * RATE), "times": lambda k: k / RATE}
    cases += [
        Case("interlaced", "dvd.mpg", f"-vf {PAL},{woven} {MPEG2} {WOVEN}", **moving),
        Case("interlaced", "dvd, bottom.mpg", f"-vf {PAL},{woven},{BOTTOM} {MPEG2} {WOVEN}",
             **moving),
        Case("interlaced", "dv.avi", f"-vf {PAL},{woven} -c:v dvvideo -pix_fmt yuv420p", **moving),
        Case("interlaced", "pal.dv", f"-vf {PAL},{woven} -c:v dvvideo -pix_fmt yuv420p", **moving),
        Case("interlaced", "ntsc.dv",
             f"-vf scale=720:480,{woven},setfield=bff -c:v dvvideo -pix_fmt yuv411p",
             rate=Fraction(60000, 1001), times=lambda k: k * 1001 / 30000),
        Case("interlaced", "dv.mov", f"-vf {PAL},{woven} -c:v dvvideo -pix_fmt yuv420p", **moving),
        Case("interlaced", "avchd.mts",
             f"-vf scale=1440:1080,{woven},setsar=4/3 {X264} {WOVEN} -x264opts tff=1", **moving),
        Case("interlaced", "h264, bottom.mkv", f"-vf {woven},{BOTTOM} {X264} {WOVEN} "
             "-x264opts bff=1", **moving),
        Case("interlaced", "prores.mov", f"-vf {PAL},{woven} -c:v prores_ks {WOVEN}", **moving),
        Case("interlaced", "hd.mxf", f"-vf scale=1920:1080,{woven} -c:v mpeg2video -q:v 4 {WOVEN}",
             **moving),
        Case("depth", "ten bits.mp4", X265.replace("yuv420p", "yuv420p10le")),
        Case("depth", "ten bits.mkv", X264.replace("yuv420p", "yuv420p10le")),
        Case("depth", "ten bits, 4:2:2.mov", "-c:v prores_ks -profile:v 3"),
        Case("depth", "ten bits.webm", VP9.replace("yuv420p", "yuv420p10le")),
        Case("depth", "grey.mp4", "-c:v libx264 -pix_fmt gray"),
        Case("depth", "grey.avi", "-c:v ffv1 -pix_fmt gray"),
        Case("depth", "grey, sixteen bits.mkv", "-c:v ffv1 -pix_fmt gray16le"),
        Case("depth", "transparent.webm", VP9.replace("yuv420p", "yuva420p")),
        Case("depth", "transparent.mov", "-c:v qtrle -pix_fmt argb"),
        Case("depth", "BT.709.mp4", f"-vf scale=out_color_matrix=bt709 {X264} -colorspace bt709 "
             "-color_primaries bt709 -color_trc bt709"),
        Case("depth", "full range.mp4", "-c:v libx264 -pix_fmt yuvj420p"),
    ]  # fmt: skip
    aspects = (("64/45", "mp4"), ("16/15", "mpg"), ("8/9", "mkv"), ("4/3", "mov"), ("64/45", "avi"))
    for aspect, name in aspects:
        codec = {"mpg": f"-vf {PAL},setdar=4/3 {MPEG2}"}.get(name, f"-vf setsar={aspect} {X264}")
        cases.append(Case("pixels", f"{aspect.replace('/', '÷')}.{name}", codec))
    cases.append(Case("pixels", "64÷45, turned.mp4", f"-vf setsar=64/45 {X264}",
                      sideways=True, after="-display_rotation 90 -i {} -c copy"))  # fmt: skip
    odd = {"size": "321x241"}
    cases += [
        Case("odd sizes", "h264.mp4", "-c:v libx264 -pix_fmt yuv444p", **odd),
        Case("odd sizes", "vp9.webm", VP9, **odd),
        Case("odd sizes", "mjpeg.avi", "-c:v mjpeg -pix_fmt yuvj420p", **odd),
        Case("odd sizes", "ffv1.mkv", "-c:v ffv1 -pix_fmt yuv420p", **odd),
        Case("odd sizes", "prores.mov", "-c:v prores_ks", **odd),
        Case("odd sizes", "mpeg4.avi", "-c:v mpeg4", **odd),
        Case("odd sizes", "narrow.mp4", X264, size="34x240"),
    ]
    return cases


def _cut(data: bytes) -> bytes:
    return data[: len(data) * 613 // 1000]


def _overwritten(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes((37 * k + 11) % 256 for k in range(3000)) + data[middle + 3000 :]


def _faulty() -> list[Case]:
    codecs = {
        "mp4": f"{X264} -movflags +faststart", "mov": "-c:v prores_ks -movflags +faststart",
        "avi": "-c:v mjpeg -pix_fmt yuvj420p", "mkv": X264, "webm": VP9,
        "ts": X264, "mpg": MPEG2, "wmv": "-c:v wmv2 -b:v 2M", "flv": X264,
        "mxf": "-c:v mpeg2video -q:v 2",
        "dv": f"-vf {PAL} -c:v dvvideo -pix_fmt yuv420p",
    }  # fmt: skip
    return [
        Case(what, f"{what}.{name}", codec, known=False, faulty=True, edit=edit)
        for what, edit in (("cut off", _cut), ("overwritten", _overwritten))
        for name, codec in codecs.items()
    ]


CASES = [*_containers(), *_variable(), *_times(), *_images(), *_faulty()]
