import io.grpc.CallOptions;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.net.InetSocketAddress;
import java.util.Arrays;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

// Makes calls on one connection, and counts.
final class Client {
  private static final int PAUSE_MS = 100;
  // Even a virtual machine that has just begun, on a busy machine, has sent its call within this.
  private static final String DELAY_MS = "1500";
  private static final int DEADLINE_MS = 1000;
  private static final CallOptions PLAIN = CallOptions.DEFAULT;
  // What every fourth of the paced calls ends with, in turn: NOT_FOUND and UNAVAILABLE.
  private static final String[] REFUSALS = {"5", "14"};

  private final ManagedChannel channel;
  private final byte[] message;
  private final Map<Integer, Integer> statuses = new TreeMap<>();
  private int calls;
  private int sent;
  private int received;

  Client(InetSocketAddress address, int size) {
    channel = NettyChannelBuilder.forAddress(address)
        .usePlaintext()
        .disableRetry()
        .maxInboundMessageSize(Methods.LARGEST)
        .build();
    message = new byte[size];
    Arrays.fill(message, (byte) 'm');
  }

  void run(String scenario, int number) throws InterruptedException {
    connect();
    switch (scenario) {
      case "unary" -> times(number, call -> ended(unary()));
      case "paced" -> times(number, call -> {
        ended(call % 4 == 3 ? unary("status", REFUSALS[call / 4 % 2]) : unary());
        Thread.sleep(PAUSE_MS);
      });
      case "gzip" ->
          times(number, call -> ended(single(Methods.UNARY, Call.PATIENCE_MS, PLAIN.withCompression("gzip"))));
      case "churn" -> times(number, call -> ended(unary("churn", String.format("%08x-never-seen-before", call))));
      case "concurrent" ->
          IntStream.range(0, number).mapToObj(call -> unary("delay-ms", "300")).toList().forEach(this::ended);
      case "collect" -> {
        Call call = new Call(channel, Methods.COLLECT, Call.PATIENCE_MS, PLAIN);
        times(number, at -> call.send(message));
        call.halfClose();
        ended(call);
      }
      case "pour" -> ended(pour(Call.PATIENCE_MS, "messages", Integer.toString(number)));
      case "talk" -> talkToTheEnd(number, 0);
      case "statuses" -> times(17, wished -> {
        String text = Integer.toString(wished);
        ended(unary("status", text));
        ended(unary("status", text, "headers-first", "yes"));
        ended(pour(Call.PATIENCE_MS, "messages", "3", "status", text));
      });
      case "unknown" -> ended(single(Methods.MISSING, Call.PATIENCE_MS, PLAIN));
      case "deadline" ->
          times(number, call -> ended(single(Methods.UNARY, DEADLINE_MS, PLAIN, "delay-ms", DELAY_MS)));
      case "deadline-stream" -> ended(pour(DEADLINE_MS, "messages", "1", "delay-ms", DELAY_MS));
      case "cancel" -> times(number, at -> {
        Call call = unary("delay-ms", DELAY_MS);
        Thread.sleep(DEADLINE_MS);
        call.cancel();
        ended(call);
      });
      case "cancel-stream" -> {
        Call call = talk(number, 0);
        call.cancel();
        ended(call);
      }
      case "pings" -> talkToTheEnd(number, 1500);
      default -> throw new IllegalArgumentException("unknown scenario " + scenario);
    }
  }

  // One line of JSON.
  String told() {
    String each = statuses.entrySet().stream()
        .map(entry -> String.format("\"%d\": %d", entry.getKey(), entry.getValue()))
        .collect(Collectors.joining(", "));
    return String.format("{\"calls\": %d, \"statuses\": {%s}, \"sent\": %d, \"received\": %d}", calls, each, sent, received);
  }

  // No deadline is to pass before there is a connection.
  private void connect() throws InterruptedException {
    for (ConnectivityState state = channel.getState(true); state != ConnectivityState.READY; ) {
      CountDownLatch changed = new CountDownLatch(1);
      channel.notifyWhenStateChanged(state, changed::countDown);
      changed.await();
      state = channel.getState(true);
    }
  }

  private interface Step {
    void take(int number) throws InterruptedException;
  }

  private static void times(int number, Step step) throws InterruptedException {
    for (int at = 0; at < number; at++) {
      step.take(at);
    }
  }

  private Call unary(String... pairs) {
    return single(Methods.UNARY, Call.PATIENCE_MS, PLAIN, pairs);
  }

  private Call pour(int limitMs, String... pairs) {
    return single(Methods.POUR, limitMs, PLAIN, pairs);
  }

  // A call of one message.
  private Call single(MethodDescriptor<byte[], byte[]> method, int limitMs, CallOptions options, String... pairs) {
    Call call = new Call(channel, method, limitMs, options, pairs);
    call.send(message);
    call.halfClose();
    return call;
  }

  private void talkToTheEnd(int number, int pauseMs) throws InterruptedException {
    Call call = talk(number, pauseMs);
    call.halfClose();
    ended(call);
  }

  // A call of so many messages, each answered before the next.
  private Call talk(int number, int pauseMs) throws InterruptedException {
    Call call = new Call(channel, Methods.TALK, Call.PATIENCE_MS, PLAIN);
    for (int at = 0; at < number && !call.hasEnded(); at++) {
      call.send(message);
      call.awaitAnswer();
      Thread.sleep(pauseMs);
    }
    return call;
  }

  private void ended(Call call) {
    int status = call.awaitEnd().getCode().value();
    calls++;
    statuses.merge(status, 1, Integer::sum);
    sent += call.sent;
    received += call.received;
  }
}
