"""Write the tables of docs/jetson.md that come from the data in graphprune/devices.

python docs/make_devices_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from graphprune.devices import devices, jetpacks

TARGET = Path(__file__).with_name("jetson.md")
START, END = "<!-- tables: made by docs/make_devices_table.py -->", "<!-- end of tables -->"


def _version(number: tuple[int, ...]) -> str:
    return ".".join(map(str, number))


def tables() -> str:
    """Devices and JetPacks."""
    lines = [
        "| target | device | sm | FP16 / INT8 / FP8 | DLA | GB | GB/s | peak | power | JetPack |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    for d in devices().values():
        unread = d.unread.split()

        def mark(name: str, text: str, unread: list[str] = unread) -> str:
            return f"{text}*" if name in unread and text else text

        has = " / ".join("yes" if x else "no" for x in (d.fp16, d.int8, d.fp8))
        dla = mark("dla", f"{d.dla} x v{d.dla_version}") if d.dla else "no"
        span = f"{d.first_jetpack} - {d.last_jetpack}" if d.first_jetpack else "none"
        speed = "" if d.bandwidth_gbs is None else mark("bandwidth_gbs", f"{d.bandwidth_gbs:g}")
        lines.append(
            f"| `{d.name}` | {d.title} | {mark('sm', str(d.sm))} | {has} | {dla} | {mark('memory_gb', f'{d.memory_gb:g}')} | {speed} | "
            f"{mark('peak', d.peak)} | {mark('power', d.power)} | {span} |"
        )
    lines += ["", "| JetPack | L4T | CUDA | TensorRT | opset | Python |", "| --- | --- | --- | --- | ---: | --- |"]
    lines += [
        f"| {j.jetpack} | {j.l4t} | {j.cuda} | {_version(j.tensorrt)} | {j.opset} | {_version(j.python)} |"
        for j in jetpacks().values()
    ]
    return "\n".join(lines)


def updated(text: str) -> str:
    """The page with its tables made anew."""
    head, rest = text.split(START)
    _, tail = rest.split(END)
    return f"{head}{START}\n{tables()}\n{END}{tail}"


if __name__ == "__main__":
    page = TARGET.read_text(encoding="utf-8")
    if "--check" in sys.argv and page != updated(page):
        sys.exit("docs/jetson.md is out of date: python docs/make_devices_table.py")
    TARGET.write_text(updated(page), encoding="utf-8")
