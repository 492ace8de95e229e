"""What loading a checkpoint of a real size costs in memory, in a process of its own."""

import subprocess
import sys

import pytest

from mixer_finetune import load_backbone, save_model_folder

SCRIPT = """
import re, sys
from pathlib import Path
from mixer_finetune import load_backbone
load_backbone(sys.argv[2])  # what the first load costs beside weights
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
model = load_backbone(sys.argv[1])
sum(float(parameter.detach().sum()) for parameter in model.parameters())  # the file is mapped: read all of it
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process its peak")
@pytest.mark.slow
def test_loading_peaks_at_the_model_and_less_than_a_fifth_more(tmp_path):
    backbone = load_backbone("mixer_b16_224", num_classes=10)
    save_model_folder(tmp_path / "b16", backbone, None)
    size = (tmp_path / "b16" / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "b16"), "mixer_nano"]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert 0.9 * size < peak < 1.2 * size
