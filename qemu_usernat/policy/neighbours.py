"""What a policy says of a flow between two guests, whose first octets nobody reads.

A name is believed there as over UDP: by what our resolver told. It is one of our own names (no
other leads to a guest), it says which machine is meant, and that machine has no other tenant whom
the guest might speak to instead. So a rule that allows by name allows what the guest would say
that says that name: TLS at port 443, HTTP at port 80, anything elsewhere. Nothing is ever held.
"""

from attrs import evolve

from qemu_usernat.policy.judge import (
    HTTP_PORT,
    HTTPS_PORT,
    Flight,
    FlowRequest,
    Judge,
    Speech,
    Verdict,
)
from qemu_usernat.policy.rules import ALLOW
from qemu_usernat.policy.why import Why

_SPEECH = {HTTPS_PORT: Speech.TLS, HTTP_PORT: Speech.HTTP}


def judge_neighbour(judge: Judge, request: FlowRequest) -> tuple[FlowRequest, Verdict]:
    """The verdict, and what it is given on: the request with what the guest is taken to say."""
    asked = evolve(request, flight=Flight(Speech.OTHER))
    verdict = judge.judge(asked)
    if verdict.why in (Why.NOT_TLS, Why.NOT_HTTP):
        for name in sorted(request.names):
            said = evolve(request, flight=Flight(_SPEECH[request.port], name))
            found = judge.judge(said)
            if found.action == ALLOW:
                return said, found
    return asked, verdict
