//! The layout of the maps and its hash: a build reuses pinned maps only if its own have the same layout.

use std::collections::BTreeMap;

use aya_obj::{Map, Object};
use observer_common::{ABI_VERSION, histogram, names};
use serde::Serialize;

use super::{btf::Types, field_offsets::counter_names};

/// Everything that distinguishes layouts. Field names are hashed too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Abi {
    maps: BTreeMap<String, MapAbi>,
    programs: Vec<&'static str>,
    counters: Vec<String>,
    bounds: Vec<u64>,
    meaning: u32,
}

/// One map's definition, and the types in it as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MapAbi {
    kind: u32,
    flags: u32,
    sizes: [u32; 3],
    key: String,
    value: String,
}

impl Abi {
    /// Returns the layout of an object, with `sizes` as the number of entries of some maps; `None` if its types cannot be
    /// read.
    #[must_use]
    pub fn of(object: &Object, sizes: &[(&str, u32)]) -> Option<Self> {
        let section = object.btf.as_ref()?.to_bytes();
        let types = Types::parse(&section)?;
        let maps = names::MAPS.iter().map(|&name| {
            let map = object.maps.get(name)?;
            let entries = sizes.iter().find(|(sized, _)| *sized == name).map_or(map.max_entries(), |&(_, size)| size);
            let Map::Btf(definition) = map else { return None };
            let abi = MapAbi {
                kind: map.map_type(),
                flags: map.map_flags(),
                sizes: [map.key_size(), map.value_size(), entries],
                key: types.describe(definition.def.btf_key_type_id)?,
                value: types.describe(definition.def.btf_value_type_id)?,
            };
            Some((name.to_owned(), abi))
        });
        Some(Self {
            maps: maps.collect::<Option<_>>()?,
            programs: names::PROGRAMS.to_vec(),
            counters: counter_names(),
            bounds: histogram::BOUNDS.to_vec(),
            meaning: ABI_VERSION,
        })
    }

    /// Returns 16 hexadecimal digits.
    #[must_use]
    pub fn hash(&self) -> String {
        // Numbers and strings are always serialisable.
        format!("{:016x}", fnv(&serde_json::to_vec(self).unwrap_or_default()))
    }
}

/// Whether [`Abi::hash`] could have returned it.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// FNV-1a, 64 bits: the same in every build, as the standard library's hashes need not be.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abi() -> Abi {
        let map = MapAbi { kind: 2, flags: 0, sizes: [4, 8, 64], key: "i4".into(), value: "8{a@0:i8;}".into() };
        Abi {
            maps: BTreeMap::from([("ONE".to_owned(), map)]),
            programs: vec!["ingress", "egress"],
            counters: vec!["ok".into(), "late".into()],
            bounds: vec![1, 5],
            meaning: 1,
        }
    }

    #[test]
    fn any_change_gives_another_name() {
        let own = abi();
        let map = |change: fn(&mut MapAbi)| {
            let mut other = abi();
            change(other.maps.get_mut("ONE").unwrap());
            other
        };
        let mut others = vec![
            map(|map| map.kind = 1),
            map(|map| map.flags = 1),
            map(|map| map.sizes[2] = 65),
            map(|map| map.key = "i8".into()),
            map(|map| map.value = "8{b@0:i8;}".into()),
            map(|map| map.value = "16{a@0:i8;}".into()),
            Abi { programs: vec!["egress", "ingress"], ..abi() },
            Abi { counters: vec!["late".into(), "ok".into()], ..abi() },
            Abi { bounds: vec![1, 6], ..abi() },
            Abi { meaning: 2, ..abi() },
            Abi { maps: BTreeMap::new(), ..abi() },
        ];
        assert_eq!(own.hash(), abi().hash());
        assert!(is_hash(&own.hash()));
        for other in ["", "..", "../../../../tmp/ab", "0123456789ABCDEF", "0123456789abcdef0", "0123456789abcde/"] {
            assert!(!is_hash(other), "{other}");
        }
        others.push(own);
        let names: std::collections::BTreeSet<String> = others.iter().map(Abi::hash).collect();
        assert_eq!(names.len(), others.len());
    }
}
