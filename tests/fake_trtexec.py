#!/usr/bin/env python3
"""Stands for trtexec in tests: refuses options of other versions, writes the files that the real one writes.

Set by the environment: FAKE_FLAGS (options it has, by commas), FAKE_OFFSET (added to every output), FAKE_FAIL (a step).
"""

import array
import json
import os
import sys
from pathlib import Path

ARGUMENTS = dict(argument[2:].partition("=")[::2] for argument in sys.argv[1:])
for flag in ARGUMENTS:
    if flag not in os.environ["FAKE_FLAGS"].split(","):
        print("[E] Unknown option: --" + flag)
        sys.exit(1)
if os.environ.get("FAKE_FAIL", "none") in ARGUMENTS:
    print("[E] Error[2]: [builder.cpp::fail::1] Assertion failed")
    sys.exit(1)
if "saveEngine" in ARGUMENTS:
    assert Path(ARGUMENTS["onnx"]).is_file()
    Path(ARGUMENTS["saveEngine"]).write_bytes(b"engine")
else:
    assert Path(ARGUMENTS["loadEngine"]).read_bytes() == b"engine"
if "exportTimes" in ARGUMENTS:
    times = [{"latencyMs": 2.0 + i / 100, "computeMs": 1.5 + i / 100, "h2dMs": 0.1, "d2hMs": 0.1} for i in range(100)]
    Path(ARGUMENTS["exportTimes"]).write_text(json.dumps(times))
if "exportProfile" in ARGUMENTS:
    layer = {"name": "conv nan inf", "timeMs": 10.0, "averageMs": 0.1, "percentage": 100.0}
    Path(ARGUMENTS["exportProfile"]).write_text(json.dumps([{"count": 100}, layer]))
if "exportOutput" in ARGUMENTS:
    for item in ARGUMENTS["loadInputs"].split(","):
        assert Path(item.rpartition(":")[2]).is_file()
    bundle = json.loads(Path("bundle.json").read_text())
    rows = []
    for entry in bundle["outputs"]:
        values = array.array({"float32": "f", "int32": "i", "bool": "B"}[entry["dtype"]], Path(entry["file"]).read_bytes())
        rows.append({"name": entry["name"], "dimensions": "x".join(map(str, entry["shape"])),
                     "values": [float(v) + float(os.environ.get("FAKE_OFFSET", "0")) for v in values]})  # fmt: skip
    Path(ARGUMENTS["exportOutput"]).write_text(json.dumps(rows).replace("NaN", "nan"))
