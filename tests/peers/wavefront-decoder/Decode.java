// Reads lines from standard input and says of each whether Wavefront's own decoders and validation take it, at the limits
// that the service documents: "ok", or the reason. With the argument "spans" lines are spans, and behind "ok" is what was
// read: start and duration in milliseconds, then keys and values, parted by tabs.

import com.wavefront.api.agent.ValidationConfiguration;
import com.wavefront.data.Validation;
import com.wavefront.ingester.ReportHistogramDecoder;
import com.wavefront.ingester.ReportMetricDecoder;
import com.wavefront.ingester.ReportPointDecoder;
import com.wavefront.ingester.SpanDecoder;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import wavefront.report.Annotation;
import wavefront.report.ReportHistogram;
import wavefront.report.ReportMetric;
import wavefront.report.ReportPoint;
import wavefront.report.Span;

final class Decode {
  private static final ValidationConfiguration LIMITS = new ValidationConfiguration()
      .setMetricLengthLimit(256)
      .setHistogramLengthLimit(256)
      .setHostLengthLimit(128)
      .setAnnotationsCountLimit(20)
      .setAnnotationsKeyLengthLimit(64)
      .setAnnotationsValueLengthLimit(255)
      .setSpanLengthLimit(128)
      .setSpanAnnotationsCountLimit(50)
      .setSpanAnnotationsKeyLengthLimit(128)
      .setSpanAnnotationsValueLengthLimit(128);
  // A line without a source would get this one, and be refused for its length.
  private static final String NO_SOURCE = "x".repeat(129);

  private final ReportMetricDecoder metrics = new ReportMetricDecoder(() -> NO_SOURCE, List.of());
  private final ReportPointDecoder points = new ReportPointDecoder(() -> NO_SOURCE, List.of());
  private final ReportHistogramDecoder histograms = new ReportHistogramDecoder(() -> NO_SOURCE);
  private final SpanDecoder spans = new SpanDecoder(() -> NO_SOURCE);

  public static void main(String[] arguments) throws IOException {
    Decode decode = new Decode();
    boolean areSpans = arguments.length > 0 && arguments[0].equals("spans");
    PrintStream said = new PrintStream(System.out, false, StandardCharsets.UTF_8);
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      said.println(decode.judge(line, areSpans));
    }
    said.flush();
  }

  private String judge(String line, boolean isSpan) {
    try {
      if (isSpan) {
        return "ok" + span(line);
      } else if (line.startsWith("!")) {
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

  private String span(String line) {
    List<Span> found = new ArrayList<>();
    spans.decode(line, found, "peer", null);
    Span span = found.get(0);
    Validation.validateSpan(span, LIMITS, logs -> {
      throw new IllegalArgumentException("a value was moved to a span log");
    });
    StringBuilder read = new StringBuilder();
    read.append('\t').append(span.getStartMillis()).append('\t').append(span.getDuration());
    read.append("\tname=").append(span.getName()).append("\tsource=").append(span.getSource());
    read.append("\ttraceId=").append(span.getTraceId()).append("\tspanId=").append(span.getSpanId());
    for (Annotation annotation : span.getAnnotations()) {
      read.append('\t').append(annotation.getKey()).append('=').append(annotation.getValue());
    }
    return read.toString();
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
