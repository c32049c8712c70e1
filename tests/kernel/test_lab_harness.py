"""The lab itself: tests are independent, what runs in a guest is told faithfully, and what hangs is ended."""

import asyncio
import base64
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.lab.kernel import selection, traffic
from tests.lab.kernel.build import CONFIG, lost_options
from tests.lab.kernel.fixtures import Kernel
from tests.lab.kernel.lab import GuestDiedError, Lab
from tests.lab.kernel.net import CallError, CommandError, Net
from tests.lab.kernel.outcomes import (
    REFUSED,
    TIMEOUT,
    Answer,
    answer_line,
    from_wire,
    parse_answer,
    split_endpoint,
    to_wire,
)

kernel_test = pytest.mark.kernel


@kernel_test
class TestCommands:
    @pytest.mark.parametrize(
        ("command", "code", "stdout", "stderr"),
        [
            ("echo out; echo err >&2; exit 3", 3, "out\n", "err\n"),
            ("kill -9 $$", -signal.SIGKILL, "", ""),
            (["printf", "%s|", "a b", "$HOME"], 0, "a b|$HOME|", ""),
            ("head -c 3000000 /dev/zero | tr '\\0' x | wc -c", 0, "3000000\n", ""),
            ("sleep 1000 & echo left behind", 0, "left behind\n", ""),
        ],
        ids=[
            "exit code and both outputs",
            "a signal",
            "a list is not for the shell",
            "much output",
            "background child",
        ],
    )
    def test_result(self, net: Net, command: str | list[str], code: int, stdout: str, stderr: str) -> None:
        result = net.host("h").run(command, check=False)
        assert (result.code, result.stdout, result.stderr) == (code, stdout, stderr)

    def test_a_failure_tells_all(self, net: Net) -> None:
        with pytest.raises(CommandError, match=r"h: `echo why >&2; exit 7` ended with 7\nwhy"):
            net.host("h").run("echo why >&2; exit 7")

    def test_a_hung_command_is_killed_with_its_children(self, net: Net) -> None:
        with pytest.raises(CommandError, match=r"took longer than 0\.5 s\nso far"):
            net.host("h").run("echo so far; sleep 1000 & wait", timeout_s=0.5)
        assert "sleep 1000" not in net.host("h").run("ps ax -o args").lines

    def test_input_environment_and_large_data(self, net: Net) -> None:
        text = "0123456789\n" * 50_000
        result = net.host("h").run(["sh", "-c", "cat; echo $X"], stdin=text, env={"X": "y"})
        assert result.stdout == f"{text}y\n"

    def test_a_process_that_goes_on(self, net: Net) -> None:
        script = "import signal,sys; signal.signal(15, lambda *_: sys.exit(5)); print('ready'); signal.pause()"
        process = net.host("h").popen([sys.executable, "-c", script])
        process.wait_for_log("^ready$")
        assert process.poll() is None
        assert process.stop() == 5
        with pytest.raises(CommandError, match=r"ended without writing 'never'; its log:\nready"):
            process.wait_for_log("never")

    def test_a_bad_ipvsadm_line_fails(self, net: Net) -> None:
        with pytest.raises(CommandError, match="ipvsadm"):
            net.host("h").ipvs("-A -t 10.0.0.1:80 -s nonesuch")


def whoami(prefix: str, *, suffix: str = "") -> dict[str, object]:
    return {
        "text": prefix + suffix,
        "devices": sorted(path.name for path in Path("/proc/sys/net/ipv4/conf").iterdir()),
        "pid": os.getpid(),
    }


async def awaited(value: int) -> int:
    return value + 1


def fails() -> None:
    raise LookupError("nothing there")


@kernel_test
class TestCalls:
    def test_a_function_runs_in_the_namespace(self, net: Net) -> None:
        net.link("here", "there")
        seen = net.host("here").call(whoami, "a", suffix="b")
        assert (seen["text"], seen["devices"]) == ("ab", ["all", "default", "lo", "there"])
        assert net.host("here").call(awaited, 1) == 2

    def test_an_exception_comes_with_its_traceback(self, net: Net) -> None:
        with pytest.raises(CallError, match="LookupError: nothing there") as caught:
            net.host("h").call(fails)
        assert caught.value.raised == "LookupError"
        assert "in fails" in caught.value.trace

    def test_a_hung_or_killed_function_is_reported(self, net: Net) -> None:
        with pytest.raises(CommandError, match=r"took longer than 0\.3 s"):
            net.host("h").call("time:sleep", 1000, timeout_s=0.3)
        with pytest.raises(CommandError, match="ended with 9"):
            net.host("h").call("os:_exit", 9)


@kernel_test
class TestIsolation:
    @pytest.mark.parametrize("run", [1, 2])
    def test_every_test_starts_with_nothing(self, net: Net, run: int) -> None:
        """The second run sees nothing of the first."""
        host = net.host("h")
        assert host.ipvs_rules() == []
        assert host.run("nft list ruleset; ip -br link | grep -v '^lo '", check=False).stdout == ""
        host.ip(["link add name left type dummy", "address add 10.9.9.9/32 dev left", "link set dev left up"])
        host.ipvs("-A -t 10.9.9.9:80 -s rr")
        host.nft("table inet left { }")
        host.serve(tcp=[80])
        assert host.ipvs_rules() == ["-A -t 10.9.9.9:80 -s rr"], run

    def test_hosts_are_separate(self, net: Net) -> None:
        net.host("a").serve(tcp=[80])
        assert net.host("a").connect("127.0.0.1:80") == [Answer("a", "127.0.0.1", 0, "")]
        assert net.host("b").connect("127.0.0.1:80") == [REFUSED]

    def test_nothing_survives_the_test(self, kernel: Kernel) -> None:
        with kernel.lab.net() as first:
            pid = first.host("h").popen("sleep 1000 & setsid sleep 1000 & wait").pid
            first.host("h").serve(tcp=[80], udp=[80])
            namespace = first.host("h").namespace
        with kernel.lab.net() as second:
            assert namespace not in second.host("h").run("ls /run/netns").lines
            assert not [line for line in second.host("h").run("ps ax -o args").lines if line == "sleep 1000"]
        assert pid > 1

    def test_one_boot_serves_all(self, kernel: Kernel) -> None:
        assert kernel.lab.alive
        assert kernel.boots <= 2  # a second one only if a guest died before

    def test_two_addresses_of_one_host_answer_each_for_itself(self, net: Net) -> None:
        """A datagram is answered from the address it was sent to."""
        net.lan("lan", {"a": ["10.0.0.1/24", "10.0.0.2/24"], "b": ["10.0.0.9/24"]})
        net.host("a").serve(udp=[53])
        assert net.host("b").connect("10.0.0.2:53", proto="udp") == [Answer("a", "10.0.0.9", 0, "")]


@kernel_test
def test_keys_that_no_program_reads_do_not_stop_the_agent(net: Net, tmp_path: Path) -> None:
    """A terminal holds less than 70,000 of them, then whoever writes waits."""
    host, request, enough = net.host("h"), net.lab.request, tmp_path / "enough"
    host.serve(tcp=[80])
    parameters = {"namespace": host.namespace, "rc": None, "rows": 24, "columns": 80, "term": "dumb"}
    shell = threading.Thread(target=lambda: request("shell", limit_s=60, **parameters))
    shell.start()
    while "bash --norc -i" not in host.run("ps ax -o args").lines:
        assert shell.is_alive()
    for keys in (f"until [ -e {enough} ]; do sleep 0.1; done\n".encode(), *[b"\x04" * 1000] * 100):
        request("shell_input", data=base64.b64encode(keys).decode())
    assert host.connect("127.0.0.1:80") == [Answer("h", "127.0.0.1", 0, "")]
    host.run(f"touch {enough}")
    shell.join(60)
    assert not shell.is_alive()


async def test_a_machine_that_stands_still_loses_no_answer() -> None:
    """Before each step of an exchange the whole process stands still, for longer than the exchange may take."""

    async def exchange() -> str:
        for _ in range(5):
            await asyncio.sleep(0.001)
            time.sleep(0.06)  # noqa: ASYNC251 - standing still is the point
        return "answer"

    assert await traffic._in_time(exchange(), 0.05) == "answer"
    with pytest.raises(TimeoutError):
        await traffic._in_time(asyncio.sleep(60), 0.05)


@kernel_test
def test_a_guest_that_does_not_answer_is_killed_and_reported(
    fresh_kernel: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.lab.kernel.lab._GRACE_S", 1.0)
    with fresh_kernel.net() as net:
        host = net.host("h")
        started = time.monotonic()
        with pytest.raises(GuestDiedError, match="did not answer preload within 1 s and was killed"):
            fresh_kernel.request("preload", modules=["tests.kernel.blocks"])
        assert time.monotonic() - started < 10
        assert not fresh_kernel.alive
        with pytest.raises(GuestDiedError, match="not running"):
            host.run("true")


@kernel_test
def test_a_fresh_kernel_is_another(fresh_kernel: Lab, kernel: Kernel) -> None:
    assert fresh_kernel is not kernel.lab
    with fresh_kernel.net() as net:
        assert net.host("h").run("uname -r").lines == [fresh_kernel.release]


@kernel_test
def test_random_numbers_do_not_block(net: Net) -> None:
    """A machine without devices gathers no entropy of its own; TLS in the guest needs some."""
    assert len(net.host("h").run([sys.executable, "-c", "import os; print(os.getrandom(8).hex())"]).lines[0]) == 16


class TestSelection:
    @pytest.mark.parametrize(("value", "required"), [("true", True), ("1", True), ("", False), ("false", False)])
    def test_ci_requires_a_kernel(self, monkeypatch: pytest.MonkeyPatch, value: str, required: bool) -> None:
        monkeypatch.setenv("CI", value)
        assert selection.kernel_required() is required

    def test_an_unknown_choice_names_itself(self) -> None:
        with pytest.raises(ValueError, match="KERNEL_LAB=vmware: must be host or uml"):
            selection.choose("vmware")

    def test_a_missing_command_names_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(selection.TOOLS, "no-such-command", "no-such-package")
        choice = selection.choose("uml")
        assert (choice.mode, choice.reason) == (
            None,
            "commands are missing; remedy: apt-get install no-such-package",
        )


class TestConfiguration:
    def test_a_lost_option_is_named(self) -> None:
        configured = "CONFIG_NET=y\n# CONFIG_IP_VS is not set\nCONFIG_HZ=100\n"
        wanted = "# comment\nCONFIG_NET=y\nCONFIG_IP_VS=y\nCONFIG_BLOCK=n\nCONFIG_HZ=250\n"
        assert lost_options(wanted, configured) == ["CONFIG_IP_VS=y", "CONFIG_HZ=250"]

    def test_the_configuration_asks_for_what_tests_need(self) -> None:
        wanted = CONFIG.read_text().splitlines()
        for option in ("IP_VS", "IP_VS_IPV6", "IP_VS_PROTO_SCTP", "NF_TABLES_INET", "NFT_MASQ", "DUMMY", "IP_SCTP"):
            assert f"CONFIG_{option}=y" in wanted


class TestOutcomes:
    @pytest.mark.parametrize("line", ["pod1 saw 10.0.0.1:5 at 10.0.0.2:80", "p saw [fd00::1]:5 at [fd00::2]:80"])
    def test_an_answer_survives_the_wire(self, line: str) -> None:
        outcome = parse_answer(line)
        assert isinstance(outcome, Answer)
        again = from_wire(to_wire(outcome))
        assert isinstance(again, Answer)
        seen, at = (again.seen, again.seen_port), split_endpoint(again.at)
        assert answer_line(again.server, seen, at) == line

    def test_failures_are_equal_by_kind(self) -> None:
        assert from_wire(to_wire(TIMEOUT)) == TIMEOUT != REFUSED

    @pytest.mark.parametrize("target", ["10.0.0.1", "fd00::1:80", "[fd00::1]", "10.0.0.1:http"])
    def test_a_target_needs_a_port(self, target: str) -> None:
        with pytest.raises(ValueError, match="is not ADDRESS:PORT"):
            split_endpoint(target)
