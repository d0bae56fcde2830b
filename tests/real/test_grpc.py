"""gRPC over an `h2c://` backend, client and server being `grpcio`: its status travels in trailers."""

import threading
from concurrent import futures

import grpc
import pytest
from rig import Gateway, free_port

# No generated code: the messages are bytes, and gRPC's framing and trailers are the same.
SERVICE = "test.Echo"


class Echo(grpc.GenericRpcHandler):
    """Four methods, one of each kind, and one that ends in an error."""

    def service(self, details):
        return {
            f"/{SERVICE}/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            f"/{SERVICE}/Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            f"/{SERVICE}/Talk": grpc.stream_stream_rpc_method_handler(self.talk),
            f"/{SERVICE}/Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
        }.get(details.method)

    def unary(self, request, context):
        context.set_trailing_metadata((("x-trailer", "after"), ("x-bytes-bin", b"\x00\xff")))
        return request

    def stream(self, request, context):
        context.set_trailing_metadata((("x-count", "5"),))
        for number in range(5):
            yield request + str(number).encode()

    def talk(self, requests, context):
        yield from requests

    def refuse(self, request, context):
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100% of it")


@pytest.fixture(scope="module")
def channel():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), handlers=[Echo()])
    port = free_port()
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    backend = f"{{url: 'h2c://127.0.0.1:{port}', engine: openai, models: any}}"
    with Gateway("gateway-grpc", [backend]) as gateway, grpc.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        yield channel
    server.stop(grace=None)


def test_unary_with_trailing_metadata(channel):
    answer, call = channel.unary_unary(f"/{SERVICE}/Unary").with_call(b"body \x00", timeout=30)
    assert answer == b"body \x00"
    assert call.code() == grpc.StatusCode.OK
    assert ("x-trailer", "after") in call.trailing_metadata()
    assert ("x-bytes-bin", b"\x00\xff") in call.trailing_metadata()


def test_server_stream(channel):
    call = channel.unary_stream(f"/{SERVICE}/Stream")(b"n", timeout=30)
    assert list(call) == [b"n0", b"n1", b"n2", b"n3", b"n4"]
    assert ("x-count", "5") in call.trailing_metadata()


def test_both_directions_at_once(channel):
    """The second message is sent only when the first came back: neither side is held until the other has ended."""
    came_back = threading.Semaphore(1)

    def requests():
        for number in range(5):
            came_back.acquire(timeout=30)
            yield b"%d" % number

    answers = []
    for answer in channel.stream_stream(f"/{SERVICE}/Talk")(requests(), timeout=60):
        answers.append(answer)
        came_back.release()
    assert answers == [b"0", b"1", b"2", b"3", b"4"]


def test_error_status_and_details(channel):
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE}/Refuse")(b"", timeout=30)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == "not now: 100% of it"
    assert ("x-why", "because") in refused.value.trailing_metadata()


def test_unknown_method(channel):
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=30)
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
