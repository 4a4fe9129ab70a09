"""A sandbox for an agent: its commands run in a guest, which reaches what the network allows.

An agent is anything with a method `step(output)`, which is given what its last command has written
and returns the next one, or None when it is done. A language model would be asked there.
"""

from qemu_usernat.testing import CommandTimeout


class Sandbox:
    """Runs one agent in the guest, for the length of a ``with``; then the guest is as it was."""

    def __init__(self, vm, command_time=60.0):
        """After `command_time` seconds a command is ended, and the agent is told."""
        self.vm = vm
        self.command_time = command_time
        self.transcript = []

    def __enter__(self):
        self.vm.snapshot("before the agent")
        return self

    def __exit__(self, *exception):
        self.vm.restore("before the agent")

    def run(self, agent, steps=20):
        """Command after command, until the agent is done or has had its `steps`."""
        output = ""
        for _ in range(steps):
            command = agent.step(output)
            if command is None:
                return
            output = self._execute(command)
            self.transcript.append((command, output))

    def _execute(self, command):
        try:
            result = self.vm.console.exec(command, timeout=self.command_time)
        except CommandTimeout as timeout:
            return f"{timeout.output.decode(errors='replace')}\n[ended]"
        return f"{result.text}\n[status {result.status}]"


class ScriptedAgent:
    """One that knows from the start what it wants: for tests."""

    def __init__(self, *commands):
        self.commands = list(commands)

    def step(self, output):
        return self.commands.pop(0) if self.commands else None
