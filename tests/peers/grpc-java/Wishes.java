import io.grpc.Metadata;
import io.grpc.Status;

// What the metadata of a call says of its answer.
final class Wishes {
  final int messages;
  final boolean headersFirst;
  private final int delayMs;
  private final int status;
  private final String churn;

  Wishes(Metadata headers) {
    messages = number(headers, "messages");
    headersFirst = headers.containsKey(Methods.key("headers-first"));
    delayMs = number(headers, "delay-ms");
    status = number(headers, "status");
    churn = headers.get(Methods.key("churn"));
  }

  // Waits as long as is wished, whether or not the caller still does, and returns the wished status.
  Status end() {
    try {
      Thread.sleep(delayMs);
    } catch (InterruptedException error) {
      return Status.ABORTED.withCause(error);
    }
    return status == 0 ? Status.OK : Status.fromCodeValue(status).withDescription("as wished");
  }

  Metadata churned(String name, String suffix) {
    Metadata metadata = new Metadata();
    if (churn != null) {
      metadata.put(Methods.key(name), churn + suffix);
    }
    return metadata;
  }

  private static int number(Metadata headers, String name) {
    String value = headers.get(Methods.key(name));
    return value == null ? 0 : Integer.parseInt(value);
  }
}
