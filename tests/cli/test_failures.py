"""How runs end that do not work: what is said, where, and with which code."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from blockzoo_cli import failures

from blockzoo import errors
from tests.cli.conftest import Run, parsed
from tests.zoos import checkpoint


def test_an_error_says_what_and_what_to_do_without_a_traceback(filled: Run) -> None:
    done = filled("show", "tunde", code=1)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: no model is named 'tunde'",
        "hint: did you mean tuned?",
    ]
    assert "Traceback" in filled("show", "tunde", code=1, BLOCKZOO_DEBUG="1").stderr


def test_no_zoo_is_10(blockzoo: Run, tmp_path: Path) -> None:
    for verb in (["ls"], ["show", "x"], ["stats"], ["verify"], ["gc"], ["run", "x", "-p", "y"]):
        assert "error:" in blockzoo(*verb, code=10).stderr
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["ls", "--fast"],
        ["ingest"],
        ["ingest", "no-such-folder"],
        ["ingest", "./no/such"],
        ["ingest", "/no/such"],
        ["ingest", "models/base", "models/other", "--name", "x"],
        ["ingest", "models/base", "--name", "../escape"],
        ["run", "base", "-p", "x", "--top-p", "3"],
        ["run", "base", "-p", "x", "--ids"],
    ],
)
def test_wrong_usage_is_2(filled: Run, arguments: list[str]) -> None:
    done = filled(*arguments, code=2)
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_two_sources_of_one_name_are_refused(
    blockzoo: Run, sources: dict[str, Path], tmp_path: Path
) -> None:
    twin = checkpoint(tmp_path / "twin" / "base", seed=3)
    assert "--name" in blockzoo("ingest", sources["base"], twin, code=2).stderr


def test_some_failed_sources_are_3_and_the_others_are_in(
    blockzoo: Run, sources: dict[str, Path], tmp_path: Path
) -> None:
    weights = sources["other"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    done = blockzoo("ingest", *sources.values(), "--json", code=3)
    assert {row["name"] for row in parsed(done)["ingested"]} == {"base", "tuned"}
    [failed] = parsed(done)["failed"]
    assert failed["source"] == str(sources["other"]) and failed["error"]
    assert f"error: {sources['other']}: " in done.stderr
    blockzoo("verify")
    assert blockzoo("ingest", sources["other"], code=1).stderr.count("error:") == 1


def test_an_adapter_without_its_base_is_refused_with_a_hint(blockzoo: Run, shared: Path) -> None:
    adapter = shared / "adapters" / "gpt2-legal"
    assert "--detached" in blockzoo("ingest", adapter, code=1).stderr
    blockzoo("ingest", adapter, "--detached")
    assert "base" in blockzoo("run", "gpt2-legal", "--ids", "-p", "1", code=1).stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "permission" in filled("export", "base", "locked/out", code=1).stderr


def test_a_full_disk_is_told(filled: Run) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code = "import sys; from blockzoo_cli.main import main; main(['ls', '--json'])"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd="/",
            env=os.environ | {"BLOCKZOO_ZOO": str(_zoo_of(filled))},
        )  # fmt: skip
    assert done.returncode == 1 and "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def _zoo_of(run: Run) -> Path:
    return Path(parsed(run("init", "--json"))["zoo"])


def test_a_reader_that_leaves_early_is_no_news(filled: Run) -> None:
    command = f"{sys.executable} -m blockzoo_cli diff base other | head -1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True,
        env=os.environ | {"BLOCKZOO_ZOO": str(_zoo_of(filled))},
    )  # fmt: skip
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


def test_control_c_is_130_and_leaves_a_sound_zoo(blockzoo: Run, tmp_path: Path) -> None:
    big = checkpoint(tmp_path / "big", layers=6, width=768)
    process = subprocess.Popen(
        [sys.executable, "-m", "blockzoo_cli", "ingest", str(big)],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        # who runs these tests in the background has it ignored, and so would the child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "zoo" / "zoo.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.lstrip().startswith("interrupted") and "Traceback" not in said
    blockzoo("verify")
    blockzoo("ingest", big)


def at_terminal(arguments: list[str], typed: str, cwd: Path) -> tuple[str, int]:
    """Run at a terminal of 100 columns, typing something; what it shows, and its code."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "blockzoo_cli", *arguments],
        stdin=other, stdout=other, stderr=other, cwd=cwd, close_fds=True,
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(other)
    os.write(main, typed.encode())
    shown = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(main)
    return shown.decode(), process.wait()


def test_a_terminal_gets_a_question_a_hint_and_a_drawn_table(filled: Run, tmp_path: Path) -> None:
    shown, code = at_terminal(["ls"], "", tmp_path)
    assert code == 0 and "tuned" in shown and "─" in shown
    shown, code = at_terminal(["rm", "tuned"], "n\n", tmp_path)
    assert code == 1 and "remove tuned?" in shown and "nothing was removed" in shown
    shown, code = at_terminal(["rm", "tuned"], "y\n", tmp_path)
    assert code == 0 and "hint:" in shown
    shown, code = at_terminal(["gc", "--older-than", "0"], "\n", tmp_path)
    assert code == 1 and "nothing was deleted" in shown
    shown, code = at_terminal(["gc", "--older-than", "0"], "y\n", tmp_path)
    assert code == 0 and "freed" in shown
    filled("verify")


def test_each_error_has_its_code() -> None:
    expected = {
        errors.BlockzooError("x"): 1,
        errors.UsageError("x"): 2,
        errors.SomeSourcesFailed("x"): 3,
        errors.NoZooError("x"): 10,
        errors.LockedError("x"): 11,
        errors.DamagedError("x"): 12,
        click.UsageError("x"): 2,
        KeyboardInterrupt(): 130,
        OSError(28, "No space left on device"): 1,
        PermissionError(13, "Permission denied", "/etc"): 1,
        MemoryError(): 1,
        ZeroDivisionError("x"): 1,
        SystemExit(5): 5,
        click.exceptions.Exit(12): 12,
    }
    assert {type(e).__name__: failures.report(e) for e in expected} == {
        type(e).__name__: code for e, code in expected.items()
    }
