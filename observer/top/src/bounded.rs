//! Lists and objects of a document, of which a number of elements is kept: a short text must not become much memory.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::clean::Clean;

/// Reads a list; elements beyond the `MAX`th are skipped.
pub(crate) fn list<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while list.len() < MAX {
                let Some(element) = elements.next_element()? else { return Ok(list) };
                list.push(element);
            }
            while elements.next_element::<IgnoredAny>()?.is_some() {}
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

/// Reads an object whose keys are no names of fields; members beyond the `MAX`th are skipped.
pub(crate) fn map<'de, D, T, const MAX: usize>(deserializer: D) -> Result<BTreeMap<Clean, T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Members<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Members<T, MAX> {
        type Value = BTreeMap<Clean, T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<BTreeMap<Clean, T>, A::Error> {
            let mut map = BTreeMap::new();
            while map.len() < MAX {
                let Some((key, value)) = members.next_entry()? else { return Ok(map) };
                map.insert(key, value);
            }
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(map)
        }
    }

    deserializer.deserialize_map(Members::<T, MAX>(PhantomData))
}
