//! Field offsets of keys and values in the maps of a layout, so that another build can read them.

use std::{collections::BTreeMap, mem::offset_of};

use observer_common::{
    Caller, CallerId, Endpoint, GRPC_NONE, GRPC_UNKNOWN, Histogram, Leg, PortKey, Protocol, Security, Series,
    SeriesKey,
    health::Counter,
    histogram::{self, BUCKETS},
    names,
};
use serde::{Deserialize, Serialize};

/// Name of the 64-bit gRPC status. `grpc_status` of earlier layouts has 16 bits; its largest value means none.
const GRPC_STATUS: &str = "grpc_status_64";
/// An unknown 16-bit gRPC status.
const SHORT_UNKNOWN: u16 = u16::MAX - 1;
const HISTOGRAMS: usize = 3;
/// Values of one histogram.
const HISTOGRAM: usize = BUCKETS + 1;
/// Values outside the histograms, with their offsets in [`Series`].
const COUNTS: [(&str, usize); 6] = [
    ("opened", offset_of!(Series, opened)),
    ("closed", offset_of!(Series, closed)),
    ("received", offset_of!(Series, received)),
    ("sent", offset_of!(Series, sent)),
    ("request_messages", offset_of!(Series, messages)),
    ("response_messages", offset_of!(Series, messages) + size_of::<u64>()),
];
/// Upper bound for keys and values of any map.
const MAX_BYTES: usize = 1 << 16;
/// Values of a series: the buckets and the sum of each histogram, then [`COUNTS`].
pub(super) const VALUES: usize = HISTOGRAMS * HISTOGRAM + COUNTS.len();

/// Field offsets by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldOffsets {
    /// Bytes of a key.
    pub key_size: usize,
    pub(super) value_size: usize,
    /// Fields of the key.
    key: BTreeMap<String, usize>,
    /// Values of a series.
    counts: BTreeMap<String, usize>,
    /// Offsets of the buckets and of the sum of each histogram.
    histograms: Vec<(usize, usize)>,
    bounds: Vec<u64>,
    /// Health counters, in the order of their map.
    pub(super) counters: Vec<String>,
    /// Sizes of key and value and offsets of their fields, of the maps whose entries are carried over as they are.
    #[serde(default)]
    maps: BTreeMap<String, Vec<usize>>,
}

impl Default for FieldOffsets {
    /// Returns this build's offsets.
    fn default() -> Self {
        let named = |fields: &[(&str, usize)]| fields.iter().map(|&(name, at)| (name.to_owned(), at)).collect();
        let destination = offset_of!(SeriesKey, destination);
        let histogram = |index: usize| {
            let begin = offset_of!(Series, histograms) + index * size_of::<Histogram>();
            (begin + offset_of!(Histogram, buckets), begin + offset_of!(Histogram, sum))
        };
        Self {
            key_size: size_of::<SeriesKey>(),
            value_size: size_of::<Series>(),
            key: named(&[
                ("sidecar", offset_of!(SeriesKey, sidecar)),
                ("address", destination + offset_of!(Endpoint, address)),
                ("port", destination + offset_of!(Endpoint, port)),
                ("status", offset_of!(SeriesKey, status)),
                (GRPC_STATUS, offset_of!(SeriesKey, grpc_status)),
                ("leg", offset_of!(SeriesKey, leg)),
                ("protocol", offset_of!(SeriesKey, protocol)),
                ("security", offset_of!(SeriesKey, security)),
                ("caller", offset_of!(SeriesKey, caller)),
            ]),
            counts: named(&COUNTS),
            histograms: (0..HISTOGRAMS).map(histogram).collect(),
            bounds: histogram::BOUNDS.to_vec(),
            counters: counter_names(),
            maps: BTreeMap::from([
                (
                    names::CALLERS.to_owned(),
                    vec![
                        size_of::<u64>(),
                        size_of::<Caller>(),
                        offset_of!(Caller, id),
                        offset_of!(Caller, kind),
                        offset_of!(Caller, length),
                        offset_of!(Caller, text),
                    ],
                ),
                (
                    names::PORT_PROTOCOLS.to_owned(),
                    vec![
                        size_of::<PortKey>(),
                        size_of::<u32>(),
                        offset_of!(PortKey, sidecar),
                        offset_of!(PortKey, port),
                        offset_of!(PortKey, address),
                    ],
                ),
            ]),
        }
    }
}

/// Returns the names of the health counters in the order of their map.
pub(super) fn counter_names() -> Vec<String> {
    Counter::ALL.iter().map(|&counter| counter_name(counter)).collect()
}

pub(super) fn counter_name(counter: Counter) -> String {
    format!("{} {}", counter.group().persisted_name(), counter.label())
}

impl FieldOffsets {
    /// Decodes a key.
    #[must_use]
    pub fn key(&self, bytes: &[u8]) -> Option<SeriesKey> {
        let at = |name: &str, size: usize| bytes.get(*self.key.get(name)?..)?.get(..size);
        let byte = |name| at(name, 1)?.first().copied();
        let short = |name| Some(u16::from_ne_bytes(at(name, 2)?.try_into().ok()?));
        Some(SeriesKey {
            sidecar: u32::from_ne_bytes(at("sidecar", 4)?.try_into().ok()?),
            destination: Endpoint { address: at("address", 16)?.try_into().ok()?, port: short("port")?, padding: 0 },
            status: short("status")?,
            grpc_status: match at(GRPC_STATUS, 8) {
                Some(bytes) => u64::from_ne_bytes(bytes.try_into().ok()?),
                None => match short("grpc_status")? {
                    u16::MAX => GRPC_NONE,
                    SHORT_UNKNOWN => GRPC_UNKNOWN,
                    status => status.into(),
                },
            },
            leg: Leg(byte("leg")?),
            protocol: Protocol(byte("protocol")?),
            security: Security(byte("security")?),
            padding: 0,
            caller: short("caller").map_or(CallerId::NONE, CallerId),
        })
    }

    /// Returns whether the entries of a map are laid out as in this build.
    pub(super) fn has_own(&self, map: &str) -> bool {
        self.maps.get(map).is_some_and(|offsets| Self::default().maps.get(map) == Some(offsets))
    }

    /// Returns why this build cannot read the maps, if it cannot.
    #[must_use]
    pub fn incompatibility(&self) -> Option<&'static str> {
        if self.key_size.max(self.value_size) > MAX_BYTES {
            return Some("its keys or values are too large");
        }
        if self.bounds != histogram::BOUNDS {
            return Some("its histograms have other buckets");
        }
        self.key(&vec![0; self.key_size]).is_none().then_some("its series have other keys")
    }

    /// Returns the names of values that this build does not know.
    #[must_use]
    pub fn unknown_counts(&self) -> Vec<&str> {
        let names = self.counts.keys().map(String::as_str);
        names.filter(|name| !COUNTS.iter().any(|(known, _)| known == name)).collect()
    }

    /// Decodes the values of a series; a value that the layout lacks is 0.
    #[must_use]
    pub fn values(&self, bytes: &[u8]) -> Box<[u64]> {
        let at = |at: usize| bytes.get(at..)?.first_chunk().map(|field| u64::from_ne_bytes(*field));
        let mut values = vec![0; VALUES].into_boxed_slice();
        for (histogram, &(buckets, sum)) in values.chunks_mut(HISTOGRAM).zip(&self.histograms).take(HISTOGRAMS) {
            let offsets = (0..BUCKETS).map(|bucket| buckets.checked_add(8 * bucket)).chain([Some(sum)]);
            for (value, offset) in histogram.iter_mut().zip(offsets) {
                *value = offset.and_then(at).unwrap_or(0);
            }
        }
        for (count, (name, _)) in values.iter_mut().skip(HISTOGRAMS * HISTOGRAM).zip(COUNTS) {
            *count = self.counts.get(name).and_then(|&offset| at(offset)).unwrap_or(0);
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A series as the kernel has it: word `n` is `n + 1`.
    fn series() -> Vec<u8> {
        (0..size_of::<Series>() / 8).flat_map(|word| (word as u64 + 1).to_ne_bytes()).collect()
    }

    #[test]
    fn own_keys_and_values_are_found() {
        let destination = Endpoint { address: [9; 16], port: 80, padding: 0 };
        // No field is 0, so that one that is not read is noticed.
        let key = SeriesKey {
            sidecar: 3,
            destination,
            grpc_status: 14,
            status: 200,
            leg: Leg::DESTINATION,
            protocol: Protocol::HTTP,
            security: Security::MUTUAL_TLS,
            padding: 0,
            caller: CallerId(7),
        };
        let SeriesKey { sidecar, destination: _, grpc_status, status, leg, protocol, security, padding: _, caller } =
            key;
        let mut bytes = [0; size_of::<SeriesKey>()];
        let mut put = |at: usize, word: &[u8]| bytes[at..][..word.len()].copy_from_slice(word);
        put(0, &sidecar.to_ne_bytes());
        put(4, &destination.address);
        put(20, &destination.port.to_ne_bytes());
        put(24, &grpc_status.to_ne_bytes());
        put(32, &status.to_ne_bytes());
        put(34, &[leg.0, protocol.0, security.0]);
        put(38, &caller.0.to_ne_bytes());
        assert_eq!(FieldOffsets::default().key(&bytes), Some(key));
        let values = FieldOffsets::default().values(&series());
        let word = |offset: usize| offset as u64 / 8 + 1;
        for (index, histogram) in values.chunks(HISTOGRAM).take(HISTOGRAMS).enumerate() {
            let begin = offset_of!(Series, histograms) + index * size_of::<Histogram>();
            assert_eq!(histogram[0], word(begin));
            assert_eq!(histogram[BUCKETS - 1], word(begin + 8 * (BUCKETS - 1)));
            assert_eq!(histogram[BUCKETS], word(begin + offset_of!(Histogram, sum)));
        }
        let counts = COUNTS.map(|(_, at)| word(at));
        assert_eq!(values[HISTOGRAMS * HISTOGRAM..], counts);
    }

    #[test]
    fn a_short_grpc_status_of_an_earlier_build_means_the_same() {
        let mut offsets = FieldOffsets::default();
        let at = offsets.key.remove(GRPC_STATUS).expect("it is there");
        offsets.key.insert("grpc_status".to_owned(), at);
        for (short, status) in [(0, 0), (16, 16), (u16::MAX, GRPC_NONE), (SHORT_UNKNOWN, GRPC_UNKNOWN)] {
            let mut bytes = [0; size_of::<SeriesKey>()];
            bytes[at..at + 2].copy_from_slice(&short.to_ne_bytes());
            assert_eq!(offsets.key(&bytes).map(|key| key.grpc_status), Some(status));
        }
    }

    #[test]
    fn another_layout_is_read_by_names() {
        let offsets = FieldOffsets {
            counts: BTreeMap::from([("sent".to_owned(), 8), ("of_later".to_owned(), 16)]),
            histograms: vec![(40, 24), (0, 0), (0, 0)],
            ..FieldOffsets::default()
        };
        let values = offsets.values(&series());
        assert_eq!(values[HISTOGRAMS * HISTOGRAM + 3], 2);
        assert_eq!(values[HISTOGRAMS * HISTOGRAM], 0, "not in that layout");
        assert_eq!((values[0], values[BUCKETS]), (6, 4));
        assert_eq!(offsets.unknown_counts(), ["of_later"]);
        assert!(FieldOffsets::default().unknown_counts().is_empty());
        assert_eq!(offsets.incompatibility(), None);
        let others =
            [FieldOffsets { bounds: vec![1, 2], ..offsets.clone() }, FieldOffsets { key: BTreeMap::new(), ..offsets }];
        assert!(others.iter().all(|other| other.incompatibility().is_some()));
    }

    #[test]
    fn sizes_and_places_that_cannot_be_are_neither_taken_nor_followed() {
        for size in [MAX_BYTES + 1, usize::MAX] {
            assert!(FieldOffsets { key_size: size, ..FieldOffsets::default() }.incompatibility().is_some());
            assert!(FieldOffsets { value_size: size, ..FieldOffsets::default() }.incompatibility().is_some());
        }
        let offsets = FieldOffsets { histograms: vec![(usize::MAX, usize::MAX)], ..FieldOffsets::default() };
        assert!(offsets.values(&series())[..HISTOGRAM].iter().all(|value| *value == 0));
    }
}
