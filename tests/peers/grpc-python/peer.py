"""One end of gRPC calls over grpcio; ../README.md says what it does."""

import json
import sys
import threading
import time
from concurrent import futures

import grpc

PATIENCE = 60
PAUSE = 0.1
DEADLINE = 0.3
# What every fourth of the paced calls ends with, in turn: NOT_FOUND and UNAVAILABLE.
REFUSALS = ["5", "14"]
SERVICE = "mesh.Peer"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
STATUSES = {code.value[0]: code for code in grpc.StatusCode}


def main(arguments):
    match arguments:
        case ["server", port, *age]:
            serve(port, int(age[0]) if age else 0)
        case ["client", address, scenario, *numbers]:
            number, size = [*map(int, numbers), *[1, 10][len(numbers) :]]
            client = Client(address, size)
            client.run(scenario, number)
            print(json.dumps(client.told))
        case _:
            sys.exit("usage: peer server PORT [MAX_CONNECTION_AGE_MS] | peer client ADDRESS SCENARIO [NUMBER [SIZE]]")


def serve(port, max_connection_age_ms):
    # A call that is late is the caller's to end: an answer at the same moment would be a race.
    options = [*UNLIMITED, ("grpc.enable_deadline_checks", 0), ("grpc.so_reuseport", 0)]
    options += [("grpc.keepalive_time_ms", 1000)]
    options += [("grpc.http2.min_ping_interval_without_data_ms", 1), ("grpc.http2.max_pings_without_data", 0)]
    if max_connection_age_ms:
        options.append(("grpc.max_connection_age_ms", max_connection_age_ms))
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=256), options=options)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Pour": grpc.unary_stream_rpc_method_handler(pour),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


def unary(request, context):
    wishes = Wishes(context)
    if wishes.headers_first:
        context.send_initial_metadata(())
    if wishes.churn:
        context.send_initial_metadata([("churn-answer", wishes.churn)])
        context.set_trailing_metadata([("churn-end", wishes.churn + "-end")])
    wishes.end(context)
    return request


def collect(requests, _):
    return str(sum(1 for _ in requests)).encode()


def pour(request, context):
    wishes = Wishes(context)
    for _ in range(wishes.messages):
        yield request
    wishes.end(context)


def talk(requests, _):
    yield from requests


class Wishes:
    """What the metadata of a call says of its answer."""

    def __init__(self, context):
        said = dict(context.invocation_metadata())
        self.delay = int(said.get("delay-ms", 0)) / 1000
        self.messages = int(said.get("messages", 0))
        self.status = int(said.get("status", 0))
        self.headers_first = "headers-first" in said
        self.churn = said.get("churn")

    def end(self, context):
        """Waits as long as is wished, whether or not the caller still does, and ends with the wished status."""
        time.sleep(self.delay)
        if self.status:
            context.abort(STATUSES[self.status], "as wished")


class Client:
    """Makes calls on one connection, and counts."""

    def __init__(self, address, size):
        options = [*UNLIMITED, ("grpc.enable_retries", 0), ("grpc.keepalive_time_ms", 500)]
        options += [("grpc.http2.max_pings_without_data", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.message = b"m" * size
        self.told = {"calls": 0, "statuses": {}, "sent": 0, "received": 0}

    def run(self, scenario, number):
        match scenario:
            case "unary":
                self.repeat(number)
            case "paced":
                self.paced(number)
            case "gzip":
                self.repeat(number, compression=grpc.Compression.Gzip)
            case "churn":
                for call in range(number):
                    self.unary([("churn", f"{call:08x}-never-seen-before")])
            case "concurrent":
                self.concurrent(number)
            case "collect":
                self.collect(number)
            case "pour":
                self.pour([("messages", str(number))])
            case "talk":
                self.talk(number)
            case "statuses":
                for wished in map(str, range(17)):
                    self.unary([("status", wished)])
                    self.unary([("status", wished), ("headers-first", "yes")])
                    self.pour([("messages", "3"), ("status", wished)])
            case "unknown":
                self.unary([], method="Missing")
            case "deadline":
                for _ in range(number):
                    self.unary([("delay-ms", "1000")], timeout=DEADLINE)
            case "deadline-stream":
                self.pour([("messages", "1"), ("delay-ms", "1000")], timeout=DEADLINE)
            case "cancel":
                for _ in range(number):
                    self.cancelled()
            case "cancel-stream":
                self.interrupted(number)
            case "pings":
                self.talk(number, pause=1.5)
            case _:
                sys.exit(f"unknown scenario {scenario!r}")

    def repeat(self, number, **options):
        for _ in range(number):
            self.unary([], **options)

    def paced(self, number):
        for call in range(number):
            self.unary([("status", REFUSALS[call // 4 % 2])] if call % 4 == 3 else [])
            time.sleep(PAUSE)

    def unary(self, metadata, method="Unary", timeout=PATIENCE, **options):
        call = self.channel.unary_unary(f"/{SERVICE}/{method}")
        self.ended(call.future(self.message, metadata=metadata, timeout=timeout, **options), 1, single=True)

    def cancelled(self):
        call = self.channel.unary_unary(f"/{SERVICE}/Unary")
        future = call.future(self.message, metadata=[("delay-ms", "1000")], timeout=PATIENCE)
        threading.Timer(DEADLINE, future.cancel).start()
        self.ended(future, 1, single=True)

    def concurrent(self, number):
        call = self.channel.unary_unary(f"/{SERVICE}/Unary")
        wishes = [("delay-ms", "300")]
        running = [call.future(self.message, metadata=wishes, timeout=PATIENCE) for _ in range(number)]
        for future in running:
            self.ended(future, 1, single=True)

    def collect(self, number):
        call = self.channel.stream_unary(f"/{SERVICE}/Collect")
        messages = (self.message for _ in range(number))
        self.ended(call.future(messages, timeout=PATIENCE), number, single=True)

    def pour(self, metadata, timeout=PATIENCE):
        call = self.channel.unary_stream(f"/{SERVICE}/Pour")
        self.ended(call(self.message, metadata=metadata, timeout=timeout), 1)

    def talk(self, number, pause=0.0):
        answered = threading.Semaphore(1)

        def messages():
            for _ in range(number):
                answered.acquire()
                yield self.message
                time.sleep(pause)

        call = self.channel.stream_stream(f"/{SERVICE}/Talk")
        self.ended(call(messages(), timeout=PATIENCE), number, each=answered.release)

    def interrupted(self, number):
        """Talks for so many messages, then cancels."""
        ended = threading.Event()

        def messages():
            for _ in range(number):
                yield self.message
            ended.wait(PATIENCE)

        stream = self.channel.stream_stream(f"/{SERVICE}/Talk")(messages(), timeout=PATIENCE)
        for _ in range(number):
            next(stream)
        stream.cancel()
        self.ended(stream, number, received=number)
        ended.set()

    def ended(self, call, sent, single=False, received=0, each=lambda: None):
        """Takes what is left of a call's answers, and its status."""
        status = grpc.StatusCode.OK
        try:
            if single:
                call.result()
                received += 1
            else:
                for _ in call:
                    received += 1
                    each()
        except (grpc.RpcError, grpc.FutureCancelledError):
            status = call.code()
        code = str(status.value[0])
        self.told["calls"] += 1
        self.told["statuses"][code] = self.told["statuses"].get(code, 0) + 1
        self.told["sent"] += sent
        self.told["received"] += received


main(sys.argv[1:])
