//! A sidecar's own description in every output: it determines label values only, never lines, names or values.
//!
//! Input: a byte that selects the output, then an environment as in `/proc/PID/environ`. One output per input, and one
//! family of each kind in it: every family has the same labels, and to write and read them all is a hundred times the
//! work.
#![no_main]

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use libfuzzer_sys::fuzz_target;
use observer::{
    collect::{
        KernelReading, Reading, SeriesReading,
        exposition::{self, Event, Parser},
    },
    discovery::{
        ProcessId, Role, Sidecar, Workload,
        proc_files::{Executable, environment},
        process::{ProcessFacts, identity, max_value_bytes},
    },
    emit::{
        Encoder,
        prometheus::{Exposition, Format},
        selection::Selection,
        wavefront::{Names, Options, WavefrontEncoder, filter::Filters},
    },
    model::{Inputs, Model, SelfMetrics, Snapshot, workload_index::StaticPeers},
};
use observer_common::{Endpoint, GRPC_NONE, Leg, Protocol, SeriesKey};

/// An output of a snapshot, and its parser.
#[derive(Clone, Copy)]
enum Output {
    Page(Format, exposition::Format),
    Lines(Names),
}

const OUTPUTS: [Output; 4] = [
    Output::Page(Format::Text, exposition::Format::Text),
    Output::Page(Format::OpenMetrics, exposition::Format::OpenMetrics),
    Output::Lines(Names::Documented),
    Output::Lines(Names::Collector),
];
/// One family of HTTP and one of TCP, by their names in each output.
const FAMILIES: [&str; 2] = ["istio_requests_total", "istio_tcp_connections_opened_total"];
static METRICS: LazyLock<Filters> = LazyLock::new(|| {
    let globs = ["istio.requests.total*", "istio.tcp.connections.opened*"].map(|glob| glob.parse().expect("a glob"));
    Filters { metric_allow: globs.into(), ..Filters::default() }
});

/// Output of a sidecar without a description.
static PLAIN: LazyLock<[Said; 4]> = LazyLock::new(|| OUTPUTS.map(|output| said(&Workload::default(), output)));

/// All but the values of labels.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// Points that are written, or rejected because of the sidecar's description.
    points: u64,
    /// Of their names, values and names of labels, where every label is always there.
    digest: u64,
}

fuzz_target!(|input: &[u8]| {
    let Some((&first, environ)) = input.split_first() else { return };
    let output = usize::from(first & 3);
    let workload = workload(environ);
    let said = said(&workload, OUTPUTS[output]);
    assert_eq!(said, PLAIN[output], "{workload:?}");
    assert!(said.points > 0);
});

fn said(workload: &Workload, output: Output) -> Said {
    let snapshot = snapshot(workload.clone());
    match output {
        Output::Page(format, syntax) => page(workload, &snapshot, format, syntax),
        Output::Lines(names) => lines(&snapshot, names),
    }
}

fn workload(environ: &[u8]) -> Workload {
    let facts = ProcessFacts {
        process: ProcessId { pid: 1, start_time: 1 },
        executable: Executable { name: "envoy".to_owned(), path: None },
        environment: Some(environment(environ, max_value_bytes)),
        node_type: None,
        bootstrap: None,
        agent: None,
        listening: None,
        cgroup: "/".to_owned(),
    };
    identity(&facts, None, || None).0
}

/// Returns a sidecar of this workload that has made a request and a connection.
fn snapshot(workload: Workload) -> Arc<Snapshot> {
    let sidecar = Sidecar {
        id: 1,
        process: ProcessId { pid: 1, start_time: 1 },
        role: Role::Sidecar,
        evidence: String::new(),
        cgroup: "/".into(),
        cgroup_id: 1,
        netns_inode: 1,
        addresses: Vec::new(),
        coresidents: Vec::new(),
        is_cgroup_shared: false,
        workload: Arc::new(workload),
    };
    let key = SeriesKey {
        sidecar: 1,
        destination: Endpoint { address: [9; 16], port: 80, padding: 0 },
        status: 200,
        grpc_status: GRPC_NONE,
        leg: Leg::SOURCE,
        protocol: Protocol::HTTP,
        ..SeriesKey::default()
    };
    let mut http = SeriesReading::empty(key);
    http.histograms[0].buckets[3] = 1;
    let tcp = SeriesKey { protocol: Protocol::TCP, status: 0, ..key };
    let tcp = SeriesReading { opened: 1, ..SeriesReading::empty(tcp) };
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let kernel = KernelReading { series: vec![http, tcp], ..KernelReading::default() };
    let reading = Reading {
        at,
        steady: Duration::ZERO,
        kernel: Some(kernel),
        processes: Vec::new(),
        scrapes: Vec::new(),
        outcomes: Vec::new(),
    };
    Model::new(at, Duration::from_secs(60)).update(Inputs {
        reading: &reading,
        running: &[Arc::new(sidecar)],
        ended: &[],
        components: &[],
        peers: &Arc::new(StaticPeers::default()),
        own: &SelfMetrics::default(),
        closes_interval: true,
    })
}

/// Renders an exposition.
fn page(workload: &Workload, snapshot: &Arc<Snapshot>, format: Format, syntax: exposition::Format) -> Said {
    let (mut points, mut digest) = (0, DefaultHasher::new());
    let said_of_itself = [("source_workload", &workload.name), ("source_workload_namespace", &workload.namespace)];
    let mut each = |event: Event<'_>| match event {
        Event::Sample(sample) => {
            points += 1;
            (sample.name, sample.value.to_bits()).hash(&mut digest);
            for (name, value) in sample.labels.iter() {
                let (name, value) = (name.plain(), value.plain());
                name.hash(&mut digest);
                if let Some((_, own)) = said_of_itself.iter().find(|(label, _)| *label == name) {
                    assert_eq!(value, own.as_deref().unwrap_or("unknown"), "{name} is not as it was given");
                }
            }
        }
        Event::Problem(problem) => panic!("a line cannot be read: {problem:?}"),
        _ => {}
    };
    let mut parser = Parser::new(syntax);
    let selection = Selection::of(FAMILIES.into_iter().map(|family| ("name[]".into(), family.into())));
    Exposition::of(snapshot.clone(), format, selection).for_each(|piece| parser.feed(&piece, &mut each));
    parser.finish(&mut each);
    Said { points, digest: digest.finish() }
}

/// Renders Wavefront lines; points that break the limits are counted instead.
fn lines(snapshot: &Arc<Snapshot>, names: Names) -> Said {
    let mut encoder = WavefrontEncoder::new(Options { names, filters: METRICS.clone(), ..Options::default() }, "node")
        .expect("a name");
    let mut points = 0;
    for batch in encoder.encode(snapshot.clone()) {
        let text = std::str::from_utf8(&batch.body).expect("text");
        assert_eq!(text.split_terminator('\n').count() as u64, batch.points);
        for line in text.lines() {
            assert!(is_point(line), "{line:?} is no point");
        }
        points += batch.points;
    }
    // Empty values are not tags, so that the identity of series depends on the description, but not their number.
    Said { points: points + encoder.rejected().into_iter().map(|(_, count)| count).sum::<u64>(), digest: 0 }
}

/// `"name" value seconds source="node" "key"="value" …`, each key once, and nothing after the last.
fn is_point(line: &str) -> bool {
    let Some((head, mut tags)) = line.split_once(" source=\"node\"") else { return false };
    let mut words = head.split(' ');
    let name = words.next().and_then(|name| name.strip_prefix('"')?.strip_suffix('"'));
    let is_number = |word: Option<&str>| word.is_some_and(|word| word.parse::<f64>().is_ok());
    if name.is_none_or(|name| !is_plain(name)) || ![(); 2].iter().all(|()| is_number(words.next())) {
        return false;
    }
    let mut keys = BTreeSet::new();
    while !tags.is_empty() {
        let Some((key, value)) = tags.strip_prefix(" \"").and_then(|tags| tags.split_once("\"=\"")) else {
            return false;
        };
        let Some(end) = closing_quote(value) else { return false };
        if !is_plain(key) || !keys.insert(key) {
            return false;
        }
        tags = &value[end + 1..];
    }
    words.next().is_none()
}

fn is_plain(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Returns the position of the first quote without a backslash before it.
fn closing_quote(value: &str) -> Option<usize> {
    let bytes = value.as_bytes();
    (0..bytes.len()).find(|&at| bytes[at] == b'"' && (at == 0 || bytes[at - 1] != b'\\'))
}
