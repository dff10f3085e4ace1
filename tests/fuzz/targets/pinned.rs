//! Pinned state from another build or another party: it is continued or refused, and nothing else. Neither does it end
//! the observer, nor fill its memory, nor reach a line of output as anything but labels' values.
//!
//! Input: a byte that selects a part, then that part.
#![no_main]

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use libfuzzer_sys::fuzz_target;
use observer::{
    collect::{
        KernelReading, Reading, SeriesReading,
        exposition::{self, Event, Parser},
    },
    discovery::{ProcessId, Workload},
    emit::{
        prometheus::{self, Format},
        selection::Selection,
    },
    model::{Inputs, Model, SelfMetrics, aggregate::DEFAULT_RETENTION},
    persist::{
        btf::Types,
        carry_over::CarriedOver,
        field_offsets::FieldOffsets,
        state::PersistedState,
        state_map::paged_text::{PAGE, Page, PagedText, Pages},
    },
};
use observer_common::health::Counter;

/// Longest description of a type, with room for what was begun when the limit was reached.
const MAX_RECORD_BYTES: usize = 96 << 10;

fuzz_target!(|input: &[u8]| {
    let Some((&which, bytes)) = input.split_first() else { return };
    match which % 5 {
        0 => pages(bytes),
        1 => memory(bytes),
        2 => shape(bytes),
        3 => past(bytes),
        _ => types(bytes),
    }
});

/// Pages in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kept(BTreeMap<u64, Page>);

impl Pages for &mut Kept {
    fn get(&self, key: u64) -> io::Result<Option<Page>> {
        Ok(self.0.get(&key).copied())
    }

    fn set(&mut self, key: u64, page: &Page) -> io::Result<()> {
        self.0.insert(key, *page);
        Ok(())
    }

    fn remove(&mut self, key: u64) -> io::Result<()> {
        self.0.remove(&key);
        Ok(())
    }

    fn keys(&self) -> io::Result<Vec<u64>> {
        Ok(self.0.keys().copied().collect())
    }
}

/// Checks a written text with changed bytes: page, offset, value.
fn pages(bytes: &[u8]) {
    let [length, changes @ ..] = bytes else { return };
    let mut kept = Kept::default();
    let written = vec![b'x'; 100 * usize::from(*length)];
    let (mut text, none) = PagedText::open(&mut kept).expect("no page");
    assert_eq!(none, None);
    text.write(|page| page.write_all(&written)).expect("memory");
    for change in changes.chunks_exact(4) {
        let count = kept.0.len();
        let page = kept.0.values_mut().nth(usize::from(change[0]) % count).expect("a page");
        page[usize::from(u16::from_le_bytes([change[1], change[2]])) % PAGE] = change[3];
    }
    let changed = kept.clone();
    match PagedText::open(&mut kept) {
        Err(_) => assert_eq!(kept, changed, "what cannot be read is left as it is"),
        Ok((mut text, read)) => {
            let read = read.expect("there is a head");
            assert!(read.len() <= PAGE * changed.0.len());
            assert!(!changes.is_empty() || read == written);
            text.write(|page| page.write_all(&read)).expect("memory");
            let (_, again) = PagedText::open(&mut kept).expect("just written");
            assert_eq!(again, Some(read));
        }
    }
}

/// Checks the persisted state: written again it is equal, and whatever it contains, the exposition can
/// be read.
fn memory(bytes: &[u8]) {
    let Ok(mut memory) = PersistedState::decode(bytes) else { return };
    let mut text = Vec::new();
    memory.write(&mut text).expect("memory");
    let again = PersistedState::decode(&text).expect("just written");
    assert_eq!(again.registry, memory.registry);
    assert_eq!(again.kernel, memory.kernel);
    let process = ProcessId { pid: 1, start_time: 1 };
    let number = memory.registry.assign(process, &Workload::default(), None, Path::new("/"));
    assert_eq!(memory.registry.assign(process, &Workload::default(), None, Path::new("/")), number);
    memory.registry.retain(&[process].into());
    // So early that nothing has been idle for long, and all that was exposed still is.
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
    if let Some(model) = memory.model.take().and_then(|model| Model::restore(at, DEFAULT_RETENTION, model)) {
        expose(model, at);
    }
}

fn expose(mut model: Model, at: SystemTime) {
    let series = [SeriesReading::empty(observer_common::SeriesKey::default())];
    let kernel = KernelReading { series: series.into(), ..KernelReading::default() };
    let reading = Reading {
        at,
        steady: Duration::ZERO,
        kernel: Some(kernel),
        processes: Vec::new(),
        scrapes: Vec::new(),
        outcomes: Vec::new(),
    };
    let snapshot = model.update(Inputs {
        reading: &reading,
        running: &[],
        ended: &[],
        components: &[],
        peers: &Default::default(),
        own: &SelfMetrics::default(),
        closes_interval: true,
    });
    let mut each = |event: Event<'_>| {
        if let Event::Problem(problem) = event {
            panic!("a line cannot be read: {problem:?}");
        }
    };
    let mut parser = Parser::new(exposition::Format::OpenMetrics);
    let selection = Selection::of([("family".into(), "istio_*".into())].into_iter());
    prometheus::Exposition::of(snapshot, Format::OpenMetrics, selection)
        .for_each(|piece| parser.feed(&piece, &mut each));
    parser.finish(&mut each);
}

/// Parses the field offsets of another build's maps, and a value of them after a zero byte.
fn shape(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let Ok(shape) = serde_json::from_slice::<FieldOffsets>(parts.next().unwrap_or_default()) else { return };
    let value = parts.next().unwrap_or_default();
    let _ = (shape.unknown_counts(), shape.values(value));
    if shape.incompatibility().is_none() {
        assert!(shape.key(&vec![0xff; shape.key_size]).is_some(), "no incompatibility, and no key");
    }
}

/// Parses the carried-over counts of such maps.
fn past(bytes: &[u8]) {
    let Ok(past) = serde_json::from_slice::<CarriedOver>(bytes) else { return };
    let _: Vec<u64> = Counter::ALL.iter().map(|counter| past.health(*counter)).collect();
    for key in past.keys() {
        let mut now = SeriesReading { opened: u64::MAX, ..SeriesReading::empty(*key) };
        past.add_to(&mut now);
        assert_eq!(now.opened, u64::MAX, "a total went back");
    }
}

/// Types of an object.
fn types(section: &[u8]) {
    let Some(types) = Types::parse(section) else { return };
    for id in 0..8 {
        assert!(types.describe(id).is_none_or(|text| text.len() <= MAX_RECORD_BYTES + section.len()));
    }
}
