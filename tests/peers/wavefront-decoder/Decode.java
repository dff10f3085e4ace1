// Reads lines from standard input and says of each whether Wavefront's own decoders and validation take it, at the limits
// that the service documents: "ok", or the reason.

import com.wavefront.api.agent.ValidationConfiguration;
import com.wavefront.data.Validation;
import com.wavefront.ingester.ReportHistogramDecoder;
import com.wavefront.ingester.ReportMetricDecoder;
import com.wavefront.ingester.ReportPointDecoder;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import wavefront.report.ReportHistogram;
import wavefront.report.ReportMetric;
import wavefront.report.ReportPoint;

final class Decode {
  private static final ValidationConfiguration LIMITS = new ValidationConfiguration()
      .setMetricLengthLimit(256)
      .setHistogramLengthLimit(256)
      .setHostLengthLimit(128)
      .setAnnotationsCountLimit(20)
      .setAnnotationsKeyLengthLimit(64)
      .setAnnotationsValueLengthLimit(255);
  // A line without a source would get this one, and be refused for its length.
  private static final String NO_SOURCE = "x".repeat(129);

  private final ReportMetricDecoder metrics = new ReportMetricDecoder(() -> NO_SOURCE, List.of());
  private final ReportPointDecoder points = new ReportPointDecoder(() -> NO_SOURCE, List.of());
  private final ReportHistogramDecoder histograms = new ReportHistogramDecoder(() -> NO_SOURCE);

  public static void main(String[] arguments) throws IOException {
    Decode decode = new Decode();
    PrintStream said = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      said.println(decode.judge(line));
    }
    said.flush();
  }

  private String judge(String line) {
    try {
      if (line.startsWith("!")) {
        histogram(line);
      } else {
        metric(line);
        point(line);
      }
      return "ok";
    } catch (RuntimeException refused) {
      return refused.toString().replace('\n', ' ');
    }
  }

  private void histogram(String line) {
    List<ReportHistogram> found = new ArrayList<>();
    histograms.decode(line, found, "peer", null);
    Validation.validateHistogram(found.get(0), LIMITS);
  }

  private void metric(String line) {
    List<ReportMetric> found = new ArrayList<>();
    metrics.decode(line, found, "peer", null);
    Validation.validateMetric(found.get(0), LIMITS);
  }

  // The older decoder, which proxies use.
  private void point(String line) {
    List<ReportPoint> found = new ArrayList<>();
    points.decode(line, found, "peer", null);
    Validation.validatePoint(found.get(0), LIMITS);
  }
}
