"""Reads what `recurve train --tensorboard` writes with TensorBoard's own code, and compares it with the report.

    tests/interop/scalars.py RECURVE    the binary; scripts/interop runs it with the Python that has tensorboard

Trains two small runs, goes on with one of them, and asks TensorBoard's EventMultiplexer (what its server reads runs with) for
every scalar.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

TAGS = {
    "loss/train": "loss", "accuracy/train": "accuracy", "loss/validation": "validation_loss",
    "accuracy/validation": "validation_accuracy", "loss/test": "test_loss", "accuracy/test": "test_accuracy",
}


def run(recurve: str, folder: pathlib.Path, *arguments):
    subprocess.run([recurve, *map(str, arguments)], check=True, cwd=folder, stdout=subprocess.DEVNULL)


def check(recurve: str):
    import tensorboard.version
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        small = ["--embed", 4, "--hidden", 5, "--device", "cpu", "--tensorboard", "tb"]
        run(recurve, folder, "train", "sample", "--epochs", 3, *small)
        run(recurve, folder, "train", "sample", "--epochs", 2, "--seed", 1, *small)
        run(recurve, folder, "train", "--resume", "runs/1-sample/last.safetensors", "--epochs", 5, "--tensorboard", "tb")
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder / "tb"))
        multiplexer.Reload()
        runs = multiplexer.Runs()
        assert sorted(runs) == ["1-sample", "2-sample"], runs
        compared = 0
        for name, epochs in (("1-sample", 5), ("2-sample", 2)):
            report = json.loads((folder / "runs" / name / "report.json").read_text())["epochs"]
            assert len(report) == epochs
            # TensorBoard keeps scalars as one-element tensors of 32 bits.
            values = {tag: [(event.step, event.tensor_proto.float_val[0]) for event in multiplexer.Tensors(name, tag)] for tag in [*TAGS, "speed/examples_per_s"]}
            for tag, field in TAGS.items():
                assert [step for step, _ in values[tag]] == [epoch["epoch"] for epoch in report], (name, tag, values[tag])
                for (_, found), epoch in zip(values[tag], report):
                    # Rounded to 24 bits.
                    assert abs(found - epoch[field]) <= 2**-24 * abs(epoch[field]), (name, tag, found, epoch[field])
                    compared += 1
            assert len(values["speed/examples_per_s"]) == epochs and all(rate > 0 for _, rate in values["speed/examples_per_s"])
            plugin = multiplexer.SummaryMetadata(name, "loss/train").plugin_data.plugin_name
            assert plugin == "scalars", f"TensorBoard shows loss/train with {plugin!r}"
    print(f"tensorboard {tensorboard.version.VERSION}: {compared} scalars of 2 runs, one of them resumed, are the reports'")


check(str(pathlib.Path(sys.argv[1]).resolve()))
