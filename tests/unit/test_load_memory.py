"""What loading a checkpoint of a real size costs in memory, in a process of its own."""

import subprocess
import sys

import pytest

from mixer_finetune import load_backbone, save_model_folder

SCRIPT = """
import resource, sys
from mixer_finetune import load_backbone
load_backbone(sys.argv[2])  # what the first load costs beside weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_backbone(sys.argv[1])
sum(float(parameter.detach().sum()) for parameter in model.parameters())  # the file is mapped: read all of it
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts kilobytes on Linux only")
def test_loading_peaks_at_the_model_and_less_than_a_fifth_more(tmp_path):
    backbone = load_backbone("mixer_b16_224", num_classes=10)
    save_model_folder(tmp_path / "b16", backbone, None)
    size = (tmp_path / "b16" / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "b16"), "mixer_nano"]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    assert 0.9 * size < peak < 1.2 * size
