"""What a run tells: its log after a crash."""

import json
import random

import pytest

from equijax.errors import InputError
from equijax.finetune import report, trainer


def test_a_half_written_last_line_of_the_log_resumes(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"epoch": i, "train_loss": 0.1 * i, "loss": 1.0 / i}) + "\n" for i in (1, 2, 3)]
    log.write_text("".join(lines + lines[1:]) + lines[0][: random.Random(0).randrange(1, len(lines[0]) - 1)])
    with report.Log(log, trainer.Progress(epoch=2), steps=1, done=0) as writer:
        writer({"epoch": 3, "loss": 1.0})
    assert log.read_text() == "".join(lines[:2]) + '{"epoch": 3, "loss": 1.0}\n'
    log.write_text("not JSON\n" + lines[1])
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1: not a record"):
        report.read_history(log)
