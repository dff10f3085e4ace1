import static java.util.concurrent.TimeUnit.MILLISECONDS;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Semaphore;

// One call of the client, its messages counted.
final class Call extends ClientCall.Listener<byte[]> {
  static final int PATIENCE_MS = 60_000;

  int sent;
  volatile int received;
  private final ClientCall<byte[], byte[]> call;
  private final Semaphore answers = new Semaphore(0);
  private final CompletableFuture<Status> end = new CompletableFuture<>();

  Call(Channel channel, MethodDescriptor<byte[], byte[]> method, int limitMs, CallOptions options, String... pairs) {
    Metadata headers = new Metadata();
    for (int pair = 0; pair < pairs.length; pair += 2) {
      headers.put(Methods.key(pairs[pair]), pairs[pair + 1]);
    }
    call = channel.newCall(method, options.withDeadlineAfter(limitMs, MILLISECONDS));
    call.start(this, headers);
    call.request(Integer.MAX_VALUE);
  }

  void send(byte[] message) {
    call.sendMessage(message);
    sent++;
  }

  void halfClose() {
    call.halfClose();
  }

  void cancel() {
    call.cancel("given up", null);
  }

  // Waits for one more message, or the end.
  void awaitAnswer() {
    answers.acquireUninterruptibly();
  }

  boolean hasEnded() {
    return end.isDone();
  }

  Status awaitEnd() {
    return end.join();
  }

  @Override
  public void onMessage(byte[] message) {
    // Listeners are called by one thread at a time.
    received = received + 1;
    answers.release();
  }

  @Override
  public void onClose(Status status, Metadata trailers) {
    end.complete(status);
    answers.release();
  }
}
