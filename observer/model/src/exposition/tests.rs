//! Lines of both formats, and expositions cut anywhere.

use super::*;
use proptest::prelude::*;

type Pairs = Vec<(String, String)>;

/// A sample with everything owned.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    family: String,
    name: String,
    metric_type: MetricType,
    part: Part,
    labels: Pairs,
    value: f64,
    timestamp: Option<f64>,
    exemplar: Option<(Pairs, f64, Option<f64>)>,
}

#[derive(Debug, Default, PartialEq)]
struct Parsed {
    samples: Vec<Owned>,
    heads: Vec<String>,
    problems: Vec<Problem>,
}

fn owned(labels: Labels<'_>) -> Pairs {
    labels.iter().map(|(name, value)| (name.plain().into_owned(), value.plain().into_owned())).collect()
}

fn read_in(format: Format, pieces: &[&[u8]]) -> Parsed {
    let mut exposition = Parsed::default();
    let mut each = |event: Event<'_>| match event {
        Event::Sample(sample) => exposition.samples.push(Owned {
            family: sample.family.to_owned(),
            name: sample.name.to_owned(),
            metric_type: sample.metric_type,
            part: sample.part,
            labels: owned(sample.labels),
            value: sample.value,
            timestamp: sample.timestamp,
            exemplar: sample.exemplar.map(|own| (owned(own.labels), own.value, own.timestamp)),
        }),
        Event::Help { family, text } => exposition.heads.push(format!("{family} help {}", text.plain())),
        Event::Type { family, metric_type } => exposition.heads.push(format!("{family} {metric_type:?}")),
        Event::Unit { family, unit } => exposition.heads.push(format!("{family} unit {unit}")),
        Event::Problem(problem) => exposition.problems.push(problem),
    };
    let mut parser = Parser::new(format);
    pieces.iter().for_each(|piece| parser.feed(piece, &mut each));
    parser.finish(&mut each);
    exposition
}

fn text(exposition: &str) -> Parsed {
    read_in(Format::Text, &[exposition.as_bytes()])
}

fn open_metrics(exposition: &str) -> Parsed {
    read_in(Format::OpenMetrics, &[exposition.as_bytes()])
}

fn only(exposition: Parsed) -> Owned {
    assert_eq!((exposition.problems.as_slice(), exposition.samples.len()), (&[][..], 1), "{exposition:?}");
    exposition.samples.into_iter().next().unwrap()
}

fn reason(exposition: &Parsed) -> Reason {
    assert_eq!((exposition.samples.len(), exposition.problems.len()), (0, 1), "{exposition:?}");
    exposition.problems[0].reason
}

#[test]
fn a_family_with_help_type_labels_and_escapes() {
    let exposition = text(concat!(
        "# HELP a_total what\\\\ it\\n is\n# TYPE a_total counter\n",
        "a_total{x=\"1\\\"\\\\\\n,}\",y=\"é\"} 3 1700000000500\n",
    ));
    assert_eq!(exposition.heads, ["a_total help what\\ it\n is", "a_total Counter"]);
    let sample = only(exposition);
    assert_eq!(
        (sample.family.as_str(), sample.metric_type, sample.part),
        ("a_total", MetricType::Counter, Part::Value)
    );
    assert_eq!(sample.labels, [("x".to_owned(), "1\"\\\n,}".to_owned()), ("y".to_owned(), "é".to_owned())]);
    assert_eq!((sample.value, sample.timestamp), (3.0, Some(1_700_000_000.5)));
}

#[test]
fn parts_of_histograms_summaries_and_counters_of_both_spellings() {
    let exposition = text(concat!(
        "# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 2\nh_count 1\n",
        "# TYPE s summary\ns{quantile=\"0.5\"} 1\ns_sum 1\ns_count 1\n",
        "# TYPE c counter\nc 1\nc_total 2\nc_created 3\n# TYPE g gauge\ng 1\ng_count 1\n",
    ));
    let parts: Vec<_> = exposition.samples.iter().map(|own| (own.family.as_str(), own.part)).collect();
    let histogram = [("h", Part::Bucket), ("h", Part::Sum), ("h", Part::Count)];
    let summary = [("s", Part::Value), ("s", Part::Sum), ("s", Part::Count)];
    let counter = [("c", Part::Value), ("c", Part::Value), ("c", Part::Created)];
    // A gauge has no count: that is a family of its own.
    let gauge = [("g", Part::Value), ("g_count", Part::Value)];
    assert_eq!(parts, [&histogram[..], &summary, &counter, &gauge].concat());
    assert_eq!(exposition.samples.last().map(|own| own.metric_type), Some(MetricType::Unknown));
}

#[test]
fn open_metrics_units_exemplars_and_created() {
    let exposition = open_metrics(concat!(
        "# TYPE h_seconds histogram\n# UNIT h_seconds seconds\n# HELP h_seconds a \\\"b\\\"\n",
        "h_seconds_bucket{le=\"1.0\"} 1 # {trace_id=\"a}\\\"\"} 0.5 1.5\nh_seconds_created 1.25\n",
        "# TYPE i info\ni_info{a=\"b\"} 1\n# TYPE g gaugehistogram\ng_gcount 1\ng_gsum 1\n# EOF\n",
    ));
    assert_eq!(exposition.problems, []);
    assert!(exposition.heads.contains(&"h_seconds unit seconds".to_owned()));
    let exemplar = (vec![("trace_id".to_owned(), "a}\"".to_owned())], 0.5, Some(1.5));
    assert_eq!(exposition.samples[0].exemplar, Some(exemplar));
    let parts: Vec<_> = exposition.samples.iter().map(|own| own.part).collect();
    assert_eq!(parts, [Part::Bucket, Part::Created, Part::Value, Part::Count, Part::Sum]);
}

#[test]
fn names_in_quotes_hold_any_text() {
    let exposition = text("# TYPE \"my.name\" gauge\n{\"my.name\",\"a b\"=\"1\",c=\"2\"} 4\n{\"q\\\"\"} 5\n");
    assert_eq!(exposition.heads, ["my.name Gauge"]);
    assert_eq!(
        (exposition.samples[0].family.as_str(), exposition.samples[0].metric_type),
        ("my.name", MetricType::Gauge)
    );
    assert_eq!(exposition.samples[0].labels[0].0, "a b");
    assert_eq!(exposition.samples[1].name, "q\"");
    assert_eq!(reason(&text("a{\"b\"} 1\n")), Reason::Name);
    assert_eq!(reason(&text("{x=\"1\",\"b\"} 1\n")), Reason::Label);
    assert_eq!(reason(&text("# TYPE \"a.b\" gauge\na.b 1\n")), Reason::Value);
}

#[test]
fn numbers_blanks_and_line_ends() {
    for (line, value) in [
        ("a 1", 1.0),
        ("a +Inf", f64::INFINITY),
        ("a -Inf", f64::NEG_INFINITY),
        ("a 9.223372036854776e+18", 9.223_372_036_854_776e18),
        ("a\t-0.5\t", -0.5),
        ("  a {x = \"1\" , } 2", 2.0),
        ("a 123456789012345678", 123_456_789_012_345_680.0),
        ("a{} 7\r", 7.0),
    ] {
        assert_eq!(only(text(&format!("\n# a comment\n{line}\n"))).value, value, "{line}");
    }
    assert!(only(text("a NaN\n")).value.is_nan());
}

#[test]
fn a_broken_line_costs_itself_alone_and_is_named() {
    let exposition = text("a 1\nb x\n# TYPE c what\n\u{e9} 1\nd{a=\"1\",a=\"2\"} 1\ne 2\n");
    assert_eq!(exposition.samples.len(), 2);
    let found: Vec<_> = exposition.problems.iter().map(|problem| (problem.line, problem.reason)).collect();
    assert_eq!(found, [(2, Reason::Value), (3, Reason::Type), (4, Reason::Name), (5, Reason::LabelTwice)]);
    for (line, expected) in [
        ("a", Reason::Value),
        ("a{x} 1", Reason::Label),
        ("a{x=1} 1", Reason::Label),
        ("a{x=\"1} 1", Reason::Label),
        ("a{x=\"1\\", Reason::Label),
        ("a{x=\"1\" y=\"2\"} 1", Reason::Label),
        ("a{=\"1\"} 1", Reason::Label),
        ("a 1 x", Reason::Timestamp),
        ("a 1 2 3", Reason::Timestamp),
        ("a 1 # {} 1", Reason::Timestamp),
        ("1a 1", Reason::Name),
        ("{} 1", Reason::Name),
        ("# TYPE", Reason::Name),
        ("<html>", Reason::Name),
    ] {
        assert_eq!(reason(&text(&format!("{line}\n"))), expected, "{line}");
    }
    assert_eq!(reason(&read_in(Format::Text, &[b"a{x=\"\xff\"} 1\n"])), Reason::NotUtf8);
    let many = (0..=LABELS).map(|number| format!("l{number}=\"\",")).collect::<String>();
    assert_eq!(reason(&text(&format!("a{{{many}}} 1\n"))), Reason::TooManyLabels);
    assert_eq!(reason(&open_metrics("a 1 # {x} 1\n# EOF\n")), Reason::Exemplar);
}

#[test]
fn a_page_that_was_cut_says_so() {
    assert_eq!(reason(&text("a 12")), Reason::Unended);
    assert_eq!(open_metrics("a 1\n").problems[0].reason, Reason::NoEnd);
    assert_eq!(open_metrics("a 1\n# EOF").problems, []);
    assert_eq!(reason(&open_metrics("# EOF\na 1\n")), Reason::AfterEnd);
    assert_eq!(text("a 1\n# EOF\nb 1\n").samples.len(), 2);
}

#[test]
fn a_line_without_end_takes_no_memory() {
    let mut parser = Parser::new(Format::Text);
    let mut problems = Vec::new();
    let mut samples = 0;
    let mut each = |event: Event<'_>| match event {
        Event::Problem(problem) => problems.push(problem),
        Event::Sample(_) => samples += 1,
        _ => {}
    };
    parser.feed(b"a 1\nb{x=\"", &mut each);
    for _ in 0..100 {
        parser.feed(&[b'x'; LINE_BYTES / 2], &mut each);
        assert!(parser.partial.capacity() <= 2 * LINE_BYTES);
    }
    parser.feed(b"\"} 1\nc 1\n", &mut each);
    parser.finish(&mut each);
    assert_eq!(samples, 2);
    assert_eq!(problems, [Problem { line: 2, reason: Reason::TooLong }]);
    let long = format!("a{{x=\"{}\"}} 1\n", "x".repeat(LINE_BYTES));
    assert_eq!(reason(&text(&long)), Reason::TooLong);
}

#[test]
fn series_that_come_twice_are_seen_in_any_order_of_labels() {
    let mut seen = SeriesSet::default();
    let mut new = Vec::new();
    let mut parser = Parser::new(Format::Text);
    let exposition =
        "a{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 2\na{x=\"2\",y=\"1\"} 1\na{x=\"1\",y=\"2\",z=\"\"} 1\nb 1\na 1\n";
    parser.feed(exposition.as_bytes(), &mut |event| {
        if let Event::Sample(sample) = event {
            new.push(seen.insert(&sample));
        }
    });
    assert_eq!(new, [true, false, true, false, true, true]);
}

/// A valid line, and what it says.
fn sample() -> impl Strategy<Value = (String, Owned)> {
    let name = "[a-zA-Z_:][a-zA-Z0-9_:]{0,8}";
    let labels = proptest::collection::btree_map("[a-zA-Z_][a-zA-Z0-9_]{0,5}", any::<String>(), 0..5);
    let value = prop_oneof![any::<f64>(), any::<u32>().prop_map(f64::from)].prop_filter("NaN", |value| !value.is_nan());
    (name, labels, value, any::<Option<i32>>()).prop_map(|(name, labels, value, timestamp)| {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"");
        let inside: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let ending = timestamp.map(|milliseconds| format!(" {milliseconds}")).unwrap_or_default();
        let line = format!("{name}{{{}}} {value}{ending}\n", inside.join(","));
        let owned = Owned {
            family: name.clone(),
            name,
            metric_type: MetricType::Unknown,
            part: Part::Value,
            labels: labels.into_iter().collect(),
            value,
            timestamp: timestamp.map(|milliseconds| f64::from(milliseconds) / 1_000.0),
            exemplar: None,
        };
        (line, owned)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_however_it_is_cut(lines in proptest::collection::vec(sample(), 0..6), size in 1_usize..40) {
        let exposition: String = lines.iter().map(|(line, _)| line.as_str()).collect();
        let pieces: Vec<_> = exposition.as_bytes().chunks(size).collect();
        let read = read_in(Format::Text, &pieces);
        prop_assert_eq!(&read.problems, &[]);
        let expected: Vec<_> = lines.into_iter().map(|(_, sample)| sample).collect();
        prop_assert_eq!(read.samples, expected);
    }

    #[test]
    fn anything_ends_and_reads_the_same_in_pieces(exposition in "([a#{}\"\\\\=, \n0-9.]|TYPE|HELP|# EOF|counter){0,80}", size in 1_usize..9, open: bool) {
        let format = if open { Format::OpenMetrics } else { Format::Text };
        let whole = read_in(format, &[exposition.as_bytes()]);
        let pieces: Vec<_> = exposition.as_bytes().chunks(size).collect();
        prop_assert_eq!(whole, read_in(format, &pieces));
    }
}
