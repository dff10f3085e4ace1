import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerServiceDefinition;
import io.grpc.ServerStreamTracer;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import java.nio.charset.StandardCharsets;
import java.util.function.BiFunction;

// The service: each method is what becomes of a call's messages and of their end.
final class Server {
  private static final Metadata.Key<String> ENCODING = Methods.key("grpc-encoding");

  private Server() {}

  static void serve(int port, int maxConnectionAgeMs) throws Exception {
    NettyServerBuilder builder = NettyServerBuilder.forPort(port)
        .maxInboundMessageSize(Methods.LARGEST)
        .permitKeepAliveTime(1, MILLISECONDS)
        .permitKeepAliveWithoutCalls(true)
        .keepAliveTime(1, SECONDS)
        .addStreamTracerFactory(new NoDeadlines())
        .addService(ServerServiceDefinition.builder(Methods.SERVICE)
            .addMethod(Methods.UNARY, handler(Server::unary))
            .addMethod(Methods.COLLECT, handler(Server::collect))
            .addMethod(Methods.POUR, handler(Server::pour))
            .addMethod(Methods.TALK, handler(Server::talk))
            .build());
    if (maxConnectionAgeMs > 0) {
      builder.maxConnectionAge(maxConnectionAgeMs, MILLISECONDS);
    }
    builder.build().start().awaitTermination();
  }

  // Answers are compressed as the requests are.
  private static ServerCallHandler<byte[], byte[]> handler(
      BiFunction<ServerCall<byte[], byte[]>, Wishes, ServerCall.Listener<byte[]>> method) {
    return (call, headers) -> {
      if (headers.containsKey(ENCODING)) {
        call.setCompression(headers.get(ENCODING));
      }
      call.request(Integer.MAX_VALUE);
      return method.apply(call, new Wishes(headers));
    };
  }

  private static ServerCall.Listener<byte[]> unary(ServerCall<byte[], byte[]> call, Wishes wishes) {
    return new ServerCall.Listener<>() {
      private byte[] request;

      @Override
      public void onMessage(byte[] message) {
        request = message;
      }

      @Override
      public void onHalfClose() {
        if (wishes.headersFirst) {
          call.sendHeaders(new Metadata());
        }
        Status status = wishes.end();
        if (status.isOk()) {
          if (!wishes.headersFirst) {
            call.sendHeaders(wishes.churned("churn-answer", ""));
          }
          call.sendMessage(request);
        }
        call.close(status, wishes.churned("churn-end", "-end"));
      }
    };
  }

  private static ServerCall.Listener<byte[]> collect(ServerCall<byte[], byte[]> call, Wishes wishes) {
    return new ServerCall.Listener<>() {
      private int count;

      @Override
      public void onMessage(byte[] message) {
        count++;
      }

      @Override
      public void onHalfClose() {
        call.sendHeaders(new Metadata());
        call.sendMessage(Integer.toString(count).getBytes(StandardCharsets.UTF_8));
        call.close(Status.OK, new Metadata());
      }
    };
  }

  private static ServerCall.Listener<byte[]> pour(ServerCall<byte[], byte[]> call, Wishes wishes) {
    return new ServerCall.Listener<>() {
      @Override
      public void onMessage(byte[] message) {
        call.sendHeaders(new Metadata());
        for (int sent = 0; sent < wishes.messages; sent++) {
          call.sendMessage(message);
        }
      }

      @Override
      public void onHalfClose() {
        call.close(wishes.end(), new Metadata());
      }
    };
  }

  private static ServerCall.Listener<byte[]> talk(ServerCall<byte[], byte[]> call, Wishes wishes) {
    return new ServerCall.Listener<>() {
      private boolean begun;

      @Override
      public void onMessage(byte[] message) {
        if (!begun) {
          call.sendHeaders(new Metadata());
          begun = true;
        }
        call.sendMessage(message);
      }

      @Override
      public void onHalfClose() {
        call.close(Status.OK, new Metadata());
      }
    };
  }

  // A call that is late is the caller's to end: an answer at the same moment would be a race.
  private static final class NoDeadlines extends ServerStreamTracer.Factory {
    private static final Metadata.Key<String> TIMEOUT = Methods.key("grpc-timeout");

    @Override
    public ServerStreamTracer newServerStreamTracer(String method, Metadata headers) {
      headers.discardAll(TIMEOUT);
      return new ServerStreamTracer() {};
    }
  }
}
