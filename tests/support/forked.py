"""Real processes that begin with torch already imported.

A new Python process takes 4 s of a core to import what a sweep needs. Here a server process imports it once, and each
program runs in a fork of the server. A fork is a process like any other: it has its own environment, working directory,
output and session, it can be killed, and it ends as the interpreter ends. The start of the interpreter and the imports
are not tested, so some tests start a program with `subprocess`. Variables that Python or a library reads at its start,
such as `PYTHONHASHSEED` and `OMP_NUM_THREADS`, have no effect in a fork.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib import import_module

from tests.support import PATIENCE, ROOT

HEAVY = ["raysweep.trial_run", "raysweep.running", "raysweep.backends.local", "raysweep.portable"]
HEAVY += ["raysweep.report.building", "raysweep.report.drawing", "raysweep.report.page", "raysweep.report.figures"]
HEAVY += ["raysweep.api", "raysweep.cli", "raysweep.sweep_results"]
POLL_SECONDS = 0.01
LARGEST = 2**20  # bytes of a question


class Process:
    """A program that runs in a fork of the server. It has the methods of `subprocess.Popen` that tests need."""

    def __init__(self, server, arguments, pid, stdin, stdout, stderr):
        self.args, self.pid, self.returncode = list(arguments), pid, None
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self._server, self._readers, self._output = server, {}, {}

    def poll(self):
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout=PATIENCE):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(POLL_SECONDS)
        return self.returncode

    def communicate(self, timeout=PATIENCE):
        """Wait for the end; return what the process wrote to its pipes since they were last read."""
        end = time.monotonic() + timeout
        if self.stdin and not self.stdin.closed:
            self.stdin.close()
        for name in ("stdout", "stderr"):
            stream = getattr(self, name)
            if stream and not stream.closed and name not in self._readers:
                self._readers[name] = threading.Thread(target=self._read, args=(name, stream), daemon=True)
                self._readers[name].start()
        for reader in self._readers.values():
            reader.join(max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(max(0.0, end - time.monotonic()))
        return self._output.get("stdout"), self._output.get("stderr")

    def _read(self, name, stream):
        with stream:
            self._output[name] = stream.read()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Server:
    """A process that has imported what a sweep needs, and forks itself for each program.

    Args:
        environment: environment variables that the server itself needs in addition.
        modules: the modules that it imports.
    """

    def __init__(self, modules=HEAVY, **environment):
        self._socket, other = socket.socketpair(type=socket.SOCK_SEQPACKET)  # keeps messages apart
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked", str(other.fileno()), *modules],
            cwd=ROOT,
            env={**os.environ, **environment},
            pass_fds=[other.fileno()],
            stdin=subprocess.DEVNULL,
        )
        other.close()

    def ask(self, question, descriptors=()):
        """Send a question with file descriptors; return the server's answer."""
        socket.send_fds(self._socket, [json.dumps(question).encode()], descriptors)
        answer = self._socket.recv(100)
        assert answer, "the server of forked processes has ended"
        return json.loads(answer)

    def start(
        self,
        *arguments,
        cwd,
        environment=None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        new_session=False,
        **changes,
    ):
        """Start a Python program and return it while it runs.

        `arguments` are what follows `python` on a command line: a file, `-m MODULE` or `-c PROGRAM`, and its arguments.
        `environment` has all environment variables of the process; None stands for this process's variables. `changes`
        are environment variables to set in addition.
        """
        environment = {**(os.environ if environment is None else environment), **changes}
        words, pipes, given = list(map(str, arguments)), [], []
        for number, stream in enumerate((stdin, stdout, stderr)):
            pipe = None
            if stream == subprocess.PIPE:
                ends = os.pipe()
                mine, theirs = reversed(ends) if number == 0 else ends
                pipe = os.fdopen(mine, "w" if number == 0 else "r", encoding=encoding_of(environment))
            elif stream == subprocess.DEVNULL:
                theirs = os.open(os.devnull, os.O_RDWR)
            else:
                theirs = os.dup(stream if isinstance(stream, int) else stream.fileno())
            pipes.append(pipe)
            given.append(theirs)
        question = {"arguments": words, "cwd": str(cwd), "environment": environment, "new_session": new_session}
        try:
            pid = self.ask(question, given)
        finally:
            for descriptor in given:
                os.close(descriptor)
        return Process(self, words, pid, *pipes)

    def run(self, *arguments, timeout=PATIENCE, **options):
        """Run a Python program to its end; return the completed process."""
        process = self.start(*arguments, **options)
        try:
            out, err = process.communicate(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def lives(self):
        return self._process.poll() is None

    def end(self):
        self._socket.shutdown(socket.SHUT_RDWR)  # also if a fork of this process holds a copy of the socket
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def encoding_of(environment):
    return environment.get("PYTHONIOENCODING") or "utf-8"


_servers = []


def server():
    """Return the server of this test process, which starts at the first call, and again if it has ended."""
    if not _servers or not _servers[-1].lives():
        _servers.append(Server())
        atexit.register(_servers[-1].end)
    return _servers[-1]


def start(*arguments, **options):
    """Start a Python program in a fork of the server (see `Server.start`)."""
    return server().start(*arguments, **options)


def run(*arguments, **options):
    """Run a Python program in a fork of the server to its end (see `Server.run`)."""
    return server().run(*arguments, **options)


def serve(connection):
    """Answer questions. Returns in each fork, with the question that asked for it."""
    while True:
        content, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 3)
        if not content:  # the test process has ended
            sys.exit()
        question = json.loads(content)
        if "poll" in question:
            pid, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            for number, descriptor in enumerate(descriptors):
                if not answer:
                    os.dup2(descriptor, number)
                os.close(descriptor)
            if not answer:
                connection.close()
                return question
        connection.send(json.dumps(answer).encode())


def become(question):
    """Turn this process into one that has just started the program."""
    if question["new_session"]:
        os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(question["environment"])
    os.chdir(question["cwd"])
    encoding = encoding_of(os.environ)
    sys.stdin = os.fdopen(0, encoding=encoding, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding, "backslashreplace", closefd=False)
    arguments = question["arguments"]
    sys.orig_argv = [sys.executable, *arguments]
    if arguments[0] in ("-c", "-m"):
        sys.argv = [arguments[0], *arguments[2:]]
    else:
        sys.argv = arguments


def main():
    """Serve; in a fork, run the program that was asked for."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        import_module(module)
    gc.collect()
    gc.freeze()  # the forks then share the memory
    question = serve(connection)
    become(question)
    first, *rest = question["arguments"]
    if first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
