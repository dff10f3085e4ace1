// One end of gRPC calls over grpc-java; ../README.md says what it does.

import java.net.InetSocketAddress;

final class Peer {
  private static final String USAGE =
      "usage: peer server PORT [MAX_CONNECTION_AGE_MS] | peer client ADDRESS SCENARIO [NUMBER [SIZE]]";

  public static void main(String[] arguments) throws Exception {
    if (arguments.length >= 2 && arguments[0].equals("server")) {
      Server.serve(Integer.parseInt(arguments[1]), number(arguments, 2, 0));
    } else if (arguments.length >= 3 && arguments[0].equals("client")) {
      Client client = new Client(address(arguments[1]), number(arguments, 4, 10));
      client.run(arguments[2], number(arguments, 3, 1));
      System.out.println(client.told());
      // The threads of the transport would go on for seconds.
      System.exit(0);
    } else {
      System.err.println(USAGE);
      System.exit(1);
    }
  }

  private static int number(String[] arguments, int at, int otherwise) {
    return arguments.length > at ? Integer.parseInt(arguments[at]) : otherwise;
  }

  private static InetSocketAddress address(String text) {
    int colon = text.lastIndexOf(':');
    return new InetSocketAddress(text.substring(0, colon), Integer.parseInt(text.substring(colon + 1)));
  }
}
