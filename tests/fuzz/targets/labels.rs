//! What a sidecar says of itself, in every output: it chooses values of labels and nothing else, no line, no name, no figure.
//!
//! Input: an environment as in `/proc/PID/environ`.
#![no_main]

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use libfuzzer_sys::fuzz_target;
use observer::{
    collect::{
        HistogramReading, KernelReading, Reading, SeriesReading,
        exposition::{self, Event, Parser},
    },
    discovery::{
        ProcessId, Role, Sidecar, Workload,
        proc_files::{Executable, environment},
        process::{Facts, identity, wanted},
    },
    emit::{
        Encoder,
        prometheus::{Format, Page},
        selection::Selection,
        wavefront::{Lines, Names, Options},
    },
    model::{Inputs, Model, Own, Snapshot, labels::Peers},
};
use observer_ebpf::{Endpoint, GRPC_NONE, LEG_SOURCE, PROTOCOL_HTTP, PROTOCOL_TCP, SeriesKey};

const FORMATS: [(Format, exposition::Format); 2] =
    [(Format::Text, exposition::Format::Text), (Format::OpenMetrics, exposition::Format::OpenMetrics)];
const KINDS: [Names; 2] = [Names::Documented, Names::Collector];

/// What a sidecar that says nothing has in every output.
static PLAIN: LazyLock<([Vec<Sample>; 2], [u64; 2])> = LazyLock::new(|| {
    let plain = snapshot(Workload::default());
    (FORMATS.map(|(format, syntax)| samples(&plain, format, syntax)), KINDS.map(|kind| lines(&plain, kind)))
});

fuzz_target!(|input: &[u8]| {
    let workload = workload(input);
    let theirs = snapshot(workload.clone());
    for ((format, syntax), plain) in FORMATS.into_iter().zip(&PLAIN.0) {
        let ours = samples(&theirs, format, syntax);
        assert_eq!(names(&ours), names(plain), "{workload:?}");
        for text in workload.namespace.iter().chain(&workload.name) {
            let is_said = ours.iter().flat_map(|(_, labels)| labels).any(|(_, value)| value == text);
            assert!(is_said, "{text:?} is not there as it was given");
        }
    }
    assert_eq!(KINDS.map(|kind| lines(&theirs, kind)), PLAIN.1, "{workload:?}");
});

fn workload(environ: &[u8]) -> Workload {
    let facts = Facts {
        process: ProcessId { pid: 1, start_time: 1 },
        executable: Executable { name: "envoy".to_owned(), path: None },
        environment: Some(environment(environ, wanted)),
        node_type: None,
        listening: None,
        cgroup: "/".to_owned(),
    };
    identity(&facts, None, || None).0
}

/// A sidecar of this workload that has made a request and a connection.
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
        companions: Vec::new(),
        workload: Arc::new(workload),
    };
    let key = SeriesKey {
        sidecar: 1,
        destination: Endpoint { address: [9; 16], port: 80, padding: 0 },
        status: 200,
        grpc_status: GRPC_NONE,
        leg: LEG_SOURCE,
        protocol: PROTOCOL_HTTP,
        ..SeriesKey::default()
    };
    let mut histogram = HistogramReading { sum: 7, ..HistogramReading::default() };
    histogram.buckets[3] = 1;
    let http = SeriesReading {
        key,
        histograms: [histogram.clone(), histogram.clone(), histogram],
        opened: 0,
        closed: 0,
        received: 0,
        sent: 0,
        messages: [0; 2],
    };
    let tcp = SeriesReading {
        key: SeriesKey { protocol: PROTOCOL_TCP, status: 0, ..key },
        histograms: Default::default(),
        opened: 1,
        received: 5,
        ..http.clone()
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let kernel = KernelReading { series: vec![http, tcp], ..KernelReading::default() };
    let reading =
        Reading { at, kernel: Some(kernel), processes: Vec::new(), control_plane: Vec::new(), outcomes: Vec::new() };
    Model::new(at, Duration::from_secs(60)).update(Inputs {
        reading: &reading,
        running: &[Arc::new(sidecar)],
        ended: &[],
        components: &[],
        peers: &Arc::new(Peers::default()),
        own: &Own::default(),
        closes_interval: true,
    })
}

type Sample = (String, Vec<(String, String)>);

/// What a scraper reads.
fn samples(snapshot: &Arc<Snapshot>, format: Format, syntax: exposition::Format) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut each = |event: Event<'_>| match event {
        Event::Sample(sample) => {
            let labels = sample.labels.iter();
            let labels = labels.map(|(name, value)| (name.plain().into_owned(), value.plain().into_owned()));
            samples.push((format!("{} {}", sample.name, sample.value), labels.collect()));
        }
        Event::Problem(problem) => panic!("a line cannot be read: {problem:?}"),
        _ => {}
    };
    let mut parser = Parser::new(syntax);
    // The others have no label of a sidecar's choice.
    let selection = Selection::of([("family".into(), "istio_*".into())].into_iter());
    Page::of(snapshot.clone(), format, selection).for_each(|piece| parser.feed(&piece, &mut each));
    parser.finish(&mut each);
    samples
}

/// All but the labels' values.
fn names(samples: &[Sample]) -> Vec<(&str, Vec<&str>)> {
    samples.iter().map(|(name, labels)| (&**name, labels.iter().map(|(name, _)| &**name).collect())).collect()
}

/// How many points a proxy gets or would get; those that break its limits are counted instead.
fn lines(snapshot: &Arc<Snapshot>, names: Names) -> u64 {
    let mut encoder = Lines::new(Options { names, ..Options::default() }, "node").expect("a name");
    let mut points = 0;
    for batch in encoder.encode(snapshot.clone()) {
        let text = std::str::from_utf8(&batch.text).expect("text");
        assert_eq!(text.split_terminator('\n').count() as u64, batch.points);
        for line in text.lines() {
            assert!(line.starts_with('"') && line.contains(" source=\"node\""), "{line:?} is no point");
        }
        points += batch.points;
    }
    points + encoder.rejected().into_iter().map(|(_, count)| count).sum::<u64>()
}
